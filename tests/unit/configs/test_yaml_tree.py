"""What YAML would read otherwise than a person meant it: keys that stand twice, keys that are no words, and trees that
no person wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from configs.load import RecipeError, load_recipe
from configs.reading import yaml_tree
from tests.unit.recipes import SMALLEST, refusal, tree, write


def refused(text: str) -> str:
    with pytest.raises(RecipeError) as refusal:
        yaml_tree.parse(text, "r.yaml")
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 1000
    return str(refusal.value)


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("a: 1\nb: 2\na: 3", "the key 'a' stands twice, in lines 1 and 3; remove one of them"),
        ("run:\n  steps: 1\n  name: x\n\n  steps: 2", "the key 'steps' stands twice, in lines 2 and 5"),
        ("a: {b: 1, b: 1}", "the key 'b' stands twice, in line 1"),
        ("a:\n- {x: 1}\n- y: {z: 1,\n    z: 2}", "the key 'z' stands twice, in lines 3 and 4"),
        ("'a': 1\n\"a\": 2", "the key 'a' stands twice, in lines 1 and 2"),
        ("swaps: {3: a, '3': b}", "the key '3' stands twice, in line 1"),
        ("swaps: {16: a, 0x10: b}", "the key '16' stands twice, in line 1"),
        ("a: &a {x: 1}\nb:\n  <<: *a\n  <<: *a", "the key '<<' stands twice, in lines 3 and 4"),
        ("a: &a {x: 1, x: 2}\nb: {<<: *a}", "the key 'x' stands twice, in line 1"),
    ],
)
def test_a_duplicate_key_is_refused_with_both_lines(text: str, finding: str) -> None:
    assert finding in refused(text)


def test_a_key_may_override_one_from_a_merge_key() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: [*b, *a], y: 4}\nd: {<<: *b, x: 5}"
    assert yaml_tree.parse(text, "r") == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 3, "y": 2},
        "c": {"x": 3, "y": 4},
        "d": {"x": 5, "y": 2},
    }


def test_a_duplicate_key_in_a_parent_or_an_override_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "run: {name: r, steps: 1}\nbatch: {prompts_per_step: 1}\nrun: {name: s}\n")
    with pytest.raises(RecipeError, match=r"base.yaml: the key 'run' stands twice, in lines 1 and 3"):
        load_recipe(write(tmp_path / "r.yaml", "extends: base.yaml"))
    plain = write(tmp_path / "plain.yaml", SMALLEST)
    with pytest.raises(RecipeError, match=r"override .*: the key 'members' stands twice, in line 1"):
        load_recipe(plain, ["rollout={members: 1, members: 2}"])


def test_an_override_names_the_step_of_a_swap_that_the_file_has(tmp_path: Path) -> None:
    file = write(tmp_path / "r.yaml", tree({"models.teacher.swaps": {2: "/a"}}))
    assert load_recipe(file, ["models.teacher.swaps.2=/b"]).models["teacher"].swaps == {2: "/b"}


@pytest.mark.parametrize("key", ["no", "Yes", "on", "OFF", "true"])
def test_an_unquoted_boolean_key_is_refused(key: str) -> None:
    found = refused(f"target:\n  models:\n    {key}: teacher")
    assert found == f"r.yaml line 3: YAML reads the key {key} as a truth value; quote it: '{key}':"
    assert yaml_tree.parse(f"'{key}': x", "r") == {key: "x"}


@pytest.mark.parametrize(("key", "kind"), [("~", "null"), ("null", "null"), ("1.5", "a fraction"), (".nan", "a frac")])
def test_null_and_fraction_keys_are_refused(key: str, kind: str) -> None:
    assert f"line 1: YAML reads the key {key} as {kind}" in refused(f"{key}: x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"objective.target": {"field": "x", "models": {1: "teacher"}}},
            "objective.target.models.1: YAML reads this key as a number; quote it: '1':",
        ),
        (
            {"models": {"student": {"path": "/s"}, 7: {"path": "/t"}}},
            "models.7: YAML reads this key as a number; quote it",
        ),
        ({"scorer": {7: {}}}, "scorer.7: YAML reads this key as a number; quote it: '7':"),
        (
            {"objective.target": {"field": "x", "models": {False: "teacher"}}},
            "models.False: YAML reads this key as a truth",
        ),
        (
            {"rollout.resources": {"labels": {1: "a"}}},
            "rollout.resources.labels.1: YAML reads this key as a number; quote",
        ),
        (
            {"rollout.resources": {"labels": {"zone": False}}},
            "labels.zone: False is wrong: input should be a valid str",
        ),
        ({"autoscale": {3: {"min": 1, "max": 2}}}, "autoscale.3: YAML reads this key as a number; quote it: '3':"),
    ],
)
def test_unquoted_numbers_as_names_are_refused(changes: dict[str, Any], message: str) -> None:
    assert message in refusal(changes)


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("a: &a [*a]", "an alias contains itself"),
        ("a: &a {b: *a}", "an alias contains itself"),
        ("a: &a {<<: *a}", "an alias contains itself"),
        (
            "a0: &a0 [x, x]\n" + "\n".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]" for i in range(30)),
            "its aliases stand for more than 100000 values",
        ),
        ("a: " + "[" * 40 + "]" * 40, "is nested more than 32 levels deep"),
        ("a: " + "[" * 5000 + "]" * 5000, "is nested more than 32 levels deep"),
        ("{a: " * 5000, "is nested more than 32 levels deep"),
        ("a: !!python/object:os.system {}", "the tag !!python/object:os.system has no place in a recipe"),
        ("a: !!binary aGVsbG8=", "the tag !!binary has no place"),
        ("a: !!set {x}", "the tag !!set has no place"),
        ("!!omap a: 1", "the tag !!omap has no place"),
        ("a: !!int x", "'x' is no int"),
        ("a: !!float x", "'x' is no float"),
        ("a: !!bool x", "'x' is no bool"),
        ("a: 0b_", "'0b_' is no int"),
        (f"a: {'9' * 5000}", "is no int (Exceeds the limit"),
        (f"a: 0x{'f' * 5000}", "cannot be written as text"),
        ('a: "\\ud83d"', "cannot be written as text"),
        ('"\\ud83d": a', "cannot be written as text"),
        ("? [a]\n: b", "a mapping or a list is no key"),
        ("? {a: b}\n: c", "a mapping or a list is no key"),
        ("{{name}}: c", "a mapping or a list is no key"),
        ("a: *nowhere", "is no YAML (found undefined alias"),
        ("a: 1\n---\nb: 2", "is no YAML (expected a single document"),
        ("a: %x", "is no YAML"),
        ("a: \x1b[31m", "is no YAML (unacceptable character"),
        ("\ta: 1", "is no YAML"),
    ],
)
def test_a_tree_that_is_too_deep_too_large_or_circular_is_refused(text: str, finding: str) -> None:
    assert finding in refused(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 2026-01-31", "2026-01-31"),
        ("a: 2026-13-45", "2026-13-45"),
        ("a: =", "="),
        ("a: no", False),
        ("a: 1e-5", "1e-5"),
        ("a: .inf", float("inf")),
    ],
)
def test_dates_and_times_are_read_as_strings(text: str, value: Any) -> None:
    assert yaml_tree.parse(text, "r") == {"a": value}


def test_an_empty_text_is_null() -> None:
    assert yaml_tree.parse("", "r") is None and yaml_tree.parse("# nothing\n", "r") is None


NUMBERS = [
    "reward.rules.0.weight",
    "reward.model_weight",
    "objective.outcome.weight",
    "objective.reverse_weight",
    "objective.alpha",
    "objective.logprob_floor",
    "objective.clip.token_sum",
    "objective.target.teacher",
    "objective.outcome.value.loss_weight",
    "objective.trust.truncation",
    "learner.optimizer.eps",
    "learner.optimizer.weight_decay",
    "learner.optimizer.max_grad_norm",
    "sampling.temperature",
    "rollout.resources.cpus",
    "rollout.resources.gpus",
    "stream.coalesce_ms",
    "deadlines.start",
    "models.teacher.decay",
]


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), "1e999", ".nan"])
@pytest.mark.parametrize("key", NUMBERS)
def test_numbers_are_finite(key: str, value: float | str) -> None:
    changes: dict[str, Any] = {key: value}
    if key == "objective.target.teacher":
        changes = {"objective.target": {"teacher": value}}
    if key == "reward.rules.0.weight":
        changes = {"reward.rules": [{"kind": "length", "weight": value}]}
    assert f"{key}: " in refusal(changes) and "is wrong" in refusal(changes)


@pytest.mark.parametrize("end", [{"start": float("inf")}, {"end": float("nan")}])
def test_the_ends_of_a_schedule_are_finite(end: dict[str, float]) -> None:
    schedule = {"start": 1.0, "end": 0.0, "steps": 3} | end
    (name,) = end
    assert f"objective.reverse_weight.{name}: " in refusal({"objective.reverse_weight": schedule})
    assert f"objective.prefix.student.{name}: " in refusal({"objective.prefix": {"student": schedule}})


@pytest.mark.parametrize(
    "key", ["run.seed", "run.steps", "objective.topk", "rollout.members", "cluster.object_store_mib"]
)
def test_whole_numbers_have_a_largest_value(key: str) -> None:
    assert f"{key}: {10**30} is wrong: input should be less than or equal to" in refusal({key: 10**30})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfer\x00u\x00n\x00", "is UTF-16); save it as UTF-8"),
        ("name: é".encode("latin-1"), "is no UTF-8, from byte 6 in line 1 on"),
        (b"a: \x00", "is no YAML (unacceptable character"),
    ],
)
def test_text_that_is_no_utf_8_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(RecipeError) as refusal:
        load_recipe(tmp_path / "r.yaml")
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_byte_order_mark_and_carriage_returns_are_read_over(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.yaml", SMALLEST)
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbf" + plain.read_bytes().replace(b"\n", b"\r\n"))
    assert load_recipe(tmp_path / "r.yaml") == load_recipe(plain)


@pytest.mark.parametrize("path", ['"/a\\0b"', "~nobody-of-this-name/x", "/" + "x" * 5000])
def test_a_value_that_is_no_path_is_refused(tmp_path: Path, path: str) -> None:
    file = write(tmp_path / "r.yaml", SMALLEST)
    found = f"extends: {path}"
    with pytest.raises(RecipeError):
        load_recipe(write(tmp_path / "child.yaml", found))
    if "x" * 5000 not in path:
        with pytest.raises(RecipeError, match="is no path"):
            load_recipe(file, [f"data.prompts={path}"])


def test_a_long_chain_of_parents_is_refused(tmp_path: Path) -> None:
    for i in range(40):
        write(tmp_path / f"{i}.yaml", f"extends: {i + 1}.yaml")
    with pytest.raises(RecipeError, match="is extended through more than 32 files"):
        load_recipe(tmp_path / "0.yaml")
