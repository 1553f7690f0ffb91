"""A reward worker whose rewards are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from actors.member import Member
from actors.wire.records import unpack_samples
from actors.wire.rewards import Rewards
from configs.reward_rules import Rule, component_names


class SimulatedReward(Member):
    """Rewards responses of odd length."""

    def start(self) -> None:
        """Nothing to build."""

    def reward(
        self, payload: pa.RecordBatch, rules: Sequence[Rule], fields: Mapping[str, Mapping[str, Any]]
    ) -> Rewards:
        weight, names = sum(r.weight for r in rules) or 1.0, component_names(rules, model=False)
        odd = {s.uid: float(len(s.response_ids) % 2) for s in unpack_samples(payload) if s.uid in fields}
        return Rewards(
            {uid: weight * v for uid, v in odd.items()}, {uid: dict.fromkeys(names, v) for uid, v in odd.items()}
        )
