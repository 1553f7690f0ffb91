"""Shared by tests that run an event loop of their own."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest

from tests.unit.batches import Batches


@pytest.fixture(scope="module", autouse=True)
def abandoned_calls_say_nothing() -> Iterator[None]:
    """A retried call leaves its first reference unread, and asyncio logs that from inside a garbage collection: under
    Python 3.11 this breaks the `ast.parse` with which pytest may be writing a traceback just then."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio.BaseEventLoop, "call_exception_handler", lambda loop, context: None)
        yield
        gc.collect()


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Batches:
    return Batches(monkeypatch)
