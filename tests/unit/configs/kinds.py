"""Refused kinds of members, by rule."""

from __future__ import annotations

from tests.unit.configs.carriers import NCCL
from tests.unit.configs.combinations import COLOCATED, IN_TURNS, Changes

GPU = {"rollout.resources": {"gpus": 1}}
WIDE = {"wide": {"tensor_parallel": 2, "resources": {"gpus": 2}}}

OF_KINDS: dict[str, list[tuple[Changes, str]]] = {
    "_equal_kinds": [
        (
            {"rollout.kinds": {"more": {"members": 3}}},
            "rollout.kinds.more: differs in nothing from the members of rollout; raise rollout.members, or remove it",
        ),
        (
            {"scorer.teacher": {"kinds": {"a": {"tokens_per_batch": 2048}, "b": {"tokens_per_batch": 2048}}}},
            "scorer.teacher.kinds.b: differs in nothing from the members of scorer.teacher.kinds.a; raise scorer.teach",
        ),
    ],
    "_kinds_without_gpus": [
        (
            GPU | {"rollout.kinds": {"slow": {"resources": {"gpus": 0}}}},
            "rollout.kinds.slow.resources.gpus: 0 beside rollout.resources.gpus: 1: all members",
        ),
        (
            {"scorer.teacher.kinds": {"fast": {"resources": {"gpus": 0.5}}}},
            "scorer.teacher.kinds.fast.resources.gpus: 0.5 beside scorer.teacher.resources.gpus: 0: all members",
        ),
    ],
    "_kinds_in_turns": [
        (
            COLOCATED | {"rollout.kinds": {"small": {"max_concurrent": 8}}},
            "rollout.kinds: under colocate all roles share the same GPUs; remove it, or colocate",
        ),
        (
            IN_TURNS
            | {
                "scorer.other": {
                    "turns": "gpu",
                    "resources": {"gpus": 0.5},
                    "kinds": {"small": {"resources": {"gpus": 0.25}}},
                }
            },
            "scorer.other.kinds: scorers that take turns share the same GPUs; remove it, or scorer.other.turns",
        ),
    ],
    "_kinds_of_servers": [
        (
            {
                "scorer.teacher": {
                    "engine": "server",
                    "server": {"address": "http://127.0.0.1:8000"},
                    "kinds": {"near": {"resources": {"labels": {"zone": "a"}}}},
                }
            },
            "scorer.teacher.kinds: the server computes, its members are all alike; remove it",
        ),
    ],
    "_kinds_in_groups": [
        (
            NCCL | {"rollout.kinds": WIDE},
            "rollout.kinds.wide.tensor_parallel: 2 beside rollout.tensor_parallel: 1: with rollout.carrier: 'nccl'",
        ),
    ],
}
# what other rules refuse of a role's members, refused of those of a kind
OF_MEMBERS: list[tuple[Changes, str]] = [
    (
        GPU | {"rollout.kinds": {"wide": {"tensor_parallel": 2}}},
        "rollout.kinds.wide.tensor_parallel: 2 needs rollout.kinds.wide.resources.gpus: 2, found 1",
    ),
    (
        {"scorer.teacher": {"resources": {"gpus": 1}, "kinds": WIDE}},
        "scorer.teacher.kinds.wide.tensor_parallel: 2 is for engine: vllm; a torch scorer has one GPU; remove it",
    ),
    (
        {"rollout.kinds": {"one": {"resources": {"placement": "strict_pack"}}}},
        "rollout.kinds.one.resources.placement: strict_pack is for the learner's ranks; members of rollout.kinds.one",
    ),
    (
        NCCL | {"rollout.kinds": {"half": {"resources": {"gpus": 0.5}}}},
        "rollout.carrier: 'nccl' refuses two processes on one GPU, found rollout.kinds.half.resources.gpus: 0.5; give",
    ),
    (
        GPU
        | {"learner.resources": {"gpus": 1, "labels": {"rack": "a"}}, "rollout.carrier": "ipc"}
        | {"rollout.kinds": {"far": {"resources": {"labels": {"rack": "b"}}}}},
        "rollout.carrier: 'ipc' needs one node, found resources.labels rack: b of rollout.kinds.far and a of learner",
    ),
    (
        GPU
        | {"learner.resources": {"gpus": 1}, "rollout.carrier": "ipc"}
        | {"rollout.kinds": {"apart": {"resources": {"placement": "spread"}}}},
        "rollout.carrier: 'ipc' needs one node, found rollout.kinds.apart.resources.placement: spread; use pack, or",
    ),
]
