"""What members of a role take, and how many there are."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from configs.node import Members, Node, Positive

Spreading = Literal["pack", "strict_pack", "spread", "strict_spread"]  # of a role's actors over nodes

_NAMED_OTHERWISE = {"CPU": "cpus", "GPU": "gpus", "memory": None, "object_store_memory": None}  # Ray's own resources


class Resources(Node):
    """What one actor of a role takes. `cpus` and `gpus` may be fractions; `threads` is the OpenMP pool; `custom` are
    resources that the cluster's nodes were started with, by name.

    `placement`: where the role's actors lie. `pack`: on few nodes; `strict_pack`: all on one; `spread`: on many nodes;
    `strict_spread`: each on a node of its own. Of the learner these are its ranks, of other roles their members.
    """

    cpus: Annotated[float, Field(ge=0.0)] = 0.5
    gpus: Annotated[float, Field(ge=0.0)] = 0.0
    threads: Positive = 2
    labels: dict[str, str] = Field(default_factory=dict)
    custom: dict[str, Annotated[float, Field(gt=0.0)]] = Field(default_factory=dict)
    placement: Spreading = "pack"

    @field_validator("gpus")
    @classmethod
    def _share_or_whole(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError("above 1 it must be whole; Ray gives a share of one GPU, or whole ones")
        return gpus

    @field_validator("custom")
    @classmethod
    def _leaves_rays_own_alone(cls, custom: dict[str, float]) -> dict[str, float]:
        for name in custom:
            if name in _NAMED_OTHERWISE:
                key = _NAMED_OTHERWISE[name]
                raise ValueError(f"{name} is Ray's own; {f'set {key}' if key else 'remove it'}")
        return custom


class RoleSize(NamedTuple):
    """What a role takes when a run starts: `members` of so many `actors`, each with `resources`. The number of members
    may change where it is `elastic`. `kinds`: its further members, by kind; their number stays."""

    members: int
    actors: int
    resources: Resources
    elastic: bool = True
    kinds: Mapping[str, RoleSize] = MappingProxyType({})

    @property
    def gpus(self) -> float:
        """GPUs of all members."""
        return self.members * self.actors * self.resources.gpus + sum(kind.gpus for kind in self.kinds.values())


DATASET = RoleSize(1, 1, Resources(cpus=0.05, threads=1), elastic=False)  # the role that reads given responses


def name_of(role: str, kind: str) -> str:
    """What the members of a kind are called, which is also their place in a recipe; `kind` "": the role's own."""
    return f"{role}.kinds.{kind}" if kind else role


def role_of(name: str) -> str:
    """The role of the members that are called so by `name_of`."""
    return name.partition(".kinds.")[0]


class Bounds(Node):
    """The least and most members that autoscaling may give a role."""

    min: Members
    max: Members

    @model_validator(mode="after")
    def _has_room(self) -> Bounds:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}; swap them")
        return self
