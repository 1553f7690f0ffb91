"""What a step keeps of its models' scores is what the learner read of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from actors.learning.batch import Batch
from actors.wire.kept_scores import by_model
from actors.wire.records import Score, pack_samples
from configs.objective import Objective
from orchestrator.checkpoint import rewind
from tests.unit.learning.test_learner_batch import SEGMENTS, row, scores, segmented

LOSS = replace(row(6), loss_spans=[(2, 4)])


def recorded(config: Objective, tables: list[Score], folder: Path, most: int = 10_000) -> tuple[Batch, pa.Table | None]:
    """A batch of one response, with loss on its tokens 2 and 3, and what is kept of its scores."""
    held = segmented(config, [LOSS], tables)
    held.share = replace(held.share, record=str(folder / "samples" / "step_000001"), kept_scores=most)
    held.old = {"logprob": {"s": np.zeros(6, np.float32)}}
    held.record(0, {})
    file = folder / "samples" / "scores_000001.rank0.arrow"
    return held, pa.ipc.open_file(pa.OSFile(str(file))).read_all() if file.exists() else None


def read_again(config: Objective, kept: pa.Table) -> Batch:
    """The batch as a replay reads it."""
    whole = segmented(config, [LOSS], SEGMENTS)
    return Batch(
        replace(whole.share, scores={"s": {"teacher": (1,)}}),
        [pack_samples([LOSS])[0], by_model(kept)["teacher"]],
        config,
        True,
    )


def test_segments_on_topk_support_are_read_again_as_they_were(tmp_path: Path) -> None:
    config = Objective(target="teacher", support="topk", topk=2)
    tables = [replace(table, hidden=None) for table in SEGMENTS[1:]]  # the first two tokens have no score
    held, kept = recorded(config, tables, tmp_path)
    assert kept is not None and kept["scorer_version"].to_pylist() == [0]
    one, other = (each.micro_batch(("s",))[1].tokens.scores["teacher"] for each in (held, read_again(config, kept)))
    for name in ("logprob", "support_ids", "support_logprobs", "tail_logprob"):
        torch.testing.assert_close(getattr(other, name), getattr(one, name))


def hidden(*spans: tuple[int, int], version: int = 7) -> list[Score]:
    bare = {"support_ids": None, "support_logprobs": None, "tail_logprob": None}
    return [replace(scores(start, end, version + i), **bare) for i, (start, end) in enumerate(spans)]


def test_hidden_states_are_kept_with_the_version_of_their_head(tmp_path: Path) -> None:
    config = Objective(target="teacher", support="full")
    held = segmented(config, [LOSS], hidden((2, 6)))
    held.share = replace(held.share, kept_scores=10_000)
    (row,) = held._kept() or ()
    assert (row.model, row.dtype, row.score.version) == ("teacher", "float32", 7)
    states = np.frombuffer(row.score.hidden or b"", np.float32).reshape(6, 2)
    assert states[:, 0].tolist() == [0.0, 0.0, 2.0, 3.0, 4.0, 5.0]


def test_hidden_states_under_two_heads_are_not_kept() -> None:
    held = segmented(Objective(target="teacher", support="full"), [LOSS], hidden((0, 3), (3, 6)))
    held.share = replace(held.share, kept_scores=10_000)
    assert held._kept() == []


@pytest.mark.parametrize("most", [0, 23])
def test_scores_above_the_bound_leave_no_file(most: int, tmp_path: Path) -> None:
    sampled = [Score("s", np.zeros(6, np.float32))]  # 24 bytes
    assert recorded(Objective(target="teacher"), sampled, tmp_path, most)[1] is None
    assert recorded(Objective(target="teacher"), sampled, tmp_path, 24)[1] is not None


def test_a_resume_sets_later_ones_aside(tmp_path: Path) -> None:
    recorded(Objective(target="teacher"), [Score("s", np.zeros(6, np.float32))], tmp_path)
    rewind(tmp_path, None)
    assert {file.suffix for file in (tmp_path / "samples").iterdir()} == {".lost"}
