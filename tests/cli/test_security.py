"""Safe by default: what a cluster started here opens, and to whom."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.processes import descendants


def test_no_http_beyond_loopback(ray_cluster: None) -> None:
    """A cluster started here listens on loopback; of what does not, as where ranks meet, nothing speaks HTTP."""
    answering = [port for port in beyond_loopback(os.getpid()) if _speaks_http(port)]
    assert not answering


def test_a_driver_without_the_token_is_refused(ray_cluster: None) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    program = f"import ray; ray.init(address={address!r}, log_to_driver=False); print(ray.cluster_resources())"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")} | {"RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode != 0 and "CPU" not in done.stdout


def beyond_loopback(above: int) -> list[int]:
    """Ports on which the descendants of a process listen beyond loopback. They must listen somewhere."""
    found = _listening(above)
    assert found, "a cluster listens somewhere"
    return [port for address, port in found if not address.startswith("7F") and address != "::1"]


def _listening(above: int) -> list[tuple[str, int]]:
    """(hex address, port) of the TCP sockets that the descendants of a process listen on."""
    inodes = {inode for pid in descendants(above) for inode in _sockets(pid)}
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            address, port = fields[1].split(":")
            if fields[3] == "0A" and fields[9] in inodes:
                found.append((_readable(address), int(port, 16)))
    return found


def _readable(address: str) -> str:
    """/proc shows IPv4 in little-endian hex; a loopback address begins with 7F after turning it round."""
    if len(address) == 8:
        return bytes.fromhex(address)[::-1].hex().upper()
    mapped_loopback = address.startswith("0000000000000000FFFF0000")
    last = bytes.fromhex(address[-8:])[::-1].hex().upper()
    return last if mapped_loopback else ("::1" if address == "0" * 24 + "01000000" else address)


def _sockets(pid: int) -> set[str]:
    try:
        links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return set()
    return {link[8:-1] for link in links if link.startswith("socket:[")}


def _speaks_http(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return connection.recv(64).startswith(b"HTTP/1")
    except OSError:
        return False
