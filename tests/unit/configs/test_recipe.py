"""Recipes: what is refused and in which words, how files and overrides merge, and what `auto` becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.hardware import cpu_has_bf16, resolve_dtypes
from configs.load import RecipeError, cache_directory, dump_recipe, load_recipe, model_directory, parse_recipe
from configs.schema import Recipe
from tests.unit.recipes import CROSS_ENTROPY, REMOVED, REWARD_ONLY, SMALLEST, loaded, refusal, tree


def recipe(**changes: Any) -> Recipe:
    return loaded({key.replace("__", "."): value for key, value in changes.items()})


def write(file: Path, content: dict[str, Any] | str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return file


# --- what a recipe says by itself ---


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "stepz",
            1,
            "stepz: unknown key; allowed: format, run, models, data, batch, sampling, objective, learner, rollout,",
        ),
        ("batch.prompts", 1, "batch.prompts: unknown key; allowed: prompts_per_step, samples_per_prompt, tokens_per_"),
        ("rollout.resources.cpu", 1, "rollout.resources.cpu: unknown key; allowed: cpus, gpus, threads, labels"),
        ("objective.outcome.w", 1, "objective.outcome.w: unknown key; allowed: weight, baseline"),
        ("scorer.teacher.engin", "x", "scorer.teacher.engin: unknown key; allowed: engine, members, resources, dtype"),
        ("models.teacher.sys", "x", "models.teacher.sys: unknown key; allowed: path, system, prompt"),
        (
            "reward.rules",
            [{"kind": "length", "min": 3}],
            "reward.rules.0.min: unknown key; allowed: kind, weight, text",
        ),
        ("run.labels", {}, "run.labels: unknown key; allowed: name, root, seed, steps"),
    ],
)
def test_an_unknown_key_is_refused_with_the_allowed_keys(key: str, value: Any, message: str) -> None:
    assert refusal({key: value}).startswith(message)


@pytest.mark.parametrize("key", ["run", "run.steps", "objective.target", "learner.optimizer.lr"])
def test_a_missing_key_is_named(key: str) -> None:
    assert refusal({key: REMOVED}) == f"{key}: missing; add it to the recipe"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("run.name", "a/b", "run.name: 'a/b' is wrong: string should match pattern"),
        ("run.name", "..", "run.name: '..' is wrong"),
        ("run.name", 7, "run.name: 7 is wrong: input should be a valid string"),
        ("rollout.resources.gpus", 1.5, "rollout.resources.gpus: 1.5 is wrong: above 1 it must be whole"),
        ("run.seed", -1, "run.seed: -1 is wrong: input should be greater than or equal to 0"),
        ("run.steps", 0, "run.steps: 0 is wrong: input should be greater than 0"),
        ("run.steps", 1.5, "run.steps: 1.5 is wrong: input should be a valid integer"),
        ("run.steps", "many", "run.steps: 'many' is wrong: input should be a valid integer"),
        ("models.teacher", None, "models.teacher: None is wrong"),
        ("batch", 3, "batch: 3 is wrong: input should be a mapping of prompts_per_step, samples_per_prompt"),
        ("batch.samples_per_prompt", 0, "batch.samples_per_prompt: 0 is wrong: input should be greater than 0"),
        ("sampling.temperature", 0, "sampling.temperature: 0 is wrong: input should be greater than 0"),
        ("sampling.top_p", 1.1, "sampling.top_p: 1.1 is wrong: input should be less than or equal to 1"),
        (
            "objective.reverse_weight",
            2,
            "objective.reverse_weight: 2 is wrong: weights reverse KL against forward KL; keep it in [0, 1]",
        ),
        (
            "objective.support",
            "half",
            "objective.support: 'half' is wrong: input should be 'sampled', 'topk' or 'full'",
        ),
        ("objective.trust.truncation", 0, "objective.trust.truncation: 0 is wrong: input should be greater than 0"),
        ("objective.logprob_floor", 0, "objective.logprob_floor: 0 is wrong: input should be less than 0"),
        (
            "objective.normalise",
            "group",
            "objective.normalise: 'group' is wrong: input should be 'token', 'sequence' or 'constant'",
        ),
        ("objective.clip", -1, "objective.clip: -1 is wrong: needs low < high, or a positive number"),
        ("objective.clip", [2, 1], "objective.clip: [2, 1] is wrong: needs low < high, or a positive number"),
        ("objective.clip", "x", "objective.clip: 'x' is wrong: input should be a mapping of log_ratio, vocab_element"),
        ("objective.clip", [1], "objective.clip: [1] is wrong: it has too few values"),
        ("objective.clip", {"log_ratio": [2, 1]}, "objective.clip.log_ratio: [2, 1] is wrong: needs low < high"),
        ("learner.optimizer.lr", float("nan"), "learner.optimizer.lr: nan is wrong: input should be a finite number"),
        ("learner.zero_stage", 4, "learner.zero_stage: 4 is wrong: input should be 0, 1, 2 or 3"),
        ("rollout.dtype", "fp8", "rollout.dtype: 'fp8' is wrong: input should be 'bfloat16', 'float32' or 'auto'"),
        (
            "rollout.resources",
            {"cpus": -1},
            "rollout.resources.cpus: -1 is wrong: input should be greater than or equal",
        ),
        ("reward.rules", [{"kind": "regex"}], "reward.rules.0: a regex rule needs text"),
        ("reward.rules", [{"kind": "contains", "text": ""}], "reward.rules.0: a contains rule needs text"),
        ("max_staleness", -1, "max_staleness: -1 is wrong: input should be greater than or equal to 0"),
    ],
)
def test_a_wrong_value_is_refused_with_path_value_and_what_is_allowed(key: str, value: Any, message: str) -> None:
    assert refusal({key: value}).startswith(message)


@pytest.mark.parametrize("key", ["models.student.path", "models.teacher.path"])
def test_a_frozen_model_without_a_path_is_refused(key: str) -> None:
    model = key.removesuffix(".path")
    assert (
        refusal({key: REMOVED}) == f"{model}: needs a path when its weights are frozen, and none when they follow "
        "the student"
    )


NUMBER_OR_SCHEDULE = "input should be a valid number, unable to parse string as a number, or a mapping of start, end"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("reverse_weight", "x", f"reverse_weight: 'x' is wrong: {NUMBER_OR_SCHEDULE}, steps, shape"),
        ("reverse_weight", {"start": 1, "end": 0}, "reverse_weight.steps: missing; add it to the recipe"),
        (
            "reverse_weight",
            {"start": 1, "end": 0, "step": 3, "steps": 2},
            "reverse_weight.step: unknown key; allowed: start, end, steps, shape",
        ),
        (
            "reverse_weight",
            {"start": 1, "end": 2, "steps": 3},
            "reverse_weight: weights reverse KL against forward KL; keep it in [0, 1]",
        ),
        (
            "prefix",
            "nobody",
            "prefix: 'nobody' is wrong: input should be 'student', 'teacher' or 'dataset', or a mapping",
        ),
        ("prefix", {"nobody": 1}, "prefix.nobody: unknown key; allowed: 'student', 'teacher' or 'dataset'"),
        ("prefix", {"student": "x"}, f"prefix.student: 'x' is wrong: {NUMBER_OR_SCHEDULE}, steps, shape"),
        (
            "prefix",
            {"student": {"start": 1, "end": 0, "steps": 0}},
            "prefix.student.steps: 0 is wrong: input should be greater than 0",
        ),
        (
            "prefix",
            {"student": -0.5, "dataset": 1.5},
            "prefix: needs shares of 0 or more that are not all 0; found [-0.5, 1.5] at its start",
        ),
        (
            "prefix",
            {"student": {"start": 1, "end": 0, "steps": 9}},
            "prefix: needs shares of 0 or more that are not all 0; found [0.0] at its end",
        ),
        ("prefix", {}, "prefix: needs shares of 0 or more that are not all 0; found [] at its start"),
        (
            "reference",
            {"model": "teacher", "beta": -1},
            "reference.beta: -1 is wrong: input should be greater than or equal to 0, or a mapping of initial, target, "
            "horizon",
        ),
        (
            "reference",
            {"model": "teacher", "beta": {"initial": 0, "target": 1}},
            "reference.beta.initial: 0 is wrong: input should be greater than 0",
        ),
        (
            "target",
            3,
            "target: 3 is wrong: input should be a valid string, or a mapping, or a mapping of field, models",
        ),
        ("target", {"field": "topic"}, "target.models: missing; add it to the recipe"),
        ("target", {"teacher": None}, "target.teacher: None is wrong: input should be a valid number"),
    ],
)  # fmt: skip
def test_a_union_is_refused_with_one_error_under_the_kind_that_is_meant(key: str, value: Any, message: str) -> None:
    assert refusal({f"objective.{key}": value}) == f"objective.{message}"


def test_all_errors_are_joined_in_one_line() -> None:
    assert refusal({"run.steps": 0, "batch.x": 1, "data.prompts": REMOVED}).count("; ") >= 3


@pytest.mark.parametrize(
    "changes",
    [
        {"reward.rules": [{"kind": "regex", "text": "("}]},
        {"reward.rules": [{"kind": "length", "low": 9, "high": 3}]},
        {"learner.optimizer.betas": [2, 3]},
        {"learner.optimizer.lr": float("inf")},
        {"objective.clip": True},
    ],
    ids=str,
)
def test_values_that_cannot_work_are_refused_before_a_run(changes: dict[str, Any]) -> None:
    refusal(changes)


# --- short forms ---


def test_a_scalar_clip_is_a_symmetric_interval() -> None:
    assert recipe(objective__clip=5).objective.clip.log_ratio == (-5.0, 5.0)
    assert recipe(objective__clip=[-1, 2]).objective.clip.log_ratio == (-1.0, 2.0)
    assert recipe(objective__clip={"log_ratio": [-1, 2]}) == recipe(objective__clip=[-1, 2])


def test_no_clip_is_null_or_left_out() -> None:
    assert recipe(objective__clip=None) == recipe()


@pytest.mark.parametrize(("kind", "support"), [("sampled", "sampled"), ("exact", "full")])
def test_the_students_start_is_scored_beside_every_objective(kind: str, support: str) -> None:
    system = {"models.student.system": "Be brief."}
    for changes in ({}, CROSS_ENTROPY | {"metrics.start_kl": "exact"}, REWARD_ONLY):
        found = loaded({"metrics.start_kl": kind} | changes | system)
        assert found.models["start"] == found.models["student"] and found.scored_models[-1] == "start"
        assert found.support_of["start"] == ("full" if changes.get("metrics.start_kl") else support)
        assert "start" not in found.objective.support_of, "it enters no loss"
        assert parse_recipe(found.model_dump(mode="json")) == found
    writing = {"metrics.start_kl": "exact", "objective.prefix": "teacher", "models.other": {"path": "/o"}}
    assert loaded(CROSS_ENTROPY | writing).sampled_teacher == "teacher"


@pytest.mark.parametrize(
    ("changes", "comparable"),
    [
        ({}, True),
        ({"objective.support": "full", "sampling.temperature": 0.7}, False),
        ({"objective.support": "full", "sampling.top_p": 0.9}, False),
        (REWARD_ONLY | {"sampling.temperature": 0.7}, True),
        (CROSS_ENTROPY | {"sampling.temperature": 0.7}, False),
    ],
    ids=str,
)
def test_sampler_and_learner_are_compared_only_under_the_same_distribution(
    changes: dict[str, Any], comparable: bool
) -> None:
    assert loaded(changes).sampler_matches_learner == comparable


def test_only_the_target_is_scored() -> None:
    assert recipe(models__other={"path": "/o"}).scored_models == ("teacher",)
    assert loaded(CROSS_ENTROPY).scored_models == ()


# --- files and overrides ---


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


# --- dtype: auto ---


def test_auto_is_bfloat16_only_where_the_hardware_computes_it() -> None:
    plain = recipe()
    for has_bf16, dtype in ((True, "bfloat16"), (False, "float32")):
        resolved = resolve_dtypes(plain, has_bf16)
        roles = (resolved.rollout, resolved.teacher_rollout, resolved.learner, resolved.scorer_of("teacher"))
        assert {role.dtype for role in roles} == {dtype}


def test_auto_on_a_gpu_is_bfloat16_role_by_role() -> None:
    resolved = resolve_dtypes(recipe(learner__resources={"gpus": 1}), False)
    assert (resolved.learner.dtype, resolved.rollout.dtype) == ("bfloat16", "float32")


def test_an_explicit_dtype_is_kept() -> None:
    resolved = resolve_dtypes(recipe(rollout__dtype="float32", scorer__teacher={"dtype": "float32"}), True)
    assert (resolved.rollout.dtype, resolved.scorer_of("teacher").dtype) == ("float32", "float32")
    assert resolved.learner.dtype == "bfloat16"


def test_resolving_dtypes_is_idempotent_and_changes_nothing_else() -> None:
    before = recipe(objective__clip=5, scorer__teacher={"members": 3})
    after = resolve_dtypes(before, True)
    assert resolve_dtypes(after, False) == after
    assert after.scorer["teacher"].members == 3 and after.objective == before.objective


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512_bf16 sse\n", True),
        ("flags\t\t: fpu amx_bf16\n", True),
        ("flags\t\t: fpu avx512f avx2\n", False),
        ("model name\t: avx512_bf16\nflags\t\t: fpu\n", False),
        pytest.param(
            "processor\t: 0\nFeatures\t: fp asimd sve bf16 i8mm\n",
            True,
        ),
    ],
    ids=["avx512", "amx", "neither", "only in the name", "arm"],
)
def test_bf16_is_read_from_the_processor_s_flags(tmp_path: Path, cpuinfo: str, expected: bool) -> None:
    assert cpu_has_bf16(write(tmp_path / "cpuinfo", cpuinfo)) is expected


def test_a_machine_without_cpuinfo_counts_as_without_bf16(tmp_path: Path) -> None:
    assert cpu_has_bf16(tmp_path / "absent") is False


def test_a_refusal_names_the_first_wrong_keys_and_counts_the_others() -> None:
    said = refusal({f"wrong{i:02d}": i for i in range(20)})
    assert said.count("unknown key") == 8 and said.endswith("; and 12 more")
