"""Held-out sets of a run: each with its own prompts, rewards and sampling; and the checkpoint that is best by one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import pytest

from actors.simulated.learner import SimulatedLearner
from actors.simulated.reward import SimulatedReward
from actors.simulated.rollout import SimulatedRollout
from actors.wire.rewards import Rewards
from configs.schema import Recipe, Sampling
from orchestrator.evaluation.estimates import pass_at_k
from orchestrator.run import DONE, STOPPED, Run
from orchestrator.samples.prompts import Prompt
from tests.unit.simulation import Simulation, metrics, recipe, stop_at, trained


def prompt(number: int) -> Prompt:
    """A prompt that each model has."""
    ids = {"student": [number], "start": [number], "teacher": [7, number]}
    return Prompt({"prompt": f"m{number % 100}"}, ids, None)


MATHS = [prompt(600 + i) for i in range(5)]
GENERAL = [Prompt({"prompt": f"g{i}"}, {"student": [700 + i], "start": [700 + i]}, None) for i in range(4)]
TEXT = [Prompt({"prompt": f"t{i}"}, {"student": [800 + i]}, [10 + i] * (i + 1)) for i in range(70)]
TRAIN = [prompt(100 + i) for i in range(17)]
PROMPTS = {"maths": MATHS, "general": GENERAL, "text": TEXT}
SETS = {
    "maths": {"prompts": "/m", "samples_per_prompt": 4, "k": [1, 2, 4], "every": 2, "top_p": 0.9, "format": "length"},
    "general": {"prompts": "/g", "teachers": False, "temperature": 0.0, "max_response_tokens": 5},
    "text": {"text": "/t", "every": 3},
}


def with_sets(root: Path, **changes: Any) -> Recipe:
    return recipe(root, evaluate={"every": 0, "sets": SETS}, metrics={"start_kl": "exact"}, **changes)


def go(root: Path, on_step: Any = lambda run, line: None, code: int = DONE, **changes: Any) -> Simulation:
    simulation = Simulation(with_sets(root, **changes), on_step, train=TRAIN, heldout=[prompt(500)], sets=PROMPTS)
    assert simulation.go() == code
    return simulation


def summary(root: Path) -> dict[str, Any]:
    return json.loads((root / "sim" / "summary.json").read_text())


def lines(root: Path) -> list[dict[str, Any]]:
    return [line for line in metrics(root) if "evaluation" in line]


def test_each_set_is_measured_when_it_is_due_and_told_to_all_who_read(tmp_path: Path) -> None:
    simulation = go(tmp_path)
    sets = summary(tmp_path)["evaluation"]["sets"]
    assert {name: [line["step"] for line in sets[name]["steps"]] for name in SETS} == {
        "maths": [2, 4],  # step 6 is the last: `after` is of it
        "general": [],
        "text": [3],
    }
    told = {(line["evaluation"], line["when"], line["after_step"]): line for line in lines(tmp_path)}
    assert len(told) == 3 + 3 + 3
    for name in SETS:
        for when, step in (("before", 0), ("after", 6)):
            shown = {k: v for k, v in told[name, when, step].items() if k not in ("evaluation", "when", "after_step")}
            assert shown == sets[name][when], name
    assert all("step" in line for line in metrics(tmp_path) if "evaluation" not in line)
    assert simulation.run.progress.evaluations["before"], "data.heldout is evaluated as ever"


def test_the_numbers_of_a_set_are_those_of_its_recorded_responses(tmp_path: Path) -> None:
    """Rewards of the simulation: 1 for an odd length. Recomputed here from what was recorded."""
    go(tmp_path)
    line = summary(tmp_path)["evaluation"]["sets"]["maths"]["after"]
    rows = trained(tmp_path, "eval_after_maths")
    lengths = [len(row["response_ids"]) for row in rows]
    assert len(rows) == 20 and line["samples"] == 20 and line["prompts"] == 5 and line["samples_skipped"] == 0
    assert line["response_length"] == pytest.approx(sum(lengths) / 20)
    assert line["truncated_fraction"] == pytest.approx(sum(n == 16 for n in lengths) / 20)
    passed = [sum(n % 2 for n in lengths[4 * i : 4 * i + 4]) for i in range(5)]
    assert line["avg@4"] == pytest.approx(sum(passed) / 20)
    for k in (1, 2, 4):
        assert line[f"pass@{k}"] == pytest.approx(sum(pass_at_k(4, c, k) for c in passed) / 5)
        low, high = line["intervals"][f"pass@{k}"]
        assert 0.0 <= low <= line[f"pass@{k}"] <= high <= 1.0
    assert line["start_kl"] == pytest.approx(0.01) and line["reverse_kl"] > 0.0
    assert line["format_rate"] == pytest.approx(sum(passed) / 20), "a component of each response is kept"


def test_a_text_is_read_by_the_learner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    submit = SimulatedRollout.submit

    async def noted(self: SimulatedRollout, channel: str, requests: Any, *rest: Any) -> Any:
        asked.extend(request.uid for request in requests)
        return await submit(self, channel, requests, *rest)

    monkeypatch.setattr(SimulatedRollout, "submit", noted)
    go(tmp_path)
    line = summary(tmp_path)["evaluation"]["sets"]["text"]["before"]
    assert line["samples"] == line["prompts"] == len(TEXT)
    assert line["nll"] > 0 and line["intervals"]["nll"][0] < line["nll"] < line["intervals"]["nll"][1]
    assert "pass@1" not in line and "start_kl" not in line
    numbers = {int(uid.split(".")[0]) for uid in asked}
    assert not numbers & set(range(90_300_000, 90_400_000)), "the third set's"


def test_a_set_is_sampled_as_it_says_and_scored_by_whom_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, set[tuple[float, float, int]]] = {}
    submit = SimulatedRollout.submit

    async def noted(self: SimulatedRollout, channel: str, requests: Any, sampling: Sampling, *rest: Any) -> Any:
        for request in requests:
            kind = request.uid[:4] if request.uid >= "9" else "train"
            asked.setdefault(kind, set()).add((sampling.temperature, sampling.top_p, sampling.max_response_tokens))
        return await submit(self, channel, requests, sampling, *rest)

    monkeypatch.setattr(SimulatedRollout, "submit", noted)
    go(tmp_path)
    assert asked["train"] == {(1.0, 1.0, 16)}
    assert asked["9010"] == {(1.0, 0.9, 16)} and asked["9020"] == {(0.0, 1.0, 5)}
    line = summary(tmp_path)["evaluation"]["sets"]["general"]["after"]
    assert line["reverse_kl"] is None and line["start_kl"] == pytest.approx(0.01), "no teacher scores it"


def test_drawn_estimates_of_greedy_responses_are_not_given(tmp_path: Path) -> None:
    sets = {"maths": SETS["maths"] | {"samples_per_prompt": 1, "k": [1], "temperature": 0.0}}
    run = Simulation(
        recipe(tmp_path, evaluate={"sets": sets}, metrics={"start_kl": "sampled"}),
        train=TRAIN,
        heldout=[],
        sets={"maths": MATHS},
    )
    assert run.go() == DONE
    line = summary(tmp_path)["evaluation"]["sets"]["maths"]["after"]
    assert line["reverse_kl"] is None and line["start_kl"] is None and line["entropy"] == 1.0


def test_two_evaluations_of_the_same_weights_are_equal(tmp_path: Path) -> None:
    found: list[Any] = []
    for part in ("a", "b"):
        go(tmp_path / part)
        found.append(summary(tmp_path / part)["evaluation"])
    assert found[0] == found[1]


def test_a_response_that_cannot_be_rewarded_is_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward = SimulatedReward.reward

    def with_nan(self: SimulatedReward, *arguments: Any) -> Rewards:
        found = reward(self, *arguments)
        return replace(found, values={uid: nan if uid == "90100002.001" else v for uid, v in found.values.items()})

    monkeypatch.setattr(SimulatedReward, "reward", with_nan)
    go(tmp_path)
    line = summary(tmp_path)["evaluation"]["sets"]["maths"]["before"]
    assert (line["samples"], line["samples_skipped"]) == (19, 1)
    assert summary(tmp_path)["skipped_prompts"] == {"90100002": "m2"}


@pytest.mark.parametrize("step", [1, 2])
def test_a_resume_measures_what_is_missing_and_nothing_twice(tmp_path: Path, step: int) -> None:
    go(tmp_path / "whole")
    go(tmp_path / "parts", stop_at(step), STOPPED)
    go(tmp_path / "parts")
    for name in ("whole", "parts"):
        evaluation = summary(tmp_path / name)["evaluation"]
        assert [line["step"] for line in evaluation["sets"]["maths"]["steps"]] == [2, 4]
    assert summary(tmp_path / "whole")["evaluation"] == summary(tmp_path / "parts")["evaluation"]
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


# The best checkpoint.


def scores(monkeypatch: pytest.MonkeyPatch, by_step: Mapping[int, float]) -> None:
    """Give each evaluation of maths this pass@1; the last step's is the one after training."""
    from orchestrator.evaluation.sets import Sets

    measure = Sets.measure

    async def scored(self: Sets, name: str, version: int, *rest: Any) -> Any:
        line = await measure(self, name, version, *rest)
        return line | {"pass@1": by_step[version]} if line and name == "maths" and version in by_step else line

    monkeypatch.setattr(Sets, "measure", scored)


BEST = {"every": 3, "keep": 1, "best": {"metric": "maths.pass@1"}}


def weights_in(folder: Path) -> Any:
    return json.loads((folder / "weights.json").read_text())


@pytest.fixture(autouse=True)
def exports_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def export(self: SimulatedLearner, directory: str) -> None:
        Path(directory).mkdir(parents=True)
        (Path(directory) / "weights.json").write_text(json.dumps([float(w) for w in self._weights]))

    monkeypatch.setattr(SimulatedLearner, "export", export)


@pytest.mark.parametrize(
    ("by_step", "best", "stopped"),
    [
        ({0: 0.9, 2: 0.5, 4: 0.3, 6: 0.4}, 2, None),
        ({0: 0.0, 2: 0.3, 4: 0.5, 6: 0.6}, 6, None),
        ({0: 0.0, 2: 0.5, 4: 0.5, 6: 0.5}, 2, 5),
        ({0: 0.0, 2: 0.3, 4: 0.5, 6: 0.4}, 4, 3),
    ],
    ids=["an early one; the start is none", "the last", "the first of equals", "a later one"],
)
def test_the_best_checkpoint_is_kept_recorded_and_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_step: dict[int, float], best: int, stopped: int | None
) -> None:
    scores(monkeypatch, by_step)
    seen: dict[int, Any] = {}

    def note(run: Run, line: Mapping[str, Any]) -> None:
        seen[line["step"]] = [float(w) for w in run.pools.learner.members[0].actors[0]._weights]
        if line["step"] == stopped:
            run.stop()

    if stopped:
        go(tmp_path, note, STOPPED, checkpoint=BEST)
        by_step |= {version + 1: by_step[version] for version in (4, 6)}  # a resume publishes under a further number
        scores(monkeypatch, by_step)
        stopped = None
    go(tmp_path, note, checkpoint=BEST)
    value = {2: by_step[2], 4: by_step[4], 6: by_step[6]}[best]
    assert summary(tmp_path)["best"] == {"metric": "maths.pass@1", "mode": "max", "step": best, "value": value}
    kept = {folder.name for folder in (tmp_path / "sim" / "checkpoints").iterdir()}
    assert {f"step_{best}", "step_6"} <= kept and len(kept) <= 3
    assert weights_in(tmp_path / "sim" / "model") == seen[6]
    assert weights_in(tmp_path / "sim" / "model-best") == seen[best]


def test_the_smallest_is_best_where_the_recipe_says_so_also_of_heldout(tmp_path: Path) -> None:
    best = {"every": 0, "best": {"metric": "heldout.reverse_kl", "mode": "min"}}
    simulation = Simulation(recipe(tmp_path, evaluate={"every": 1}, checkpoint=best))
    assert simulation.go() == DONE
    evaluation = summary(tmp_path)["evaluation"]
    values = {line["step"]: line["reverse_kl"] for line in evaluation["steps"]}
    values[6] = evaluation["after"]["reverse_kl"]
    found = summary(tmp_path)["best"]
    assert found["value"] == min(values.values()) == values[found["step"]]
    assert (tmp_path / "sim" / "checkpoints" / f"step_{found['step']}" / "MANIFEST.json").exists()


def test_a_best_checkpoint_that_could_not_be_saved_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores(monkeypatch, {2: 0.5, 4: 0.3, 6: 0.4})
    save = SimulatedLearner.save

    def failing(self: SimulatedLearner, directory: str) -> None:
        if "step_2." in directory:
            raise OSError(28, "No space left on device")
        save(self, directory)

    monkeypatch.setattr(SimulatedLearner, "save", failing)
    simulation = go(tmp_path, checkpoint=BEST)
    assert any("model-best is not written" in notice for notice in simulation.notices)
    assert not (tmp_path / "sim" / "model-best").exists() and (tmp_path / "sim" / "model").exists()
