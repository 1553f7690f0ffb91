"""The named actor `control:<run>`: where commands reach a live run, and where it says how it is."""

from __future__ import annotations

import asyncio
from typing import Any

NAMESPACE = "logratio"


def control_name(run: str) -> str:
    return f"control:{run}"


class Control:
    """The driver waits for commands and reports status; commands wait for the driver's answer."""

    def __init__(self) -> None:
        self._commands: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
        self._status: dict[str, Any] = {}

    async def send(self, command: str, arguments: dict[str, Any]) -> None:
        await self._commands.put((command, arguments))

    async def next_command(self) -> tuple[str, dict[str, Any]]:
        """The driver's side: returns when a command arrives."""
        return await self._commands.get()

    async def report(self, status: dict[str, Any]) -> None:
        self._status = status

    async def status(self) -> dict[str, Any]:
        return self._status
