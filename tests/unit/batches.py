"""What a simulated learner was given, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from actors.jobs import Share
from actors.records import ScoreTable, unpack_samples
from actors.simulated import SimulatedLearner


class Batches:
    """Its share of each step, the weights it began with, and who scored each sample; of a step done again, the last."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shares: dict[int, Share] = {}
        self.weights: dict[int, list[float]] = {}
        self.lengths: dict[int, dict[str, int]] = {}
        self.scorers: dict[int, dict[str, dict[str, int]]] = {}  # step -> uid -> model -> version
        step = SimulatedLearner.step

        def spied(learner: SimulatedLearner, share: Share) -> dict[str, float | None]:
            self._look(learner, share, learner._payloads)
            return step(learner, share)

        monkeypatch.setattr(SimulatedLearner, "step", spied)

    def _look(self, learner: SimulatedLearner, share: Share, payloads: Sequence[Any]) -> None:
        self.shares[share.step] = share
        self.weights[share.step] = learner._weights.tolist()
        samples = [s for block in payloads[: share.sample_blocks] for s in unpack_samples(block)]
        self.lengths[share.step] = {s.uid: len(s.response_ids) for s in samples}
        found: dict[str, dict[str, int]] = {}
        for model, payload in zip(share.scored_by, payloads[share.sample_blocks :], strict=True):
            table = ScoreTable(payload)
            for uid in payload.column("uid").to_pylist():
                found.setdefault(uid, {})[model] = table.version(uid)
        self.scorers[share.step] = found
