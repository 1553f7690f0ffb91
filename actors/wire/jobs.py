"""A learner's jobs as plain values, so that the orchestrator imports no engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from configs.objective import Objective as ObjectiveConfig
from configs.roles.learner import Learner as LearnerConfig
from objectives.schedule import Dials


@dataclass(frozen=True)
class LearnerSpec:
    """What a learner is built from. `steps` is the length of the schedule, `updates` the passes over a batch,
    `publish_dtype` the dtype of the buckets. `averages` are decays by the name of an averaged model. `temperature`
    divides the student's logits; it is 1 unless the objective is a reward alone. `compares_sampler`: the sampler's
    log-probs are of the same distribution, so that metrics of q/mu make sense. `start_kl`: how the KL to the starting
    weights is logged, or None. `base`: models that are the student
    without its adapters. `end_tokens` count as one outcome in the distillation term, and all end a response of
    the exported model; empty if they are tokens like others."""

    config: LearnerConfig
    objective: ObjectiveConfig
    model: str
    vocabulary: int
    steps: int
    seed: int
    publish_dtype: str
    updates: int = 1
    temperature: float = 1.0
    compares_sampler: bool = True
    start_kl: str | None = None
    end_tokens: tuple[int, ...] = ()
    averages: Mapping[str, float] = field(default_factory=dict)
    base: tuple[str, ...] = ()


class Total(NamedTuple):
    """A term's global denominators, counted before gates, clips and masks, the mask of old tokens included."""

    tokens: int
    sequences: int


@dataclass(frozen=True)
class Share:
    """One rank's part of a batch. `rows` and `scores` hold indices of fetched payloads: by uid the one with the whole
    response, by uid and model those with its scores, one for each segment. Other payloads may hold the same uid at an
    earlier attempt, because payloads are whole blocks.

    `totals` by term and `loss_tokens` are global; `constant` is the denominator of `normalise: constant`; `advantages`,
    `rewards` and their unweighted `components` are by uid. The student did not draw the samples in `foreign`; those in
    `masked` have no outcome term. Tokens that the student drew with a version below `oldest` carry no loss. `record` is
    the file for the trained samples, or None; `kept_scores`: bytes of this rank's scores that may be kept beside it.
    `objective`: what an evaluation reads the samples by, at temperature 1;
    None: the run's. `start_kl`: whether the starting weights have scored the samples, where the run asks for that.
    `base_prompts`: by model and uid, the prompt ids
    of a base whose prompts are not the student's.
    """

    step: int
    version: int
    micro_batches: tuple[tuple[str, ...], ...]
    loss_tokens: int
    totals: Mapping[str, Total]
    constant: int
    dials: Dials
    rows: Mapping[str, int] = field(default_factory=dict)
    scores: Mapping[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    advantages: Mapping[str, float] = field(default_factory=dict)
    rewards: Mapping[str, float] = field(default_factory=dict)
    components: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    foreign: frozenset[str] = frozenset()
    masked: frozenset[str] = frozenset()
    oldest: int = 0
    record: str | None = None
    kept_scores: int = 0
    objective: ObjectiveConfig | None = None
    start_kl: bool = True
    base_prompts: Mapping[str, Mapping[str, Sequence[int]]] = field(default_factory=dict)
