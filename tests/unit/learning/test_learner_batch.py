"""A rank's share as tensors: which token weighs what in which term."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from actors.learning.batch import Batch
from actors.models.causal_lm import Projection
from actors.wire.jobs import Share, Total
from actors.wire.records import Request, Sample, Score, Span, pack_samples, pack_scores
from actors.wire.trained import LIKELIEST
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
        rows={"a": 0, "b": 0},
        scores={"a": {"teacher": (1,)}, "b": {"teacher": (1,)}},
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
    shared._slots, shared._full = {}, ()  # no hidden states here
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


# --- responses that came in segments ---

VERSIONS = [0, 0, 1, 1, 2, 2]


def row(end: int, start: int = 0) -> Sample:
    """Response "s" of 6 tokens, as far as it has come; token t has id 10 + t and two ids of support."""
    ids = list(range(10, 10 + end))
    support = [i for t in ids for i in (t, t + 100)]
    finish = "stop" if end == len(VERSIONS) else ""
    return Request("s", "s", 0, 1, [7, 8]).answered(ids, [-1.0] * end, finish, VERSIONS[:end], support, start)


def scores(start: int, end: int, version: int = 0) -> Score:
    """Of token t: log-prob -t, support {t, t + 100} and hidden state [t, t]."""
    places = np.arange(start, end)
    return Score(
        "s",
        -places.astype(np.float32),
        support_ids=np.stack([places, places + 100], -1).astype(np.int32),
        support_logprobs=np.stack([-places, -places], -1).astype(np.float16),
        tail_logprob=-places.astype(np.float32),
        hidden=np.stack([places, places], -1).astype(np.float32).tobytes(),
        start=start,
        version=version,
    )


def segmented(
    config: Objective,
    rows: list[Sample],
    tables: list[Score],
    oldest: int = 0,
    uids: tuple[str, ...] = ("s",),
) -> Batch:
    """A payload for each row and each table; the last row of a uid is the whole response."""
    share = Share(
        step=1,
        version=2,
        micro_batches=(uids,),
        loss_tokens=10,
        totals={term: Total(10, 4) for term in config.terms},
        constant=100,
        dials=Dials(),
        rows={r.uid: place for place, r in enumerate(rows)},
        scores={u: {"teacher": tuple(len(rows) + i for i, t in enumerate(tables) if t.uid == u)} for u in uids},
        oldest=oldest,
    )
    payloads = [pack_samples([r])[0] for r in rows] + [pack_scores([s], {}, "float32")[0] for s in tables]
    return Batch(share, payloads, config, True)


DENSE = Objective(target="teacher")
SEGMENTS = [scores(0, 2), scores(2, 4), scores(4, 6)]


@pytest.mark.parametrize("rows", [[row(2), row(4, 2), row(6, 4)], [row(6)]], ids=len)
def test_the_last_row_is_trained_on_whole(rows: list[Sample]) -> None:
    held = segmented(DENSE, rows, SEGMENTS)
    pack, targets = held.micro_batch(("s",))
    assert pack.ids.tolist() == [[7, 8, 10, 11, 12, 13, 14, 15]]
    assert targets.tokens.weights["distillation"].tolist() == pytest.approx([0.1] * 6)
    assert targets.tokens.scores["teacher"].logprob.tolist() == [0.0, -1.0, -2.0, -3.0, -4.0, -5.0]
    assert held.samples["s"] == row(6)


def test_tokens_that_are_too_old_carry_no_loss() -> None:
    held = segmented(DENSE, [row(6)], SEGMENTS, oldest=1)
    assert held.samples["s"].loss_spans == [(2, 6)]
    assert held.micro_batch(("s",))[1].tokens.on.tolist() == [False] * 2 + [True] * 4
    assert segmented(DENSE, [row(6)], SEGMENTS, oldest=3).samples["s"].loss_spans == []
    gaps = replace(row(6), loss_spans=[(0, 1), (3, 5)])
    assert segmented(DENSE, [gaps], SEGMENTS, oldest=0).samples["s"].loss_spans == [(0, 1), (3, 5)]
    assert segmented(DENSE, [gaps], SEGMENTS, oldest=1).samples["s"].loss_spans == [(3, 5)]


@pytest.mark.parametrize(("normalise", "weight"), [("token", 1 / 10), ("sequence", 1 / (6 * 4)), ("constant", 1 / 100)])
def test_a_mask_for_age_leaves_the_weights_of_the_rest_as_they_are(normalise: Any, weight: float) -> None:
    config = Objective(target="teacher", normalise=normalise)
    weights = segmented(config, [row(6)], SEGMENTS, oldest=2).micro_batch(("s",))[1].tokens.weights["distillation"]
    assert weights.tolist() == pytest.approx([0.0] * 4 + [weight] * 2)


def test_what_no_table_covers_is_zero_and_carries_no_loss() -> None:
    topk = Objective(target="teacher", support="topk", topk=2)
    partly = replace(row(6), loss_spans=[(2, 4)])
    tokens = segmented(topk, [partly], SEGMENTS[1:2]).micro_batch(("s",))[1].tokens
    teacher = tokens.scores["teacher"]
    assert teacher.support_ids is not None and teacher.support_logprobs is not None and teacher.tail_logprob is not None
    assert teacher.logprob.tolist() == teacher.tail_logprob.tolist() == [0.0, 0.0, -2.0, -3.0, 0.0, 0.0]
    assert teacher.support_ids[1:4].tolist() == [[0, 0], [2, 102], [3, 103]]
    assert teacher.support_logprobs[1:4].tolist() == [[0.0, 0.0], [-2.0, -2.0], [-3.0, -3.0]]


@pytest.mark.parametrize("loss", [(1, 4), (2, 5)])
def test_loss_on_a_token_without_a_score_is_an_error(loss: tuple[int, int]) -> None:
    with pytest.raises(RuntimeError, match=r"s: tokens . to . carry loss and teacher has not scored all of them"):
        segmented(DENSE, [replace(row(6), loss_spans=[loss])], SEGMENTS[1:2]).micro_batch(("s",))


def test_each_segments_hidden_states_go_through_the_head_of_its_version() -> None:
    full = Objective(target="teacher", support="full")
    tables = [scores(2, 4, version=3), scores(4, 6, version=5)]
    partly = replace(row(6), loss_spans=[(3, 5)])
    targets = segmented(full, [partly], tables).micro_batch(("s",))[1]
    found = {h.head: (h.rows.tolist(), h.states[:, 0].tolist()) for h in targets.hidden["teacher"]}
    assert found == {
        ("teacher", 3): ([2, 3], [2.0, 3.0]),
        ("teacher", 5): ([4, 5, 0, 1], [4.0, 5.0, 0.0, 0.0]),  # the last two have no score and no loss
    }


@pytest.mark.parametrize("loss", [[(3, 6)], []])
def test_what_is_too_old_to_carry_loss_needs_no_head(loss: list[Span]) -> None:
    """The learner has let go of those that no loss token was scored by."""
    full = Objective(target="teacher", support="full")
    tables = [scores(0, 2, version=1), scores(2, 6, version=5)]
    targets = segmented(full, [replace(row(6), loss_spans=loss)], tables).micro_batch(("s",))[1]
    found = {h.head: (h.rows.tolist(), h.states[:, 0].tolist()) for h in targets.hidden["teacher"]}
    assert found == {("teacher", 5): ([2, 3, 4, 5, 0, 1], [2.0, 3.0, 4.0, 5.0, 0.0, 0.0])}


def test_hidden_states_of_several_responses_lie_one_after_another() -> None:
    full = Objective(target="teacher", support="full")
    rows, tables = ([r, replace(r, uid="t")] for r in (row(3), scores(0, 3)))
    targets = segmented(full, rows, tables, uids=("s", "t")).micro_batch(("s", "t"))[1]
    (piece,) = targets.hidden["teacher"]
    assert piece.rows.tolist() == [0, 1, 2, 3, 4, 5] and piece.states[:, 0].tolist() == [0.0, 1.0, 2.0] * 2


# --- what a reader is told of the teacher ---


def likeliest(config: Objective, table: Score, heads: dict[Any, Any] | None = None) -> list[dict[int, float]] | None:
    """What is recorded of response "s" with loss on its tokens 2 and 3: at each token {id: log-prob}."""
    held = segmented(config, [replace(row(6), loss_spans=[(2, 4)])], [table])
    held.old = {"logprob": {"s": np.zeros(6, np.float32)}}
    (recorded,) = held._trained(heads or {}).to_pylist()
    ids, logprobs = recorded["likeliest_ids"], recorded["likeliest_logprobs"]
    if ids is None:
        assert logprobs is None
        return None
    pairs = [
        list(zip(ids[i : i + LIKELIEST], logprobs[i : i + LIKELIEST], strict=True))
        for i in range(0, 6 * LIKELIEST, LIKELIEST)
    ]
    return [{token: value for token, value in place if token >= 0} for place in pairs]


def test_the_likeliest_of_a_topk_support_are_recorded_in_order() -> None:
    table = replace(
        scores(2, 4),
        support_ids=np.array([[5, 6, 7, 8, 9], [15, -1, 17, -1, 19]], np.int32),
        support_logprobs=np.array([[-5, -1, -3, -2, -4], [-2, 0, -1, 0, -3]], np.float16),
        hidden=None,
    )
    found = likeliest(Objective(target="teacher", support="topk", topk=5), table)
    assert found == [{}, {}, {6: -1, 8: -2, 7: -3, 9: -4}, {17: -1, 15: -2, 19: -3}, {}, {}]
    assert list(found[2]) == [6, 8, 7, 9] and list(found[3]) == [17, 15, 19]


def test_the_likeliest_of_a_full_support_go_through_the_teachers_head() -> None:
    table = replace(scores(2, 4, version=3), support_ids=None, support_logprobs=None, tail_logprob=None)
    weight = torch.arange(6.0).unsqueeze(-1).expand(6, 2)  # at hidden state [t, t] token v has logit 2 t v
    heads = {("teacher", 3): Projection(weight, None, 1.0, None)}
    found = likeliest(Objective(target="teacher", support="full"), table, heads)
    expected = (torch.arange(6.0) * 4).log_softmax(0)[2:].flip(0).tolist()
    assert found is not None and [len(place) for place in found] == [0, 0, 4, 4, 0, 0]
    assert list(found[2]) == [5, 4, 3, 2] and list(found[2].values()) == pytest.approx(expected, abs=0.01)


def test_of_sampled_support_nothing_else_is_known() -> None:
    table = replace(scores(2, 4), support_ids=None, support_logprobs=None, tail_logprob=None, hidden=None)
    assert likeliest(DENSE, table) is None
