"""This machine's addresses."""

from __future__ import annotations

import socket

LOOPBACK = "127.0.0.1"  # nobody on another machine reaches it


def own_address() -> str:
    """The address that other nodes reach this one by; loopback on a machine without a route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # no packet is sent: it only picks the interface
        except OSError:
            return LOOPBACK
        return probe.getsockname()[0]
