"""A response that is sampled again: blocks come whole, and those of its batch-mates may hold its earlier attempt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from actors.learning.batch import Batch
from actors.simulated.known import Speeds
from actors.wire.jobs import Share, Total
from actors.wire.records import Request, Sample, Score, pack_samples, pack_scores
from configs.objective import Objective
from objectives.schedule import Dials
from orchestrator.run import DONE
from orchestrator.samples.buffer import Scored
from orchestrator.samples.segments import Segments
from orchestrator.weights.learner_group import share_of_rank
from tests.unit.batches import Batches
from tests.unit.simulation import Simulation, assert_each_once, recipe, trained

AGAIN, MATE = "00000000.000", "00000000.001"


@dataclass(frozen=True)
class Drawn:
    """A response of these tokens, each of which the teacher gives the log-prob `says`."""

    uid: str
    attempt: int
    ids: Sequence[int]
    says: float

    def rows(self, segment: int) -> list[Sample]:
        """In segments of so many tokens; 0: whole."""
        request, tokens = Request(self.uid, self.uid[:8], self.attempt, 1, [1, 2]), len(self.ids)
        ends = [*range(segment, tokens, segment), tokens] if segment else [tokens]
        return [
            request.answered(
                list(self.ids[:end]), [-1.0] * end, "stop" if end == tokens else "", [0] * end, start=start
            )
            for start, end in pairwise([0, *ends])
        ]


def buffered(segment: int, *together: Sequence[Drawn]) -> dict[str, Scored]:
    """The last whole response of each uid, where those in a tuple leave in the same blocks and are scored together."""
    segments, whole = Segments(), dict[str, Scored]()
    for responses in together:
        for rows in zip(*(drawn.rows(segment) for drawn in responses), strict=True):
            payload, header = pack_samples(rows)
            says = [np.full(len(r.response_ids[r.new]), d.says) for r, d in zip(rows, responses, strict=True)]
            table, _ = pack_scores([Score(r.uid, s, start=r.start) for r, s in zip(rows, says, strict=True)], {})
            parts = [segments.join(Scored(h, payload, {"teacher": (table,)})) for h in header.samples]
            whole |= {part.header.uid: part for part in parts if part}
    return whole


@pytest.mark.parametrize("segment", [0, 4], ids=["whole", "segments"])
@pytest.mark.parametrize("tokens", [10, 8, 4], ids=["longer", "as long", "shorter"])
@pytest.mark.parametrize("number", [0, 1], ids=["same number", "next number"])
def test_an_earlier_attempt_in_a_mates_block_is_neither_trained_nor_are_its_scores(
    tmp_path: Path, segment: int, tokens: int, number: int
) -> None:
    """An evaluation asks again under the same number."""
    earlier, mate = Drawn(AGAIN, 0, range(10, 18), -9.0), Drawn(MATE, 0, range(30, 38), -2.0)
    again = Drawn(AGAIN, number, range(50, 50 + tokens), -0.5)
    batch = list(buffered(segment, (earlier, mate), (again,)).values())
    whole = Share(1, 0, (), 18, {"distillation": Total(18, 2)}, 0, Dials(), record=str(tmp_path / "step"))
    share, payloads = share_of_rank(whole, batch, ((AGAIN, MATE),), set())
    assert sum(AGAIN in payload.column("uid").to_pylist() for payload in payloads) > 2, "of both attempts"

    held = Batch(share, payloads, Objective(target="teacher"), True)
    expected = {d.uid: replace(d.rows(segment)[-1], start=0) for d in (again, mate)}
    assert held.samples == expected
    pack, targets = held.micro_batch((AGAIN, MATE))
    assert pack.ids.tolist() == [[1, 2, *again.ids, 1, 2, *mate.ids]]
    assert targets.tokens.scores["teacher"].logprob.tolist() == [-0.5] * tokens + [-2.0] * 8

    held.old = {"logprob": {uid: np.zeros(len(row.response_ids)) for uid, row in expected.items()}}
    held.record(0, {})
    with pa.OSFile(str(tmp_path / "step.rank0.arrow")) as file:
        rows = pa.ipc.open_file(file).read_all().to_pylist()
    assert [(row["response_ids"], row["teacher_logprobs"]) for row in rows] == [
        (list(again.ids), [-0.5] * tokens),
        (list(mate.ids), [-2.0] * 8),
    ]


@pytest.mark.parametrize("segments", [0, 4])
def test_an_aborted_response_is_not_trained_in_place_of_its_resample(
    tmp_path: Path, batches: Batches, segments: int
) -> None:
    """Without any fault: an aborted response leaves in one block with others that have ended."""
    settings = recipe(
        tmp_path,
        run={"steps": 30},
        max_staleness=2,
        on_stale="wait",
        stream_tokens=segments,
        stream={"coalesce_samples": 64},
        rollout={"on_update": "abort"},
    )
    assert Simulation(settings, speeds=Speeds(rollout=0.03, learn=0.0)).go_in_own_time() == DONE
    assert_each_once(tmp_path, 30)
    rows = trained(tmp_path)
    assert any(row["attempt"] for row in rows)
    batches.assert_trained(rows)
