"""vLLM forms its own batches: a scorer hands it every request at once. vLLM itself is a stand-in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from actors.scoring.scorer import Scorer
from actors.wire.records import Request, ScoreRequest, ScoreTable, pack_samples
from configs.roles.scorer import Scorer as ScorerConfig
from tests.unit.scoring.stub_vllm import StubLLM, right, stand_in

Story = Callable[[Scorer, StubLLM], Awaitable[None]]
BUDGET = 16  # tokens a forward pass


def response_ids(uid: str, tokens: int) -> list[int]:
    return [ord(uid)] * tokens


def asked(scorer: Scorer, *uids: str, tokens: int = 11) -> asyncio.Task[Any]:
    """A caller's block: responses of so many tokens behind a prompt of one."""
    rows = [
        Request(uid, uid, 0, 1, [1]).answered(response_ids(uid, tokens), [-1.0] * tokens, "stop", [0] * tokens, start=0)
        for uid in uids
    ]
    return asyncio.create_task(scorer.score(pack_samples(rows)[0], ScoreRequest("sampled")))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[[Story], None]:
    """Tells a story of a scorer over vLLM's engine."""
    built = stand_in(monkeypatch)

    def tell(story: Story) -> None:
        async def whole() -> None:
            config = ScorerConfig(engine="vllm", tokens_per_batch=BUDGET, max_context_tokens=32)
            scorer = Scorer(config, "/model", vocabulary=250)
            await scorer.start()
            await asyncio.wait_for(story(scorer, built[0]), 60)
            await scorer.stop()

        asyncio.run(whole())

    return tell


async def reached(llm: StubLLM, count: int) -> None:
    while len(llm.asked) < count:
        await asyncio.sleep(0.001)


def test_a_second_request_reaches_vllm_before_the_first_ends(told: Callable[[Story], None]) -> None:
    async def story(scorer: Scorer, llm: StubLLM) -> None:
        llm.gate.clear()
        first = asked(scorer, "a")
        await reached(llm, 1)
        second = asked(scorer, "b", "c")  # beyond a budget of tokens: vLLM's own scheduler cuts its batches
        await reached(llm, 3)
        assert llm.open == 3 and not first.done() and not second.done()
        llm.gate.set()
        for (payload, header), uids in zip(await asyncio.gather(first, second), ("a", "bc"), strict=True):
            assert header.uids == tuple(uids)
            for uid in uids:
                expected = np.array(right([1, *response_ids(uid, 11)]), np.float32)
                assert np.array_equal(ScoreTable(payload).values(uid, "logprobs"), expected)

    told(story)


def test_vllm_sleeps_once_its_requests_have_ended(told: Callable[[Story], None]) -> None:
    async def story(scorer: Scorer, llm: StubLLM) -> None:
        llm.gate.clear()
        first = asked(scorer, "a")
        await reached(llm, 1)
        sleeping = asyncio.create_task(scorer.sleep())
        await asyncio.sleep(0.01)
        late = asked(scorer, "b")
        await asyncio.sleep(0.01)
        assert not llm.asleep and len(llm.asked) == 1
        llm.gate.set()
        await asyncio.gather(first, sleeping)
        assert llm.asleep and len(llm.asked) == 1
        await scorer.wake()
        await late
        assert not llm.asleep and len(llm.asked) == 2

    told(story)
