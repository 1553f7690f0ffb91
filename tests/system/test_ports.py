"""The ports of Ray that docs/security.md says need the token refuse a call without it from another machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.listening import Listener, listeners, table, unseen
from tests.processes import alive
from tests.system.head import wait_for
from tests.system.machines import GCS, Network, NoNamespaces, network

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]
WORKER = """
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False)
class Idle:
    def up(self): return "up"
idle = ray.remote(Idle).options(num_cpus=0).remote()
print(ray.get(idle.up.remote()), flush=True)
time.sleep(600.0)
"""
# Calls that change nothing, one of each server's; a server answers those of others by UNIMPLEMENTED.
ASK = """
import json, sys, urllib.error, urllib.request, grpc
CALLS = ("ray.rpc.NodeInfoGcsService/GetAllNodeInfo", "ray.rpc.NodeManagerService/GetNodeStats",
         "ray.rpc.ObjectManagerService/FreeObjects", "ray.rpc.CoreWorkerService/GetCoreWorkerStats",
         "ray.rpc.ReporterService/GetTraceback", "ray.rpc.RayletDriver/ClusterInfo")
host, token, *ports = sys.argv[1:]

def called(port, call, metadata):
    with grpc.insecure_channel(f"{host}:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary("/" + call)(b"", metadata=metadata, timeout=10)
            return "OK"
        except grpc.RpcError as error:
            return error.code().name

def fetched(port, headers):
    try:
        request = urllib.request.Request(f"http://{host}:{port}/", headers=headers)
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10).status
    except urllib.error.HTTPError as error:
        return error.code
    except Exception:  # it speaks no HTTP
        return 0

given = {"authorization": f"Bearer {token}"} if token else {}
print(json.dumps({port: [*(called(port, call, list(given.items())) for call in CALLS), fetched(port, given)]
                  for port in ports}))
"""


@pytest.fixture
def net() -> Iterator[Network]:
    try:
        with network() as found:
            yield found
            left = found.processes()
    except NoNamespaces as reason:
        pytest.skip(str(reason))
    wait_for(lambda: not alive(left), "the machine's processes to end", 30.0)


def test_ports_that_need_the_token_refuse_another_machine_without_it(net: Network, tmp_path: Path) -> None:
    head = net.head("--num-cpus", "1", "--include-dashboard", "true")
    driver = net.run(head, sys.executable, "-c", WORKER, GCS, output=(said := tmp_path / "said"))
    wait_for(lambda: "up" in said.read_text().splitlines() or driver.poll() is not None, "an actor", 120.0)
    assert driver.poll() is None, said.read_text()

    rows = [row for row in table("On a cluster") if row.who.startswith("Ray") and row.guard.startswith("token")]
    guarded = [
        one
        for one in listeners(head.processes())
        if not one.local and any(row.allows(one, head.address) for row in rows)
    ]
    assert unseen(guarded, rows, head.address) == ["Ray's dashboard and job server, on the head"], "it is on loopback"

    without, given = asked(net, guarded, ""), asked(net, guarded, net.environment["RAY_AUTH_TOKEN"])
    assert not [(one, answer) for one, answer in without.items() if not refuses(answer)]
    assert not [(one, answer) for one, answer in given.items() if not answers(answer)]


def asked(net: Network, ports: Sequence[Listener], token: str) -> dict[str, list[str | int]]:
    """By listener: the codes of gRPC calls, and the HTTP status, as a machine beside the head gets them."""
    words = [net.machines[0].address, token, *(str(one.port) for one in ports)]
    done = subprocess.run(
        [*net.switch.inside, sys.executable, "-c", ASK, *words],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    return {str(one): answers[str(one.port)] for one in ports}


def refuses(answer: list[str | int]) -> bool:
    """Whether it refuses whatever it knows."""
    *codes, status = answer
    return status == 401 or (status == 0 and set(codes) - {"UNIMPLEMENTED"} == {"UNAUTHENTICATED"})


def answers(answer: list[str | int]) -> bool:
    *codes, status = answer
    return status not in (0, 401) or "OK" in codes
