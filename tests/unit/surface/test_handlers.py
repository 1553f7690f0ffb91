"""Signals before the event loop runs: none is lost, whatever code it interrupts."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.stopping import Ask
from orchestrator.surface.carry_out import SIGNALS, Handlers, StoppedEarly

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Dying:
    """A signal comes as it is collected: Python drops what a destructor raises."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)


@pytest.fixture
def handlers() -> Iterator[Handlers]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    found = Handlers()
    found.before_the_loop()
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "ask"), [(signal.SIGINT, Ask.GENTLY), (signal.SIGTERM, Ask.IN_TIME)])
def test_a_signal_in_a_destructor_stops_the_run_all_the_same(handlers: Handlers, number: int, ask: Ask) -> None:
    handlers.heed()
    Dying(number)
    with pytest.raises(StoppedEarly):
        handlers.heed()
    stops: list[Ask] = []

    async def begin() -> None:
        handlers.in_the_loop(cast(Any, SimpleNamespace(stop=stops.append)))

    asyncio.run(begin())
    assert stops == [ask]
