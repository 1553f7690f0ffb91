"""Whole runs on simulated members: order, counts, staleness and bad data.

Everything is in this process. Only what computes is simulated; every decision is the production code's.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import math
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from actors.metrics import STEP_METRICS
from actors.simulated.known import Speeds
from actors.simulated.reward import SimulatedReward
from actors.simulated.rollout import SimulatedRollout
from actors.simulated.scorer import SimulatedScorer
from actors.wire.records import Request, ScoreHeader, unpack_samples
from orchestrator.pools.transport import LocalTransport
from orchestrator.run import DONE
from orchestrator.samples.prompts import PromptStream
from tests.unit.simulation import (
    EACH,
    HELDOUT,
    STEPS,
    TRAIN,
    Simulation,
    assert_each_once,
    assert_none_aged,
    expected_order,
    learned,
    metrics,
    order_of,
    recipe,
    trained,
)

# --- a run from end to end ---


def test_every_line_has_every_metric_and_nothing_else(uninterrupted: Path) -> None:
    lines = metrics(uninterrupted)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["policy_version"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        assert list(line) == list(STEP_METRICS)
        assert {line[name] for name in ("forward_kl", "teacher_entropy")} == {None}, "unknown, so null"
        assert all(line[name] >= 0 for name in line if name.startswith(("seconds", "tokens", "bytes")))


def test_counts_agree_with_the_recorded_samples(uninterrupted: Path) -> None:
    rows = trained(uninterrupted)
    for line in metrics(uninterrupted):
        batch = [row for row in rows if row["step"] == f"step_{line['step']:06d}"]
        lengths = [len(row["response_ids"]) for row in batch]
        assert line["tokens_trained"] == sum(lengths)
        assert line["response_length"] == pytest.approx(sum(lengths) / len(lengths))
        assert line["reward_mean"] == pytest.approx(sum(row["reward"] for row in batch) / len(batch))
        assert line["truncated_fraction"] == sum(row["finish"] == "length" for row in batch) / len(batch)
        assert line["samples_dropped"] == 0
    total = sum(len(row["response_ids"]) for row in rows)
    for name in ("tokens_generated", "tokens_scored"):  # between two steps, whichever step they are for
        assert sum(line[name] for line in metrics(uninterrupted)) == total


def test_the_orchestrator_opens_no_payload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[type] = []
    value = LocalTransport.value

    async def spied(self: LocalTransport, ref: Any) -> Any:
        found = await value(self, ref)
        opened.append(type(found))
        return found

    monkeypatch.setattr(LocalTransport, "value", spied)
    assert Simulation(recipe(tmp_path)).go() == DONE
    assert ScoreHeader in opened
    assert pa.RecordBatch not in opened and np.ndarray not in opened


def test_every_prompt_of_the_order_is_trained_exactly_once_and_in_order(uninterrupted: Path) -> None:
    assert order_of(trained(uninterrupted)) == expected_order()


def test_evaluation_before_and_after_uses_the_same_prompts_and_seeds(uninterrupted: Path) -> None:
    before, after = (trained(uninterrupted, f"eval_{when}") for when in ("before", "after"))
    assert [row["prompt_ids"] for row in before] == [p.ids["student"] for p in HELDOUT]
    assert [row["response_ids"] for row in before] == [row["response_ids"] for row in after]
    summary = json.loads((uninterrupted / "sim" / "summary.json").read_text())
    assert (summary["format"], summary["exit"], summary["steps"]) == (1, DONE, STEPS)
    for when in ("before", "after"):
        assert {"reverse_kl", "entropy", "response_length"} <= summary["evaluation"][when].keys()


@pytest.mark.parametrize(
    ("changes", "speeds"),
    [
        ({"rollout": {"members": 1}}, Speeds()),
        ({"stream": {"coalesce_samples": 64}}, Speeds()),
        ({"rollout": {"max_concurrent": 2}}, Speeds()),
        ({}, Speeds(rollout=1e-4, score=1e-5)),
    ],
    ids=str,
)
def test_neither_members_nor_blocks_nor_speed_change_what_is_learned(
    uninterrupted: Path, tmp_path: Path, changes: dict[str, Any], speeds: Speeds
) -> None:
    assert Simulation(recipe(tmp_path, **changes), speeds=speeds).go() == DONE
    assert learned(tmp_path) == learned(uninterrupted)


def test_two_ranks_share_each_batch(tmp_path: Path) -> None:
    assert Simulation(recipe(tmp_path, learner={"ranks": 2})).go() == DONE
    assert order_of(sorted(trained(tmp_path), key=lambda row: row["uid"])) == expected_order()


# --- staleness ---

SLOW_LEARNER = Speeds(rollout=2e-4, learn=4e-4)


def loss_versions(row: Mapping[str, Any]) -> list[int]:
    """Versions of the tokens that carry loss."""
    return [version for start, end in row["loss_spans"] for version in row["versions"][start:end]]


@pytest.mark.parametrize("bound", [0, 1, 2])
def test_staleness_reaches_its_bound_and_never_passes_it(tmp_path: Path, bound: int) -> None:
    assert Simulation(recipe(tmp_path, max_staleness=bound), speeds=SLOW_LEARNER).go() == DONE
    lines, rows = metrics(tmp_path), trained(tmp_path)
    assert max(line["staleness_max"] for line in lines) == bound
    for line in lines:
        batch = [v for row in rows if row["step"] == f"step_{line['step']:06d}" for v in loss_versions(row)]
        stale = [line["policy_version"] - 1 - v for v in batch]
        assert min(stale) >= 0 and max(stale) == line["staleness_max"] <= bound
        assert line["staleness_mean"] == pytest.approx(sum(stale) / len(stale))
    assert_each_once(tmp_path)


def test_no_member_samples_before_it_has_pulled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, slow = SimulatedRollout.load, []

    async def load_late(self: SimulatedRollout, version: int, *rest: Any) -> int:
        slow.append(self)
        await asyncio.sleep(0.005 if self is slow[0] else 0)
        return await load(self, version, *rest)

    monkeypatch.setattr(SimulatedRollout, "load", load_late)
    assert Simulation(recipe(tmp_path)).go() == DONE
    assert_none_aged(tmp_path, 0)


def test_a_slow_rollout_is_not_dropped_and_delays_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first takes a minute a token, the second a second; two responses at a time."""
    write, given = SimulatedRollout.write, dict[SimulatedRollout, list[str]]()

    async def counted(self: SimulatedRollout, request: Request, *arguments: Any) -> AsyncIterator[Any]:
        given.setdefault(self, []).append(request.uid)
        self._seconds = 60.0 if self is next(iter(given)) else 1.0
        async for row in write(self, request, *arguments):
            yield row

    monkeypatch.setattr(SimulatedRollout, "write", counted)
    settings = recipe(tmp_path, max_staleness=1, on_stale="wait", rollout={"max_concurrent": EACH})
    assert Simulation(settings).go_in_own_time() == DONE
    assert_each_once(tmp_path)
    assert_none_aged(tmp_path, 1)
    slow, fast = (len([uid for uid in uids if not uid.startswith("9")]) for uids in given.values())
    assert 0 < 4 * slow < fast


def test_every_response_is_scored_and_rewarded_the_moment_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One rollout decodes a step's responses side by side, a token a second; a score or a reward takes a minute."""
    leased: dict[str, dict[str, float]] = {"score": {}, "reward": {}}  # when each was, if it is asked about at its end

    def slow(cls: type, method: str) -> None:
        answer = getattr(cls, method)

        async def late(self: Any, payload: Any, *arguments: Any) -> Any:
            (row,) = unpack_samples(payload)
            leased[method][row.uid] = asyncio.get_running_loop().time() - len(row.response_ids)
            await asyncio.sleep(60.0)
            answered = answer(self, payload, *arguments)
            return await answered if inspect.isawaitable(answered) else answered

        monkeypatch.setattr(cls, method, late)

    slow(SimulatedScorer, "score")
    slow(SimulatedReward, "reward")
    rollout = {"members": 1, "max_concurrent": 64}
    settings = recipe(tmp_path, rollout=rollout)
    assert Simulation(settings, speeds=Speeds(rollout=1.0)).go_in_own_time() == DONE
    steps: dict[str, list[dict[str, Any]]] = {}
    for row in trained(tmp_path):
        steps.setdefault(row["step"], []).append(row)
    for rows in steps.values():
        assert len({len(row["response_ids"]) for row in rows}) > 1
        assert len({round(asked[row["uid"]], 3) for asked in leased.values() for row in rows}) == 1


# --- bad data ---


def test_rejected_samples_are_dropped_and_counted_and_training_goes_on(tmp_path: Path) -> None:
    """Token 50 lies beyond a vocabulary of 50; simulated responses hold it now and then."""
    assert Simulation(recipe(tmp_path), vocabulary=50).go() == DONE
    rows, lines = trained(tmp_path), metrics(tmp_path)
    dropped = sum(line["samples_dropped"] for line in lines)
    assert 0 < dropped < len(expected_order()) and dropped == len(expected_order()) - len(rows)
    assert all(50 not in row["response_ids"] for row in rows)
    summary, order = json.loads((tmp_path / "sim" / "summary.json").read_text()), PromptStream(TRAIN, 5, True)
    groups = {uid.split(".")[0] for uid in summary["skipped"] if not uid.startswith("9")}  # 9...: held out
    of_training = {group: text for group, text in summary["skipped_prompts"].items() if not group.startswith("9")}
    assert of_training == {group: order[int(group)].row["prompt"] for group in groups} and groups
    assert [row for row in expected_order() if row in order_of(rows)] == order_of(rows)
    assert len(lines) == STEPS and all(math.isfinite(line["loss"]) for line in lines)


def test_a_skipped_held_out_prompt_is_named_by_its_text(tmp_path: Path) -> None:
    simulation = Simulation(recipe(tmp_path))
    simulation.directory.mkdir(parents=True)
    simulation.run.progress.skipped["90000001.000"] = "quarantined"
    asyncio.run(simulation.run.summarise(1))
    summary = json.loads((simulation.directory / "summary.json").read_text())
    assert summary["skipped_prompts"] == {"90000001": HELDOUT[1].row["prompt"]}


def test_a_batch_of_which_every_sample_is_rejected_ends_the_run_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ExceptionGroup) as error:
        Simulation(recipe(tmp_path, run={"steps": 2}), vocabulary=1).go()
    assert error.group_contains(RuntimeError, match="every sample of the last 16 prompt groups was rejected")
