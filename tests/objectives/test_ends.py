"""End tokens as a class: every identity holds on the coarser partition, and what is of tokens stays on tokens.

Two of five ids are end tokens, one in the middle and one at the end. The partition is written out again here.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from configs.objective import Objective as ObjectiveConfig
from objectives import divergence, ends, signal
from objectives.divergence import Family
from objectives.objective import build
from objectives.schedule import dials_at
from objectives.tokens import Scores, Tokens
from tests.objectives.enumeration import (
    LAMBDAS,
    assert_equal,
    every_token,
    gradient,
    kl,
    log_probs,
    logits,
    micro_batch,
    mixture,
    recipe,
)

ENDS, V = (2, 4), 5
P, P2, MU, OLD = (log_probs(seed) for seed in (1, 2, 3, 4))
EVERY_LAMBDA = pytest.mark.parametrize("reverse_weight", LAMBDAS)
FAMILIES: list[dict[str, Any]] = [
    {"family": "jsd", "reverse_weight": 0.3},
    {"family": "jsd", "reverse_weight": 0.3, "scale": "unit"},
    {"family": "skew", "reverse_weight": 0.7},
    {"family": "power", "alpha": 0.5},
]


def coarse(x: Tensor) -> Tensor:
    """[..., 5] -> [..., 4]: the two end tokens are one outcome."""
    return torch.stack([x[..., 0], x[..., 1], torch.logaddexp(x[..., 2], x[..., 4]), x[..., 3]], dim=-1)


def of_outcome(x: Tensor, token_ids: Tensor) -> Tensor:
    """log-prob of each token's outcome, [N, 5] -> [N]."""
    outcome = torch.tensor([0, 1, 2, 3, 2])[token_ids]
    return coarse(x).gather(-1, outcome[:, None])[:, 0]


def class_scores(scores: Scores, logprobs: Tensor, token_ids: Tensor, k: int) -> Scores:
    """What a scorer sends where end tokens are one outcome; [N, 5] log-probs of the model."""
    found = replace(scores, logprob=of_outcome(logprobs, token_ids))
    if scores.support_ids is None:
        return found
    rest = torch.tensor([0, 1, 3])
    ids = rest[logprobs[:, rest].topk(k).indices]
    inside = logprobs.gather(-1, ids)
    left = torch.stack([logprobs[:, i].where((ids != i).all(-1), torch.tensor(-torch.inf).double()) for i in rest], -1)
    bottom = torch.logaddexp(logprobs[:, 2], logprobs[:, 4])
    return replace(
        found,
        support_ids=torch.cat([ids, torch.full_like(ids[:, :1], 2)], -1),
        support_logprobs=torch.cat([inside, bottom[:, None]], -1),
        tail_logprob=left.logsumexp(-1),
    )


def merge_scores(config: ObjectiveConfig, tokens: Tokens, models: dict[str, Tensor]) -> Tokens:
    """Tokens with the scores that targets give; references keep those of tokens. models: [N, 5] by slot."""
    of_targets = {
        m: class_scores(tokens.scores[m], models[m], tokens.token_ids, config.topk) for m in config.target_models
    }
    return replace(tokens, scores=dict(tokens.scores) | of_targets)


def rows(logprobs: Tensor) -> Tensor:
    return logprobs.repeat_interleave(V, 0)


def loss(config: ObjectiveConfig, q: Tensor, models: Tensor | dict[str, Tensor], **given: Any) -> Tensor:
    """The mean loss over every token at each prefix, end tokens as a class."""
    named = {"teacher": models} if isinstance(models, Tensor) else models
    student, tokens = every_token(config, q, named, **given)
    tokens = merge_scores(config, tokens, {name: rows(p) for name, p in named.items()})
    built, dials = build(config, None, ENDS), dials_at(config, 1)
    return built.loss(built.read(student, tokens, dials), tokens, dials)


def step(config: ObjectiveConfig, theta: Tensor, models: Tensor | dict[str, Tensor], **given: Any) -> Tensor:
    return gradient(loss(config, theta.log_softmax(-1), models, **given), theta)


# --- the partition ---


def test_the_partition_merges_and_numbers_its_outcomes() -> None:
    for group in ((2, 4), (4, 2), (0, 1), (3, 4), (0, 2, 4), (1,)):
        kept = [v for v in range(V) if v not in sorted(group)[1:]]
        expected = [P[:, list(group)].logsumexp(-1) if v in group else P[:, v] for v in kept]
        assert_equal(ends.merged(P, group), torch.stack(expected, -1))
        numbers = [kept.index(min(group) if v in group else v) for v in range(V)]
        assert ends.places(torch.arange(V), group).tolist() == numbers
        assert ends.places(torch.tensor([-1, 3]), group).tolist() == [-1, numbers[3]]
        ids = torch.arange(len(P)) % V
        gathered = ends.merged(P, group).gather(-1, torch.tensor(numbers)[ids][:, None])[:, 0]
        assert_equal(ends.class_logprob(P, ids, group), gathered)
    assert_equal(ends.merged(P, ENDS), coarse(P))


# --- every identity on it ---


@EVERY_LAMBDA
@pytest.mark.parametrize("support", ["sampled", "full"])
def test_the_gradient_is_that_of_the_mixture_on_the_partition(support: str, reverse_weight: float) -> None:
    theta = logits(0)
    expected = gradient(mixture(coarse(theta.log_softmax(-1)), coarse(P), reverse_weight), theta)
    assert_equal(step(recipe(support=support, reverse_weight=reverse_weight), theta, P), expected)
    of_tokens = gradient(mixture(theta.log_softmax(-1), P, reverse_weight), theta)
    assert (expected - of_tokens).abs().max() > 1e-3


@EVERY_LAMBDA
@pytest.mark.parametrize("k", [1, 2, 3])
def test_on_topk_the_class_is_a_column_of_its_own_beside_k_others(k: int, reverse_weight: float) -> None:
    theta = logits(0)
    q, ids = theta.log_softmax(-1), torch.tensor([0, 1, 3])[P[:, [0, 1, 3]].topk(k).indices]

    def columns(x: Tensor) -> Tensor:
        inside = torch.cat([x.gather(-1, ids), torch.logaddexp(x[:, 2], x[:, 4])[:, None]], -1)
        return inside if k == 3 else torch.cat([inside, torch.log(1.0 - inside.exp().sum(-1, keepdim=True))], -1)

    config = recipe(support="topk", topk=k, reverse_weight=reverse_weight)
    expected = mixture(columns(q), columns(P), reverse_weight)
    assert_equal(loss(config, q, P), expected.sum())
    assert_equal(step(config, theta, P), gradient(expected, theta))


@pytest.mark.parametrize("axes", FAMILIES, ids=str)
def test_every_family_is_that_of_the_partition_sampled_or_whole(axes: dict[str, Any]) -> None:
    theta, config = logits(0), recipe(support="full", **axes)
    family, weight = Family(config.family, config.alpha, config.scale == "unit"), float(axes.get("reverse_weight", 1.0))
    expected = divergence.divergence(coarse(theta.log_softmax(-1)), coarse(P), weight, family)
    assert_equal(step(config, theta, P), gradient(expected, theta))
    assert_equal(step(recipe(**axes), theta, P), gradient(expected, theta))


@pytest.mark.parametrize(("estimator", "weight"), [("k2_in_loss", 1.0), ("k3_in_loss", 0.0)])
def test_estimators_in_the_loss_are_of_the_class(estimator: str, weight: float) -> None:
    theta = logits(0)
    config = recipe(estimator=estimator, reverse_weight=weight)
    assert_equal(step(config, theta, P), gradient(mixture(coarse(theta.log_softmax(-1)), coarse(P), weight), theta))


def test_a_clip_bounds_the_log_ratio_of_the_class() -> None:
    theta = logits(0)
    q, p = coarse(theta.log_softmax(-1)), coarse(P)
    clipped = (p - q).detach().clamp(-0.3, 0.3)
    assert_equal(step(recipe(clip=0.3), theta, P), gradient(-q.exp().detach() * clipped * q, theta))


def test_the_exact_baseline_leaves_the_mean_gradient() -> None:
    theta = logits(0)
    expected = gradient(kl(coarse(theta.log_softmax(-1)), coarse(P)), theta)
    assert_equal(step(recipe(support="full", baseline="exact"), theta, P), expected)


@pytest.mark.parametrize("axes", [{}, {"support": "full"}, {"support": "full", "baseline": "exact"}], ids=str)
def test_a_target_is_extrapolated_on_the_partition_base_included(axes: dict[str, Any]) -> None:
    theta = logits(0)
    beyond = (1.5 * coarse(P) - 0.5 * coarse(P2)).log_softmax(-1)
    config = recipe(extrapolate={"base": "base", "weight": 1.5}, **axes)
    found = step(config, theta, {"teacher": P, "base": P2})
    assert_equal(found, gradient(kl(coarse(theta.log_softmax(-1)), beyond), theta))
    on_tokens = ends.merged((1.5 * P - 0.5 * P2).log_softmax(-1), ENDS)
    assert (coarse(P).exp() - on_tokens.exp()).abs().max() > 1e-3, "which is another target"


@pytest.mark.parametrize("support", ["sampled", "full"])
def test_several_teachers_are_mixed_on_the_partition(support: str) -> None:
    theta = logits(0)
    q = coarse(theta.log_softmax(-1))
    config = recipe(target={"a": 0.3, "b": 0.7}, support=support)
    expected = 0.3 * kl(q, coarse(P)) + 0.7 * kl(q, coarse(P2))
    assert_equal(step(config, theta, {"a": P, "b": P2}), gradient(expected, theta))


def half_squared(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    """A loss of one's own, and its own ratio to mu."""
    log_q = student_logprobs.gather(-1, tokens.token_ids[:, None])[:, 0]
    ratio = (log_q - tokens.rollout_logprob).detach().exp()
    return ratio * 0.5 * (log_q - tokens.scores["teacher"].logprob).square()


def test_a_loss_of_ones_own_sees_outcomes_and_the_tokens_ratio() -> None:
    theta = logits(0)
    expected = gradient(kl(coarse(theta.log_softmax(-1)), coarse(P)), theta)
    for support in ("sampled", "full"):
        config = recipe(support=support, loss=f"{__name__}:half_squared")
        assert_equal(step(config, theta, P, mu=MU), expected)


def test_a_gradient_reaches_each_member_through_its_share() -> None:
    theta = logits(0)
    q = theta.log_softmax(-1).exp().detach()
    for config in (recipe(), recipe(support="full", reverse_weight=0.3), recipe(support="topk", topk=2)):
        found = step(config, theta, P)
        assert_equal(found[:, 2] / q[:, 2], found[:, 4] / q[:, 4])
        assert found[:, [2, 4]].abs().min() > 1e-5


def test_a_kl_of_the_partition_is_a_lower_bound_of_that_of_tokens_and_power_is_none() -> None:
    higher = []
    for seed in range(20):
        q, p = log_probs(100 + seed), log_probs(200 + seed)
        for weight in (0.0, 0.4, 1.0):
            assert (mixture(coarse(q), coarse(p), weight) <= mixture(q, p, weight) + 1e-12).all()
        power = Family("power", 3.0)
        higher.append(divergence.divergence(coarse(q), coarse(p), 1.0, power) > divergence.divergence(q, p, 1.0, power))
    assert torch.stack(higher).any()


def test_a_class_of_one_is_a_token_like_any_other() -> None:
    theta = logits(0)
    for config in (recipe(), recipe(support="full"), recipe(support="full", baseline="exact")):
        student, tokens = every_token(config, theta.log_softmax(-1), P)
        dials = dials_at(config, 1)
        plain, alone = build(config), build(config, None, (3,))
        expected = plain.loss(plain.read(student, tokens, dials), tokens, dials)
        found = alone.loss(alone.read(student, tokens, dials), tokens, dials)
        assert_equal(gradient(found, theta), gradient(expected, theta))


# --- two streams of the student ---


def test_tokens_of_another_policy_weigh_by_the_tokens_ratio() -> None:
    """q(y)/mu(y) makes it the student's mean again; q(class)/mu(y) would not."""
    theta = logits(0)
    expected = gradient(kl(coarse(theta.log_softmax(-1)), coarse(P)), theta)
    assert_equal(step(recipe(trust={"truncation": 1e9}), theta, P, mu=MU), expected)


@pytest.mark.parametrize("kind", ["none", "ppo", "dapo", "gspo", "cispo", "probability"])
def test_a_later_pass_holds_the_class_and_corrects_the_token(kind: str) -> None:
    theta = logits(0)
    q = theta.log_softmax(-1)
    ids = torch.arange(V).repeat(len(q))
    old = rows(OLD).gather(-1, ids[:, None])[:, 0]
    mu = rows(MU).gather(-1, ids[:, None])[:, 0]
    old_class, q_class = of_outcome(rows(OLD), ids), of_outcome(rows(q), ids)
    bounds = {"low": 0.1, "high": 0.1} if kind in ("ppo", "dapo", "gspo", "cispo") else {}
    config = recipe(trust={"kind": kind, "truncation": 1.5, **bounds})
    found = step(config, theta, P, mu=MU, old_logprob=old, old_class_logprob=old_class)
    ratio = (q_class - old_class).exp()
    a = (of_outcome(rows(P), ids) - q_class).detach()
    if kind in ("ppo", "dapo", "gspo"):
        surrogate = -torch.minimum(ratio * a, ratio.clamp(0.9, 1.1) * a)
    elif kind == "cispo":
        surrogate = -ratio.detach().clamp(0.9, 1.1) * a * q_class
    else:
        held = ((q_class.exp() - old_class.exp()) * a.sign() > 0.2) & (kind == "probability")
        surrogate = torch.where(held, 0.0, -ratio * a)
    weight = rows(MU).gather(-1, ids[:, None])[:, 0].exp() * (old - mu).exp().clamp(max=1.5)
    assert_equal(found, gradient(weight * surrogate, theta))


def test_k2_in_the_loss_weighs_by_the_class_and_the_reference_by_the_token() -> None:
    theta = logits(0)
    q = theta.log_softmax(-1)
    ids = torch.arange(V).repeat(len(q))
    given = {
        "mu": OLD,
        "old_logprob": rows(OLD).gather(-1, ids[:, None])[:, 0],
        "old_class_logprob": of_outcome(rows(OLD), ids),
    }
    config = recipe(estimator="k2_in_loss")
    assert_equal(step(config, theta, P, **given), gradient(kl(coarse(q), coarse(P)), theta))
    held_back = {"model": "ref", "beta": 0.5, "placement": "loss_k2"}
    both = recipe(estimator="k2_in_loss", reference=held_back, outcome={"weight": 1.0})
    expected = gradient(kl(coarse(q), coarse(P)), theta) + 0.5 * gradient(kl(q, P2), theta)
    assert_equal(step(both, theta, {"teacher": P, "ref": P2}, **given), expected)


@pytest.mark.parametrize("placement", ["signal_token", "loss_k2", "exact"])
@pytest.mark.parametrize("support", ["sampled", "topk", "full"])
def test_rewards_and_references_are_of_tokens(support: str, placement: str) -> None:
    theta = logits(0)
    reference = {"model": "ref", "beta": 0.5, "placement": placement}
    config = recipe(support=support, topk=3, outcome={"weight": 1.0}, reference=reference)
    advantage = logits(7).detach().flatten()
    q = theta.log_softmax(-1)
    weight = {
        term: rows(q.exp().detach()).gather(-1, torch.arange(V).repeat(4)[:, None])[:, 0] for term in config.terms
    }
    silent = weight | {"distillation": 0.0 * weight["outcome"]}
    models = {"teacher": P, "ref": P2}
    student, tokens = every_token(config, q, models, advantage=advantage, weights=silent)
    plain, dials = build(config), dials_at(config, 1)
    expected = gradient(plain.loss(plain.read(student, tokens, dials), tokens, dials), theta)
    assert_equal(step(config, theta, models, advantage=advantage, weights=silent), expected)
    assert expected.abs().max() > 1e-3


def test_readings_of_the_target_are_of_outcomes_and_entropies_of_tokens() -> None:
    q = log_probs(0)
    for support in ("sampled", "full"):
        config = recipe(support=support)
        student, tokens = every_token(config, q, P)
        tokens = merge_scores(config, tokens, {"teacher": rows(P)})
        built, dials = build(config, None, ENDS), dials_at(config, 1)
        streams = built.read(student, tokens, dials)
        found = built.metrics(streams, tokens, dials)
        assert_equal(streams["entropy"], -(student.exp() * student).sum(-1))
        assert_equal(streams["logprob"], student.gather(-1, tokens.token_ids[:, None])[:, 0])
        k1 = of_outcome(student, tokens.token_ids) - of_outcome(rows(P), tokens.token_ids)
        assert_equal(found["k1"], k1.sum())
        assert_equal(found["k3"], (torch.exp(-k1) - 1.0 + k1).sum())
        if support == "full":
            assert_equal(found["reverse_kl"], V * kl(coarse(q), coarse(P)).sum())
            assert_equal(found["forward_kl"], V * kl(coarse(P), coarse(q)).sum())


# --- whole responses: three tokens and two ends, up to three tokens long, cut ones included ---

TOKENS, LENGTH = (0, 1, 3), 3
PREFIXES = [prefix for n in range(LENGTH) for prefix in product(TOKENS, repeat=n)]
RESPONSES = [(*p, end) for p in PREFIXES for end in ENDS] + list(product(TOKENS, repeat=LENGTH))
SEQUENCE = torch.tensor([i for i, response in enumerate(RESPONSES) for _ in response])
POSITION = torch.tensor([t for response in RESPONSES for t in range(len(response))])
TOKEN = torch.tensor([token for response in RESPONSES for token in response])
NODE = torch.tensor([PREFIXES.index(response[:t]) for response in RESPONSES for t in range(len(response))])
OUTCOMES = [(*p, 2) for p in PREFIXES] + list(product(TOKENS, repeat=LENGTH))  # responses, however they end
TEACHER = log_probs(31, len(PREFIXES))


def of_responses(policy: Tensor) -> Tensor:
    return policy.new_zeros(len(RESPONSES)).index_add(0, SEQUENCE, policy[NODE, TOKEN])


def of_ended(policy: Tensor) -> Tensor:
    """log-prob of each response, however it ends: [13, 5] -> [40]."""
    merged = coarse(policy)
    column = {0: 0, 1: 1, 2: 2, 3: 3}
    return torch.stack(
        [torch.stack([merged[PREFIXES.index(r[:t]), column[r[t]]] for t in range(len(r))]).sum() for r in OUTCOMES]
    )


def tree_step(config: ObjectiveConfig, theta: Tensor, writer: Tensor | None = None) -> Tensor:
    """The gradient over all responses, each by its chance."""
    student = theta.log_softmax(-1)
    mu = student.detach() if writer is None else writer
    weight = of_responses(mu).exp()[SEQUENCE]
    given = {"sequence": SEQUENCE, "position": POSITION, "drawn": torch.full((len(NODE),), writer is None)}
    tokens = micro_batch(config, TOKEN, mu[NODE], weight, {"teacher": TEACHER[NODE]}, **given)
    tokens = merge_scores(config, tokens, {"teacher": TEACHER[NODE]})
    built, dials = build(config, None, ENDS), dials_at(config, 1)
    return gradient(built.loss(built.read(student[NODE], tokens, dials), tokens, dials), theta)


def test_responses_sum_to_one_however_they_end() -> None:
    assert_equal(of_responses(TEACHER).exp().sum(), torch.tensor(1.0).double())
    assert_equal(of_ended(TEACHER).exp().sum(), torch.tensor(1.0).double())


def test_log_ratio_returns_have_the_gradient_of_the_reverse_kl_of_responses_however_they_end() -> None:
    theta = logits(30, len(PREFIXES))
    expected = gradient(kl(of_ended(theta.log_softmax(-1)), of_ended(TEACHER)), theta)
    assert_equal(tree_step(recipe(discount=1.0, normalise="constant"), theta), expected)


def test_teacher_prefixes_with_forward_kl_have_the_gradient_of_that_of_responses_however_they_end() -> None:
    theta = logits(30, len(PREFIXES))
    expected = gradient(kl(of_ended(TEACHER), of_ended(theta.log_softmax(-1))), theta)
    assert_equal(tree_step(recipe(support="full", reverse_weight=0.0, prefix="teacher"), theta, TEACHER), expected)


def test_without_discount_the_gradient_is_the_token_one_at_student_prefixes() -> None:
    theta = logits(30, len(PREFIXES))
    student = theta.log_softmax(-1)
    visits = torch.zeros(len(PREFIXES)).double().index_add(0, NODE, of_responses(student).detach().exp()[SEQUENCE])
    for config in (recipe(), recipe(support="full")):
        expected = gradient(visits * kl(coarse(student), coarse(TEACHER)), theta)
        assert_equal(tree_step(config, theta), expected)


def test_the_signal_itself_is_of_the_class() -> None:
    q = of_outcome(rows(log_probs(0)), torch.arange(V).repeat(4))
    p = of_outcome(rows(P), torch.arange(V).repeat(4))
    assert_equal(signal.log_ratio_signal(q, p, 1.0), p - q)
