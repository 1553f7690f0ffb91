"""`check --cluster-spec`: recipes on clusters that are only described, with the exit code and the lines."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.load import load_tree
from orchestrator import cli
from tests.contributing.test_stages import READY, commands

CLUSTER = Path(__file__).parents[2] / "configs" / "cluster"
SPEC = yaml.safe_load((CLUSTER / "specs" / "one_node.yaml").read_text())
RECIPES = {
    "opd_1.7b_8b": "one_node",
    "opd_1.7b_8b_colocated": "one_node",
    "opd_8b_32b": "four_nodes",
}


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Check a recipe on a spec, or on SPEC with changes of its only node and of its own keys."""

    def run(recipe: str | Path, spec: str | dict[str, Any], *overrides: str, **changes: Any) -> tuple[int, str]:
        file = CLUSTER / "specs" / f"{spec}.yaml"
        if isinstance(spec, dict):
            models = {path: str(CLUSTER / "specs" / folder) for path, folder in SPEC["models"].items()}
            tree = SPEC | {"models": models, "nodes": [SPEC["nodes"][0] | spec]} | changes
            file = tmp_path / "spec.yaml"
            file.write_text(yaml.safe_dump({key: value for key, value in tree.items() if value is not None}))
        path = recipe if isinstance(recipe, Path) else CLUSTER / f"{recipe}.yaml"
        monkeypatch.setattr(sys, "argv", ["logratio", "check", str(path), "--cluster-spec", str(file), *overrides])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), " ".join((said.out + said.err).split())

    return run


def test_each_recipe_of_a_cluster_is_checked() -> None:
    assert {file.stem for file in CLUSTER.glob("*.yaml")} == RECIPES.keys()


@pytest.mark.parametrize(("recipe", "spec"), RECIPES.items())
def test_a_recipe_fits_the_cluster_that_it_is_for(check: Any, recipe: str, spec: str) -> None:
    code, said = check(recipe, spec)
    assert code == 0 and "the described cluster can hold it" in said, said
    assert "tight: " not in said and "warning: " not in said, said
    assert "not checked: weights, tokenizers, chat templates, prompts" in said


@pytest.mark.parametrize("file", READY, ids=lambda file: file.stem)
def test_a_ready_pipeline_fits_with_the_overrides_of_its_page(check: Any, file: Path) -> None:
    (overrides,) = ([word for word in words if "=" in word] for words in commands() if words[1].endswith(file.name))
    models, prompts = {"/shared/models/student": str(CLUSTER / "models" / "Qwen3-1.7B")}, {"longest_tokens": 128}
    code, said = check(file, {}, *overrides, models=models, prompts=prompts | {"heldout": 30})
    assert code == 0, said
    assert said.count("the described cluster can hold it") == len(load_tree(file)["stages"])
    assert "tight: " not in said and "rollout x 4" in said and "learner x 2" in said, said


def test_a_large_recipe_lies_as_its_placement_says(check: Any) -> None:
    _, said = check("opd_8b_32b", "four_nodes")
    for line in (
        "8190.7 M parameters, 15623 MiB a weight version, 40960 positions",
        "gpu-0: learner x 8 (64 of 128 CPU, 8 of 8 GPU)",
        "gpu-1: rollout x 4, scorer.teacher x 1 (40 of 128 CPU, 8 of 8 GPU)",
        "gpu-2: rollout x 4, scorer.teacher x 1",
        "gpu-3: rollout x 8",
        "head-0: reward x 2",
        # a quarter of 32.8 B in bf16; 64 layers x 2 x 8 heads x 128 x 18,432 tokens / 4
        "weights of 15.3 GiB and the KV cache of one response, 1152.0 MiB, take 16.4 GiB of GPU 0 of gpu-1",
        # ZeRO-2 of 8.19 B over 8 ranks: 2 + (12 + 4) / 8 bytes a parameter
        "GPU 0 of gpu-0 holds at least 30.5 GiB (learner 30.5 GiB); it has 79.0 GiB",
        "8 weight files of 15.3 GiB and 15.3 GiB in the object store take 137.3 GiB of /dev/shm on gpu-3; 512.0 GiB",
    ):
        assert line in said, said


AUTO = ("rollout.max_concurrent=auto", "scorer.teacher.tokens_per_batch=auto", "batch.tokens_per_microbatch=auto")


@pytest.mark.parametrize("gib", [24, 48, 80, 141])
def test_numbers_that_follow_from_memory_are_said_for_the_gpus_there(check: Any, gib: int) -> None:
    _, said = check("opd_1.7b_8b", {"gpu_memory_gib": gib}, *AUTO)
    for key in AUTO:
        (line,) = re.findall(rf"{key.removesuffix('=auto')}: (\d+): ({0.9 * gib:.1f}) GiB of a GPU less", said)
        assert int(line[0]) >= 1
    _, said = check("opd_1.7b_8b", {"gpu_memory_gib": gib})
    assert "of a GPU less" not in said, "the recipe's own numbers"


KINDS = (
    "rollout.members=2",
    "rollout.kinds={wide: {tensor_parallel: 2, max_concurrent: auto, resources: {gpus: 2, labels: {card: h200}}}}",
    "scorer.teacher.members=1",
    "scorer.teacher.kinds={large: {members: 2, tensor_parallel: 2, tokens_per_batch: auto, resources: "
    "{gpus: 2, labels: {card: h200}}}}",
)


def two_kinds_of_nodes(**large: Any) -> list[dict[str, Any]]:
    small = SPEC["nodes"][0] | {"gpus": 6}
    return [small, small | {"name": "large", "gpus": 6, "gpu_memory_gib": 141, "labels": {"card": "h200"}} | large]


def test_members_of_two_kinds_lie_on_two_kinds_of_nodes(check: Any) -> None:
    code, said = check("opd_1.7b_8b", {}, *KINDS, "learner.ranks=3", nodes=two_kinds_of_nodes())
    assert code == 0 and "the described cluster can hold it" in said, said
    for line in (
        "gpu-0: rollout x 2, scorer.teacher x 1, reward",
        "large-0: rollout.kinds.wide x 1, scorer.teacher.kinds.large x 2 (",
        "6 of 6 GPU)",
        "the layout takes 12 GPU (rollout 2 x 1, rollout.kinds.wide 1 x 2, scorer.teacher 1 x 1, scorer.teacher.kinds.",
        "rollout.kinds.wide.max_concurrent: 449: 253.8 GiB of a GPU less",
        "scorer.teacher.kinds.large.tokens_per_batch: 16384: 253.8 GiB of a GPU less",
        "rollout.kinds.wide.gpu_memory_fraction: weights of",
        "of large-0",
    ):
        assert line in said, (line, said)


@pytest.mark.parametrize(
    ("large", "line"),
    [
        ({"labels": {}}, "rollout.kinds.wide takes bundles of 6 CPU and 2 GPU, each on one node with {'card': 'h200'}"),
        ({"gpus": 5, "count": 1}, "the layout takes 12 GPU"),
        ({"count": 2, "gpus": 3}, "found no place beside the others"),
        ({"gpu_memory_gib": 4}, "scorer.teacher.kinds.large.gpu_memory_fraction: weights of 7811.3 MiB"),
    ],
)
def test_what_a_kind_lacks_is_said_under_its_name(check: Any, large: dict[str, Any], line: str) -> None:
    code, said = check("opd_1.7b_8b", {}, *KINDS, "learner.ranks=3", nodes=two_kinds_of_nodes(**large))
    assert code == 2 and line in said, said


def test_a_large_recipe_does_not_fit_one_node(check: Any) -> None:
    code, said = check("opd_8b_32b", {}, models={path: str(CLUSTER / "models" / Path(path).name) for path in LARGE})
    assert code == 2 and "can hold it" not in said
    assert "the layout takes 32 GPU (rollout 16 x 1, scorer.teacher 2 x 4, learner 8 x 1); the cluster has 8" in said
    assert "24 short; lower rollout.members" in said


LARGE = ("/shared/models/Qwen3-8B", "/shared/models/Qwen3-32B")


@pytest.mark.parametrize(
    ("node", "overrides", "lines"),
    [
        ({"gpus": 6}, (), ["the layout takes 8 GPU", "the cluster has 6 on 1 node: 2 short; lower rollout.members"]),
        (
            {"gpu_memory_gib": 16},
            (),
            [
                "weights of 15.3 GiB and the KV cache of one response, 720.0 MiB, take 16.0 GiB",
                "its part (0.9) has 14.4 GiB",
                "holds at least 16.0 GiB (learner 16.0 GiB)",
            ],
        ),
        ({"shared_memory_gib": 16}, (), ["take 19.4 GiB of /dev/shm on gpu-0; 16.0 GiB are free"]),
        ({"object_store_gib": 6}, (), ["6707.9 MiB on gpu-0; its object store has 6144.0 MiB"]),
        (
            {},
            ("rollout.resources.labels={zone: a}",),
            ["rollout takes bundles of 6 CPU and 1 GPU, each on one node with {'zone': 'a'}; no node has these labels"],
        ),
        (
            {"resources": {"nvme": 1}},
            ("scorer.teacher.resources.custom={nvme: 1}",),
            ["the layout takes 2 nvme (scorer.teacher 2 x 1); the cluster has 1 on 1 node: 1 short"],
        ),
        (
            {"count": 2, "gpus": 4, "max_count": 2},
            ("learner.ranks=5", "rollout.members=1"),
            ["learner takes bundles of 8 CPU and 1 GPU, each on one node, placed strict_pack; 5 of 10 bundles found"],
        ),
    ],
)
def test_what_is_short_is_said_in_numbers(
    check: Any, node: dict[str, Any], overrides: tuple[str, ...], lines: list[str]
) -> None:
    code, said = check("opd_1.7b_8b", node, *overrides)
    assert code == 2, said
    for line in lines:
        assert line in said, said


def test_engines_in_turns_count_against_a_gpu_in_their_own_turn(check: Any) -> None:
    code, said = check("opd_1.7b_8b_colocated", {}, "scorer.teacher.gpu_memory_fraction=0.65")
    assert code == 2 and "GPU 0 of gpu-0 holds at least 82.9 GiB (rollout 31.6 GiB, scorer.teacher 51.3 GiB)" in said
    code, said = check("opd_1.7b_8b_colocated", {"gpu_memory_gib": 50})
    assert code == 0 and "(learner 6563.5 MiB)" in said, "the learner's states are there in its own turn alone: " + said


def test_nodes_that_an_autoscaler_may_add_are_tight(check: Any) -> None:
    grown = ("rollout.members=12", "autoscale={rollout: {min: 1, max: 20}}")
    code, said = check("opd_1.7b_8b", {"max_count": 2}, *grown)
    assert code == 0, said
    assert "tight: rollout.resources.gpus: the layout takes 16 GPU" in said and "and may grow to 16" in said
    assert "tight: nodes: the layout takes 1 node more: gpu-1; an autoscaler may add them" in said
    assert "tight: autoscale: at the maxima the layout takes 26 bundles; 8 of them (rollout) found no place" in said


@pytest.mark.parametrize(
    ("node", "changes", "line"),
    [
        ({}, {"models": {}}, "models.student.path: /shared/models/Qwen3-1.7B is not on this machine; name a folder"),
        ({}, {"prompts": None}, "cluster spec: prompts: missing; without the models' tokenizers prompts are described"),
        ({}, {"prompts": {"longest_tokens": 1025}}, "take 5121; raise the limit"),
        ({}, {"models": {path: "/none" for path in SPEC["models"]}}, "/none has no config.json"),
        ({"gpu_memory_gib": None}, {}, "nodes.0: has gpus; add gpu_memory_gib"),
        ({"max_count": 0}, {}, "nodes.0.max_count: 0 is wrong: input should be greater than 0"),
        ({"gpu": 8}, {}, "nodes.0.gpu: unknown key; allowed: name, count, max_count, cpus, gpus"),
        ({}, {"nodes": []}, "nodes: [] is wrong"),
    ],
)
def test_what_cannot_be_read_must_be_described(
    check: Any, node: dict[str, Any], changes: dict[str, Any], line: str
) -> None:
    code, said = check("opd_1.7b_8b", node, **changes)
    assert code == 2 and line in said, said


def test_files_that_are_here_are_read(
    check: Any, models: dict[str, Path], prompts: dict[str, Path], tmp_path: Path
) -> None:
    recipe = {
        "run": {"name": "described", "root": "/shared/runs", "steps": 1},
        "models": {"student": {"path": str(models["student"])}, "teacher": {"path": str(models["teacher"])}},
        "data": {"prompts": str(prompts["train"])},
        "batch": {"prompts_per_step": 2},
        "sampling": {"max_response_tokens": 8},
        "objective": {"target": "teacher"},
        "learner": {"optimizer": {"lr": 0.1}},
        "rollout": {"max_context_tokens": 64},
        "scorer": {"teacher": {"max_context_tokens": 64}},
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    code, said = check(file, {}, models={}, prompts=None)
    assert code == 0 and "not checked" not in said, said
    recipe["data"]["prompts"] = str(tmp_path / "none.jsonl")
    file.write_text(yaml.safe_dump(recipe))
    code, said = check(file, {}, models={}, prompts=None)
    assert code == 2 and "none.jsonl" in said, said


def test_of_scorers_that_take_turns_one_counts_against_a_gpu_at_a_time(check: Any) -> None:
    def of(turns: str = "") -> tuple[int, str]:
        scorer = f"engine: vllm, members: 2, max_context_tokens: 5120, max_queued_tokens: 4194304{turns}"
        second = "models.other={path: /shared/models/Qwen3-8B}", "objective.target={teacher: 0.5, other: 0.5}"
        shares = {"teacher": 0.6, "other": 0.4}
        scorers = (f"scorer.{name}={{{scorer}, resources: {{gpus: {share}}}}}" for name, share in shares.items())
        return check("opd_1.7b_8b", {}, *second, *scorers)

    code, said = of()
    assert code == 2 and "142.2 GiB (scorer.teacher 71.1 GiB, scorer.other 71.1 GiB)" in said, said
    code, said = of(", turns: teachers")
    assert code == 0 and "holds at least 71.1 GiB (scorer." in said, said


def test_a_gpu_that_holds_one_of_the_scorers_in_turns_is_counted(check: Any) -> None:
    """Two members of one scorer beside one of the other: a GPU of three is the teacher's alone."""
    scorer = "engine: vllm, max_context_tokens: 5120, max_queued_tokens: 4194304, turns: teachers"
    code, said = check(
        "opd_1.7b_8b",
        {},
        "models.other={path: /shared/models/Qwen3-8B}",
        "objective.target={teacher: 0.5, other: 0.5}",
        f"scorer.teacher={{{scorer}, members: 2, resources: {{gpus: 0.6}}}}",
        f"scorer.other={{{scorer}, members: 1, resources: {{gpus: 0.4}}}}",
    )
    assert code == 0 and "holds at least 71.1 GiB (scorer." in said, said
