"""Names, units and meanings of every metric. The only place that spells them.

A line of metrics.jsonl holds every name of STEP_METRICS; what a step cannot know is null, never invented.
"""

from __future__ import annotations

from typing import Any

ROLES = ("rollout", "score", "reward", "learn", "publish")

STEP_METRICS: dict[str, str] = {
    "step": "learner updates made, this one included",
    "policy_version": "version of the weights after this step; never goes back",
    "loss": "objective, nats, by its own global denominator",
    "reverse_kl": "KL(student||teacher) on this step's prefixes, nats a token; on sampled support the mean k1",
    "forward_kl": "KL(teacher||student) on this step's prefixes, nats a token; null on sampled support",
    "kl_support": "support of the KLs: sampled | topk | full",
    "reverse_kl_k3": "on sampled support the mean of k3, another estimate of the reverse KL that is never negative",
    "entropy": "student entropy over the full vocabulary at temperature 1, nats a token",
    "teacher_entropy": "teacher entropy over the full vocabulary at temperature 1, nats a token",
    "grad_norm": "global gradient norm before clipping",
    "lr": "learning rate of this step's update",
    "reward_mean": "mean outcome reward of this step's samples",
    "response_length": "mean response length, tokens",
    "truncated_fraction": "share of responses cut by the length cap",
    "staleness_mean": "learner version minus token version, mean over loss tokens, versions",
    "staleness_max": "the same, the oldest loss token",
    "logprob_gap_mean": "mean |learner - rollout| log-prob over tokens of the learner's own version, nats",
    "tokens_generated": "response tokens sampled since the last step",
    "tokens_scored": "response tokens times models scored since the last step",
    "tokens_trained": "loss tokens of this step's batch",
    "samples_dropped": "samples skipped as bad since the last step",
    "score_bytes_per_token": "bytes of score payload for each scored token since the last step",
    "bytes_inlined": "bytes of payload small enough for Ray to inline into the owner since the last step",
    "seconds_step": "wall seconds since the last step ended",
    "seconds_rollout": "wall seconds in which a rollout member was busy",
    "seconds_score": "wall seconds in which a scorer member was busy",
    "seconds_reward": "wall seconds in which a reward member was busy",
    "seconds_learn": "wall seconds in which the learner was busy with the update",
    "seconds_publish": "wall seconds of publishing and pulling the new version",
    "seconds_wait": "wall seconds in which the learner was idle for want of a batch",
}

EVALUATION_METRICS = ("reverse_kl", "forward_kl", "kl_support", "entropy", "response_length", "truncated_fraction")


def step_line(values: dict[str, Any]) -> dict[str, Any]:
    """One line of metrics.jsonl in the canonical order. Raises KeyError for a name nobody defined."""
    unknown = values.keys() - STEP_METRICS.keys()
    if unknown:
        raise KeyError(f"metrics {sorted(unknown)} are not in actors/metrics.py; define them there")
    return {name: values.get(name) for name in STEP_METRICS}
