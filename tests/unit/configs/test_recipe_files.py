"""A recipe as files: extends, overrides, relative paths, formats, and what is refused of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from configs.load import RecipeError, cache_directory, dump_recipe, load_recipe, model_directory, parse_recipe
from tests.unit.configs.combinations import IN_TURNS
from tests.unit.recipes import SMALLEST, loaded, recipe, refusal, tree, write


def test_a_file_extends_another_and_its_keys_win(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", SMALLEST)
    write(tmp_path / "middle.yaml", {"extends": "base.yaml", "run": {"steps": 7, "seed": 3}})
    top = write(tmp_path / "top.yaml", {"extends": "middle.yaml", "run": {"seed": 4}})
    run = load_recipe(top).run
    assert (run.name, run.steps, run.seed) == ("r", 7, 4)


def test_relative_paths_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    base = tree({"data.prompts": "p.jsonl", "models.student.path": "../student", "models.teacher.path": "bundled:T"})
    write(tmp_path / "shared" / "base.yaml", base)
    top = write(tmp_path / "mine" / "top.yaml", {"extends": "../shared/base.yaml", "data": {"heldout": "sub/h.jsonl"}})
    found = load_recipe(top)
    assert found.data.prompts == str(tmp_path / "shared" / "p.jsonl")
    assert found.data.heldout == str(tmp_path / "mine" / "sub" / "h.jsonl")
    assert {name: m.path for name, m in found.models.items()} == {
        "student": str(tmp_path / "student"),
        "teacher": "bundled:T",
    }


def test_paths_in_an_override_are_relative_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "recipes" / "r.yaml", SMALLEST)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    found = load_recipe(file, ["data.prompts=p.jsonl", "models.student.path=~/s", "models.teacher.path=/abs/t"])
    assert found.data.prompts == str(tmp_path / "p.jsonl")
    assert {m.path for m in found.models.values()} == {"/home/me/s", "/abs/t"}


def test_overrides_are_yaml_and_the_last_one_wins(tmp_path: Path) -> None:
    file = write(tmp_path / "r.yaml", SMALLEST)
    found = load_recipe(
        file,
        ["run.steps=5", "run.steps=6", "learner.optimizer.lr=1e-5", "objective.clip=[-1, 4]", "rollout={members: 3}"],
    )
    assert (found.run.steps, found.learner.optimizer.lr) == (6, 1e-5)
    assert found.objective.clip.log_ratio == (-1.0, 4.0) and found.rollout.members == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.steps", "override 'run.steps': write it as key=value, e.g. batch.prompts_per_step=8"),
        ("=5", "override '=5': write it as key=value"),
        ("run..steps=5", "override 'run..steps=5': write it as key=value"),
        ("run.steps=[", "override 'run.steps=[': the value is no YAML; quote it"),
        ("run.stepz=5", "run.stepz: unknown key; allowed: name, root, seed, steps"),
        ("run.steps=", "run.steps: None is wrong: input should be a valid integer"),
        ("models=3", "models: 3 is wrong"),
        ("data=3", "data: 3 is wrong"),
    ],
)
def test_a_bad_override_is_refused(tmp_path: Path, override: str, message: str) -> None:
    file = write(tmp_path / "r.yaml", SMALLEST)
    with pytest.raises(RecipeError) as error:
        load_recipe(file, [override])
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "r.yaml: a recipe is a mapping of keys, found NoneType"),
        ("- run", "r.yaml: a recipe is a mapping of keys, found list"),
        ("run: {", "r.yaml: is no YAML (while parsing a flow node"),
        ("run: \x00", "r.yaml: is no YAML (unacceptable character"),
        (
            "extends: nowhere.yaml",
            "nowhere.yaml: cannot be read (No such file or directory); give the path of a recipe",
        ),
        ("extends: r.yaml", "r.yaml: extends itself through r.yaml; remove one extends"),
        ("extends: .", "cannot be read (Is a directory)"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(write(tmp_path / "r.yaml", content))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_files_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "b.yaml", {"extends": "a.yaml"})
    with pytest.raises(RecipeError, match=r"a.yaml: extends itself through a.yaml -> b.yaml; remove one extends"):
        load_recipe(write(tmp_path / "a.yaml", {"extends": "b.yaml"}))


@pytest.mark.parametrize("parent", ["3", "[base.yaml]"])
def test_extends_that_is_no_path_is_refused(tmp_path: Path, parent: str) -> None:
    with pytest.raises(RecipeError):
        load_recipe(write(tmp_path / "r.yaml", f"extends: {parent}"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objective.clip": [float("-inf"), 5.0], "objective.trust.truncation": None},
        {"objective.reverse_weight": {"start": 1.0, "end": 0.5, "steps": 9}, "objective.target": {"teacher": 0.5}},
        {"objective.target": {"field": "topic", "models": {"a": "teacher"}}, "objective.trust.kind": "dapo"},
        {
            "objective.prefix": {"student": {"start": 0.0, "end": 1.0, "steps": 5}, "dataset": 0.5},
            "objective.support": "topk",
            "objective.length": {"caps": [4, 8], "steps_per_stage": 1},
        },
        {"models.teacher.system": "Tu es bref, très: {prompt}\n# oui\n", "scorer.teacher": {"dtype": "float32"}},
        {"reward.rules": [{"kind": "regex", "text": r"^\d+$"}], "rollout.resources": {"labels": {"zone": "no"}}},
        {"learner.optimizer.lr": 1e-5, "learner.optimizer.betas": [0.8, 0.9], "run.name": "0123"},
    ],
    ids=str,
)
def test_a_dumped_recipe_loads_to_an_equal_tree(tmp_path: Path, changes: dict[str, Any]) -> None:
    before = loaded(changes)
    assert load_recipe(write(tmp_path / "dumped.yaml", dump_recipe(before))) == before


def test_a_dumped_recipe_begins_with_its_format() -> None:
    assert dump_recipe(recipe()).startswith("format: 1\n")


def test_a_file_without_a_format_is_read_as_it_is(tmp_path: Path) -> None:
    assert "format" not in SMALLEST
    assert load_recipe(write(tmp_path / "old.yaml", SMALLEST)) == recipe()


@pytest.mark.parametrize("child", [{"format": 2}, {"format": 2, "extends": "none.yaml", "unheard_of": 1}], ids=str)
def test_a_file_of_a_newer_format_is_refused_whatever_else_is_in_it(tmp_path: Path, child: dict[str, Any]) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(write(tmp_path / "r.yaml", SMALLEST | child))
    remedy = "use the version that wrote it, or a newer one"
    assert str(error.value) == f"{tmp_path}/r.yaml: has format 2, this version reads up to 1; {remedy}"


def test_a_parent_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", SMALLEST | {"format": 3})
    with pytest.raises(RecipeError, match=r"base\.yaml: has format 3"):
        load_recipe(write(tmp_path / "r.yaml", {"extends": "base.yaml"}))


@pytest.mark.parametrize(("value", "message"), [(0, "greater than or equal to 1"), ("x", "a valid integer")])
def test_an_invalid_format_is_refused(value: Any, message: str) -> None:
    assert refusal({"format": value}).startswith(f"format: {value!r} is wrong: input should be {message}")


def test_bundled_models_lie_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOGRATIO_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_directory() == Path("/x/logratio")
    monkeypatch.setenv("LOGRATIO_CACHE", "/c")
    assert model_directory("bundled:M") == Path("/c/models/M")
    assert model_directory("/elsewhere/M") == Path("/elsewhere/M")


def test_a_refusal_shows_the_beginning_of_a_long_value() -> None:
    """Whichever value of a recipe is long."""
    sets = {"evaluate": {"sets": {"a": {"prompts": "/e", "rules": [{"kind": "length"}], "format": "length"}}}}
    whole = loaded(IN_TURNS | sets).model_dump(mode="json")
    said = {place: _said_of(whole, place) for place in _places_of_values(whole)}
    assert not {place: line for place, line in said.items() if len(line) > 1000}
    assert all("x…" in said[place] for place in ("scorer.teacher.turns", "evaluate.sets.a.format"))


def _places_of_values(node: dict[str, Any], above: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _places_of_values(value, f"{above}{key}.")
        else:
            yield above + key


def _said_of(whole: dict[str, Any], place: str) -> str:
    """What is said of a recipe in which one value is long."""
    changed = copy.deepcopy(whole)
    *parents, last = place.split(".")
    node = changed
    for part in parents:
        node = node[part]
    node[last] = "x" * 5000
    try:
        parse_recipe(changed)
    except RecipeError as error:
        return str(error)
    return ""
