"""A rank's share as tensors: which token weighs what in which term."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from actors.jobs import Share, Total
from actors.learner_batch import Batch
from actors.records import Request, Score, pack_samples, pack_scores
from configs.objective import Objective
from objectives.schedule import Dials

REWARDED: dict[str, Any] = {"target": "teacher", "outcome": {"weight": 1.0}}


def batch(config: Objective, **changes: Any) -> Batch:
    """Two responses of 2 and 3 tokens, scored by one teacher, with room for 10 tokens in each term."""
    samples = [
        Request(uid, uid, 0, 1, [7, 8]).answered(list(range(n)), [-1.0] * n, "stop", [0] * n)
        for uid, n in (("a", 2), ("b", 3))
    ]
    scores = [Score(s.uid, np.full(len(s.response_ids), -2.0, np.float32)) for s in samples]
    share = Share(
        step=1,
        version=0,
        micro_batches=(("a", "b"),),
        loss_tokens=10,
        totals={term: Total(10, 4) for term in config.terms},
        constant=100,
        dials=Dials(),
        sample_blocks=1,
        scored_by=("teacher",),
        advantages={"a": 1.0, "b": -1.0},
    )
    return Batch(replace(share, **changes), [pack_samples(samples)[0], pack_scores(scores, {})[0]], config, True)


def weights(config: Objective, **changes: Any) -> dict[str, list[float]]:
    targets = batch(config, **changes).micro_batch(("a", "b"))[1]
    return {term: value.tolist() for term, value in targets.tokens.weights.items()}


@pytest.mark.parametrize(
    ("normalise", "expected"),
    [("token", [0.1] * 5), ("sequence", [1 / 8, 1 / 8, *[1 / 12] * 3]), ("constant", [0.01] * 5)],
)
def test_each_term_has_the_recipes_denominator(normalise: str, expected: list[float]) -> None:
    found = weights(Objective(**REWARDED, normalise=normalise))
    assert found.keys() == {"distillation", "outcome"}
    for value in found.values():
        assert value == pytest.approx(expected)


def test_a_masked_response_loses_its_outcome_term_and_changes_no_other_weight() -> None:
    found = weights(Objective(**REWARDED), masked=frozenset({"a"}))
    assert found["outcome"] == pytest.approx([0.0, 0.0, 0.1, 0.1, 0.1])
    assert found["distillation"] == pytest.approx([0.1] * 5)


def test_what_the_student_did_not_draw_is_distilled_and_not_rewarded() -> None:
    config = Objective(**REWARDED | {"prefix": {"student": 1, "dataset": 1}, "support": "full"})
    shared = batch(config, foreign=frozenset({"b"}))
    shared._slots = {}  # no hidden states here
    tokens = shared.micro_batch(("a", "b"))[1].tokens
    assert tokens.weights["outcome"].tolist() == pytest.approx([0.1, 0.1, 0.0, 0.0, 0.0])
    assert tokens.weights["distillation"].tolist() == pytest.approx([0.1] * 5)
    assert tokens.drawn.tolist() == [True, True, False, False, False]


def test_tokens_lie_response_after_response() -> None:
    tokens = batch(Objective(**REWARDED)).micro_batch(("a", "b"))[1].tokens
    assert tokens.sequence.tolist() == [0, 0, 1, 1, 1] and tokens.position.tolist() == [0, 1, 0, 1, 2]
    assert tokens.advantage.tolist() == [1.0, 1.0, -1.0, -1.0, -1.0]
    torch.testing.assert_close(tokens.scores["teacher"].logprob, torch.full((5,), -2.0))


def test_after_the_first_pass_the_policy_that_sampled_is_the_old_one() -> None:
    held = batch(Objective(**REWARDED))
    assert held.micro_batch(("a", "b"))[1].tokens.old_logprob is None
    held.old = {"logprob": {"a": np.zeros(2, np.float32), "b": np.ones(3, np.float32)}}
    old = held.micro_batch(("b", "a"))[1].tokens.old_logprob
    assert old is not None and old.tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]
