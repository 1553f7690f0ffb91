"""The ports of Ray that docs/security.md says need the token refuse another machine that has none, or a wrong one."""

from __future__ import annotations

import importlib.util
import json
import re
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.listening import Listener, listeners, table, unseen
from tests.processes import alive, title
from tests.system.head import ROOT, wait_for
from tests.system.machines import GCS, Network, NoNamespaces, network

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]
DRIVER = """
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False)
class Member:
    def up(self): return "up"
member = ray.remote(Member).options(num_cpus=0).remote()
print(ray.get(member.up.remote()), flush=True)
time.sleep(600.0)
"""
# Of each server what changes nothing: a server answers the calls of others by UNIMPLEMENTED.
HARMLESS = (
    "ray.rpc.NodeInfoGcsService/GetAllNodeInfo",  # GCS
    "ray.rpc.NodeManagerService/GetSystemConfig",  # raylet
    "ray.rpc.ObjectManagerService/Pull",  # object manager: of no object
    "ray.rpc.CoreWorkerService/NumPendingTasks",  # driver and workers
    "ray.rpc.ReporterService/HealthCheck",  # agent
    "ray.rpc.LogService/ListLogs",
    "ray.rpc.events.EventAggregatorService/AddEvents",  # none
    "opentelemetry.proto.collector.metrics.v1.MetricsService/Export",  # none
    "ray.rpc.RayletDriver/KVList",  # Ray Client
    "GET /api/jobs/",  # dashboard
    "GET /api/version",
    "GET /nodes?view=summary",
    "GET /api/job_agent/jobs/none/logs",  # agent; it has nothing else to read
    "POST /get_runtime_envs_info",  # runtime environment agent
)
SYNC = "ray.rpc.syncer.RaySyncer/StartSync"  # of GCS and raylet
IN_NO_PYTHON = ("ray.rpc.ObjectManagerService/Push", SYNC)
OF_GRPC = (
    "grpc.health.v1.Health/Check",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "grpc.channelz.v1.Channelz/GetServers",
)
# By a word of the command line: what answers without the token, as the page has it.
PUBLIC: dict[str, tuple[str, ...]] = {
    "raylet/raylet": OF_GRPC,
    "gcs_server": OF_GRPC,
    "bin/logratio": OF_GRPC,
    "ray::Member": OF_GRPC,
    "ray/dashboard/dashboard": ("GET /", "GET /favicon.ico", "GET /api/authentication_mode", "GET /api/gcs_healthz"),
    "ray::DashboardAgent": ("GET /api/healthz", "GET /api/local_raylet_healthz"),
    "ray::RuntimeEnvAgent": (),
    "ray.util.client.server": (),
}
PORTS = Counter(dict.fromkeys(PUBLIC, 1) | {"raylet/raylet": 2, "ray::DashboardAgent": 2})
MISSING, WRONG = {"UNAUTHENTICATED", 401}, {"UNAUTHENTICATED", 403}  # how Ray refuses what token
UNSERVED = "UNIMPLEMENTED"
Answers = dict[str, str | int]


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
    ports = guarded_ports(net, tmp_path)
    token, wrong = net.environment["RAY_AUTH_TOKEN"], secrets.token_hex(32)

    without = asked(net, {one: usual(one) for one in ports})
    assert not (open_ := but(refuses, without, MISSING)), open_
    mistaken = asked(net, {one: usual(one) for one in ports}, authorization=f"Bearer {wrong}")
    assert not (open_ := but(refuses, mistaken, WRONG)), open_
    given = asked(net, {one: usual(one) for one in ports}, authorization=f"Bearer {token}")
    assert not (closed := but(serves, given)), closed

    # What would change things without a guard comes once there is known to be one.
    others = asked(net, dict.fromkeys(ports, (*HARMLESS, *every_call())), node_id=secrets.token_hex(28))
    assert not (open_ := but(refuses, others, MISSING)), open_
    gcs_ends(net, [one for one in ports if kind(one) == "gcs_server"])


def guarded_ports(net: Network, folder: Path) -> list[Listener]:
    """Those of a head with a driver and an actor, all that the table has, the dashboard's as KubeRay opens it."""
    head = net.head("--num-cpus", "1", "--include-dashboard", "true", "--dashboard-host", "0.0.0.0")
    # The last word is by which the table knows a driver.
    driver = net.run(head, sys.executable, "-c", DRIVER, GCS, "bin/logratio", output=(said := folder / "said"))
    wait_for(lambda: "up" in said.read_text().splitlines() or driver.poll() is not None, "an actor", 120.0)
    assert driver.poll() is None, said.read_text()

    rows = [row for row in table("On a cluster") if row.guard.startswith("token")]
    rows = [replace(row, where=row.where.partition("KubeRay: ")[2] or row.where) for row in rows]
    found: list[Listener] = []

    def all_there() -> bool:
        """An idle worker, if Ray started one too many, may end while it is asked."""
        reached = [one for one in listeners(head.processes()) if not one.local and "ray::IDLE" not in one.title]
        found[:] = [one for one in reached if any(row.allows(one, head.address) for row in rows)]
        return Counter(map(kind, found)) == PORTS

    wait_for(all_there, "every port", 60.0)
    assert not unseen(found, rows, head.address)
    return found


def kind(one: Listener) -> str:
    return next((word for word in PUBLIC if word in one.title), one.title)


def usual(one: Listener) -> tuple[str, ...]:
    return (*HARMLESS, *PUBLIC[kind(one)])


def asked(net: Network, questions: Mapping[Listener, Sequence[str]], **headers: str) -> dict[Listener, Answers]:
    """What a machine beside the head is answered."""
    by_port = {one.port: some for one, some in questions.items()}
    question = {"host": net.machines[0].address, "questions": by_port, "headers": headers}
    command = [*net.switch.inside, sys.executable, "-m", "tests.system.asking", json.dumps(question)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    return {one: answers[str(one.port)] for one in questions}


def but(holds: Callable[..., bool], found: Mapping[Listener, Answers], *more: set[str | int]) -> str:
    """The ports of which it does not hold: how often they gave each answer, and to what they gave one."""
    wrong = {one: answers for one, answers in found.items() if not holds(one, answers, *more)}
    return "\n".join(
        f"{kind(one)} on {one.port}: {dict(Counter(answers.values()))}, "
        f"{ {question: answer for question, answer in answers.items() if answer not in MISSING | WRONG | {UNSERVED}} }"
        for one, answers in wrong.items()
    )


def refuses(one: Listener, answers: Answers, how: set[str | int]) -> bool:
    """Whether it refuses all that it knows, and answers just what is public."""
    public = {answer for question, answer in answers.items() if question in PUBLIC[kind(one)]}
    others = {answer for question, answer in answers.items() if question not in PUBLIC[kind(one)]}
    return public <= {"OK", 200} and bool(others & how) and others <= how | {UNSERVED}


def serves(one: Listener, answers: Answers) -> bool:
    """Whether it does more than is public: 404 is said behind the guard."""
    others = {answer for question, answer in answers.items() if question not in PUBLIC[kind(one)]}
    return bool(others & {"OK", 200, 404}) and not others & (MISSING | WRONG)


def every_call() -> list[str]:
    """What Ray's Python knows of gRPC services, and the rest."""
    spec = importlib.util.find_spec("ray")
    assert spec and spec.submodule_search_locations
    generated = Path(spec.submodule_search_locations[0]) / "core" / "generated"
    known = {
        call for file in generated.glob("*_pb2_grpc.py") for call in re.findall(r"'/(ray\.[^']+)'", file.read_text())
    }
    assert known
    return [*sorted(known), *IN_NO_PYTHON, *OF_GRPC]


def gcs_ends(net: Network, ports: Sequence[Listener]) -> None:
    """By a call of the syncer without `node_id`, which is read before the token is: so the page says."""
    [gcs] = [pid for pid in net.machines[0].processes() if "/gcs_server" in title(pid)]
    asked(net, dict.fromkeys(ports, (SYNC,)))
    wait_for(lambda: not alive([gcs]), "GCS to end; where Ray has mended this, the page must not say it", 20.0)
