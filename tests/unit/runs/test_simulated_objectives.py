"""Objectives that need the orchestrator, on simulated members: mixtures of writers, adaptive coefficients, several
teachers, and teachers that follow the student."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.simulated.known import REFERENCE_KL
from actors.simulated.learner import SimulatedLearner
from actors.simulated.scorer import SimulatedScorer
from configs.schema import Recipe
from objectives.schedule import fractions_at
from orchestrator.run import DONE, STOPPED
from orchestrator.samples.flow import kept_seed
from orchestrator.samples.leases import Ticket, source_of
from orchestrator.samples.prompts import PromptStream
from tests.unit.batches import Batches
from tests.unit.runs.several_models import OTHER, PROMPTS, Entropies, ladder, simulation
from tests.unit.simulation import (
    EACH,
    GROUPS,
    MEMBER,
    STEPS,
    Simulation,
    metrics,
    recipe,
    stop_at,
    trained,
)

# --- who writes ---

FADING = {"start": 0.95, "end": 0.05, "steps": STEPS - 1}
MIXTURE = {
    "objective": {
        "support": "topk",
        "topk": 2,
        "prefix": {"student": {"start": 0.05, "end": 0.9, "steps": STEPS - 1}, "teacher": FADING, "dataset": 0.3},
    },
    "batch": {"prompts_per_step": 8},
    "teacher_rollout": MEMBER,
}


def writer_of(row: Mapping[str, Any]) -> str:
    """The source of a recorded row, recognised by its finish or its seed."""
    index, sample = (int(part) for part in row["uid"].split("."))
    prompt = PromptStream(PROMPTS, 5, True)[index]
    if row["response_ids"] == prompt.response_ids:
        return "dataset"
    seeds = {
        Ticket(index, sample, row["attempt"]).seed(5): "student",
        kept_seed(prompt.ids["teacher"], sample, 5): "teacher",
    }
    return seeds[row["seed"]]


@pytest.mark.parametrize("bound", [0, 1])
def test_each_group_of_a_mixture_is_written_by_its_drawn_source(tmp_path: Path, bound: int) -> None:
    settings = recipe(tmp_path, **MIXTURE, max_staleness=bound)
    assert simulation(settings).go() == DONE
    rows = trained(tmp_path)
    assert len(rows) == STEPS * 8 * EACH
    for row in rows:
        index = int(row["uid"].split(".")[0])
        assert writer_of(row) == source_of(index, fractions_at(settings.objective, index // 8 + 1), 5)
    assert {writer_of(row) for row in rows} == {"student", "teacher", "dataset"}


def test_an_annealed_mixture_shifts_to_the_student_and_reports_its_fraction(tmp_path: Path, batches: Batches) -> None:
    assert simulation(recipe(tmp_path, **MIXTURE)).go() == DONE
    rows, lines = trained(tmp_path), metrics(tmp_path)
    for line in lines:
        mine = [row for row in rows if row["step"] == f"step_{line['step']:06d}"]
        foreign = {row["uid"] for row in mine if writer_of(row) != "student"}
        assert line["foreign_fraction"] == len(foreign) / len(mine)
        assert batches.shares[line["step"]].foreign == foreign
    first, last = (Counter(writer_of(r) for r in rows if r["step"] == f"step_{s:06d}") for s in (1, STEPS))
    assert first["teacher"] > first["student"] and last["student"] > last["teacher"]


# --- a reference that holds back ---

HELD_BACK = {
    "objective": {
        "target": "none",
        "outcome": {"weight": 2.0, "baseline": "rloo"},
        "reference": {"model": "teacher", "beta": {"initial": 0.5, "target": 0.08, "horizon": 20.0}},
    }
}


def test_an_adaptive_beta_follows_the_kl_of_each_step(tmp_path: Path, batches: Batches) -> None:
    assert simulation(recipe(tmp_path, **HELD_BACK)).go() == DONE
    beta = 0.5
    for line in metrics(tmp_path):
        assert line["beta"] == pytest.approx(beta)
        assert batches.shares[line["step"]].dials.beta == pytest.approx(beta)
        error = min(0.2, max(-0.2, REFERENCE_KL * line["response_length"] / 0.08 - 1.0))
        beta *= 1.0 + error * GROUPS * EACH / 20.0
    assert len({line["beta"] for line in metrics(tmp_path)}) == STEPS, "it moved at every step"


def test_the_references_sum_enters_each_reward_before_the_groups_baseline(tmp_path: Path, batches: Batches) -> None:
    assert simulation(recipe(tmp_path, **HELD_BACK)).go() == DONE
    for share in batches.shares.values():
        lengths = batches.lengths[share.step]
        shaped = {u: 2.0 * share.rewards[u] - share.dials.beta * REFERENCE_KL * n for u, n in lengths.items()}
        for uid, advantage in share.advantages.items():
            others = [r for u, r in shaped.items() if u.split(".")[0] == uid.split(".")[0] and u != uid]
            assert advantage == pytest.approx(shaped[uid] - statistics.mean(others))
        assert share.advantages.keys() == lengths.keys()


def test_a_resume_keeps_an_adapted_beta(tmp_path: Path) -> None:
    whole, cut = recipe(tmp_path / "whole", **HELD_BACK), recipe(tmp_path / "cut", **HELD_BACK)
    assert simulation(whole).go() == DONE
    assert (simulation(cut, stop_at(3)).go(), simulation(cut).go()) == (STOPPED, DONE)
    betas = [[line["beta"] for line in metrics(tmp_path / name)] for name in ("whole", "cut")]
    assert betas[0] == betas[1]
    state = json.loads((tmp_path / "cut" / "sim" / "checkpoints" / f"step_{STEPS}" / "state.json").read_text())
    assert state["beta"] not in betas[0], "the next step's"


# --- several teachers ---


def two_teachers(root: Path, target: Any, **changes: Any) -> Recipe:
    return recipe(root, objective={"target": target}, **OTHER, **changes)


def test_weighted_teachers_each_score_every_sample(tmp_path: Path, batches: Batches) -> None:
    assert simulation(two_teachers(tmp_path, {"teacher": 0.7, "other": 0.3})).go() == DONE
    for step, scorers in batches.scorers.items():
        assert {uid: set(by) for uid, by in scorers.items()} == {
            uid: {"teacher", "other"} for uid in batches.lengths[step]
        }
    total = sum(len(row["response_ids"]) for row in trained(tmp_path))
    assert sum(line["tokens_scored"] for line in metrics(tmp_path)) == 2 * total


def test_routed_teachers_score_their_own_samples_only(tmp_path: Path, batches: Batches) -> None:
    route = {"field": "topic", "models": {"a": "teacher", "b": "other"}}
    assert simulation(two_teachers(tmp_path, route)).go() == DONE
    stream, seen = PromptStream(PROMPTS, 5, True), set()
    for step, scorers in batches.scorers.items():
        assert scorers.keys() == batches.lengths[step].keys()
        for uid, by in scorers.items():
            topic = stream[int(uid.split(".")[0])].row["topic"]
            assert set(by) == {route["models"][topic]}  # type: ignore[index]
            seen |= set(by)
    assert seen == {"teacher", "other"}
    total = sum(len(row["response_ids"]) for row in trained(tmp_path))
    assert sum(line["tokens_scored"] for line in metrics(tmp_path)) == total


def test_a_reference_beside_routed_teachers_scores_every_sample(tmp_path: Path, batches: Batches) -> None:
    route = {"field": "topic", "models": {"a": "teacher", "b": "teacher"}}
    held = {"reference": {"model": "other", "beta": 0.1}, "outcome": {"weight": 1.0}}
    assert simulation(recipe(tmp_path, objective={"target": route} | held, **OTHER)).go() == DONE
    assert {frozenset(by) for scorers in batches.scorers.values() for by in scorers.values()} == {
        frozenset({"teacher", "other"})
    }


# --- teachers that follow the student ---

MOVING = {
    "live": {"teacher": {"weights": "live", "system": "Think first."}},
    "ema": {"teacher": {"weights": "ema", "decay": 0.9}},
}


@pytest.mark.parametrize("weights", MOVING)
def test_scorers_of_a_moving_teacher_pull_every_version_before_it_is_scored_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: Batches, weights: str
) -> None:
    loads: dict[int, list[int]] = {}
    load = SimulatedScorer.load

    async def spied(self: SimulatedScorer, version: int, headers: Sequence[Any], *buckets: np.ndarray) -> int:
        assert len(headers) == len(buckets) > 0
        loads.setdefault(id(self), []).append(version)
        return await load(self, version, headers, *buckets)

    monkeypatch.setattr(SimulatedScorer, "load", spied)
    running = simulation(recipe(tmp_path, models=MOVING[weights]))
    assert running.go() == DONE
    assert list(loads.values()) == [list(range(STEPS + 1))] * 2, "two members, each version once and in order"
    for step, scorers in batches.scorers.items():
        assert {version for by in scorers.values() for version in by.values()} == {step - 1}


@pytest.mark.parametrize("weights", MOVING)
def test_a_moving_teacher_is_served_the_students_weights_or_their_average(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    published: list[str | None] = []
    publish = SimulatedLearner.publish

    def spied(self: SimulatedLearner, model: str | None = None) -> Any:
        published.append(model)
        return publish(self, model)

    monkeypatch.setattr(SimulatedLearner, "publish", spied)
    assert simulation(recipe(tmp_path, models=MOVING[weights])).go() == DONE
    assert Counter(published) == {None: STEPS + 1} | ({"teacher": STEPS + 1} if weights == "ema" else {})


def test_a_rollback_moves_a_live_teacher_back_with_the_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: Batches
) -> None:
    gate = Entropies(monkeypatch, {4: 0.4})
    assert simulation(ladder(tmp_path, "rollback", models=MOVING["live"]), gate).go() == DONE
    assert {v for by in batches.scorers[5].values() for v in by.values()} == {5}
    assert {v for row in trained(tmp_path) if row["step"] == "step_000005" for v in row["versions"]} == {5}


@pytest.mark.parametrize("weights", ["live", "ema"])
def test_a_moving_teachers_only_scorer_may_die_at_a_publish(tmp_path: Path, weights: str) -> None:
    """Its replacement is admitted with the new version, and the learner gets that version's head."""
    one = {"members": 1}
    moving = recipe(
        tmp_path, objective={"target": "teacher", "support": "full"}, models=MOVING[weights], scorer={"teacher": one}
    )
    heads: list[tuple[int, int]] = []
    trial = Simulation(moving)
    load_projection, publish, published = trial.run.learner.load_projection, trial.run.learner.publish, []

    async def spied(model: str, version: int, oldest: int, ref: Any) -> None:
        heads.append((version, (await trial.transport.value(ref))["width"]))
        await load_projection(model, version, oldest, ref)

    async def killing(model: str | None = None) -> Any:
        published.append(model)
        if published.count(None) == 4 and (model is not None or weights == "live"):  # version 3
            await trial.transport.kill(trial.pools.scorers["teacher"].members[0].actors)
        return await publish(model)

    trial.run.learner.load_projection, trial.run.learner.publish = spied, killing  # type: ignore[method-assign]
    assert trial.go() == DONE
    assert [version for version, _ in heads] == list(range(STEPS + 1))
    assert trial.pools.scorers["teacher"].members.restarts == 1
