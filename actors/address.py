"""This machine's addresses and interfaces."""

from __future__ import annotations

import socket

LOOPBACK = "127.0.0.1"  # nobody on another machine reaches it
ANYWHERE = "192.0.2.1"  # of nobody


def own_address(reaching: str = ANYWHERE) -> str:
    """The address that this machine has for whom it reaches at another; loopback on a machine without a route there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((reaching, 9))  # no packet is sent: it only picks the interface
        except OSError:
            return LOOPBACK
        return probe.getsockname()[0]


def node_address() -> str:
    """The address that the other nodes of the Ray cluster reach this one by."""
    from ray.util import get_node_ip_address

    return get_node_ip_address()


def interface_of(address: str) -> str | None:
    """The name of the interface with an address of this machine; None if none has it."""
    import psutil

    found = psutil.net_if_addrs().items()
    return next((name for name, addresses in found if address in (a.address for a in addresses)), None)
