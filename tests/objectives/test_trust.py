"""Trust regions and mismatch weights against formulas written by hand, at ratios off 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from objectives.objective import mismatch_weight
from tests.objectives.enumeration import (
    LAMBDAS,
    assert_equal,
    every_token,
    gradient,
    log_probs,
    logits,
    loss,
    metrics,
    mixture,
    recipe,
    step,
)
from tests.objectives.tree import (
    LENGTHS,
    NODE,
    NODES,
    OUTCOMES,
    RESPONSE_COUNT,
    SEQUENCE,
    TOKEN,
    log_prob,
    responses,
    sequence_kl,
    tree_step,
)

OLD = (0.3 * log_probs(0) + 0.7 * log_probs(2)).log_softmax(-1)  # the learner's policy at the start of the step
A = logits(3).detach()  # an advantage of each token at each prefix, of both signs


def rewarded(kind: str, **trust: Any) -> Any:
    return recipe(target="none", outcome={"weight": 1.0}, trust={"kind": kind, "truncation": None, **trust})


def clipped(low: float, high: float) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """PPO by cases: the gradient is w A grad log q, but for tokens that are past a bound in the direction of A."""

    def by_cases(q: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
        w = (q - old).exp()
        held = ((A > 0) & (w > 1 + high)) | ((A < 0) & (w < 1 - low))
        bound = (1 + high) * (A > 0).double() + (1 - low) * (A <= 0).double()
        return torch.where(held, -bound * A, -w * A), held

    return by_cases


def cispo(low: float, high: float) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    def capped(q: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
        w = (q - old).exp().detach()
        return -w.clamp(1 - low, 1 + high) * A * q, (w < 1 - low) | (w > 1 + high)

    return capped


def probability(q: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
    moved = (q.exp() - old.exp()).detach()
    held = ((A > 0) & (moved > 0.05)) | ((A < 0) & (moved < -0.05))
    return torch.where(held, 0.0, -(q - old).exp() * A), held


def unbounded(q: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
    return -(q - old).exp() * A, torch.zeros_like(A, dtype=torch.bool)


KINDS = {
    "none": (rewarded("none"), unbounded),
    "ppo": (rewarded("ppo"), clipped(0.2, 0.2)),
    "dapo": (rewarded("dapo"), clipped(0.2, 0.28)),
    "gspo": (rewarded("gspo"), clipped(3e-4, 4e-4)),  # a response of one token has its token's ratio
    "cispo": (rewarded("cispo"), cispo(1.0, 5.0)),
    "cispo-low": (rewarded("cispo", low=0.3, high=0.5), cispo(0.3, 0.5)),
    "probability": (rewarded("probability", delta=0.05), probability),
}
EVERY_KIND = pytest.mark.parametrize("config, by_hand", KINDS.values(), ids=KINDS.keys())


def batch(config: Any, theta: Tensor, old: Tensor = OLD) -> tuple[Tensor, Any]:
    given = {"advantage": A.flatten(), "old_logprob": old.flatten()}
    return every_token(config, theta.log_softmax(-1), {}, mu=OLD, **given)


@EVERY_KIND
def test_each_kind_is_its_formula_off_ratio_one(config: Any, by_hand: Any) -> None:
    theta = logits(0)
    expected, _ = by_hand(theta.log_softmax(-1), OLD)
    computed = loss(config, *batch(config, theta))
    assert_equal(computed, (OLD.exp() * expected).sum())
    assert_equal(gradient(computed, theta), gradient(OLD.exp() * expected, theta))


@EVERY_KIND
def test_held_are_the_tokens_whose_gradient_the_trust_region_took_or_capped(config: Any, by_hand: Any) -> None:
    theta = logits(0)
    student, tokens = batch(config, theta)
    _, held = by_hand(theta.log_softmax(-1), OLD)
    computed = [metrics(config, student[i : i + 1], tokens[i : i + 1])["held"].item() for i in range(len(tokens))]
    assert computed == held.flatten().int().tolist()
    assert held.any() == (config.trust.kind != "none") and not held.all()
    assert metrics(config, student, tokens)["held"] == held.sum()


@EVERY_KIND
def test_at_ratio_one_each_kind_is_reinforce_and_holds_nothing(config: Any, by_hand: Any) -> None:
    theta = logits(0)
    q = theta.log_softmax(-1)
    student, tokens = batch(config, theta, old=q.detach())
    expected = gradient(-OLD.exp() * A * q, theta)
    assert_equal(gradient(loss(config, student, tokens), theta), expected)
    assert metrics(config, student, tokens)["held"] == 0
    first_pass = replace(tokens, old_logprob=None)
    assert_equal(gradient(loss(config, student, first_pass), theta), expected)


def test_held_follows_the_advantage_that_the_loss_follows() -> None:
    theta, reference = logits(0), {"model": "ref", "beta": 5.0, "placement": "signal_token"}
    config = rewarded("ppo").model_copy(update={"reference": recipe(reference=reference).reference})
    ref = log_probs(6)
    given = {"advantage": A.flatten(), "old_logprob": OLD.flatten()}
    student, tokens = every_token(config, theta.log_softmax(-1), {"ref": ref}, mu=OLD, **given)
    signal, w = A - 5.0 * (OLD - ref), (theta.log_softmax(-1) - OLD).exp()
    held = ((signal > 0) & (w > 1.2)) | ((signal < 0) & (w < 0.8))
    assert (((A > 0) & (w > 1.2)) | ((A < 0) & (w < 0.8))).sum() != held.sum()
    assert metrics(config, student, tokens)["held"] == held.sum()


@pytest.mark.parametrize("reverse_weight", [1.0, 0.4])
def test_a_trust_region_holds_the_distillation_signal_as_it_does_an_outcome(reverse_weight: float) -> None:
    theta, p = logits(0), log_probs(1)
    q = theta.log_softmax(-1)
    config = recipe(reverse_weight=reverse_weight, trust={"kind": "ppo", "truncation": None})
    l = (p - q).detach()  # noqa: E741
    signal = reverse_weight * l + (1 - reverse_weight) * (l.exp() - 1)
    w = (q - OLD).exp()
    held = ((signal > 0) & (w > 1.2)) | ((signal < 0) & (w < 0.8))
    expected = gradient(torch.where(held, 0.0, -OLD.exp() * w * signal), theta)
    assert held.any()
    assert_equal(step(config, theta, p, mu=OLD, old_logprob=OLD.flatten()), expected)


@pytest.mark.parametrize("low, high", [(0.2, 0.28), (3e-4, 4e-4)])
def test_gspo_on_one_token_is_ppo_with_its_bounds(low: float, high: float) -> None:
    theta = logits(0)
    values = [loss(config, *batch(config, theta)) for config in
              (rewarded("gspo", low=low, high=high), rewarded("ppo", low=low, high=high))]  # fmt: skip
    assert_equal(*values)
    assert_equal(*(gradient(value, theta) for value in values))


@pytest.mark.parametrize("low, high", [(3e-4, 4e-4), (0.2, 0.3), (0.9, 9.0)])
def test_gspo_clips_the_geometric_mean_of_a_responses_ratios(low: float, high: float) -> None:
    theta, old = logits(0, NODES, OUTCOMES), log_probs(2, NODES, OUTCOMES)
    q = theta.log_softmax(-1)
    advantage = torch.randn(RESPONSE_COUNT, generator=torch.Generator().manual_seed(4)).double()
    s = ((log_prob(q) - log_prob(old)) / LENGTHS).exp()
    held = ((advantage > 0) & (s > 1 + high)) | ((advantage < 0) & (s < 1 - low))
    bound = (1 + high) * (advantage > 0).double() + (1 - low) * (advantage <= 0).double()
    of_response = torch.where(held, -bound * advantage, -s * advantage)
    config = rewarded("gspo", low=low, high=high)
    given = {"advantage": advantage[SEQUENCE], "old_logprob": old[NODE, TOKEN]}
    weights = {"outcome": 1.0 / (LENGTHS.double() * RESPONSE_COUNT)[SEQUENCE]}  # by sequence, as GSPO is
    student, tokens = responses(config, q, {}, mu=old, weights=weights, **given)
    computed = loss(config, student, tokens)
    assert_equal(computed, of_response.mean())
    assert_equal(gradient(computed, theta), gradient(of_response.mean(), theta))
    assert metrics(config, student, tokens)["held"] == (held * LENGTHS).sum()


def test_gspo_leaves_tokens_without_loss_out_of_the_mean() -> None:
    theta, old = logits(0, NODES, OUTCOMES), log_probs(2, NODES, OUTCOMES)
    config = rewarded("gspo", low=0.9, high=9.0)
    on = torch.arange(len(NODE)) % 2 == 0
    weights = {"outcome": on.double()}
    given = {"advantage": torch.ones(len(NODE)).double(), "old_logprob": old[NODE, TOKEN], "weights": weights, "on": on}
    q = theta.log_softmax(-1)
    gap = (q - old)[NODE, TOKEN]
    count = torch.zeros(RESPONSE_COUNT).double().index_add(0, SEQUENCE, on.double())
    mean = torch.zeros(RESPONSE_COUNT).double().index_add(0, SEQUENCE, gap * on) / count.clamp(min=1)
    s = mean.exp()
    inside = (s > 0.1) & (s < 10.0)
    assert inside.sum() > 30
    expected = -(torch.minimum(s, torch.tensor(10.0)) * count).sum()
    computed = loss(config, *responses(config, q, {}, mu=old, **given))
    assert_equal(computed, expected)


# --- mismatch: tokens drawn from mu, not from q ---


@pytest.mark.parametrize("reverse_weight", LAMBDAS)
def test_an_unbounded_weight_makes_the_mean_over_mu_the_on_policy_gradient(reverse_weight: float) -> None:
    theta, p = logits(0), log_probs(1)
    config = recipe(reverse_weight=reverse_weight, trust={"truncation": 1e30})
    expected = gradient(mixture(theta.log_softmax(-1), p, reverse_weight), theta)
    assert_equal(step(config, theta, p, mu=OLD), expected)
    uncorrected = recipe(reverse_weight=reverse_weight, trust={"truncation": None})
    assert (step(uncorrected, theta, p, mu=OLD) - expected).abs().max() > 1e-2


def test_an_unbounded_weight_makes_the_mean_outcome_gradient_on_policy() -> None:
    theta = logits(0)
    config = rewarded("none", truncation=1e30)
    expected = gradient(-theta.softmax(-1) * A, theta)
    assert_equal(step(config, theta, {}, mu=OLD, advantage=A.flatten()), expected)


@pytest.mark.parametrize("cap", [0.5, 1.0, 2.0])
def test_a_cap_bounds_the_weight(cap: float) -> None:
    theta, p = logits(0), log_probs(1)
    q = theta.log_softmax(-1)
    mass = torch.minimum(q.exp(), cap * OLD.exp()).detach()
    expected = gradient(-mass * (p - q).detach() * q, theta)
    assert (mass < q.exp() - 1e-3).any()
    assert_equal(step(recipe(trust={"truncation": cap}), theta, p, mu=OLD), expected)


def test_the_default_cap_is_two() -> None:
    theta, p = logits(0), log_probs(1)
    assert_equal(step(recipe(), theta, p, mu=OLD), step(recipe(trust={"truncation": 2.0}), theta, p, mu=OLD))


def test_in_a_later_pass_the_mismatch_is_of_the_policy_that_the_step_began_with_and_the_ratio_is_apart() -> None:
    theta, mu = logits(0), log_probs(4)
    w = (theta.log_softmax(-1) - OLD).exp()
    cap = torch.minimum((OLD - mu).exp(), torch.tensor(1.5))
    expected = gradient(-mu.exp() * cap * w * A, theta)
    given = {"advantage": A.flatten(), "old_logprob": OLD.flatten()}
    assert_equal(step(rewarded("none", truncation=1.5), theta, {}, mu=mu, **given), expected)


def test_tokens_that_the_student_did_not_draw_have_no_mismatch_weight() -> None:
    theta = logits(0)
    q = theta.log_softmax(-1)
    drawn = torch.arange(A.numel()) % 2 == 0
    weight = torch.where(drawn, (q.detach() - OLD).flatten().exp(), 1.0).reshape(A.shape)
    expected = gradient(-OLD.exp() * weight * A * q, theta)
    config = rewarded("none", truncation=1e30)
    assert_equal(step(config, theta, {}, mu=OLD, advantage=A.flatten(), drawn=drawn), expected)


@pytest.mark.parametrize("support", ["topk", "full"])
def test_a_divergence_over_outcomes_carries_no_ratio(support: str) -> None:
    theta, p = logits(0), log_probs(1)
    free, tight = (recipe(support=support, trust={"truncation": cap}) for cap in (None, 0.1))
    assert_equal(step(free, theta, p, mu=OLD), step(tight, theta, p, mu=OLD))


MU = log_probs(4, NODES, OUTCOMES)
TEACHER = log_probs(1, NODES, OUTCOMES)
REWARD = torch.randn(RESPONSE_COUNT, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_a_weight_a_response_makes_the_mean_over_mus_responses_the_on_policy_gradient() -> None:
    theta = logits(0, NODES, OUTCOMES)
    config = rewarded("none", mismatch="sequence", truncation=1e30)
    expected = -gradient(log_prob(theta.log_softmax(-1)).exp() * REWARD, theta)
    assert_equal(tree_step(config, theta, {}, mu=MU, advantage=REWARD[SEQUENCE]), expected)
    by_token = rewarded("none", truncation=1e30)
    assert (tree_step(by_token, theta, {}, mu=MU, advantage=REWARD[SEQUENCE]) - expected).abs().max() > 1e-2


def test_a_weight_a_response_makes_log_ratio_returns_the_sequences_reverse_gradient() -> None:
    theta = logits(0, NODES, OUTCOMES)
    config = recipe(discount=1.0, trust={"mismatch": "sequence", "truncation": 1e30})
    expected = gradient(sequence_kl(theta.log_softmax(-1), TEACHER), theta)
    assert_equal(tree_step(config, theta, {"teacher": TEACHER}, mu=MU), expected)


@pytest.mark.parametrize("cap", [0.5, 2.0])
def test_a_cap_bounds_the_weight_of_the_whole_response(cap: float) -> None:
    theta = logits(0, NODES, OUTCOMES)
    q = theta.log_softmax(-1)
    mass = torch.minimum(log_prob(q).exp(), cap * log_prob(MU).exp()).detach()
    config = rewarded("none", mismatch="sequence", truncation=cap)
    expected = gradient(-mass * REWARD * log_prob(q), theta)
    assert_equal(tree_step(config, theta, {}, mu=MU, advantage=REWARD[SEQUENCE]), expected)


def test_tokens_without_loss_have_no_part_in_a_responses_weight() -> None:
    q = log_probs(0, NODES, OUTCOMES)
    on = torch.arange(len(NODE)) % 3 > 0
    config = rewarded("none", mismatch="sequence", truncation=1e30)
    _, tokens = responses(config, q, {}, mu=MU, on=on)
    gap = torch.zeros(RESPONSE_COUNT).double().index_add(0, SEQUENCE, (q - MU)[NODE, TOKEN] * on)
    assert_equal(mismatch_weight(config, q[NODE, TOKEN], tokens), gap.exp()[SEQUENCE])


def test_ratios_stay_finite_however_far_the_policies_are_apart() -> None:
    config = rewarded("none", truncation=1e30)  # e^90 is beyond it, and float32 holds no e^180
    theta = torch.tensor([[0.0, -90.0]], requires_grad=True)
    given = {"advantage": torch.ones(2), "old_logprob": torch.tensor([-90.0, 0.0])}
    student, tokens = every_token(config, theta.log_softmax(-1), {}, mu=torch.tensor([[-90.0, 0.0]]), **given)
    for kind in ("none", "ppo", "dapo", "gspo", "cispo", "probability"):
        value = loss(rewarded(kind), student, tokens)
        assert value.isfinite() and gradient(value, theta).isfinite().all()
