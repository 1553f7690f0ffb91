"""Refused combinations with carriers from GPU to GPU, by rule."""

from __future__ import annotations

from tests.unit.configs.combinations import COLOCATED, Changes

GPUS = {"learner.resources": {"gpus": 1}, "rollout.resources": {"gpus": 1}}
IPC: Changes = GPUS | {"rollout.carrier": "ipc"}
NCCL: Changes = GPUS | {"rollout.carrier": "nccl"}

OF_CARRIERS: dict[str, list[tuple[Changes, str]]] = {
    "_needless_carriers": [
        (
            {"teacher_rollout.carrier": "nccl"},
            "teacher_rollout.carrier: 'nccl': a teacher pulls no weights; remove it",
        ),
        (
            NCCL | {"objective.prefix": "dataset"},
            "rollout.carrier: 'nccl': no rollout runs, the student samples nothing; remove it",
        ),
        (
            NCCL | {"learner.lora": {"rank": 8}},
            "rollout.carrier: 'nccl' moves all weights, and versions of learner.lora are adapters of a few MiB; set it "
            "to object_store",
        ),
    ],
    "_carriers_without_gpus": [
        (
            {"rollout.carrier": "ipc"},
            "rollout.carrier: 'ipc' moves weights between GPUs, found rollout.resources.gpus: 0; give rollout GPUs, or "
            "set rollout.carrier: object_store",
        ),
        (
            NCCL | {"learner.resources": {"gpus": 0}},
            "rollout.carrier: 'nccl' moves weights between GPUs, found learner.resources.gpus: 0; give learner GPUs",
        ),
    ],
    "_groups_on_shared_gpus": [
        (
            COLOCATED | {"rollout.carrier": "nccl"},
            "rollout.carrier: 'nccl' needs the learner and its members at once, and under colocate one of them sleeps; "
            "use ipc on one node, or object_store",
        ),
        (
            NCCL | {"rollout.resources": {"gpus": 0.5}},
            "rollout.carrier: 'nccl' refuses two processes on one GPU, found rollout.resources.gpus: 0.5; give rollout "
            "whole GPUs, or use ipc on one node",
        ),
    ],
    "_copies_on_several_nodes": [
        (
            IPC | {"rollout.members": 2, "rollout.resources": {"gpus": 1, "placement": "spread"}},
            "rollout.carrier: 'ipc' needs one node, found rollout.resources.placement: spread; use pack, or nccl",
        ),
        (
            IPC | {"learner.ranks": 2, "learner.resources": {"gpus": 1, "placement": "strict_spread"}},
            "rollout.carrier: 'ipc' needs one node, found learner.resources.placement: strict_spread; use pack, or",
        ),
        (
            IPC
            | {
                "learner.resources": {"gpus": 1, "labels": {"rack": "a"}},
                "rollout.resources": {"gpus": 1, "labels": {"rack": "b"}},
            },
            "rollout.carrier: 'ipc' needs one node, found resources.labels rack: b of rollout and a of learner; give "
            "both the same, or use nccl",
        ),
    ],
}
