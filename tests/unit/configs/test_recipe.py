"""Recipes: what is refused and in which words, how files and overrides merge, and what `auto` becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from configs.hardware import cpu_has_bf16, resolve_dtypes
from configs.load import parse_recipe
from tests.unit.recipes import CROSS_ENTROPY, REMOVED, REWARD_ONLY, loaded, recipe, refusal, write

# --- what a recipe says by itself ---


def test_a_recipe_that_names_no_tracker_writes_for_tensorboard() -> None:
    assert recipe().metrics.trackers == ("tensorboard",)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "stepz",
            1,
            "stepz: unknown key; allowed: format, run, models, data, batch, sampling, objective, learner, rollout,",
        ),
        ("batch.prompts", 1, "batch.prompts: unknown key; allowed: prompts_per_step, samples_per_prompt, tokens_per_"),
        (
            "rollout.resources.cpu",
            1,
            "rollout.resources.cpu: unknown key; allowed: cpus, gpus, threads, labels, custom, placement",
        ),
        ("rollout.resources.custom", {"GPU": 1}, "rollout.resources.custom: GPU is Ray's own; set gpus"),
        ("objective.outcome.w", 1, "objective.outcome.w: unknown key; allowed: weight, baseline"),
        ("scorer.teacher.engin", "x", "scorer.teacher.engin: unknown key; allowed: engine, server, members, resources"),
        ("models.teacher.sys", "x", "models.teacher.sys: unknown key; allowed: path, system, prompt"),
        (
            "reward.rules",
            [{"kind": "length", "min": 3}],
            "reward.rules.0.min: unknown key; allowed: kind, weight, name, low, high, slope",
        ),
        (
            "rollout.kinds",
            {"wide": {"dtype": "float32"}},
            "rollout.kinds.wide.dtype: unknown key; allowed: members, resources, kv_cache_gib, gpu_memory_fraction,",
        ),
        (
            "scorer.teacher.kinds",
            {"wide": {"max_concurrent": 1}},
            "scorer.teacher.kinds.wide.max_concurrent: unknown key; allowed: members, resources, kv_cache_gib, gpu_mem",
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
        ("rollout.kinds", ["wide"], "rollout.kinds: ['wide'] is wrong: input should be a mapping"),
        ("rollout.kinds", {"wide": None}, "rollout.kinds.wide: None is wrong: input should be a mapping of members"),
        ("rollout.kinds", {"a.b": {}}, "rollout.kinds.a.b: is wrong as a key: string should match pattern"),
        ("rollout.kinds", {"wide": {"members": 0}}, "rollout.kinds.wide.members: 0 is wrong: input should be greater"),
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


# --- kinds of members ---


def test_a_kind_takes_over_what_it_leaves_out_and_its_resources_key_by_key() -> None:
    role = {
        "members": 3,
        "max_concurrent": 8,
        "resources": {"cpus": 2, "gpus": 1, "labels": {"zone": "a", "disk": "x"}},
    }
    wide = {"tensor_parallel": 2, "resources": {"gpus": 2, "labels": {"zone": "b"}}}
    found = loaded({"rollout": role | {"kinds": {"wide": wide, "narrow": {"max_concurrent": 4, "members": 2}}}})
    one = found.of_kind("rollout", "wide").rollout
    assert (one.members, one.tensor_parallel, one.max_concurrent, one.kinds) == (1, 2, 8, {})
    assert (one.resources.cpus, one.resources.gpus, one.resources.labels) == (2, 2, {"zone": "b"})
    narrow = found.of_kind("rollout", "narrow").rollout
    assert (narrow.members, narrow.max_concurrent, narrow.resources) == (2, 4, found.rollout.resources)
    assert found.of_kind("rollout", "").rollout == found.rollout.model_copy(update={"kinds": {}})
    assert parse_recipe(found.model_dump(mode="json")) == found


def test_what_a_kind_takes_over_is_refused_once() -> None:
    assert refusal({"rollout": {"resources": {"cpu": 1}, "kinds": {"wide": {}}}}) == (
        "rollout.resources.cpu: unknown key; allowed: cpus, gpus, threads, labels, custom, placement"
    )


def test_a_recipe_names_its_members_by_kind_and_only_the_roles_own_change_in_number() -> None:
    kinds = {"kinds": {"wide": {"members": 3, "resources": {"cpus": 2}}}}
    found = loaded({"rollout": {"members": 2} | kinds, "scorer.teacher": kinds})
    sizes = {name: (part.members, part.resources.cpus, part.elastic) for name, part in found.parts.items()}
    assert list(sizes.items())[:4] == [
        ("rollout", (2, 0.5, True)),
        ("rollout.kinds.wide", (3, 2.0, False)),
        ("scorer.teacher", (1, 0.5, True)),
        ("scorer.teacher.kinds.wide", (3, 2.0, False)),
    ]
    assert found.elastic_roles == {"rollout": 2, "scorer.teacher": 1, "reward": 1}
    assert list(found.roles) == ["rollout", "scorer.teacher", "reward", "learner"]
    assert loaded({}).parts == loaded({}).roles


def test_only_the_target_is_scored() -> None:
    assert recipe(models__other={"path": "/o"}).scored_models == ("teacher",)
    assert loaded(CROSS_ENTROPY).scored_models == ()


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
