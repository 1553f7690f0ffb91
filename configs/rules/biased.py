"""Combinations whose gradient is not the one that their keys promise: refused unless `allow_biased` names them."""

from __future__ import annotations

from configs.rules.rule import Refusal, Rule
from configs.schema import Recipe


def _k1_in_loss(recipe: Recipe) -> Refusal:
    if recipe.objective.estimator != "k1_in_loss":
        return None
    return (
        "objective.estimator: k1_in_loss has no gradient in expectation, the teacher drops out; use estimator: reward"
    )


def _k3_in_reward(recipe: Recipe) -> Refusal:
    if recipe.objective.estimator != "k3_in_reward":
        return None
    return (
        "objective.estimator: k3_in_reward has the gradient of reverse minus forward KL; use estimator: reward "
        "(reverse KL), or k3_in_loss for forward KL"
    )


def _sampled_off_policy(recipe: Recipe) -> Refusal:
    objective = recipe.objective
    foreign = [source for source in objective.sources if source != "student"]
    if foreign and objective.teachers and not objective.distributional:
        return (
            f"objective.support: sampled estimators on prefix: {foreign[0]} score tokens the student did not draw; use "
            "support: topk or full, or target: data"
        )
    if recipe.max_staleness and objective.samples_signal and objective.trust.truncation is None:
        return (
            f"objective.trust.truncation: null leaves samples of up to {recipe.max_staleness} versions ago without "
            "their ratio; give a cap such as 2.0, or set max_staleness: 0"
        )
    return None


def _tempered_sampling(recipe: Recipe) -> Refusal:
    objective, sampling = recipe.objective, recipe.sampling
    if "student" not in objective.sources or (sampling.temperature == 1.0 and sampling.top_p == 1.0):
        return None
    if not objective.samples_signal:
        return None
    if objective.reward_only and sampling.top_p == 1.0:
        return None  # the learner's log-probs are taken at the same temperature
    return (
        f"sampling: temperature {sampling.temperature:g}, top_p {sampling.top_p:g} draw tokens from another "
        "distribution than the student's; use 1.0 and 1.0, or support: topk or full without outcome.weight"
    )


def _discounted_forward(recipe: Recipe) -> Refusal:
    objective = recipe.objective
    if not objective.discount:
        return None
    if objective.reverse_weight == 1.0 and objective.family == "linear" and objective.estimator == "reward":
        return None
    return (
        "objective.discount: only the log-ratio reward (linear, reverse_weight: 1) has a return; the later terms of "
        "any other divergence are noise or another function; use discount: 0"
    )


BIASED: dict[str, Rule] = {
    "k1_in_loss": _k1_in_loss,
    "k3_in_reward": _k3_in_reward,
    "sampled_off_policy": _sampled_off_policy,
    "tempered_sampling": _tempered_sampling,
    "discounted_forward": _discounted_forward,
}
