"""Every combination without a meaning is refused, in one line that names the key and a remedy."""

from __future__ import annotations

import pytest

from configs import rules
from tests.unit.configs.adapters import OF_ADAPTERS
from tests.unit.configs.carriers import OF_CARRIERS
from tests.unit.configs.combinations import (
    COLOCATED,
    GATE,
    IN_TURNS,
    LADDER,
    OTHER,
    REFERENCE,
    REJECTION,
    SIGN,
    Changes,
    with_objective,
)
from tests.unit.configs.kinds import OF_KINDS, OF_MEMBERS
from tests.unit.configs.meaningless_objectives import OF_OBJECTIVES
from tests.unit.recipes import REWARD_ONLY, REWARDED, RULED, loaded, refusal

SERVER = {"address": "http://127.0.0.1:8000"}
KEPT = "/scores"
OF_ROLES: dict[str, list[tuple[Changes, str]]] = {
    "_supports_of_engines": [
        (
            {"metrics.start_kl": "exact", "scorer.start.engine": "vllm"},
            "scorer.start.engine: 'vllm' has no hidden states; support: full needs engine: torch",
        ),
        (
            with_objective(support="full") | {"scorer.teacher": {"engine": "vllm"}},
            "scorer.teacher.engine: 'vllm' has no hidden states; support: full needs engine: torch",
        ),
        (
            with_objective(support="topk", topk_of="union") | {"scorer.teacher": {"engine": "vllm"}},
            "scorer.teacher.engine: 'vllm' ranks its own tokens; topk_of: union needs torch",
        ),
        (
            with_objective(support="topk", topk=257) | {"scorer.teacher": {"engine": "vllm"}},
            "objective.topk: 257 exceeds the 256 of engine: vllm; use torch",
        ),
        (
            with_objective(support="topk", topk=257, topk_of="student"),
            "objective.topk: 257 exceeds the 256 that the rollout engine returns",
        ),
    ],
    "_outcomes": [
        (
            {"batch.updates": 2, **with_objective(estimator="k2_in_loss")},
            "batch.updates: more than one pass needs a sampled signal",
        ),
        (
            {"reward.rules": [{"kind": "length"}], **with_objective(loss="a.b:c", outcome=SIGN)},
            "objective.outcome.combine: 'sign' gives the log-ratio",
        ),
        (
            {"reward.rules": [{"kind": "length"}], **with_objective(outcome={**SIGN, "baseline": "value"})},
            "objective.outcome.baseline: 'sign' reads a response's advantage",
        ),
        (
            {"reward.rules": [{"kind": "length"}], **with_objective(outcome={**SIGN, "truncated": "mask"})},
            "objective.outcome.truncated: under combine: sign",
        ),
        (
            with_objective(outcome={"weight": 1}),
            "objective.outcome.weight: no reward.rules to earn it; add a rule or a reward.model, or set it to 0",
        ),
        (
            REWARDED | with_objective(prefix="dataset", support="full"),
            "objective.outcome.weight: rewards need the student's own samples; set prefix: student",
        ),
        (
            REWARDED | with_objective(outcome={"weight": 1.0, "baseline": "rloo"}),
            "objective.outcome.baseline: a group baseline needs batch.samples_per_prompt > 1, or baseline: none",
        ),
        (with_objective(outcome={"baseline": "mean"}), "objective.outcome.baseline: a group baseline needs batch."),
        (
            with_objective(outcome={"scale": "std"}),
            "objective.outcome.scale: one sample has no spread; set batch.samples_per_prompt > 1, or scale: none",
        ),
        (
            REWARDED
            | {"batch.samples_per_prompt": 2}
            | with_objective(outcome={"weight": 1.0, "baseline": "value", "scale": "std"}),
            "objective.outcome.scale: 'std' is a group's, a value baseline looks at no group; set scale: none",
        ),
        (
            RULED | with_objective(outcome={"combine": "gate"}),
            "objective.outcome.combine: 'gate' joins a teacher and a reward; it needs both",
        ),
        (
            REWARD_ONLY | with_objective(outcome={"weight": 1.0, "combine": "switch", "switch_step": 3}),
            "objective.outcome.combine: 'switch' joins a teacher and a reward; it needs both",
        ),
        (
            REJECTION | with_objective(prefix={"student": 0.5, "dataset": 0.5}),
            "objective.outcome.combine: 'gate' selects by advantage, which only the student's own samples have; ",
        ),
        (
            REWARDED | with_objective(outcome={"weight": 1.0, "combine": "sign"}, support="full"),
            "objective.outcome.combine: 'sign' gives the log-ratio of the sampled token a sign; set support: sampled",
        ),
        (
            with_objective(support="full") | {"batch.updates": 2},
            "batch.updates: more than one pass needs a sampled signal; this objective has no ratio to hold it",
        ),
        (
            with_objective(support="full", trust={"kind": "ppo"}),
            "objective.trust.kind: 'ppo' bounds a policy gradient; this objective has none",
        ),
    ],
    "_value_heads": [
        ({"learner.value_head": {"lr": 3e-4}}, "learner.value_head: nothing reads its values; set baseline or outcome"),
    ],
    "_references": [
        (
            with_objective(reference=REFERENCE),
            "objective.reference: holds back a reward; set outcome.weight, or make the model a target",
        ),
        (
            REWARDED
            | OTHER
            | with_objective(outcome={"weight": 1.0, "combine": "sign"}, reference={"model": "other", "beta": 0.1}),
            "objective.reference.placement: under combine: sign no reward is left to hold back; use loss_k2 or exact",
        ),
    ],
    "_dynamic_sampling": [
        (
            {"batch.max_replacements": 2},
            "batch.max_replacements: groups of equal rewards still learn from a target; set target: none, or remove it",
        ),
        (
            REWARD_ONLY | {"batch.max_replacements": 2, "objective.outcome.baseline": "none"},
            "batch.max_replacements: a group of equal rewards has no signal only where its mean is taken off; set "
            "outcome.baseline: mean or rloo, or remove it",
        ),
    ],
    "_servers": [
        (
            {"scorer.teacher.engine": "server"},
            "scorer.teacher.server: goes with engine: server, found engine: server; set",
        ),
        (
            {"scorer.teacher.server": SERVER},
            "scorer.teacher.server: goes with engine: server, found engine: torch; set",
        ),
        (
            {"scorer.teacher": {"engine": "server", "server": SERVER, "resources": {"gpus": 1}}},
            "scorer.teacher.resources.gpus: the server has GPUs of its own",
        ),
    ],
    "_split_engines": [
        (
            {"rollout.tensor_parallel": 2},
            "rollout.tensor_parallel: 2 needs rollout.resources.gpus: 2, found 0",
        ),
        (
            {"teacher_rollout.tensor_parallel": 4, "teacher_rollout.resources": {"gpus": 1}},
            "teacher_rollout.tensor_parallel: 4 needs teacher_rollout.resources.gpus: 4, found 1",
        ),
        (
            {"scorer.teacher": {"engine": "vllm", "tensor_parallel": 4, "resources": {"gpus": 2}}},
            "scorer.teacher.tensor_parallel: 4 needs scorer.teacher.resources.gpus: 4, found 2",
        ),
        (
            {"scorer.teacher": {"tensor_parallel": 2, "resources": {"gpus": 2}}},
            "scorer.teacher.tensor_parallel: 2 is for engine: vllm; a torch scorer has one GPU; remove it",
        ),
    ],
    "_caches": [
        (
            {"scorer.teacher.cache": KEPT},
            "scorer.teacher.cache: no response of the student comes again; remove it, or name teacher or dataset in",
        ),
        (
            {"scorer.teacher.cache_gib": 2.0},
            "scorer.teacher.cache_gib: bounds a folder that scorer.teacher.cache names; name one, or remove it",
        ),
        (
            {"models.teacher": {"path": None, "weights": "ema"}, "scorer.teacher.cache": KEPT},
            "scorer.teacher.cache: its ema weights follow the student, no score comes again; remove it",
        ),
        (
            {"scorer.teacher": {"engine": "server", "server": SERVER, "cache": KEPT}},
            "scorer.teacher.cache: which weights 'server' serves is not known here; remove it",
        ),
        (
            {"scorer.teacher.cache": KEPT, "objective.prefix": "dataset", "objective.support": "full"},
            "scorer.teacher.cache: keeps log-probs, full support takes hidden states; use sampled or topk",
        ),
    ],
    "_placements": [
        (
            {"rollout.resources": {"placement": "strict_pack"}},
            "rollout.resources.placement: strict_pack is for the learner's ranks; members of rollout come and go alone",
        ),
    ],
    "_scorers_in_turns": [
        (
            IN_TURNS | COLOCATED,
            "scorer.teacher.turns: under colocate all engines have one turn and the learner the other; remove one",
        ),
        (
            IN_TURNS | {"scorer.other": {"turns": "gpus"}},
            "scorer.teacher.turns: no other scorer names 'gpu'; give another the same name, or remove it",
        ),
        (
            IN_TURNS | {"scorer.other": {"turns": "gpu", "resources": {"gpus": 0.4}, "hedge_seconds": 5}},
            "scorer.other.hedge_seconds: a request that waits for its scorer's turn would be computed twice; remove it",
        ),
        (
            IN_TURNS | {"scorer.other": {"turns": "gpu", "resources": {"gpus": 1}}},
            "scorer.other.resources.gpus: 1 leaves no room for others on its GPU; scorers that take turns need a share",
        ),
        (
            IN_TURNS | {"scorer.other": {"turns": "gpu", "engine": "server", "server": SERVER}},
            "scorer.other.turns: its GPUs are those of a server, which does not sleep; remove it",
        ),
    ],
    "_colocations": [
        (
            COLOCATED | {"max_staleness": 1},
            "colocate: learner and rollouts take turns, so nothing can run ahead; set max_staleness: 0, found 1",
        ),
        (
            COLOCATED | {"rollout.resources": {"gpus": 2}, "rollout.tensor_parallel": 2},
            "rollout.resources.gpus: 2 leaves no room for others on its GPU; under colocate give each role a share",
        ),
        (
            COLOCATED | {"scorer.teacher": {"resources": {"gpus": 1}}},
            "scorer.teacher.resources.gpus: 1 leaves no room for others on its GPU",
        ),
        (
            COLOCATED | {"learner.ranks": 2, "learner.resources": {"gpus": 0.5}},
            "learner.resources.gpus: two ranks of 0.5 may come to lie on one GPU, which NCCL refuses",
        ),
        (COLOCATED | {"learner.zero_stage": 0}, "learner.zero_stage: DeepSpeed moves no states under 0"),
        (
            COLOCATED | {"learner.zero_stage": 3},
            "learner.offload_optimizer: under zero_stage: 3 DeepSpeed moves no optimizer but its own",
        ),
    ],
    "_streams": [
        (
            {"early_stop": {"log_ratio": -2.0, "after_tokens": 32}},
            "early_stop: judges a response by the segments scored so far; set stream_tokens, or remove it",
        ),
        (
            {"rollout.on_update": "abort", "rollout.keep_key_values": True},
            "rollout.keep_key_values: under on_update: abort no running response has any left; use on_update: keep",
        ),
    ],
    "_autoscales": [
        (
            {"autoscale": {"learner": {"min": 1, "max": 2}}},
            "autoscale.learner: no elastic role of this recipe; allowed: ['rollout', 'scorer.teacher', 'reward']",
        ),
        (
            {"autoscale": {"scorer": {"min": 1, "max": 2}}},
            "autoscale.scorer: no elastic role of this recipe; allowed: ['rollout', 'scorer.teacher', 'reward']",
        ),
        (
            {"rollout.members": 5, "autoscale": {"rollout": {"min": 1, "max": 4}}},
            "autoscale.rollout: rollout.members: 5 is outside [1, 4]; start with a number inside",
        ),
        (
            {"autoscale": {"scorer.teacher": {"min": 2, "max": 4}}},
            "autoscale.scorer.teacher: scorer.teacher.members: 1 is outside [2, 4]; start with a number inside",
        ),
    ],
    "_contexts": [
        (
            {"sampling.max_response_tokens": 512},
            "sampling.max_response_tokens: 512 leaves no room for a prompt in rollout.max_context_tokens: 512",
        ),
        (
            with_objective(length=LADDER | {"caps": [8, 32]}),
            "objective.length.caps: 32 exceeds sampling.max_response_tokens: 16, for which room is made; raise that",
        ),
        (
            with_objective(length=LADDER | {"gate": GATE | {"eval_length": 17}}),
            "objective.length.gate.eval_length: 17 exceeds sampling.max_response_tokens",
        ),
        (
            with_objective(length=LADDER | {"gate": GATE}),
            "objective.length.gate: the entropy is measured on held-out prompts; give data.heldout",
        ),
        (
            REWARD_ONLY
            | {"data.heldout": "/h", "sampling.temperature": 0.7}
            | with_objective(length=LADDER | {"gate": GATE}),
            "objective.length.gate: the entropy is that of responses sampled at temperature 1; set sampling",
        ),
    ],
}
MEANINGLESS = OF_OBJECTIVES | OF_ROLES | OF_ADAPTERS | OF_CARRIERS | OF_KINDS


@pytest.mark.parametrize(
    ("changes", "message"),
    [pytest.param(*case, id=f"{rule}-{i}") for rule, cases in MEANINGLESS.items() for i, case in enumerate(cases)],
)
def test_a_meaningless_combination_is_refused(changes: Changes, message: str) -> None:
    assert refusal(changes).startswith(message)


@pytest.mark.parametrize(("changes", "message"), OF_MEMBERS)
def test_members_of_a_kind_are_refused_what_all_members_are_refused(changes: Changes, message: str) -> None:
    assert refusal(changes).startswith(message)


def test_bounds_of_autoscaling_are_in_order_and_of_at_least_one_member() -> None:
    swapped = refusal({"autoscale": {"reward": {"min": 3, "max": 2}}})
    assert swapped.startswith("autoscale.reward: min 3 is above max 2; swap them")
    assert refusal({"autoscale": {"reward": {"min": 0, "max": 2}}}).startswith("autoscale.reward.min: 0 is wrong")
    bounds = loaded({"rollout.members": 4, "autoscale": {"rollout": {"min": 1, "max": 4}}}).autoscale["rollout"]
    assert (bounds.min, bounds.max) == (1, 4)


def test_every_rule_is_tested() -> None:
    assert list(MEANINGLESS) == [rule.__name__ for rule in rules.MEANINGLESS]
