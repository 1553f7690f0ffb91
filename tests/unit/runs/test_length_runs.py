"""Runs with a length curriculum: caps of steps, gates, rollbacks, and resumes between them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.run import DONE, STOPPED
from tests.unit.batches import Batches
from tests.unit.runs.several_models import CAPS, Entropies, ladder, simulation
from tests.unit.simulation import (
    EACH,
    GROUPS,
    STEPS,
    assert_none_aged,
    expected_order,
    learned,
    metrics,
    order_of,
    recipe,
    stop_at,
    trained,
)


def caps_of(root: Path) -> list[int]:
    """The cap of each step; asserts that every sample keeps to it."""
    lines, rows = metrics(root), trained(root)
    for line in lines:
        lengths = [len(row["response_ids"]) for row in rows if row["step"] == f"step_{line['step']:06d}"]
        assert len(lengths) == GROUPS * EACH and max(lengths) <= line["response_cap"]
    return [line["response_cap"] for line in lines]


@pytest.mark.parametrize("bound", [0, 2])
def test_a_ladder_climbs_and_every_sample_keeps_to_the_cap_of_its_step(tmp_path: Path, bound: int) -> None:
    assert simulation(ladder(tmp_path, staleness=bound)).go() == DONE
    assert caps_of(tmp_path) == [4, 4, 8, 8, 16, 16]
    longest = {row["step"]: 0 for row in trained(tmp_path)}
    for row in trained(tmp_path):
        longest[row["step"]] = max(longest[row["step"]], len(row["response_ids"]))
    assert 4 < longest["step_000003"] <= 8 < longest["step_000006"], "a new cap is used from its first stage on"
    assert sorted(uid for _, uid, _ in order_of(trained(tmp_path))) == [uid for _, uid, _ in expected_order()]


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("bound", [0, 2])
def test_a_length_curriculum_stopped_and_resumed_trains_the_same(tmp_path: Path, step: int, bound: int) -> None:
    whole, cut = ladder(tmp_path / "whole", staleness=bound), ladder(tmp_path / "cut", staleness=bound)
    assert simulation(whole).go() == DONE
    assert (simulation(cut, stop_at(step)).go(), simulation(cut).go()) == (STOPPED, DONE)
    if not bound:
        assert learned(tmp_path / "cut") == learned(tmp_path / "whole")
    assert caps_of(tmp_path / "cut") == caps_of(tmp_path / "whole")


@pytest.mark.parametrize("on_fail", ["hold", "rollback", "stop"])
def test_a_gate_that_always_passes_reaches_every_cap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_fail: str
) -> None:
    gate = Entropies(monkeypatch, {2: 0.5, 4: 0.5, 6: 0.5})
    assert simulation(ladder(tmp_path, on_fail), gate).go() == DONE
    assert caps_of(tmp_path) == [4, 4, 8, 8, 16, 16]


def test_the_gate_measures_the_same_prompts_and_seeds_up_to_the_same_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Entropies(monkeypatch, {})
    assert simulation(ladder(tmp_path, "hold"), gate).go() == DONE
    first, *later = gate.judged
    assert len(gate.judged) == 3 and all(measured == first for measured in later)
    assert all(len(response) <= 8 for _, response in first) and any(len(response) > 4 for _, response in first)


@pytest.mark.parametrize("bound", [0, 2])
def test_a_failed_gate_holds_at_the_longest_cap_that_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: int
) -> None:
    gate = Entropies(monkeypatch, {4: 0.4})
    run = simulation(ladder(tmp_path, "hold", bound), gate)
    assert run.go() == DONE
    assert caps_of(tmp_path) == [4, 4, 8, 8, 4, 4]
    assert len(gate.judged) == 2, "no judgement after the failure"
    assert [line["policy_version"] for line in metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert any("held-out entropy 0.400 nats): hold, now up to 4" in notice for notice in run.notices)


def test_too_many_truncated_responses_fail_a_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Entropies(monkeypatch, {})
    length = {"caps": CAPS, "steps_per_stage": 2, "gate": {"eval_length": 1, "minimum": 0.5, "truncation": 0.9}}
    assert simulation(recipe(tmp_path, objective={"length": length}, data={"heldout": "/none"})).go() == DONE
    assert caps_of(tmp_path) == [4] * 6


@pytest.mark.parametrize("bound", [0, 2])
@pytest.mark.parametrize(
    ("entropies", "caps", "failed", "good"),
    [({4: 0.4}, [4, 4, 8, 8, 4, 4], 4, 2), ({2: 0.4}, [4] * 6, 2, 0)],
    ids=["a later stage", "the first stage"],
)
def test_a_rollback_restores_the_anchor_under_a_new_version(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batches: Batches,
    bound: int,
    entropies: dict[int, float],
    caps: list[int],
    failed: int,
    good: int,
) -> None:
    gate = Entropies(monkeypatch, entropies)
    assert simulation(ladder(tmp_path, "rollback", bound), gate).go() == DONE
    assert caps_of(tmp_path) == caps
    assert batches.weights[failed + 1] == batches.weights[good + 1] != batches.weights[failed]
    versions = [line["policy_version"] for line in metrics(tmp_path)]
    assert versions == [step + (step > failed) for step in range(1, STEPS + 1)], "one more was published, none again"
    assert_none_aged(tmp_path, bound)
    after = [v for row in trained(tmp_path) if row["step"] > f"step_{failed:06d}" for v in row["versions"]]
    assert min(after) == failed + 1, "nothing sampled with the weights that were given up is trained"


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_run_that_is_stopped_around_a_rollback_resumes_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """With one checkpoint kept, the anchor stays beside it."""
    few = {"checkpoint": {"every": 1, "keep": 1}}
    for name, stops in (("whole", []), ("cut", [step])):
        for stop in [*stops, STEPS]:
            gate = Entropies(monkeypatch, {4: 0.4})
            gate.then = stop_at(stop)
            simulation(ladder(tmp_path / name, "rollback", **few), gate).go()
    assert learned(tmp_path / "cut") == learned(tmp_path / "whole") and len(learned(tmp_path / "cut")) == STEPS
    assert caps_of(tmp_path / "cut") == caps_of(tmp_path / "whole") == [4, 4, 8, 8, 4, 4]
    versions = [line["policy_version"] for line in metrics(tmp_path / "cut")]
    assert versions == sorted(set(versions))


def test_a_gate_that_stops_ends_the_run_early_and_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, gate = ladder(tmp_path, "stop"), Entropies(monkeypatch, {4: 0.4})
    assert simulation(settings, gate).go() == DONE
    summary = json.loads((tmp_path / "sim" / "summary.json").read_text())
    assert (summary["exit"], summary["steps"]) == (DONE, 4) and summary["evaluation"]["after"]
    assert (tmp_path / "sim" / "model").is_dir() and caps_of(tmp_path) == [4, 4, 8, 8]
    assert simulation(settings, gate).go() == DONE, "what has ended is not taken up again"
    assert len(metrics(tmp_path)) == 4
