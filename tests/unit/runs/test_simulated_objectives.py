"""Objectives that need the orchestrator, on simulated members: mixtures, adaptive coefficients, length curricula,
several teachers, and teachers that follow the student."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.wire.jobs import Share
from actors.learning.share_rows import samples_of
from actors.simulated.members import REFERENCE_KL, SimulatedLearner, SimulatedScorer
from configs.schema import Recipe
from objectives.schedule import fractions_at
from orchestrator.samples.dispatch import Ticket, source_of
from orchestrator.samples.flow import kept_seed
from orchestrator.samples.prompts import Prompt, PromptStream
from orchestrator.run import DONE, STOPPED, Run
from tests.unit.batches import Batches
from tests.unit.simulation import (
    EACH,
    GROUPS,
    MEMBER,
    STEPS,
    Simulation,
    expected_order,
    learned,
    metrics,
    order_of,
    recipe,
    stop_at,
    trained,
)

MODELS = ("student", "teacher", "other")


def prompt(name: str, index: int) -> Prompt:
    return Prompt(
        row={"prompt": name, "topic": "ab"[index % 2]},
        ids={model: [*[7] * k, 100 + index] for k, model in enumerate(MODELS)},
        response_ids=[60 + index, 61 + index, 1],
    )


PROMPTS = [prompt(f"p{i}", i) for i in range(17)]
HELDOUT = [prompt(f"h{i}", 400 + i) for i in range(3)]
OTHER = {"models": {"other": {"path": "/none"}}, "scorer": {"other": MEMBER}}
OnStep = Callable[[Run, Mapping[str, Any]], None]


def simulation(settings: Recipe, on_step: OnStep = lambda run, line: None) -> Simulation:
    return Simulation(settings, on_step, train=PROMPTS, heldout=HELDOUT)


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


# --- length curricula ---

CAPS = [4, 8, 16]


def ladder(root: Path, on_fail: str | None = None, staleness: int = 0, **changes: Any) -> Recipe:
    length: dict[str, Any] = {"caps": CAPS, "steps_per_stage": 2}
    if on_fail:
        length["gate"] = {"eval_length": 8, "minimum": 0.5, "on_fail": on_fail}
    objective = {"length": length}
    return recipe(root, objective=objective, data={"heldout": "/none"}, max_staleness=staleness, **changes)


class Entropies:
    """Held-out entropies by step; 1 after any other step. An observer of a run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, by_step: Mapping[int, float]) -> None:
        self.step = 0
        self.then: OnStep = lambda run, line: None
        self.judged: list[list[tuple[str, list[int]]]] = []  # uid and response of each that was measured
        evaluate = SimulatedLearner.evaluate

        def measured(learner: SimulatedLearner, share: Share) -> dict[str, float | None]:
            samples, found = samples_of(share, learner._payloads).values(), evaluate(learner, share)
            if share.step or share.record:  # a training step, or an evaluation of the run's
                return found
            self.judged.append(sorted((s.uid, s.response_ids) for s in samples))
            return found | {"entropy": by_step.get(self.step, 1.0)}

        monkeypatch.setattr(SimulatedLearner, "evaluate", measured)

    def __call__(self, run: Run, line: Mapping[str, Any]) -> None:
        self.step = line["step"]
        self.then(run, line)


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
def test_a_gate_that_always_passes_reaches_every_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_fail: str) -> None:
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
    assert max(line["staleness_max"] for line in metrics(tmp_path)) <= bound
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
