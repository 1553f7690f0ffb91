"""What a learner is asked to do: plain values, so that the orchestrator needs no engine to say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from configs.schema import Learner as LearnerConfig
from configs.schema import Objective as ObjectiveConfig


@dataclass(frozen=True)
class LearnerSpec:
    """What a learner is built from. `steps` is the length of the schedule; `publish_dtype` that of the buckets."""

    config: LearnerConfig
    objective: ObjectiveConfig
    model: str
    vocabulary: int
    steps: int
    seed: int
    publish_dtype: str


@dataclass(frozen=True)
class Share:
    """One rank's part of a batch. Payloads follow as arguments: `sample_blocks` of samples, then those of scores.

    `loss_tokens` and `sequences` are global; `advantages` and `rewards` are by uid; `record` is a file to write the
    trained samples to, or None.
    """

    step: int
    version: int
    micro_batches: tuple[tuple[str, ...], ...]
    loss_tokens: int
    sequences: int
    sample_blocks: int
    advantages: Mapping[str, float] = field(default_factory=dict)
    rewards: Mapping[str, float] = field(default_factory=dict)
    record: str | None = None
