"""What a reward member answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Rewards:
    """By uid: the weighted sum `values`, its unweighted `components` by name, and the reasons of those that are
    `rejected`, which have neither. Each uid that was asked for is in `values` or in `rejected`."""

    values: Mapping[str, float]
    components: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    rejected: Mapping[str, str] = field(default_factory=dict)
