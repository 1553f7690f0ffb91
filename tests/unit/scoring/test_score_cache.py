"""Scores of responses that come again are kept within a bound, and only for what was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.scoring.engine import Item
from actors.scoring.score_cache import ScoreCache, key_of
from actors.scoring.scorer import Scorer
from actors.wire.records import Request, Score, ScoreRequest, pack_samples
from configs.roles.scorer import Scorer as ScorerConfig


def score(uid: str, tokens: int = 4) -> Score:
    return Score(uid, np.zeros(tokens, np.float32))


def test_the_least_recently_used_are_evicted() -> None:
    cache = ScoreCache(most_bytes=3 * 16)
    keys = [key_of("sampled", [i]) for i in range(4)]
    for key in keys[:3]:
        cache.put(key, score("a"))
    assert cache.get(keys[0], "b") is not None
    cache.put(keys[3], score("a"))
    assert [cache.get(key, "b") is not None for key in keys] == [True, False, True, True]
    assert cache.nbytes == 3 * 16


def test_scores_beyond_the_bound_are_not_kept_and_evict_nothing() -> None:
    cache = ScoreCache(most_bytes=16)
    cache.put(key_of(0), score("a"))
    cache.put(key_of(1), score("a", tokens=5))
    assert cache.get(key_of(0), "a") is not None and cache.get(key_of(1), "a") is None


def test_keys_differ_by_prompt_response_and_kind() -> None:
    keys = {key_of("topk", [1, 2], [3]), key_of("topk", [1], [2, 3]), key_of("full", [1], [2, 3]), key_of("full", [1])}
    assert len(keys) == 4


class Counting:
    """An engine that counts what it is asked to score."""

    hidden_dtype = "float32"
    continuous = False

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def score(self, items: Sequence[Item], request: ScoreRequest) -> list[Score]:
        self.asked += [item.uid for item in items]
        return [Score(item.uid, np.full(len(item.new_ids), -0.5, np.float32)) for item in items]

    async def replace(self, tensors: dict[str, Any]) -> None: ...


@pytest.mark.parametrize("reusable", [True, False])
def test_a_scorer_is_not_asked_twice_for_what_comes_again(
    reusable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Counting()

    async def build(*_: Any) -> Counting:
        return engine

    monkeypatch.setattr("actors.scoring.scorer._build", build)
    monkeypatch.setattr("actors.models.weights.unpack", lambda headers, data: {})
    monkeypatch.setattr("actors.models.weights.check_names", lambda tensors, directory: None)

    async def work() -> None:
        scorer = Scorer(ScorerConfig(), str(tmp_path), 100)
        await scorer.start()
        request = ScoreRequest("sampled", reusable=reusable)
        for epoch in range(2):
            asked = Request(f"{epoch:08d}.000", f"{epoch:08d}", 0, 1, [1, 2])
            payload, _ = pack_samples([asked.answered([5, 6], [-1.0, -1.0], "stop", [0, 0])])
            _, header = await scorer.score(payload, request)
            assert header.uids == (asked.uid,) and header.tokens == 2
        assert len(engine.asked) == (1 if reusable else 2)
        await scorer.load(1, ())
        await scorer.score(payload, request)
        assert len(engine.asked) == (2 if reusable else 3), "other weights score anew"
        scorer._server.cancel()  # type: ignore[union-attr]

    asyncio.run(work())
