"""Where the ranks of a learner meet: torch's TCPStore, on one address of rank 0 and on no other.

torch would listen on every interface, without a token. A store that is given a bound socket listens there alone. gloo
would listen where the machine's name resolves to, on many machines loopback. It is given the interface that reaches
rank 0.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import torch.distributed as dist

from actors.address import interface_of, own_address

WAITING = 128  # ranks that may connect at once


def join(meeting: tuple[str, int], rank: int, ranks: int, backend: str, patience: timedelta) -> None:
    """Join torch's process group of a backend that meets at (host, port); `patience` with each of its operations.
    Raises OSError if rank 0 finds the port taken."""
    host, port = meeting
    if interface := interface_of(own_address(host)):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    os.environ |= {
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": "0",  # Ray shows each actor its own devices only
    }
    listening = _listening(host, port) if rank == 0 else None
    store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]  # torch documents it as public
        host, port, ranks, rank == 0, patience, master_listen_fd=listening
    )
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=patience)


def _listening(host: str, port: int) -> int:
    """The descriptor of a socket that listens at one address; the store closes it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(WAITING)
        return bound.detach()
