"""What a simulated learner was given, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from actors.learning.share_rows import samples_of, tables_of
from actors.simulated.known import liked
from actors.simulated.learner import SimulatedLearner
from actors.wire.jobs import Share
from actors.wire.records import SampleHeader
from orchestrator.samples.buffer import Scored
from orchestrator.weights.learner_group import LearnerGroup


class Batches:
    """Its share of each step, the weights it began with, and who scored each sample; and the headers of the whole batch
    that all ranks were to share. Of a step done again, the last."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shares: dict[int, Share] = {}
        self.weights: dict[int, list[float]] = {}
        self.lengths: dict[int, dict[str, int]] = {}
        self.scorers: dict[int, dict[str, dict[str, int]]] = {}  # step -> uid -> model -> version
        self.headers: dict[int, dict[str, SampleHeader]] = {}
        step, together = SimulatedLearner.step, LearnerGroup.step

        def spied(learner: SimulatedLearner, share: Share) -> dict[str, float | None]:
            self._look(learner, share, learner._payloads)
            return step(learner, share)

        async def noted(group: LearnerGroup, batch: Sequence[Scored], number: int, *rest: Any, **named: Any) -> Any:
            self.headers[number] = {scored.header.uid: scored.header for scored in batch}
            return await together(group, batch, number, *rest, **named)

        monkeypatch.setattr(SimulatedLearner, "step", spied)
        monkeypatch.setattr(LearnerGroup, "step", noted)

    def assert_trained(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Every row is the response whose header was buffered, and its scores are of its own tokens."""
        for row in rows:
            header = self.headers[int(row["step"].removeprefix("step_"))][row["uid"]]
            found = (row["attempt"], len(row["response_ids"]), row["finish"])
            assert found == (header.attempt, header.response_tokens, header.finish), row["uid"]
            assert row["teacher_logprobs"] == liked(row["response_ids"]).tolist(), row["uid"]

    def _look(self, learner: SimulatedLearner, share: Share, payloads: Sequence[Any]) -> None:
        self.shares[share.step] = share
        self.weights[share.step] = learner._weights.tolist()
        self.lengths[share.step] = {s.uid: len(s.response_ids) for s in samples_of(share, payloads).values()}
        tables = tables_of(share, payloads)
        self.scorers[share.step] = {
            uid: {model: tables[places[-1]].version(uid) for model, places in models.items()}
            for uid, models in share.scores.items()
        }
