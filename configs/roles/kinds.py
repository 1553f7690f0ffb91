"""Further members of a role, of another size or in another place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, ValidationError

from configs.node import FromMemory, Members, Node, NonNegative, Positive
from configs.roles.sizes import Resources

Share = Annotated[float, Field(gt=0.0, le=1.0)]
KindName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]


class Kind(Node):
    """Further members of a role, of another size or in another place. What it leaves out, `members` aside, is the
    role's; `resources` are taken over key by key."""

    members: Members = 1
    resources: Resources = Resources()
    kv_cache_gib: Positive = 1
    gpu_memory_fraction: Share = 0.9
    tensor_parallel: Positive = 1


class RolloutKind(Kind):
    max_concurrent: FromMemory = 64


class ScorerKind(Kind):
    tokens_per_batch: FromMemory = 1024
    cache_tokens: NonNegative = 16384
    max_queued_tokens: Positive = 262_144


def with_whole_kinds(tree: Any, cls: type[Kind]) -> Any:
    """A role's tree, unchecked, with the role's keys filled in for each kind that leaves them out. If one of these is
    wrong, the tree as it is, so that the error is reported once, for the role."""
    kinds = tree.get("kinds") if isinstance(tree, dict) else None
    if not isinstance(kinds, dict):
        return tree
    left_out = {key: tree[key] for key in cls.model_fields if key in tree and key != "members"}
    try:
        cls.model_validate(left_out)
    except ValidationError:
        return tree
    return tree | {"kinds": {name: _whole(kind, left_out) for name, kind in kinds.items()}}


def _whole(kind: Any, left_out: Mapping[str, Any]) -> Any:
    if not isinstance(kind, dict):
        return kind
    taken, own = left_out.get("resources"), kind.get("resources")
    merged = {"resources": taken | own} if isinstance(taken, dict) and isinstance(own, dict) else {}
    return {**left_out, **kind, **merged}
