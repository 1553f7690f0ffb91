"""Safe by default: what a cluster started here opens, and to whom."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from tests.listening import Listener, listeners
from tests.processes import descendants


def test_no_http_beyond_loopback(ray_cluster: None) -> None:
    """A cluster started here listens on loopback; of what does not, as where ranks meet, nothing speaks HTTP."""
    found = listeners(descendants(os.getpid()))
    assert any(one.local and _speaks_http(one) for one in found), "its dashboard answers, so the question is understood"
    assert not [one for one in found if not one.local and _speaks_http(one)]


@pytest.mark.parametrize("token", [True, False])
def test_a_driver_is_refused_without_the_token_alone(ray_cluster: None, token: bool) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    program = f"import ray; ray.init(address={address!r}, log_to_driver=False); print(ray.cluster_resources())"
    without = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")} | {"RAY_AUTH_MODE": "disabled"}
    environment = {**os.environ} if token else without
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=90, check=False
    )
    assert (done.returncode == 0) == ("CPU" in done.stdout) == token, done.stderr
    assert ("InvalidAuthToken" in done.stderr) != token, done.stderr


def _speaks_http(listener: Listener) -> bool:
    host = "localhost" if listener.address.is_unspecified else str(listener.address)
    try:
        with socket.create_connection((host, listener.port), timeout=2) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return connection.recv(64).startswith(b"HTTP/1")
    except OSError:
        return False
