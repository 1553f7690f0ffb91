"""Defaults of a role that has GPUs. Those in the schema are for CPUs, where memory is small and compilation slow.

`auto`: preflight derives the number from the memory of the GPUs (orchestrator/preflight/budgets/)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# CUDA graphs: else each token waits for the launches of its kernels
_ENGINE = {"eager": False, "max_concurrent": "auto"}
ROLES: Mapping[str, Mapping[str, Any]] = {
    "rollout": _ENGINE,
    "teacher_rollout": _ENGINE,
    "learner": {"tokens_per_chunk": 2048},
    "reward": {"tokens_per_batch": 32_768},
}
SCORER: Mapping[str, Any] = {"tokens_per_batch": "auto", "cache_tokens": 131_072}
BATCH: Mapping[str, Any] = {"tokens_per_microbatch": "auto"}  # of the learner


def with_gpu_defaults(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's tree, unchecked, with the keys that a role with GPUs leaves out. What a user wrote stays."""
    whole = dict(tree)
    for role, defaults in ROLES.items():
        if _has_gpus(whole.get(role)):
            whole[role] = {**defaults, **whole[role]}
    if isinstance(scorers := whole.get("scorer"), Mapping):
        whole["scorer"] = {name: {**SCORER, **one} if _has_gpus(one) else one for name, one in scorers.items()}
    if _has_gpus(whole.get("learner")) and isinstance(batch := whole.get("batch"), Mapping):
        whole["batch"] = {**BATCH, **batch}
    return whole


def _has_gpus(role: Any) -> bool:
    resources = role.get("resources") if isinstance(role, Mapping) else None
    gpus = resources.get("gpus") if isinstance(resources, Mapping) else None
    return isinstance(gpus, int | float) and gpus > 0
