"""Who listens, as /proc shows it, and what docs/security.md says of them.

A table of that page has the columns who, process, port and where. A listener is in it if its command line has a word of
a row's `process`, and the row's port and interface are its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from tests.contributing.pages import ROOT, rows, section
from tests.processes import title

PAGE = ROOT / "docs" / "security.md"
LOOPBACK = "127.0.0.1"
ALIASES = {"bin/logratio": ("bin/logratio", "-m orchestrator.cli", "-m tests.cli.simulated")}
LISTENS = "0A"  # the kernel's number of the state
Address = IPv4Address | IPv6Address


@dataclass(frozen=True)
class Listener:
    """A listening TCP socket: its interface's address, its port, and the command line of who holds it."""

    address: Address
    port: int
    title: str

    @property
    def local(self) -> bool:
        """Whether no other machine reaches it."""
        return self.address.is_loopback

    def __str__(self) -> str:
        return f"{self.address}:{self.port} {self.title[:120]}"


def listeners(pids: Iterable[int]) -> list[Listener]:
    """The sockets that processes listen on, each once, in the network namespace that they run in."""
    found: dict[str, Listener] = {}
    tables: dict[str, dict[str, tuple[Address, int]]] = {}
    for pid in sorted(pids):
        try:
            sockets, network = _sockets(pid), os.readlink(f"/proc/{pid}/ns/net")
            if network not in tables:
                tables[network] = dict(_listening(pid))
        except OSError:  # it has ended
            continue
        for inode in sockets & tables[network].keys():
            found.setdefault(inode, Listener(*tables[network][inode], title(pid)))
    return list(found.values())


@dataclass(frozen=True)
class Row:
    """A row of a table of ports."""

    who: str
    processes: Sequence[str]
    port: str
    where: str
    guard: str

    def allows(self, listener: Listener, node: str = LOOPBACK) -> bool:
        """`node`: the address by which the others know the machine."""
        return self._is_by(listener.title) and self._has_port(listener.port) and self._is_where(listener.address, node)

    def _is_by(self, title: str) -> bool:
        names = (name for word in self.processes for name in ALIASES.get(word, (word,)))
        return any(name in title for name in names)

    def _has_port(self, port: int) -> bool:
        """Any, where the cell says `free`; else one of its numbers, or between two with `to`."""
        ranges = re.findall(r"(\d+)(?: to (\d+))?", self.port)
        return "free" in self.port or any(int(low) <= port <= int(high or low) for low, high in ranges)

    def _is_where(self, address: Address, node: str) -> bool:
        usual = self.where.partition(";")[0]
        if "every interface" in usual or address.is_loopback:
            return True
        return "node's address" in usual and address == ip_address(node)


def table(heading: str) -> list[Row]:
    """The rows of a section that say by which process a port is known."""
    head, *body = rows(section(PAGE, heading))
    assert head == ["who", "process", "port", "where", "guarded by"], head
    found = [Row(who, re.findall(r"`([^`]+)`", process), *others) for who, process, *others in body]
    return [row for row in found if row.processes]


def unlisted(found: Iterable[Listener], table: Sequence[Row], node: str = LOOPBACK) -> list[str]:
    """Listeners that no row allows."""
    return [str(one) for one in found if not any(row.allows(one, node) for row in table)]


def unseen(found: Sequence[Listener], table: Iterable[Row], node: str = LOOPBACK) -> list[str]:
    """Rows that no listener is behind."""
    return [row.who for row in table if not any(row.allows(one, node) for one in found)]


def _listening(pid: int) -> Iterator[tuple[str, tuple[Address, int]]]:
    """(inode, (address, port)) of the listening sockets of the namespace of a process."""
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            address, port = fields[1].split(":")
            if fields[3] == LISTENS:
                yield fields[9], (_address(address), int(port, 16))


def _address(words: str) -> Address:
    """/proc writes an address as words of four bytes, each in little-endian hex."""
    found = ip_address(b"".join(bytes.fromhex(words[i : i + 8])[::-1] for i in range(0, len(words), 8)))
    return getattr(found, "ipv4_mapped", None) or found


def _sockets(pid: int) -> set[str]:
    """Inodes of the sockets that a process holds."""
    links = (os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir())
    return {link[8:-1] for link in links if link.startswith("socket:[")}
