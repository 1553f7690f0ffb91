"""What a learner is asked to do: plain values, so that the orchestrator needs no engine to say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from configs.objective import Objective as ObjectiveConfig
from configs.roles import Learner as LearnerConfig
from objectives.schedule import Dials


@dataclass(frozen=True)
class LearnerSpec:
    """What a learner is built from. `steps` is the length of the schedule, `updates` the passes over a batch;
    `publish_dtype` that of the buckets; `averages` are the decays of the models that are averages of the student;
    `temperature` divides the student's logits, which is 1 but for a reward alone. `compares_sampler`: the sampler's
    log-probs are of the same distribution, and metrics of q/mu mean something. `start_kl`: how the distance to the
    starting weights is logged, if at all. `end_tokens` are one outcome in the distillation term, and all end a response
    of the exported model; empty where they are tokens like others."""

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


class Total(NamedTuple):
    """A term's global denominators: counted over what the recipe gives it, before gates, clips and masks (that
    for age too)."""

    tokens: int
    sequences: int


@dataclass(frozen=True)
class Share:
    """One rank's part of a batch. Of the payloads that it fetched, `rows` names by uid the one that holds the whole
    response, `scores` by uid and model those that hold its scores, one for each segment. Payloads are whole blocks:
    what others hold under that uid may be of an earlier attempt.

    `totals` by term and `loss_tokens` are global; `constant` is the denominator of `normalise: constant`; `advantages`
    and `rewards` are by uid. `foreign` were not drawn by the student; `masked` carry no outcome term. Tokens
    that the student drew with a version below `oldest` carry no loss. `record` is a file to write the trained samples
    to, or None.
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
    foreign: frozenset[str] = frozenset()
    masked: frozenset[str] = frozenset()
    oldest: int = 0
    record: str | None = None
