"""The named actor `control:<run>`, through which commands reach a live run and read its status."""

from __future__ import annotations

import asyncio
from typing import Any

NAMESPACE = "logratio"


def control_name(run: str) -> str:
    return f"control:{run}"


class Control:
    """The driver waits for commands here and reports its status."""

    def __init__(self) -> None:
        self._commands: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
        self._status: dict[str, Any] = {}

    async def send(self, command: str, arguments: dict[str, Any]) -> None:
        await self._commands.put((command, arguments))

    async def next_command(self) -> tuple[str, dict[str, Any]]:
        """Wait for the next command, on the driver's side."""
        return await self._commands.get()

    async def report(self, status: dict[str, Any]) -> None:
        self._status = status

    async def status(self) -> dict[str, Any]:
        return self._status
