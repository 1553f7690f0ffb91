"""`logratio sweep`: which arms there are, and which of them are run; the runs themselves are played here."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.load import dump_recipe
from configs.refusal import RecipeError
from configs.schema import Recipe
from orchestrator.surface import submission
from orchestrator.surface.carry_out import STOPPED
from orchestrator.surface.research import sweeping
from orchestrator.surface.research.arms import arm_of, key_of
from orchestrator.surface.research.grid import MOST, Arm, arms_of, values_of
from tests.unit.simulation import recipe as simulated

GRID = ["learner.optimizer.lr=0.1,0.2", "seed=0,1,2", "run.steps=3"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    tree = simulated(tmp_path, run={"name": "lr"}).model_dump(mode="json", exclude_unset=True)
    file.write_text(json.dumps(tree))
    return file


def arms(file: Path, *given: str) -> list[Arm]:
    return arms_of(file, given or GRID, lambda recipe: recipe)[2]


def test_every_combination_is_an_arm_in_the_sweeps_folder(file: Path) -> None:
    name, root, found = arms_of(file, GRID, lambda recipe: recipe)
    assert (name, root, len(found)) == ("lr", str(file.parent), 6)
    assert [arm.sets for arm in found[:2]] == [
        ("learner.optimizer.lr=0.1", "run.seed=0"),
        ("learner.optimizer.lr=0.1", "run.seed=1"),
    ]
    assert {arm.recipe.run.steps for arm in found} == {3} and len({arm.key for arm in found}) == 6
    assert found[0].recipe.run.name == f"lr-{found[0].key}"
    assert found[0].recipe.run.root == str(file.parent / "lr")
    assert [arm.recipe.run.seed for arm in found[:3]] == [0, 1, 2]


def test_a_key_is_of_what_a_run_computes(file: Path) -> None:
    (one,), (same,), (other,) = (
        arms(file, *given)
        for given in (("seed=1",), ("run.seed=1", "metrics.trackers=[]", "run.name=x"), ("seed=1", "run.steps=7"))
    )
    assert one.key == same.key != other.key
    assert arm_of(one.recipe) == arm_of(arms(file, "seed=2")[0].recipe), "an arm of a comparison is of any seed"
    assert key_of(one.recipe) == one.key


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1,2", ["1", "2"]),
        ("[1,2],[3]", ["[1,2]", "[3]"]),
        ("{a: 1, b: 2},null", ["{a: 1, b: 2}", "null"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("x", ["x"]),
        ("", [""]),
        ("1,,2", ["1", "", "2"]),
    ],
)
def test_values_are_parted_at_commas_outside_of_brackets(text: str, parts: list[str]) -> None:
    assert values_of(text) == parts


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["seed"], "write KEY=VALUE,VALUE"),
        (["seed=0,,1"], "run.seed= has no value"),
        (["run.name=a,b"], "run.name: is where all arms lie"),
        (["learner.optimizer.lr=0.1,fast"], "learner.optimizer.lr=fast: .*lr"),
        (["seed=0,0"], "are the same recipe; leave one out"),
        (["record.every=1,2"], "are the same recipe"),
        ([f"seed={','.join(map(str, range(MOST + 1)))}"], "arms are more than"),
    ],
)
def test_what_is_no_sweep_is_refused(file: Path, given: list[str], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        arms(file, *given)


def test_a_recipe_with_stages_is_refused(file: Path) -> None:
    tree = yaml.safe_load(file.read_text()) | {"stages": [{"name": "one"}]}
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(RecipeError, match="has stages"):
        arms(file, "seed=0,1")


class Played:
    """Runs that end as they are told to: by the place of their arm, an exit code; 0 if none is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, codes: dict[int, Any] | None = None) -> None:
        self.ran: list[str] = []
        self.codes = codes or {}
        self.asked_after: int | None = None
        self.handlers: Any = None
        monkeypatch.setattr(sweeping, "carry_out_one", self.carry_out)
        monkeypatch.setattr(sweeping, "_check", lambda *_: None)
        monkeypatch.setattr(sweeping.cluster, "driver", self.driver)
        monkeypatch.setattr(sweeping, "Handlers", self._made)
        self.drivers = 0

    asked = False

    def before_the_loop(self) -> None: ...

    def leave(self) -> None: ...

    def _made(self) -> Played:
        return self

    @contextlib.contextmanager
    def driver(self, recipe: Recipe) -> Iterator[None]:
        self.drivers += 1
        yield

    def carry_out(self, recipe: Recipe, folder: Path, handlers: Any, members: Any) -> int:
        code = self.codes.pop(len(self.ran), 0)
        self.ran.append(recipe.run.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / submission.RECIPE).write_text(dump_recipe(recipe))
        if code == STOPPED:
            submission.mark_stopped(folder)
        if isinstance(code, Exception):
            raise code
        (folder / submission.SUMMARY).write_text(json.dumps({"exit": code}))
        self.asked = len(self.ran) == self.asked_after
        return code


def test_arms_run_in_order_on_one_cluster_and_a_second_call_runs_none(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played, found, folder = Played(monkeypatch), arms(file, "seed=0,1,2"), file.parent / "lr"
    assert sweeping.carry_out_sweep(folder, found, resume=False) == 0
    assert played.ran == [arm.recipe.run.name for arm in found] and played.drivers == 1
    assert sweeping.carry_out_sweep(folder, found, resume=False) == 0
    assert len(played.ran) == 3 and played.drivers == 1
    told = json.loads((folder / "sweep.json").read_text())["arms"]
    assert [(arm["stands"], arm["exit"]) for arm in told] == [("done", 0)] * 3


def test_more_values_run_what_is_new_alone(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played, folder = Played(monkeypatch), file.parent / "lr"
    sweeping.carry_out_sweep(folder, arms(file, "seed=0,1"), resume=False)
    more = arms(file, "seed=1,2,0")
    sweeping.carry_out_sweep(folder, more, resume=False)
    assert played.ran[2:] == [more[1].recipe.run.name]


@pytest.mark.parametrize("failure", [1, RecipeError("no room")])
def test_an_arm_that_fails_stops_no_other_and_is_tried_again(
    file: Path, monkeypatch: pytest.MonkeyPatch, failure: Any
) -> None:
    played, found, folder = Played(monkeypatch, {1: failure}), arms(file, "seed=0,1,2"), file.parent / "lr"
    assert sweeping.carry_out_sweep(folder, found, resume=False) == 1
    assert len(played.ran) == 3
    assert sweeping.carry_out_sweep(folder, found, resume=False) == 0
    assert played.ran[3:] == [found[1].recipe.run.name]


def test_a_stopped_arm_ends_the_sweep_and_waits_for_a_person(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played, found, folder = Played(monkeypatch, {1: STOPPED}), arms(file, "seed=0,1,2"), file.parent / "lr"
    assert sweeping.carry_out_sweep(folder, found, resume=False) == STOPPED
    assert len(played.ran) == 2
    assert sweeping.carry_out_sweep(folder, found, resume=False) == STOPPED, "a job that is tried again"
    assert played.ran[2:] == [found[2].recipe.run.name]
    assert sweeping.carry_out_sweep(folder, found, resume=True) == 0
    assert played.ran[3:] == [found[1].recipe.run.name]


def test_a_signal_between_two_arms_ends_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played, found, folder = Played(monkeypatch), arms(file, "seed=0,1,2"), file.parent / "lr"
    played.asked_after = 1
    assert sweeping.carry_out_sweep(folder, found, resume=False) == STOPPED
    played.asked, played.asked_after = False, None
    assert sweeping.carry_out_sweep(folder, found, resume=False) == 0
    assert len(played.ran) == 3


def test_an_interrupted_arm_goes_on_with_the_recipe_that_it_began_with(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A swap by a command is in the recorded recipe alone."""
    played, found, folder = Played(monkeypatch), arms(file, "seed=0,1"), file.parent / "lr"
    run = folder / found[0].recipe.run.name
    run.mkdir(parents=True)
    tree = found[0].recipe.model_dump(mode="json")
    tree["models"]["teacher"]["swaps"] = {3: "/other"}
    (run / submission.RECIPE).write_text(yaml.safe_dump(tree))
    assert sweeping.carry_out_sweep(folder, found, resume=False) == 0
    assert "/other" in (run / submission.RECIPE).read_text() and len(played.ran) == 2
