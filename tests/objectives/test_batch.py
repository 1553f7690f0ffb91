"""Chunks, order, micro-batches and ranks change nothing; tokens without loss do not count; denominators."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from objectives import objective
from objectives.schedule import dials_at
from objectives.token_weights import token_weight
from objectives.tokens import Tokens
from tests.objectives.enumeration import (
    assert_equal,
    gradient,
    log_probs,
    logits,
    loss,
    metrics,
    micro_batch,
    proven_by_examples,
    recipe,
)

a_few_examples = settings(proven_by_examples, max_examples=15)
LENGTHS = (3, 1, 4, 2, 5)
STARTS = [sum(LENGTHS[:i]) for i in range(len(LENGTHS))]
N = sum(LENGTHS)
RESPONSES = [torch.arange(start, start + n) for start, n in zip(STARTS, LENGTHS, strict=True)]
OLD, VALUES = log_probs(12, N), log_probs(13, N)[:, 0]


def outcome(**axes: Any) -> dict[str, Any]:
    return {"weight": 1.0, **axes}


def reference(placement: str) -> dict[str, Any]:
    return {"model": "ref", "beta": 0.3, "placement": placement}


RECIPES = {
    "sampled": recipe(reverse_weight=0.7, clip=0.5),
    "returns": recipe(discount=0.9, outcome=outcome()),
    "topk": recipe(support="topk", topk=3, reverse_weight=0.7, family="jsd"),
    "full": recipe(support="full", reverse_weight=0.7, clip={"vocab_element": 0.2}),
    "exact-baseline": recipe(support="full", baseline="exact", discount=1.0),
    "data": recipe(target="data", prefix="dataset", reverse_weight=0.0),
    "gate": recipe(support="full", outcome=outcome(combine="gate")),
    "ppo-value": recipe(
        target="none", outcome=outcome(baseline="value"), reference=reference("reward_token"), trust={"kind": "ppo"}
    ),
    "gspo": recipe(target="none", outcome=outcome(), trust={"kind": "gspo"}, reference=reference("exact")),
    "sequence-weight": recipe(
        target="none", outcome=outcome(), trust={"mismatch": "sequence"}, reference=reference("loss_k2")
    ),
}
LATER_PASSES = ("ppo-value", "gspo")
EVERY_RECIPE = pytest.mark.parametrize("name", RECIPES)


def weights(normalise: str, on: Tensor) -> Tensor:
    """Of each token, under global totals."""
    counts = [int(on[rows].sum()) for rows in RESPONSES]
    of_response = [token_weight(normalise, n, int(on.sum()), len(LENGTHS), 50) for n in counts]
    return torch.cat([torch.full((n,), w).double() for n, w in zip(LENGTHS, of_response, strict=True)]) * on


def batch(name: str, theta: Tensor, on: Tensor | None = None, normalise: str = "sequence") -> tuple[Tensor, Tokens]:
    """Five responses with a reward each, scored by a teacher and a reference."""
    on = torch.ones(N, dtype=torch.bool) if on is None else on
    ids = torch.arange(N) % 5
    of_response = torch.tensor([0.5, -1.0, 2.0, 0.0, -0.3]).double()
    sequence = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
    q = theta.log_softmax(-1)
    later = name in LATER_PASSES
    tokens = micro_batch(
        RECIPES[name],
        ids,
        log_probs(9, N),
        weights(normalise, on),
        {"teacher": log_probs(10, N), "ref": log_probs(11, N)},
        sequence=sequence,
        position=torch.cat([torch.arange(n) for n in LENGTHS]),
        on=on,
        advantage=of_response[sequence],
        reward=of_response[sequence],
        old_logprob=OLD.gather(-1, ids.unsqueeze(-1)).squeeze(-1) if later else None,
        old_value=VALUES if head(name) else None,
    )
    return q, tokens


def head(name: str, rows: slice | Tensor = slice(None)) -> dict[str, Tensor]:
    """What the value head says of these rows, where there is one."""
    return {"value": 0.5 * VALUES[rows]} if name == "ppo-value" else {}


def split(name: str, q: Tensor, tokens: Tokens, parts: list[Tensor]) -> Tensor:
    """Sum of the losses of groups of rows, one micro-batch each."""
    losses = [loss(RECIPES[name], q[rows], tokens[rows], **head(name, rows)) for rows in parts]
    return torch.stack(losses).sum()


def whole(name: str, q: Tensor, tokens: Tokens) -> Tensor:
    return split(name, q, tokens, [torch.arange(N)])


@pytest.mark.parametrize("normalise", ["token", "sequence", "constant"])
@EVERY_RECIPE
def test_losses_of_micro_batches_and_ranks_sum_to_the_loss_of_all(name: str, normalise: str) -> None:
    theta = logits(0, N)
    q, tokens = batch(name, theta, normalise=normalise)
    for groups in ([[0, 1], [2, 3, 4]], [[4], [1, 3], [0], [2]]):
        parts = split(name, q, tokens, [torch.cat([RESPONSES[i] for i in group]) for group in groups])
        assert_equal(parts, whole(name, q, tokens))
        assert_equal(gradient(parts, theta), gradient(whole(name, q, tokens), theta))


@EVERY_RECIPE
@a_few_examples
@given(order=st.permutations(range(len(LENGTHS))))
def test_the_order_of_responses_changes_nothing(name: str, order: list[int]) -> None:
    theta = logits(0, N)
    q, tokens = batch(name, theta)
    shuffled = split(name, q, tokens, [torch.cat([RESPONSES[i] for i in order])])
    assert_equal(shuffled, whole(name, q, tokens))
    assert_equal(gradient(shuffled, theta), gradient(whole(name, q, tokens), theta))


@EVERY_RECIPE
@a_few_examples
@given(random=st.randoms(use_true_random=False))
def test_reading_in_chunks_that_cut_responses_changes_nothing(name: str, random: Random) -> None:
    theta = logits(0, N)
    q, tokens = batch(name, theta)
    built, dials = objective.build(RECIPES[name]), dials_at(RECIPES[name], 1)
    cuts = [0, *sorted(random.sample(range(1, N), random.randint(1, 6))), N]
    chunks = [built.read(q[a:b], tokens[a:b], dials) for a, b in pairwise(cuts)]
    streams = {key: torch.cat([chunk[key] for chunk in chunks]) for key in chunks[0]} | head(name)
    in_parts = built.loss(streams, tokens, dials)
    assert_equal(in_parts, whole(name, q, tokens))
    assert_equal(gradient(in_parts, theta), gradient(whole(name, q, tokens), theta))
    once = built.read(q, tokens, dials) | head(name)
    for key, value in built.metrics(once, tokens, dials).items():
        assert_equal(built.metrics(streams, tokens, dials)[key], value)


@EVERY_RECIPE
def test_metrics_of_micro_batches_sum_to_those_of_all(name: str) -> None:
    config = RECIPES[name]
    q, tokens = batch(name, logits(0, N))
    parts = [metrics(config, q[rows], tokens[rows], **head(name, rows)) for rows in RESPONSES]
    for key, value in metrics(config, q, tokens, **head(name)).items():
        assert_equal(sum(part[key] for part in parts if key in part), value)


OFF = torch.tensor([0, 3, 6, 10, 14])  # a first token, a whole response, one in the middle, a start, an end


@EVERY_RECIPE
def test_tokens_without_loss_count_in_neither_loss_gradient_nor_metrics(name: str) -> None:
    theta = logits(0, N)
    on = torch.ones(N, dtype=torch.bool).index_fill(0, OFF, False)
    q, tokens = batch(name, theta, on)
    other = torch.zeros(N, dtype=torch.bool).index_fill(0, OFF, True)
    moved = torch.where(other.unsqueeze(-1), log_probs(20, N), q)  # another student where there is no loss
    changed = replace(tokens, rollout_logprob=torch.where(other, -3.0, tokens.rollout_logprob))
    if tokens.old_logprob is not None:
        changed = replace(changed, old_logprob=torch.where(other, -2.0, tokens.old_logprob))
    assert_equal(whole(name, moved, changed), whole(name, q, tokens))
    found = gradient(whole(name, q, tokens), theta)
    assert_equal(found[OFF], torch.zeros(len(OFF), 5).double())
    assert_equal(gradient(whole(name, moved, changed), theta), found)
    before = metrics(RECIPES[name], q, tokens, **head(name))
    after = metrics(RECIPES[name], moved, changed, **head(name))
    assert before["off_loss"] == len(OFF)
    for key, value in before.items():
        assert_equal(after[key], value)


@EVERY_RECIPE
def test_tokens_of_weight_zero_have_no_gradient(name: str) -> None:
    theta = logits(0, N)
    q, tokens = batch(name, theta)
    silent = torch.ones(N).double().index_fill(0, RESPONSES[2], 0.0)
    masked = replace(tokens, weights={term: weight * silent for term, weight in tokens.weights.items()})
    rest = torch.cat([RESPONSES[i] for i in (0, 1, 3, 4)])
    assert_equal(whole(name, q, masked), split(name, q, tokens, [rest]))
    found = gradient(whole(name, q, masked), theta)
    assert_equal(found[RESPONSES[2]], torch.zeros(LENGTHS[2], 5).double())
    assert_equal(found[rest], gradient(split(name, q, tokens, [rest]), theta)[rest])


@EVERY_RECIPE
def test_every_recipe_of_this_file_has_a_gradient(name: str) -> None:
    theta = logits(0, N)
    assert gradient(whole(name, *batch(name, theta)), theta).abs().max() > 1e-3


# --- denominators ---


def normalised(normalise: str, per_token: list[Tensor], constant: int = 50) -> Tensor:
    sizes = [len(x) for x in per_token]
    parts = [token_weight(normalise, n, sum(sizes), len(sizes), constant) * x.sum()
             for n, x in zip(sizes, per_token, strict=True)]  # fmt: skip
    return torch.stack(parts).sum()


PER_TOKEN = [torch.arange(n).double() + n * n for n in LENGTHS]


def test_by_token_the_loss_is_the_mean_over_all_tokens() -> None:
    assert_equal(normalised("token", PER_TOKEN), torch.cat(PER_TOKEN).mean())


def test_by_sequence_the_loss_is_the_mean_of_the_responses_means() -> None:
    assert_equal(normalised("sequence", PER_TOKEN), torch.stack([x.mean() for x in PER_TOKEN]).mean())


def test_by_constant_the_loss_is_the_sum_over_a_constant() -> None:
    assert_equal(normalised("constant", PER_TOKEN), torch.cat(PER_TOKEN).sum() / 50)


@pytest.mark.parametrize("normalise", ["token", "sequence"])
def test_an_empty_batch_divides_by_no_zero(normalise: str) -> None:
    assert token_weight(normalise, 0, 0, 0, 1) == 1.0


def test_a_term_without_its_tokens_leaves_the_step_of_another_as_it_is() -> None:
    theta = logits(0, N)
    name = "gate"
    q, tokens = batch(name, theta)
    alone = recipe(support="full", outcome=outcome(combine="gate"))
    outcome_alone = replace(tokens, weights=tokens.weights | {"distillation": torch.zeros(N).double()})
    rewarded = recipe(target="none", outcome=outcome())
    expected = gradient(loss(rewarded, q, replace(tokens, scores={})), theta)
    assert_equal(gradient(loss(alone, q, outcome_alone), theta), expected)
