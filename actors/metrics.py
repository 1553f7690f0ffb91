"""Names, units and meanings of every metric. The only place that spells them.

A line of metrics.jsonl holds every name of STEP_METRICS; what a step cannot know is null, never invented, and so is
what is not finite, for which JSON has no word.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

ROLES = ("rollout", "score", "reward", "learn", "publish")

STEP_METRICS: dict[str, str] = {
    "step": "steps made, this one included; a batch is behind the run also where its update was skipped",
    "policy_version": "version of the weights after this step; never goes back",
    "loss": "objective, nats, by its own global denominator",
    "reverse_kl": "KL(student||teacher) on this step's prefixes, nats a token; on sampled support the mean k1",
    "forward_kl": "KL(teacher||student) on this step's prefixes, nats a token; null on sampled support",
    "kl_support": "support of the KLs: sampled | topk | full",
    "reverse_kl_k3": "on sampled support the mean of k3, another estimate of the reverse KL that is never negative",
    "kl_by_position": "the reverse KL by position in the response: {end of the bucket: nats a token}",
    "entropy": "student entropy over the full vocabulary, nats a token; at temperature 1 but for a reward alone",
    "teacher_entropy": "teacher entropy over the full vocabulary at temperature 1, nats a token; null of a vllm scorer",
    "log_ratio_p1": "1st percentile of l = log p - log q of sampled tokens, to the first teacher, nats",
    "log_ratio_p50": "median of the same",
    "log_ratio_p99": "99th percentile of the same",
    "topk_mass_teacher": "teacher's mass on the support; on full support on its own top k",
    "topk_mass_student": "student's mass on the same tokens",
    "topk_overlap": "share of the student's own top k that is among them",
    "clipped_fraction": "share of loss tokens whose log-ratio the signal's clip cut",
    "masked_fraction": "share of response tokens without loss",
    "held_fraction": "share of loss tokens that the trust region held, over the passes after the first",
    "ratio_p1": "1st percentile of q/mu, learner against rollout, of tokens the student drew; null where the sampler "
    "has a temperature or top_p that the learner's log-probs have not",
    "ratio_p50": "median of the same",
    "ratio_p99": "99th percentile of the same",
    "effective_sample_size": "(sum w)^2 / (n sum w^2) of the same ratios w, 0 to 1",
    "reference_kl": "mean k1 to the reference, nats a token",
    "start_kl": "KL(student||its starting weights), nats a token; sampled (mean k1) or exact, as metrics.start_kl says",
    "beta": "coefficient of the reference in this step",
    "reverse_weight": "lambda of this step",
    "value_mean": "mean of the value head",
    "grad_norm": "global gradient norm before clipping; null where it is not finite",
    "updates_skipped": "updates of this step that were not taken, since loss or gradient was not finite",
    "lr": "learning rate of this step's update",
    "reward_mean": "mean outcome reward of this step's samples",
    "reward_component": "mean of each component of the reward, unweighted, over this step's samples: {component: mean}",
    "groups_without_signal": "share of prompt groups whose rewards are all equal",
    "groups_replaced": "prompt groups without signal that this step replaced by fresh ones, of which it trained none",
    "foreign_fraction": "share of samples that the student did not draw",
    "response_cap": "longest response allowed in this step, tokens",
    "response_length": "mean response length, tokens",
    "response_length_masked": "the same of responses of this step with tokens too old for the staleness bound",
    "response_length_aged": "the same of the samples that samples_aged counts",
    "truncated_fraction": "share of responses cut by the length cap",
    "staleness_mean": "learner version minus token version, mean over loss tokens that the student drew, versions",
    "staleness_max": "the same, the oldest loss token",
    "logprob_gap_mean": "mean |learner - rollout| log-prob over tokens of the learner's own version, nats; null "
    "where ratio_p1 is",
    "tokens_generated": "response tokens sampled since the last step",
    "tokens_scored": "response tokens times models scored since the last step",
    "scores_suspicious": "response tokens since the last step with scores that no working model gives",
    "tails_floored": "scored tokens since the last step whose tail a vllm scorer cannot tell from 0, and takes as 1e-6",
    "scores_from_files": "scored tokens since the last step whose scores were read from scorer.NAME.cache",
    "tokens_trained": "loss tokens of this step's batch",
    "tokens_masked": "tokens of this step's samples that carry no loss because they are too old",
    "samples_cut": "responses ended early since the last step because their target had lost the thread",
    "samples_aged": "samples taken out of the buffer since the last step because they were too old, or soon would be",
    "samples_dropped": "samples skipped since the last step: bad, or of a prompt that kills its members",
    "prompts_dropped": "prompts of the files left out so far: too long, or rows that cannot be used",
    "score_bytes_per_token": "bytes of score payload for each scored token since the last step",
    "bytes_inlined": "bytes of payload small enough for Ray to inline into the owner since the last step",
    "seconds_step": "wall seconds since the last step ended",
    "seconds_rollout": "wall seconds in which a rollout member was busy",
    "seconds_score": "wall seconds in which a scorer member was busy",
    "seconds_reward": "wall seconds in which a reward member was busy",
    "seconds_learn": "wall seconds in which the learner was busy with the update",
    "seconds_publish": "wall seconds of publishing and pulling the new version",
    "seconds_wait": "wall seconds in which the learner was idle for want of a batch",
    "time": "when the step ended, unix seconds",
}


@dataclass(frozen=True)
class Exported:
    """A metric that Prometheus gets. `kind`: gauge, or counter (its name then ends with `_total`, which the exporter
    adds). Every metric has the label `run`; `labels` are the others. `values`: of the last of them, where they are the
    same in every run; the recipe closes those of the others: by its roles, their sizes, its models and rules."""

    name: str
    kind: Literal["gauge", "counter"]
    meaning: str
    labels: tuple[str, ...] = ()
    values: tuple[str, ...] = ()


MEMBER_STATES = ("starting", "loading", "serving", "leaving")
TIME_SHARES = ("busy", "wait", "idle")
TOKEN_PHASES = ("generated", "scored", "trained")
SYNC_PHASES = ("gather", "load", "follow")
EDGES = ("rollout", "score", "reward", "learn")
LOST = ("cut", "aged", "dropped")

LABELS: dict[str, str] = {
    "run": "the run's name",
    "role": "a pool of the run: rollout, teacher_rollout, dataset, scorer.<model>, reward, learner",
    "member": "a member's place in its role, from 0 on; its replacement has the same",
    "teacher": "a scored model of the recipe",
    "phase": "a state of members, a share of time, and what was done with tokens, or in a weight sync",
    "edge": "where samples wait: in rollout they are being sampled, in learn they are in the buffer",
    "component": "a part of the reward: a rule of reward.rules by its name, or model",
    "reason": "why samples left",
}

PREFIX = "logratio_"  # Ray's exporter puts ray_ before it
STEP_PREFIX = "step_"  # a number of the last step's line: logratio_step_<name of STEP_METRICS>
NOT_EXPORTED = ("time", "kl_by_position", "kl_support", "reward_component")  # of STEP_METRICS: no single numbers

FLOW_METRICS: tuple[Exported, ...] = (
    Exported("members", "gauge", "members of a role by state", ("role", "phase"), MEMBER_STATES),
    Exported("member_version", "gauge", "version of the weights that a member serves", ("role", "member")),
    Exported(
        "member_load", "gauge", "unanswered work of a member: tokens of scorers, else responses", ("role", "member")
    ),
    Exported("restarts", "counter", "members that were replaced", ("role",)),
    Exported(
        "retries",
        "counter",
        "calls made again since their member was lost, and samples resampled for whatever reason",
        ("role",),
    ),
    Exported("learner_rebuilds", "counter", "learners that were rebuilt from a checkpoint"),
    Exported(
        "time_share", "gauge", "share of a role's member-seconds, last minute: 0 to 1", ("role", "phase"), TIME_SHARES
    ),
    Exported("queue_depth", "gauge", "samples on an edge, in flight or waiting; on `score` tokens", ("edge",), EDGES),
    Exported("queue_oldest_seconds", "gauge", "age of the oldest of them", ("edge",), EDGES),
    Exported("tokens", "counter", "response tokens", ("phase",), TOKEN_PHASES),
    Exported("samples_lost", "counter", "samples that no step trained as they were", ("reason",), LOST),
    Exported("updates_skipped", "counter", "updates not taken, since loss or gradient was not finite"),
    Exported(
        "weight_sync_seconds",
        "counter",
        "wall seconds of weight syncs: the learner's gather, members' loads, scored models that follow",
        ("phase",),
        SYNC_PHASES,
    ),
    Exported("score_bytes", "counter", "bytes of score payload"),
    Exported("suspicious_tokens", "counter", "response tokens with scores that no working model gives"),
    Exported("canary_failures", "counter", "members that scored the canary prompts wrong", ("teacher",)),
    Exported("bottleneck", "gauge", "1 for the role that holds the run up, 0 for the others", ("role",)),
    Exported("one_more_gain", "gauge", "predicted relative gain of samples/s by one more member", ("role",)),
    Exported("samples_per_second", "gauge", "samples trained a second, over whole steps"),
    Exported("gpu_seconds", "counter", "GPU-seconds that a role's members were there", ("role",)),
    Exported("checkpoint_age_seconds", "gauge", "seconds since the newest checkpoint, or since the run began"),
    Exported("step_age_seconds", "gauge", "seconds since the last step ended, or since the run began"),
    Exported("step_median_seconds", "gauge", "median of the last steps' seconds"),
    Exported("reward_component", "gauge", "mean of a component of the last step's rewards, unweighted", ("component",)),
    Exported("steps_planned", "gauge", "steps of the whole run; those it made, once a rule or its length has ended it"),
)


def step_metrics() -> tuple[Exported, ...]:
    """The numbers of a step's line as gauges."""
    names = [name for name in STEP_METRICS if name not in NOT_EXPORTED]
    return tuple(Exported(f"{STEP_PREFIX}{name}", "gauge", STEP_METRICS[name]) for name in names)


EVALUATION_METRICS = (
    "reverse_kl",
    "forward_kl",
    "kl_support",
    "entropy",
    "response_length",
    "truncated_fraction",
    "reward_mean",
    "start_kl",
)

# what run.stop may name of a step
STOP_METRICS = tuple(name for name in STEP_METRICS if name not in (*NOT_EXPORTED, "step", "policy_version"))

EVALUATION_COUNTS = ("samples", "samples_skipped")  # what the means are over, and what could not be sampled or scored

PASS_AT, AVERAGE_AT = "pass@", "avg@"  # each with a number of responses behind it

SET_METRICS: dict[str, str] = {
    "pass@1": "probability that one of k responses to a prompt passes, mean over prompts, for each k: pass@1, pass@4, "
    "...; without bias; over prompts with at least k responses",
    "avg@1": "mean reward of the n responses to a prompt, mean over prompts: avg@n",
    "format_rate": "share of responses to which the set's `format` component gives more than 0",
    "response_length": "mean response length, tokens",
    "truncated_fraction": "share of responses cut by the length cap",
    "entropy": "student entropy over the full vocabulary on the set's responses, nats a token",
    "reverse_kl": "KL(student||teacher) on the set's prefixes, nats a token; on sampled support the mean k1, "
    "null where the responses are greedy",
    "forward_kl": "KL(teacher||student) on the set's prefixes, nats a token; null on sampled support",
    "start_kl": "KL(student||its starting weights) on the set's prefixes, nats a token; null without metrics.start_kl; "
    "sampled (mean k1): null where the responses are greedy",
    "nll": "loss of a text under the student, -log-prob a token, nats, at temperature 1",
}

SET_COUNTS: dict[str, str] = {
    "prompts": "prompts, or texts, of the set",
    "samples": "responses, or texts, that the means are over",
    "samples_skipped": "those that could not be sampled or scored",
}

MOVEMENT_METRICS: dict[str, str] = {
    "weights": "weights that were compared with the start",
    "weights_changed": "share of them that differ from the start after both were rounded to bf16",
    "weights_distance": "norm of the change over norm of the start, Frobenius, all compared weights as one vector",
    "effective_rank": "effective rank of the change of a matrix: exp of the entropy of the squared singular values' "
    "shares; median over the matrices that moved",
}

# what a probe measures beside metrics of a step
PROBE_METRICS: dict[str, str] = {
    "tail_fraction": "share of response tokens whose log-ratio is beyond 5 nats, either way",
    "end_disagreement": "share of the student's end tokens that the teacher finds at least 20 times less likely",
    "late_kl": "mean k1 in the second halves of responses, over that in their first halves",
}


def set_metrics(k: Sequence[int], responses: int, has_format: bool) -> tuple[str, ...]:
    """The names of what a set of prompts is measured by."""
    own = (*(f"{PASS_AT}{each}" for each in k), f"{AVERAGE_AT}{responses}", *(["format_rate"] if has_format else ()))
    return (*own, *OF_RESPONSES, *OF_TOKENS)


OF_RESPONSES = ("response_length", "truncated_fraction")
OF_TOKENS = ("entropy", "reverse_kl", "forward_kl", "start_kl")  # means over tokens
OF_TEXT = ("nll", "entropy")


def step_line(values: dict[str, Any]) -> dict[str, Any]:
    """One line of metrics.jsonl in the canonical order. Raises KeyError for a name nobody defined."""
    unknown = values.keys() - STEP_METRICS.keys()
    if unknown:
        raise KeyError(f"metrics {sorted(unknown)} are not in actors/metrics.py; define them there")
    return {name: finite(values.get(name)) for name in STEP_METRICS}


def finite(value: Any) -> Any:
    """A value of a line, None in place of what is not finite."""
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
