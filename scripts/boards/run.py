"""The board *Run*: is it learning?"""

from __future__ import annotations

from typing import Any

from scripts.boards.panels import COUNT, NATS, PLAIN, SHARE, TOKENS, board, curves, number
from scripts.boards.queries import last, step


def made() -> dict[str, Any]:
    return board(
        "run",
        [
            ("Is it learning?", [*_at_a_glance(), *_learning(), *_responses()]),
            ("What does the teacher say of the tokens?", _teacher()),
            ("What does an update do?", _update()),
            ("Do rollout and learner agree?", _agreement()),
        ],
    )


def _at_a_glance() -> list[Any]:
    return [
        number("Steps made", COUNT, step("step")),
        number("Steps planned", COUNT, last("steps_planned")),
        number("Policy version", COUNT, step("policy_version")),
        number("Reverse KL", NATS, step("reverse_kl"), decimals=3),
        number("Reward", PLAIN, step("reward_mean")),
        number("Are responses cut?", SHARE, step("truncated_fraction"), bad=0.5),
    ]


def _learning() -> list[Any]:
    return [
        curves(
            "How far is the student from the teacher?",
            NATS,
            step("reverse_kl"),
            step("forward_kl"),
            step("reverse_kl_k3"),
            note="Falls while a distillation learns. On sampled support it is an estimate, and may be below 0.",
            width=12,
        ),
        curves(
            "How far is it from its start?",
            NATS,
            step("start_kl"),
            step("reference_kl"),
            note="What the update has changed so far.",
            width=12,
        ),
        curves("Loss", NATS, step("loss")),
        curves(
            "Reward of the samples",
            PLAIN,
            step("reward_mean"),
            step("value_mean"),
            last("reward_component", "component"),
            note="Beside the whole reward its components, unweighted.",
        ),
        curves(
            "How sure are student and teacher?",
            NATS,
            step("entropy"),
            step("teacher_entropy"),
            note="A student's entropy that falls to 0 has collapsed; one that rises without end has lost the thread.",
        ),
    ]


def _responses() -> list[Any]:
    return [
        curves(
            "How long are responses?",
            TOKENS,
            step("response_length"),
            step("response_cap"),
            step("response_length_masked"),
            step("response_length_aged"),
            low=0,
        ),
        curves("Are responses cut by the length cap?", SHARE, step("truncated_fraction"), low=0, high=1),
        curves("Groups replaced for want of signal", COUNT, step("groups_replaced"), low=0),
        curves(
            "Do rewards tell samples apart?",
            SHARE,
            step("groups_without_signal"),
            note="A group of equal rewards teaches nothing.",
            low=0,
            high=1,
        ),
    ]


def _teacher() -> list[Any]:
    return [
        curves(
            "Log-ratio of the sampled tokens",
            NATS,
            step("log_ratio_p99"),
            step("log_ratio_p50"),
            step("log_ratio_p1"),
            note="Below 0 the teacher finds a token less likely than the student does.",
        ),
        curves(
            "How much mass is on the support?",
            SHARE,
            step("topk_mass_teacher"),
            step("topk_mass_student"),
            step("topk_overlap"),
            low=0,
            high=1,
        ),
        curves(
            "Which tokens count?",
            SHARE,
            step("clipped_fraction"),
            step("masked_fraction"),
            step("held_fraction"),
            step("foreign_fraction"),
            low=0,
            high=1,
        ),
    ]


def _update() -> list[Any]:
    return [
        curves("Gradient norm", PLAIN, step("grad_norm"), note="A gap is a norm that is not finite.", low=0),
        curves("Learning rate", "sci", step("lr"), low=0),
        curves("Coefficients of the objective", PLAIN, step("beta"), step("reverse_weight")),
    ]


def _agreement() -> list[Any]:
    return [
        curves(
            "Log-prob gap",
            NATS,
            step("logprob_gap_mean"),
            note="How far the rollout's engine is from the learner on the same weights: small, and not growing.",
            low=0,
        ),
        curves("Ratio of learner to rollout", PLAIN, step("ratio_p99"), step("ratio_p50"), step("ratio_p1"), low=0),
        curves("Effective sample size", SHARE, step("effective_sample_size"), low=0, high=1),
        curves("How stale are the tokens?", "suffix: versions", step("staleness_mean"), step("staleness_max"), low=0),
        curves("Tokens without loss for their age", TOKENS, step("tokens_masked"), low=0),
        curves("Updates not taken", COUNT, step("updates_skipped"), low=0),
    ]
