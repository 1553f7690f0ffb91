"""The audit names each defect of defects.py, finds nothing in healthy losses, and measures what can be worked out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from audit import Audit, Claim, audit, describe
from audit.bench import Bench
from audit.estimate import estimate, production
from audit.findings import CATALOGUE
from audit.tree import BATCH, END, PARTS, World, grow, world
from configs.objective import Objective as ObjectiveConfig
from objectives import token_kl
from objectives.objective import build
from objectives.schedule import Dials
from objectives.tokens import Tokens
from tests.objectives import defects

Loss = Callable[[Tensor, Tokens], Tensor]


def recipe(**axes: Any) -> ObjectiveConfig:
    return ObjectiveConfig(**{"target": "teacher", **axes})


def rewarded(**axes: Any) -> ObjectiveConfig:
    return recipe(target="none", **axes)


def names(found: Audit) -> set[str]:
    return {item.name for item in found.findings}


def match(found: Audit, target: str) -> tuple[float, float]:
    (one,) = (item for item in found.matches if item.target == target)
    return one.cosine, one.scale


DEFECTS: list[tuple[Loss, Claim | None, set[str]]] = [
    (defects.k1_back_propagated, "reverse_kl", {"no_signal", "ignores_teacher", "no_staleness_correction"}),
    (defects.reward_and_mean_gap, "reverse_kl", {"no_signal", "ignores_teacher"}),
    (defects.k3_loss, "reverse_kl", {"wrong_direction"}),
    (defects.swapped, "reverse_kl", {"wrong_direction"}),
    (defects.exact_reverse, "forward_kl", {"wrong_direction"}),
    (defects.k3_reward, "reverse_kl", {"reverse_minus_forward"}),
    (defects.k3_reward, None, {"reverse_minus_forward"}),
    (defects.clamped_topk, "forward_kl", {"clamped_at_zero"}),
    (defects.reverse_topk_without_tail, "reverse_kl", {"tail_dropped"}),
    (defects.renormalised_topk, "reverse_kl", {"support_blind"}),
    (defects.penalty_in_the_advantage, "reverse_kl", {"no_signal", "action_independent"}),
    (defects.ratio_to_itself, "reverse_kl", {"no_staleness_correction"}),
    (defects.padding_counted, "reverse_kl", {"padding_in_loss", "local_denominator"}),
    (defects.mask_by_id, "reverse_kl", {"end_token_dropped"}),
    (defects.local_mean, "reverse_kl", {"local_denominator"}),
    (defects.whitened, "reverse_kl", {"sign_flips", "batch_statistics"}),
    (defects.unmasked_support, "reverse_kl", {"tail_dropped", "nan_gradient"}),
    (defects.unused_places_counted, "reverse_kl", {"tail_dropped", "ragged_support"}),
    (defects.zero_is_padding_of_teacher, "reverse_kl", {"certain_token_dropped"}),
    (defects.zero_is_padding_of_sampler, "reverse_kl", {"certain_token_dropped"}),
    (defects.zero_is_padding_of_student, "reverse_kl", {"certain_token_dropped", "local_denominator"}),
]

HEALTHY: list[tuple[Loss, Claim, str]] = [
    (defects.k1_reward, "reverse_kl", "token reverse KL"),
    (defects.k2_loss, "reverse_kl", "token reverse KL"),
    (defects.k3_loss, "forward_kl", "token forward KL"),
    (defects.exact_reverse, "reverse_kl", "token reverse KL"),
    (defects.exact_forward, "forward_kl", "token forward KL"),
    (defects.topk_with_tail, "reverse_kl", "top-k reverse KL with its tail"),
    (defects.with_exact_baseline, "reverse_kl", "token reverse KL"),
    (defects.global_denominator, "reverse_kl", "token reverse KL"),
]

SOUND: dict[str, tuple[ObjectiveConfig, tuple[str, ...]]] = {
    "sampled": (recipe(), ("token reverse KL",)),
    "sampled forward": (recipe(reverse_weight=0.0), ("token forward KL",)),
    "mixture": (recipe(support="full", reverse_weight=0.3), ()),
    "exact baseline": (recipe(support="full", baseline="exact"), ("token reverse KL",)),
    "k2 in the loss": (recipe(estimator="k2_in_loss"), ("token reverse KL",)),
    "k3 in the loss": (recipe(estimator="k3_in_loss", reverse_weight=0.0), ("token forward KL",)),
    "top-k": (recipe(support="topk"), ("top-k reverse KL with its tail",)),
    "top-k union": (recipe(support="topk", topk_of="union"), ()),
    "sequence": (recipe(discount=1.0), ("sequence reverse KL",)),
    "discounted": (recipe(discount=0.5), ()),
    "teacher prefixes": (
        recipe(prefix="teacher", support="full", reverse_weight=0.0),
        ("token forward KL", "sequence forward KL"),
    ),
    "DAgger": (
        recipe(prefix={"student": 0.5, "teacher": 0.5}, support="full", reverse_weight=0.0),
        ("token forward KL",),
    ),
    "supervised": (
        recipe(target="data", prefix="dataset", reverse_weight=0.0),
        ("token forward KL", "sequence forward KL"),
    ),
    "jsd": (recipe(family="jsd", reverse_weight=0.5), ()),
    "skew": (recipe(family="skew", support="full"), ()),
    "power": (recipe(family="power", alpha=2.0), ()),
    "extrapolated": (recipe(extrapolate={"base": "base", "weight": 1.5}), ("token reverse KL",)),
    "two teachers": (recipe(target={"a": 0.5, "b": 1.5}), ("token reverse KL",)),
    "REINFORCE": (rewarded(outcome={"weight": 2.0}), ("reward (-J)",)),
    "RLOO": (rewarded(outcome={"weight": 1.0, "baseline": "rloo"}), ("reward (-J)",)),
    "group mean": (rewarded(outcome={"weight": 1.0, "baseline": "mean"}), ("reward (-J)",)),
    "PPO": (
        rewarded(
            outcome={"weight": 1.0, "baseline": "value"},
            trust={"kind": "ppo"},
            reference={"model": "reference", "beta": 0.1, "placement": "reward_token"},
        ),
        ("reward (-J)",),
    ),
    "held back": (
        rewarded(outcome={"weight": 1.0, "baseline": "mean"}, reference={"model": "reference", "beta": 0.1}),
        ("reward (-J)",),
    ),
    "distilled and rewarded": (recipe(outcome={"weight": 1.0, "baseline": "mean"}), ()),
}


@pytest.mark.parametrize(("loss", "claims", "found"), DEFECTS, ids=lambda case: getattr(case, "__name__", None))
def test_a_defective_loss_is_named(loss: Loss, claims: Claim | None, found: set[str]) -> None:
    assert names(audit(loss, claims)) == found


@pytest.mark.parametrize(("loss", "claims", "target"), HEALTHY, ids=lambda case: getattr(case, "__name__", None))
def test_a_healthy_loss_has_no_findings_and_is_what_it_claims(loss: Loss, claims: Claim, target: str) -> None:
    found = audit(loss, claims)
    assert names(found) == set()
    assert target in found.identities
    assert match(found, target) == pytest.approx((1.0, 1.0), abs=1e-9)
    assert found.bias == pytest.approx(0.0, abs=1e-9) or target.startswith("top-k")


@pytest.mark.parametrize(("config", "identities"), SOUND.values(), ids=SOUND.keys())
def test_a_sound_recipe_has_no_findings_and_the_gradient_it_names(
    config: ObjectiveConfig, identities: tuple[str, ...]
) -> None:
    found = audit(config)
    assert names(found) == set()
    assert found.identities == identities
    assert config.support == "topk" or found.bias == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (recipe(estimator="k1_in_loss"), {"no_signal", "ignores_teacher"}),
        (recipe(estimator="k3_in_loss"), {"wrong_direction"}),
        (recipe(estimator="k3_in_reward"), {"reverse_minus_forward"}),
        (recipe(support="topk", tail="drop"), {"tail_dropped"}),
        (recipe(support="topk", tail="renormalise"), {"support_blind"}),
        (recipe(trust={"truncation": None}), {"no_staleness_correction"}),
        (recipe(normalise="sequence"), {"biased_by_choice"}),
        (recipe(prefix="teacher"), {"biased_by_choice"}),
        (rewarded(outcome={"weight": 1.0, "baseline": "mean", "scale": "std"}), {"biased_by_choice"}),
        (recipe(target="data", reverse_weight=0.0), {"no_signal"}),
    ],
)
def test_a_recipe_of_known_bias_is_named(config: ObjectiveConfig, found: set[str]) -> None:
    assert names(audit(config)) == found


def test_every_finding_of_the_catalogue_has_a_test() -> None:
    tested = {name for *_, found in DEFECTS for name in found} | {"biased", "biased_by_choice"}
    tested |= {"teacher_not_minimum"}
    assert tested == CATALOGUE.keys()


def test_the_nearest_direction_is_taken_where_none_is_claimed() -> None:
    assert audit(defects.k3_loss).target == "token forward KL"
    assert names(audit(defects.k3_loss)) == set()


def test_a_loss_that_is_no_kl_is_biased_only_where_it_claims_one() -> None:
    def clipped(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
        bounded = defects.ratio(student_logprobs, tokens).clamp(-0.1, 0.1)
        return -defects.fresh(student_logprobs, tokens) * bounded * defects.sampled(student_logprobs, tokens)

    assert names(audit(clipped, "reverse_kl")) == {"biased"}
    assert names(audit(clipped)) == set()


def test_a_loss_with_a_gradient_at_the_teacher_is_named() -> None:
    def smoothed(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
        logprobs = tokens.scores["teacher"].logprobs
        assert logprobs is not None
        return token_kl(student_logprobs, (0.5 * logprobs.exp() + 0.125).log(), 1.0)

    assert names(audit(smoothed)) == {"teacher_not_minimum"}


def test_a_joint_loss_without_teacher_gradient_matches_the_reward_alone() -> None:
    found = audit(defects.reward_and_mean_gap)
    assert found.identities == ("reward (-J)",)


def test_a_loss_that_reads_no_reward_is_not_compared_with_one() -> None:
    assert not any("reward" in item.target for item in audit(defects.k1_reward).matches)
    assert not any("reward" in item.target for item in audit(recipe()).matches)


@pytest.mark.parametrize(
    ("loss", "support", "found"),
    [
        ("k1_reward", "sampled", set()),
        ("exact_forward", "full", set()),
        ("topk_with_tail", "topk", set()),
        ("k1_back_propagated", "sampled", {"no_signal", "ignores_teacher", "no_staleness_correction"}),
        ("ratio_to_itself", "sampled", {"no_staleness_correction"}),
        ("reverse_topk_without_tail", "topk", {"tail_dropped"}),
        ("mask_by_id", "sampled", {"end_token_dropped"}),
    ],
)
def test_a_recipe_with_a_loss_of_its_own_is_audited_as_it_is_scored(loss: str, support: str, found: set[str]) -> None:
    config = recipe(loss=f"tests.objectives.defects:{loss}", support=support)
    assert names(audit(config)) == found
    assert audit(config).bias is None


def test_a_scale_is_measured() -> None:
    found = audit(lambda q, tokens: 3.0 * defects.k1_reward(q, tokens))
    assert match(found, "token reverse KL") == pytest.approx((1.0, 3.0), abs=1e-9)
    assert found.bias == pytest.approx(2.0, abs=1e-9)


def test_a_group_mean_scales_the_gradient_of_the_reward_by_half_in_groups_of_two() -> None:
    found = audit(rewarded(outcome={"weight": 1.0, "baseline": "mean"}))
    assert match(found, "reward (-J)") == pytest.approx((1.0, 0.5), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_found_does_not_depend_on_the_seed(seed: int) -> None:
    assert names(audit(defects.clamped_topk, "forward_kl", seed=seed)) == {"clamped_at_zero"}
    assert names(audit(defects.whitened, "reverse_kl", seed=seed)) == {"sign_flips", "batch_statistics"}
    assert names(audit(defects.with_exact_baseline, "reverse_kl", seed=seed)) == set()
    assert names(audit(recipe(support="topk"), seed=seed)) == set()


def test_schedules_are_audited_at_the_given_step() -> None:
    config = recipe(support="full", reverse_weight={"start": 1.0, "end": 0.0, "steps": 10})
    assert audit(config, step=1).identities == ("token reverse KL",)
    assert audit(config, step=11).identities == ("token forward KL",)


# --- variance and staleness ---


def test_an_exact_baseline_lowers_the_variance_and_a_whole_vocabulary_lowers_it_further() -> None:
    plain, baseline = audit(recipe()).variance, audit(recipe(support="full", baseline="exact")).variance
    assert audit(recipe(support="full")).variance < baseline < plain


def test_the_variance_is_that_of_single_responses_written_out() -> None:
    bench = Bench(world(("teacher",), 0), recipe(), Dials())
    tree, q, p = bench.tree, bench.world.student, bench.world.models["teacher"]
    chance = tree.of_responses(q).exp()
    each = []
    for response in range(tree.responses):
        theta = q.clone().requires_grad_()
        rows = (tree.sequence == response).nonzero().squeeze(-1)
        logprob = theta.log_softmax(-1)[tree.node[rows], tree.token_ids[rows]]
        gap = p[tree.node[rows], tree.token_ids[rows]] - logprob.detach()
        each.append(torch.autograd.grad(-(gap * logprob).sum(), theta)[0].flatten())
    gradients = torch.stack(each)
    mean = chance @ gradients
    expected = float(chance @ (gradients - mean).square().sum(-1)) / float(mean.square().sum())
    assert audit(recipe()).variance == pytest.approx(expected, rel=1e-9)


def test_a_ratio_brings_an_older_students_responses_nearer_the_on_policy_gradient() -> None:
    stale = audit(recipe()).staleness
    assert stale is not None
    assert stale.bare_cosine < stale.cosine - 0.01


def test_a_loss_without_a_ratio_is_as_stale_without_correction() -> None:
    for target in (recipe(trust={"truncation": None}), recipe(support="full"), defects.ratio_to_itself):
        stale = audit(target).staleness
        assert stale is not None
        assert (stale.cosine, stale.scale) == (stale.bare_cosine, stale.bare_scale)
        assert stale.cosine < 1.0 - 1e-4


def test_importance_weights_without_a_bound_make_a_whole_response_on_policy() -> None:
    stale = audit(recipe(trust={"mismatch": "sequence", "truncation": 1e6})).staleness
    assert stale is not None
    assert (stale.cosine, stale.scale) == pytest.approx((1.0, 1.0), abs=1e-9)


def test_responses_of_other_sources_have_no_staleness() -> None:
    assert audit(recipe(target="data", prefix="dataset", reverse_weight=0.0)).staleness is None


# --- the language ---


def test_every_response_ends_once_or_is_cut_at_the_bound() -> None:
    tree = grow()
    assert tree.responses == 40 and tree.prefixes == 13 and int(tree.truncated.sum()) == 27
    ends = tree.token_ids == END
    last = tree.position == tree.lengths[tree.sequence] - 1
    assert bool((last | ~ends).all())
    assert bool((ends[last] == ~tree.truncated).all())


@pytest.mark.parametrize("policy", ["student", "older", "data"])
def test_probabilities_of_responses_sum_to_one(policy: str) -> None:
    here = world(("teacher",), 0)
    assert float(here.tree.of_responses(getattr(here, policy)).exp().sum()) == pytest.approx(1.0, abs=1e-12)


def test_a_batch_in_proportion_has_the_exact_expectation() -> None:
    here = world(("teacher",), 0)
    bench = Bench(here, recipe(), Dials())
    run = production(build(bench.config), bench)
    drawn = bench.sampled(here.student)
    assert len(drawn.probability) == BATCH
    torch.testing.assert_close(
        estimate(run, [(1.0, drawn)], here.student).mean,
        estimate(run, [(1.0, bench.enumerated("student"))], here.student).mean,
        rtol=0.0,
        atol=1e-12,
    )


def test_the_older_student_differs_at_every_prefix_within_the_cap_on_ratios() -> None:
    here: World = world((), 0)
    ratio = (here.student - here.older).exp()
    assert bool((ratio != 1.0).any(-1).all())
    assert float(ratio.max()) <= 2.0 + 1e-12
    counts = here.older.exp() * PARTS
    torch.testing.assert_close(counts, counts.round(), rtol=0.0, atol=1e-12)


# --- what is said ---


def test_the_text_says_what_the_gradient_is_and_what_to_do() -> None:
    text = describe(audit(defects.k3_loss, "reverse_kl"))
    assert "the expected gradient is: token forward KL, times 1" in text
    assert "defect: wrong_direction: " in text and "remedy: " in text
    assert max(len(line) for line in text.splitlines()) <= 120


def test_the_text_of_a_healthy_objective_says_so() -> None:
    text = describe(audit(recipe()))
    assert "no findings" in text and "defect" not in text


def test_an_objective_without_a_gradient_says_so() -> None:
    found = audit(recipe(estimator="k1_in_loss"))
    assert found.verdict == "no gradient" and found.silent and math.isinf(found.variance)
    assert "the expected gradient is: no gradient" in describe(found)


def test_a_loss_of_another_shape_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"return \[n\] losses or one scalar"):
        audit(lambda q, tokens: q)


def test_a_slot_of_another_name_is_found_by_it() -> None:
    def loss(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
        return defects.k1_reward(student_logprobs, replace(tokens, scores={"teacher": tokens.scores["big"]}))

    assert audit(loss, "reverse_kl", teacher="big").healthy
