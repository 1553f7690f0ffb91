"""Commands of `logratio` in this process, over simulated members and without Ray."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from actors.member import Member
from actors.simulated.known import Speeds
from orchestrator.cli import app
from orchestrator.pools import transport
from orchestrator.preflight import capacity, cluster, files
from orchestrator.samples.prompts import Prompt
from orchestrator.surface import checked, driver
from tests.unit.simulation import HELDOUT, TRAIN, VOCABULARY, simulated


class Tokenizer:
    def decode(self, ids: Sequence[int]) -> str:
        return str(ids)


def invoked(
    monkeypatch: pytest.MonkeyPatch,
    *arguments: str,
    heldout: Sequence[Prompt] = HELDOUT,
    sets: Mapping[str, Sequence[Prompt]] | None = None,
) -> Result:
    """A command's end. Its recipe's files are not read: the prompts are these, and the simulation's."""
    inputs = files.Inputs(TRAIN, heldout, Tokenizer(), VOCABULARY, (1,), 0, 0, sets=sets or {})  # type: ignore[arg-type]

    @contextlib.asynccontextmanager
    async def serve_commands(*_: Any) -> AsyncIterator[None]:
        yield

    monkeypatch.setattr(Member, "attach_log", lambda self, path: None)
    monkeypatch.setattr(cluster, "connected", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(capacity, "compared_with", lambda *_: [])
    monkeypatch.setattr(checked, "environment", lambda *_: None)
    monkeypatch.setattr(driver, "serve_commands", serve_commands)
    monkeypatch.setattr(transport, "RayTransport", transport.LocalTransport)
    monkeypatch.setattr(files, "read_inputs", lambda _: inputs)
    return CliRunner().invoke(app, list(arguments), obj=simulated(Speeds()))
