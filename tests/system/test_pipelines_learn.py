"""Ready pipelines make a tiny model better than it was, by a pipeline's own measures: with its own prompts, personas,
demonstrations, rewards and stop rules. One seed of the shortest among the system tests; one and three of each among
the acceptance tests, with an interval of the gain over seeds and prompts that excludes 0.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gain import measured as measured_gain
from configs.load import load_tree
from orchestrator.surface.research.paired import paired
from orchestrator.surface.research.runs import read_run
from tests.contributing.pages import ROOT
from tests.in_process.repairs import build_repairs
from tests.in_process.serve import ENGINE, MODULE
from tests.in_process.voices import build_voices, rows
from tests.unit.surface.staged import Server, server

PIPELINES = ROOT / "configs" / "pipelines"
SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Gain:
    """What must have become better: `metric`, SET.NAME of an evaluation, from before the stage `since` to after the
    stage `until`; `less` is better, or more."""

    metric: str
    since: str
    until: str
    less: bool = False

    def of(self, directory: Path) -> dict[str, float]:
        """By prompt where the metric is a mean over prompts, else of the whole."""
        before, after = self._values(directory, self.since, 0), self._values(directory, self.until, -1)
        assert before.keys() == after.keys()
        return {prompt: (before[prompt] - after[prompt]) * (1 if self.less else -1) for prompt in before}

    def _values(self, directory: Path, stage: str, point: int) -> Mapping[str, float]:
        return read_run(directory / f"{directory.name}-{stage}").curve(self.metric).points[point].values


def _voices(root: Path) -> dict[str, Any]:
    """Overrides: the bundled model's place is taken by a tiny one."""
    model = build_voices(root / "model", load_tree(PIPELINES / "merge_experts.yaml")["models"]["student"]["prompt"])
    return {"models.student.path": model, "models.teacher.path": model}


def _repairs(root: Path) -> dict[str, Any]:
    """Overrides: as `_voices`, with a model that repairs functions, some of them, and with rows of its size."""
    model, train, heldout = build_repairs(root)
    of_rows = {"data.prompts": train, "evaluate.sets.repairs.prompts": heldout}
    return {"models.student.path": model, "models.teacher.path": model} | of_rows


@dataclass(frozen=True)
class Case:
    """`start` makes the tiny model in a folder, and says by which overrides a pipeline begins with it."""

    gains: tuple[Gain, ...]
    overrides: dict[str, Any] = field(default_factory=dict)
    start: Callable[[Path], dict[str, Any]] = _voices


def measured(prompts: str | Path, rules: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A held-out set that is measured by rewards alone."""
    return {"prompts": str(prompts), "rules": list(rules), "samples_per_prompt": 4, "teachers": False}


def rewarded(name: str, stage: str) -> dict[str, Any]:
    """The recipes' held-out prompts, by the rewards of a pipeline's stage."""
    return measured(ROOT / "configs" / "prompts" / "heldout.jsonl", rewards(name, stage))


def rewards(name: str, stage: str) -> list[dict[str, Any]]:
    """The rules by which a pipeline's stage rewards."""
    return load_tree(PIPELINES / f"{name}.yaml")["stages"][stage]["reward"]["rules"]


TINY: dict[str, Any] = {  # what is of the models' size, and not of the method
    "rollout.engine": ENGINE,
    "rollout.dtype": "float32",
    "learner.dtype": "float32",
    "learner.optimizer.lr": 2e-3,
    "batch.tokens_per_microbatch": 2048,
    "evaluate.samples_per_prompt": 4,
    "metrics.trackers": [],
    "checkpoint.every": 0,
}
REPAIRING = ("02-sft", "03-rl", "04-opd_from_sft", "05-opd_from_rl")  # each begins where minimal_edit's `warm` ended
CASES = {
    "sft_rl_opd": Case(
        (
            Gain("task.avg@4", "01-sft", "03-opd"),
            Gain("task.avg@4", "02-rl", "02-rl"),
            Gain("task.avg@4", "03-opd", "03-opd"),
            Gain("heldout.reverse_kl", "03-opd", "03-opd", less=True),
        ),
        {"evaluate.sets.task": rewarded("sft_rl_opd", "rl"), "stages.rl.learner.optimizer.lr": 2e-3},
    ),
    "merge_experts": Case(
        (
            Gain("pirates.avg@4", "01-pirate", "03-merge"),
            Gain("poets.avg@4", "01-pirate", "03-merge"),
            Gain("heldout.reverse_kl", "03-merge", "03-merge", less=True),
        ),
    ),
    "dense_plus_outcome": Case(
        (
            Gain("task.avg@4", "01-sft", "02-both"),
            Gain("task.avg@4", "02-both", "02-both"),
            Gain("heldout.reverse_kl", "02-both", "02-both", less=True),
        ),
        {
            "evaluate.sets.task": rewarded("dense_plus_outcome", "both"),
            "stages.sft.learner.optimizer.lr": 3e-4,  # at ten times that it forgets how to end
            "stages.both.learner.optimizer.lr": 5e-4,
        },
    ),
    "minimal_edit": Case(
        (
            Gain("repairs.pass@1", "01-warm", "05-opd_from_rl"),
            *(Gain("repairs.pass@1", stage, stage) for stage in REPAIRING),
        ),
        {
            "scorer.start.dtype": "float32",
            "scorer.teacher.dtype": "float32",
            "evaluate.sets.repairs.samples_per_prompt": 2,
            "stages.warm.run.steps": 1,
            "stages.warm.learner.optimizer.lr": 2e-4,
            "stages.rl.run.steps": 48,
            "stages.rl.learner.optimizer.lr": 1e-3,
        },
        _repairs,
    ),
}

Played = Callable[[str, int], Path]


@pytest.fixture(scope="module")
def logratio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("said"), MODULE) as asked:
        yield asked


@pytest.fixture(scope="module")
def played(logratio: Server, tmp_path_factory: pytest.TempPathFactory) -> Played:
    """Carry out a pipeline under a seed; the directory of its run."""

    @cache
    def started(start: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        return start(tmp_path_factory.mktemp("start"))

    def play(name: str, seed: int) -> Path:
        root = tmp_path_factory.mktemp("runs")
        wanted = TINY | started(CASES[name].start)
        if name == "merge_experts":
            wanted |= {"models.poet.path": wanted["models.teacher.path"]} | _tasks(root)
        wanted |= CASES[name].overrides | {"run.root": root, "run.seed": seed}
        done = logratio("run", PIPELINES / f"{name}.yaml", *(f"{key}={_text(value)}" for key, value in wanted.items()))
        assert done.code == 0, done.output
        return root / name

    return play


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("dense_plus_outcome", marks=pytest.mark.system),
        pytest.param("sft_rl_opd", marks=pytest.mark.acceptance),
        pytest.param("merge_experts", marks=pytest.mark.acceptance),
        pytest.param("minimal_edit", marks=pytest.mark.acceptance),
    ],
)
def test_a_pipeline_makes_its_student_better(name: str, played: Played) -> None:
    directory = played(name, 0)
    found = {gain: np.mean([*gain.of(directory).values()]) for gain in CASES[name].gains}
    assert all(mean > 0.0 for mean in found.values()), found
    first = CASES[name].gains[0]  # over all stages
    assert measured_gain(directory, first.metric)["gain"]["mean"] == pytest.approx(found[first])


@pytest.mark.acceptance
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", CASES)
def test_under_three_seeds_the_interval_of_the_gain_excludes_0(
    name: str, played: Played, record_property: Callable[[str, object], None]
) -> None:
    directories = [played(name, seed) for seed in SEEDS]
    for gain in CASES[name].gains:
        differences = _table([gain.of(directory) for directory in directories])
        found = paired(differences, of_prompts=differences.shape[1] > 1)
        assert found.mean is not None and found.low is not None and found.high is not None
        record_property(
            f"{gain.metric} {gain.since} to {gain.until}", f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"
        )
        assert found.low > 0.0, (gain, differences.mean(axis=1), found)


def _table(by_seed: Sequence[Mapping[str, float]]) -> np.ndarray:
    """[seeds, prompts]."""
    assert len({frozenset(mine) for mine in by_seed}) == 1
    return np.asarray([[mine[prompt] for prompt in sorted(mine)] for mine in by_seed])


def _tasks(root: Path) -> dict[str, Any]:
    """Overrides: held-out sets of the two tasks of merge_experts, by a word of each persona."""
    sets: dict[str, Any] = {}
    for name, persona, said in (("pirates", "pirate", "Arr, matey"), ("poets", "poet", "rose|moon")):
        mine = [row for row in rows("heldout") if row["persona"] == persona]
        (file := root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mine))
        sets[f"evaluate.sets.{name}"] = measured(file, [{"kind": "regex", "text": said}])
    return sets


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str | Path) else json.dumps(value)
