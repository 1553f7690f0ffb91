"""Stands in for vLLM under the scorer's engine: log-probs that each depend on all tokens before."""

from __future__ import annotations

import asyncio
import math
import random
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

Logprobs = Callable[[Sequence[int]], list[float]]  # of all tokens but the first


def right(ids: Sequence[int]) -> list[float]:
    return [math.log(random.Random(str(ids[:end])).uniform(0.01, 0.99)) for end in range(2, len(ids) + 1)]


class StubLLM:
    """An AsyncLLM. `gate`: requests wait for it. `logprobs` may be exchanged, as by damage."""

    def __init__(self) -> None:
        self.logprobs: Logprobs = right
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[list[int]] = []
        self.open, self.most = 0, 0  # requests that run at a time
        self.asleep = False

    async def generate(self, prompt: dict[str, Any], params: Any, request_id: str) -> AsyncIterator[Any]:
        ids = prompt["prompt_token_ids"]
        self.asked.append(ids)
        self.open += 1
        self.most = max(self.most, self.open)
        yield SimpleNamespace(finished=False)
        await self.gate.wait()
        self.open -= 1
        first = list(range(-1, len(ids) - 1))  # where each position begins; the first token has no log-prob
        flat = SimpleNamespace(logprobs=self.logprobs(ids), start_indices=first, end_indices=[i + 1 for i in first])
        yield SimpleNamespace(finished=True, prompt_logprobs=flat)

    async def collective_rpc(self, *args: Any, **kwargs: Any) -> None: ...

    async def sleep(self, level: int, mode: str) -> None:
        assert not self.open, "it waits for what runs"
        self.asleep = True

    async def wake_up(self) -> None:
        self.asleep = False

    def shutdown(self) -> None: ...


def stand_in(patch: pytest.MonkeyPatch) -> list[StubLLM]:
    """Put the stub in vLLM's place; returns the engines that are built, in order."""
    built: list[StubLLM] = []

    def build(arguments: dict[str, Any], stat_loggers: Any) -> StubLLM:
        built.append(StubLLM())
        return built[-1]

    patch.setenv("RAY_enable_metrics_collection", "0")  # its loggers are vLLM's own
    modules = {name: ModuleType(name) for name in ("vllm", "vllm.v1", "vllm.v1.engine", "vllm.v1.engine.async_llm")}
    modules["vllm"].AsyncEngineArgs = modules["vllm"].SamplingParams = dict  # type: ignore[attr-defined]
    modules["vllm.v1.engine.async_llm"].AsyncLLM = SimpleNamespace(from_engine_args=build)  # type: ignore[attr-defined]
    for name, module in modules.items():
        patch.setitem(sys.modules, name, module)
    return built
