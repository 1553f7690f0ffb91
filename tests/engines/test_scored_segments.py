"""A response scored in segments has the scores of the whole, and costs what it costs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.scoring.scorer import Scorer
from actors.wire.records import (
    Request,
    Sample,
    ScoreHeader,
    ScoreRequest,
    ScoreTable,
    header_of,
    pack_samples,
)
from configs.roles.scorer import Scorer as ScorerConfig
from tests.written import published

VOCABULARY, LENGTH, SEGMENT = 259, 23, 5
PROMPTS = {"a": [5, 6, 7], "b": [8], "c": list(range(20, 40))}  # one of a single token: nothing lies before its last
TOPK = [ScoreRequest("topk", topk=4, topk_of=of) for of in ("teacher", "student", "union")]
SUPPORTS = [ScoreRequest("sampled"), *TOPK, ScoreRequest("full")]


def response(uid: str, end: int = LENGTH, start: int = 0, seed: int = 0) -> Sample:
    """The first `end` tokens of a response of LENGTH; the student ranks four tokens at each. An attempt is a seed."""
    rng = np.random.default_rng([ord(uid), seed])
    ids, support = (
        rng.integers(0, VOCABULARY, LENGTH),
        rng.permuted(np.tile(np.arange(VOCABULARY), (LENGTH, 1)), axis=1),
    )
    finish = "length" if end == LENGTH else ""
    request = Request(uid, uid, seed, 1, PROMPTS[uid])
    return request.answered(
        ids[:end].tolist(), [-1.0] * end, finish, [0] * end, support[:end, :4].reshape(-1).tolist(), start
    )


def segments(uid: str, seed: int = 0) -> list[Sample]:
    ends = [*range(SEGMENT, LENGTH, SEGMENT), LENGTH]
    return [response(uid, end, start, seed) for start, end in zip([0, *ends], ends, strict=False)]


@dataclass
class Scoring:
    """A torch scorer in this process, and how many tokens went through its model."""

    scorer: Scorer
    tokens: int = 0
    asked: ScoreRequest = field(default_factory=lambda: ScoreRequest("sampled"))

    async def score(self, *rows: Sample, earlier: Sequence[Any] = ()) -> tuple[ScoreTable, ScoreHeader]:
        payload, header = await self.scorer.score(pack_samples(rows)[0], self.asked, *earlier)
        return ScoreTable(payload), header

    @property
    def kept(self) -> int:
        return self.scorer._engine._prefixes.tokens  # type: ignore[union-attr]


def with_scorer(
    model: Path, work: Callable[[Scoring], Any], asked: ScoreRequest | None = None, cache_tokens: int = 1000
) -> Any:
    async def run() -> Any:
        config = ScorerConfig(dtype="float32", max_context_tokens=160, tokens_per_batch=64, cache_tokens=cache_tokens)
        scoring = Scoring(Scorer(config, str(model), VOCABULARY), asked=asked or ScoreRequest("sampled"))
        await scoring.scorer.start()

        def count(_: Any, arguments: Sequence[Any]) -> None:
            scoring.tokens += arguments[0].numel()

        scoring.scorer._engine._model.get_input_embeddings().register_forward_pre_hook(count)  # type: ignore[union-attr]
        try:
            return await work(scoring)
        finally:
            await scoring.scorer.stop()

    return asyncio.run(run())


def columns(table: ScoreTable, uid: str) -> dict[str, np.ndarray]:
    """A row's scores, [tokens, ...] each."""
    names = [name for name in ("logprobs", "support_ids", "support_logprobs", "tail_logprob") if table.has(name)]
    tokens = len(table.values(uid, "logprobs"))
    found = {name: table.values(uid, name).astype(np.float64).reshape(tokens, -1) for name in names}
    if table.has("hidden"):
        found["hidden"] = np.frombuffer(table.hidden(uid), np.float32).astype(np.float64).reshape(tokens, -1)
    return found


@pytest.mark.parametrize("asked", SUPPORTS, ids=lambda r: f"{r.support}-{r.topk_of}")
def test_scores_in_segments_are_those_of_the_whole_at_its_cost(models: dict[str, Path], asked: ScoreRequest) -> None:
    """All responses advance together, as they do while they are sampled."""

    async def work(scoring: Scoring) -> None:
        whole, header = await scoring.score(*(response(uid) for uid in PROMPTS))
        cost_whole, scoring.tokens = scoring.tokens, 0
        pieces: dict[str, list[dict[str, np.ndarray]]] = {uid: [] for uid in PROMPTS}
        sums = dict.fromkeys(PROMPTS, 0.0), dict.fromkeys(PROMPTS, 0.0)
        for rows in zip(*(segments(uid) for uid in PROMPTS), strict=True):
            table, part = await scoring.score(*rows)
            assert part.tokens == sum(len(row.response_ids[row.new]) for row in rows) and not part.rejected
            assert part.entropies is not None and part.log_ratios is not None
            for row, *values in zip(rows, part.entropies, part.log_ratios, strict=True):
                assert table.start(row.uid) == row.start
                pieces[row.uid].append(columns(table, row.uid))
                for total, value in zip(sums, values, strict=True):
                    total[row.uid] += value
        assert header.entropies is not None and header.log_ratios is not None
        for number, uid in enumerate(header.uids):
            for name, expected in columns(whole, uid).items():
                joined = np.concatenate([piece[name] for piece in pieces[uid]])
                if name == "support_ids":
                    assert (joined == expected).all()
                else:
                    np.testing.assert_allclose(joined, expected, atol=1e-3 if name == "support_logprobs" else 1e-4)
            assert sums[0][uid] == pytest.approx(header.entropies[number], abs=1e-3)
            assert sums[1][uid] == pytest.approx(header.log_ratios[number], abs=1e-3)
        # the last token of a response predicts nothing, so that only the whole computes it
        assert scoring.tokens == cost_whole - len(PROMPTS)
        assert scoring.kept == 0, "nothing stays behind the last segment"

    with_scorer(models["teacher"], work, asked)


def test_without_room_for_a_prefix_it_is_computed_again(models: dict[str, Path]) -> None:
    async def work(scoring: Scoring) -> np.ndarray:
        tables = [await scoring.score(row) for row in segments("a")]
        assert scoring.kept == 0
        computed = sum(len(PROMPTS["a"]) + header_of(row).end - 1 for row in segments("a"))
        assert scoring.tokens == computed
        return np.concatenate([table.values("a", "logprobs") for table, _ in tables])

    async def whole(scoring: Scoring) -> np.ndarray:
        return (await scoring.score(response("a")))[0].values("a", "logprobs")

    scores = with_scorer(models["teacher"], work, cache_tokens=0)
    np.testing.assert_allclose(scores, with_scorer(models["teacher"], whole), atol=1e-4)


@pytest.mark.parametrize("lost", ["a segment", "another attempt", "the same again"])
def test_a_cache_that_does_not_fit_is_not_used(models: dict[str, Path], lost: str) -> None:
    """Segments go missing with a member that dies, attempts begin anew, and calls are repeated. What the scorer was not
    given it is told."""

    async def work(scoring: Scoring) -> None:
        first, second, third, *_ = segments("a")
        told = [pack_samples(rows)[0] for rows in ([first], [second])]
        expected = (await scoring.score(response("a")))[0].values("a", "logprobs")
        if lost == "another attempt":
            await scoring.score(segments("a", seed=1)[0])
            await scoring.score(segments("a", seed=1)[1])
        else:
            await scoring.score(first)
        if lost == "the same again":
            await scoring.score(second)
            await scoring.score(second)
        table, header = await scoring.score(third)
        assert header.unknown == (() if lost == "the same again" else ("a",)) and not header.rejected
        if header.unknown:
            table, header = await scoring.score(third, earlier=told)
        np.testing.assert_allclose(
            table.values("a", "logprobs"), expected[third.start : header_of(third).end], atol=1e-4
        )

    with_scorer(models["teacher"], work)


def test_what_is_kept_goes_with_the_weights(models: dict[str, Path]) -> None:
    async def work(scoring: Scoring) -> None:
        before = (await scoring.score(response("a")))[0].values("a", "logprobs")
        for uid in "ab":
            await scoring.score(segments(uid)[0])
        assert scoring.kept > 0
        await scoring.scorer.load(1, *published(models["poet"]))
        assert scoring.kept == 0
        first, second, *_ = segments("a")
        after = (await scoring.score(response("a")))[0].values("a", "logprobs")
        await scoring.score(first)
        table, header = await scoring.score(second)
        inside = slice(second.start, header_of(second).end)
        np.testing.assert_allclose(table.values("a", "logprobs"), after[inside], atol=1e-4)
        assert np.abs(after - before).max() > 0.1 and header.scorer_version == 1

    with_scorer(models["teacher"], work)
