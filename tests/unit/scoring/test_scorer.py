"""A scoring member groups what all of its callers ask for, and says of whom it has no numbers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from actors.scoring.canary import ways_to_batch
from actors.scoring.engine import Item
from actors.scoring.scorer import Scorer
from actors.wire.records import Request, Sample, Score, ScoreHeader, ScoreRequest, ScoreTable, pack_samples
from configs.roles.scorer import Scorer as ScorerConfig

BUDGET = 10  # tokens a batch
SAMPLED = ScoreRequest("sampled")
NAN = float("nan")


def response(uid: str, tokens: int, start: int = 0) -> Sample:
    """A response behind a prompt of one token: `tokens` of both."""
    length = tokens - 1
    request = Request(uid, uid, 0, 1, [1])
    return request.answered([5] * length, [-1.0] * length, "stop", [0] * length, start=start)


class Recording:
    """An engine that keeps which items it was given together, and for what; `logprobs` of all tokens, by uid."""

    hidden_dtype = "float32"
    continuous = False

    def __init__(self) -> None:
        self.batches: list[tuple[str, ...]] = []
        self.asked: list[ScoreRequest] = []
        self.logprobs: dict[str, list[float]] = {}
        self.entropy_sum: float | None = None

    async def score(self, items: Sequence[Item], request: ScoreRequest) -> list[Score]:
        self.batches.append(tuple(item.uid for item in items))
        self.asked.append(request)
        known = [self.logprobs.get(item.uid, [-0.5] * len(item.new_ids)) for item in items]
        rows = [np.array(row, np.float32) for row in known]
        return [Score(i.uid, row, entropy_sum=self.entropy_sum) for i, row in zip(items, rows, strict=True)]

    def stop(self) -> None: ...


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Recording:
    """What the scorer of `scored` scores with."""
    recording = Recording()

    async def build(*_: Any) -> Recording:
        return recording

    monkeypatch.setattr("actors.scoring.scorer._build", build)
    return recording


def scored(*calls: tuple[Sequence[Sample], ScoreRequest]) -> list[tuple[pa.RecordBatch, ScoreHeader]]:
    """The answers to callers that ask one scorer at the same time, each for its block of samples."""

    async def story() -> list[tuple[pa.RecordBatch, ScoreHeader]]:
        scorer = Scorer(ScorerConfig(tokens_per_batch=BUDGET), "nowhere", vocabulary=100)
        await scorer.start()
        answers = await asyncio.gather(*(scorer.score(pack_samples(rows)[0], asked) for rows, asked in calls))
        await scorer.stop()
        return answers

    return asyncio.run(story())


def test_callers_share_a_batch_up_to_its_tokens_in_the_order_they_came(engine: Recording) -> None:
    blocks = [
        [response("a", 4)],
        [response("b", 3), response("c", 3)],  # ten tokens: full
        [response("d", 6)],
        [response("e", 5), response("f", 4)],  # who would still fit beside d does not overtake e
        [response("g", 11)],  # beyond the budget: alone
        [response("h", 9, start=7), response("i", 9)],  # a later segment costs its one new token
    ]
    answers = scored(*((block, SAMPLED) for block in blocks))
    assert engine.batches == [("a", "b", "c"), ("d",), ("e", "f"), ("g",), ("h", "i")]
    assert [header.uids for _, header in answers] == [tuple(row.uid for row in block) for block in blocks]


def test_requests_of_other_kinds_are_batched_apart_in_order_of_arrival(engine: Recording) -> None:
    topk, own = ScoreRequest("topk", topk=2), ScoreRequest("topk", topk=2, topk_of="student")
    wider, full = ScoreRequest("topk", topk=3), ScoreRequest("full")
    kinds = [SAMPLED, topk, SAMPLED, own, topk, wider, full]
    scored(*(([response(uid, 3)], kind) for uid, kind in zip("abcdefg", kinds, strict=True)))
    assert engine.batches == [("a", "c"), ("b", "e"), ("d",), ("f",), ("g",)]
    assert engine.asked == [SAMPLED, topk, own, wider, full]


class Continuous(Recording):
    """An engine that forms its own batches: it answers each response when the test says so."""

    continuous = True

    def __init__(self) -> None:
        super().__init__()
        self.finished: dict[str, asyncio.Event] = {}
        self.weights = "old"

    async def score(self, items: Sequence[Item], request: ScoreRequest) -> list[Score]:
        scores = await super().score(items, request)
        (item,) = items
        self.finished[item.uid] = asyncio.Event()
        await self.finished[item.uid].wait()
        return scores

    async def replace(self, tensors: dict[str, Any]) -> None: ...

    async def sleep(self) -> None:
        self.weights = "asleep"

    async def wake(self) -> None:
        self.weights = "awake"


def continuously(monkeypatch: pytest.MonkeyPatch, story: Callable[[Scorer, Continuous], Awaitable[None]]) -> None:
    """A story of a scorer whose engine batches by itself."""
    engine = Continuous()

    async def build(*_: Any) -> Continuous:
        return engine

    async def told() -> None:
        scorer = Scorer(ScorerConfig(tokens_per_batch=BUDGET), "nowhere", vocabulary=100)
        await scorer.start()
        await asyncio.wait_for(story(scorer, engine), 5)
        await scorer.stop()

    monkeypatch.setattr("actors.scoring.scorer._build", build)
    asyncio.run(told())


def asked(scorer: Scorer, uid: str, tokens: int = 9) -> asyncio.Task[Any]:
    return asyncio.create_task(scorer.score(pack_samples([response(uid, tokens)])[0], SAMPLED))


async def given(engine: Continuous, *uids: str) -> None:
    while not engine.finished.keys() >= set(uids):
        await asyncio.sleep(0.001)


def test_a_continuous_engine_gets_a_request_while_it_scores_earlier_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(scorer: Scorer, engine: Continuous) -> None:
        first = asked(scorer, "a")
        await given(engine, "a")
        more = [asked(scorer, uid) for uid in "bcd"]  # far beyond a budget: the engine's own scheduler cuts its batches
        await given(engine, *"bcd")
        assert not first.done()
        engine.finished["c"].set()  # who is done first is answered first
        assert (await more[1])[1].uids == ("c",)
        assert not first.done() and not more[0].done()
        for event in engine.finished.values():
            event.set()
        await asyncio.gather(first, *more)
        await scorer.drain()

    continuously(monkeypatch, story)


def test_a_continuous_engine_sleeps_only_between_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has is done before, what comes meanwhile waits for `wake`; nobody overtakes who waits to be alone."""

    async def story(scorer: Scorer, engine: Continuous) -> None:
        first = asked(scorer, "a")
        await given(engine, "a")
        sleeping = asyncio.create_task(scorer.sleep())
        await asyncio.sleep(0)
        late = asked(scorer, "b")
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert engine.weights == "old" and "b" not in engine.finished
        engine.finished["a"].set()
        await sleeping
        await first
        assert engine.weights == "asleep" and "b" not in engine.finished
        await scorer.wake()
        await given(engine, "b")
        engine.finished["b"].set()
        await late

    continuously(monkeypatch, story)


def test_a_cancelled_call_does_not_delay_a_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(scorer: Scorer, engine: Continuous) -> None:
        given_up = asked(scorer, "a")
        well = asked(scorer, "b")
        await given(engine, "a", "b")
        engine.finished["b"].set()
        assert (await well)[1].uids == ("b",)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        await scorer.drain()

    continuously(monkeypatch, story)


@pytest.mark.parametrize("bad", [NAN, float("inf"), float("-inf")])
def test_a_score_that_is_not_finite_rejects_its_sample_alone(engine: Recording, bad: float) -> None:
    engine.logprobs["b"] = [-0.5, bad]
    ((payload, header),) = scored(([response(uid, 3) for uid in "abc"], SAMPLED))
    assert engine.batches == [("a", "b", "c")]
    assert header.rejected == {"b": "the scorer's log-probs are not finite"}
    assert header.uids == ("a", "c") and header.tokens == 4
    table = ScoreTable(payload)
    assert "b" not in table and all(table.values(uid, "logprobs").tolist() == [-0.5, -0.5] for uid in "ac")


@pytest.mark.parametrize("count", range(1, 10))
def test_each_way_to_batch_fixed_texts_scores_each_of_them_once(count: int) -> None:
    for way in ways_to_batch(count):
        assert sorted(i for batch in way for i in batch) == list(range(count))


def test_a_renewed_scorer_has_no_scores_of_the_run_before(engine: Recording) -> None:
    async def story() -> list[int]:
        scorer = Scorer(ScorerConfig(tokens_per_batch=BUDGET), "nowhere", vocabulary=100)
        await scorer.start()
        asked, counts = replace(SAMPLED, reusable=True), []
        for renewed in (False, False, True):
            if renewed:
                await scorer.renew()
            await scorer.score(pack_samples([response("a", 3)])[0], asked)
            counts.append(len(engine.batches))
        await scorer.stop()
        return counts

    assert asyncio.run(story()) == [1, 1, 2]


def test_scores_that_no_working_model_gives_are_told_of_with_the_batch(engine: Recording) -> None:
    """Equal log-probs; then unlike ones of a nearly uniform model."""
    rows = [replace(response(uid, 30), response_ids=list(range(40, 69))) for uid in "ab"]
    ((_, header),) = scored((rows, SAMPLED))
    assert header.suspicion == "all 58 log-probs are -0.5000"
    engine.logprobs = {uid: [-4.6 - 0.001 * i for i in range(29)] for uid in "ab"}
    ((_, header),) = scored((rows, SAMPLED))
    assert not header.suspicion, "an engine without entropies"
    engine.entropy_sum = 29 * 4.6
    ((_, header),) = scored((rows, SAMPLED))
    assert header.suspicion.startswith("its mean entropy is 4.6000 nats, and log 100 is 4.6052")
