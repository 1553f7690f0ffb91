"""Keys of held-out sets: what is refused, what a set inherits, and the example of the page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.load import RecipeError, dump_recipe, load_recipe, parse_recipe
from configs.schema import Recipe
from orchestrator.preflight.inputs import held_out
from orchestrator.samples.prompts import Prompt
from tests.unit.simulation import recipe

PAGE = Path(__file__).parents[3] / "docs" / "evaluation.md"


def with_set(tmp_path: Path, **keys: Any) -> Recipe:
    return recipe(tmp_path, evaluate={"sets": {"maths": {"prompts": "/m"} | keys}})


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"k": [1, 9], "samples_per_prompt": 8}, "needs 1 to samples_per_prompt: 8 responses"),
        ({"k": []}, "k: [] needs"),
        ({"k": [0]}, "evaluate.sets.maths.k.0"),
        ({"temperature": 0.0, "samples_per_prompt": 2}, "gives the same answer 2 times"),
        ({"text": "/t"}, "needs either prompts"),
        ({"prompts": None}, "needs either prompts"),
        ({"prompts": None, "text": "/t", "pass_at": 0.5}, "so pass_at would do nothing"),
        ({"rules": [{"kind": "length"}], "format": "regex"}, "'regex' names no rule of this set; allowed: ['length']"),
        ({"pass_at": float("nan")}, "evaluate.sets.maths.pass_at"),
    ],
)
def test_a_set_that_has_no_meaning_is_refused_in_one_line(tmp_path: Path, keys: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        with_set(tmp_path, **keys)
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["heldout", "a.b", "", "Maths", "a" * 41])
def test_a_name_that_could_not_be_told_from_others_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="evaluate"):
        recipe(tmp_path, evaluate={"sets": {name: {"prompts": "/m"}}})


def test_a_set_has_the_runs_settings_where_it_says_nothing(tmp_path: Path) -> None:
    plain = with_set(tmp_path)
    assert plain.of_set("maths").sampling == plain.sampling
    assert plain.of_set("maths").reward == plain.reward and plain.of_set("maths").scored_models == ("teacher",)
    own = with_set(tmp_path, rules=[{"kind": "contains", "text": "x"}], teachers=False, temperature=0.0, every=7)
    assert own.of_set("maths").scored_models == () and own.of_set("maths").sampling.temperature == 0.0
    assert [rule.kind for rule in own.of_set("maths").reward.rules] == ["contains"]
    assert (own.evaluate.every_of("maths"), own.evaluate.every_of("heldout")) == (7, 0)


def test_a_recipe_with_sets_is_read_back_equal_with_paths_of_its_own_folder(tmp_path: Path) -> None:
    tree = with_set(tmp_path, k=[1]).model_dump(mode="json")
    tree["evaluate"]["sets"] = {"maths": {"prompts": "m.jsonl"}, "old": {"text": "../t.jsonl"}}
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "r.yaml").write_text(yaml.safe_dump(tree))
    loaded = load_recipe(tmp_path / "sub" / "r.yaml")
    sets = loaded.evaluate.sets
    assert (sets["maths"].prompts, sets["old"].text) == (str(tmp_path / "sub/m.jsonl"), str(tmp_path / "t.jsonl"))
    assert parse_recipe(yaml.safe_load(dump_recipe(loaded))) == loaded


@pytest.mark.parametrize(
    ("metric", "every", "words"),
    [
        ("maths.pass@1", 2, None),
        ("maths.avg@1", 2, None),
        ("maths.pass@4", 2, "'pass@4' is not measured on maths"),
        ("physics.pass@1", 2, "names no held-out set; allowed: ['maths']"),
        ("heldout.reverse_kl", 2, "names no held-out set"),
        ("maths.pass@1", 0, "set evaluate.every"),
    ],
)
def test_the_best_checkpoint_needs_a_metric_that_is_measured_on_the_way(
    tmp_path: Path, metric: str, every: int, words: str | None
) -> None:
    found = recipe(
        tmp_path,
        evaluate={"every": every, "sets": {"maths": {"prompts": "/m"}}},
        checkpoint={"best": {"metric": metric}},
    )
    if words is None:
        return held_out.check_best(found)
    with pytest.raises(RecipeError, match=re.escape(words)):
        held_out.check_best(found)


def test_what_does_not_fit_is_refused_before_a_run(tmp_path: Path) -> None:
    long = Prompt({"prompt": "p"}, {"student": [1] * 90}, [2] * 11, line=7)
    held_out.fit_texts("old", [long], 101)
    held_out.fit_texts("old", [long], None)
    with pytest.raises(RecipeError, match="line 7 has 101 tokens, the student has 100 positions"):
        held_out.fit_texts("old", [long], 100)
    with pytest.raises(RecipeError, match=r"evaluate\.sets\.a: 100001 rows"):
        held_out.check_room({"a": [long] * 100_001})
    with pytest.raises(RecipeError, match="format: 'json' names no component of its reward; allowed: \\['length'\\]"):
        held_out.check_formats(with_set(tmp_path, format="json"))
    sets = recipe(tmp_path, evaluate={"sets": {"a": {"prompts": "/a", "samples_per_prompt": 3, "k": [1]}}})
    assert held_out.responses(sets, {"a": [long] * 5}) == 15


def test_the_example_of_the_page_is_a_recipe(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    tree = yaml.safe_load(block)
    found = recipe(tmp_path, **tree)
    held_out.check_best(found)
    assert list(found.evaluate.sets) == ["maths", "maths_greedy", "general", "old_task"]
