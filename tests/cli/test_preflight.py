"""`check --cluster` against a real cluster: what Ray and its node say, and the exit codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.hardware import resolve_dtypes
from configs.load import parse_recipe
from orchestrator.preflight import capacity, files
from orchestrator.preflight.survey import Survey, reserve, survey_cluster
from tests.cli.test_kill_and_resume import _logratio

MIB = 2**20


@pytest.fixture
def recipe(models: dict[str, Path], prompts: dict[str, Path], tmp_path: Path) -> dict[str, Any]:
    small = {"cpus": 0.01}
    return {
        "run": {"name": "checked", "root": str(tmp_path), "steps": 1},
        "models": {"student": {"path": str(models["student"])}, "teacher": {"path": str(models["teacher"])}},
        "data": {"prompts": str(prompts["train"])},
        "batch": {"prompts_per_step": 2},
        "sampling": {"max_response_tokens": 8},
        "objective": {"target": "teacher", "support": "full"},
        "learner": {"optimizer": {"lr": 0.1}, "resources": small},
        "rollout": {"max_context_tokens": 64, "resources": small},
        "scorer": {"teacher": {"max_context_tokens": 64, "resources": small}},
        "reward": {"resources": small},
    }


def _found(tree: dict[str, Any], survey: Survey) -> list[capacity.Comparison]:
    recipe = resolve_dtypes(parse_recipe(tree), cpu_has_bf16=False)
    placed = reserve(capacity.bundles_of(recipe), seconds=3.0)
    return capacity.compare(recipe, files.read_inputs(recipe).extent, capacity.read_sizes(recipe), survey, placed)


def test_a_clusters_node_says_what_it_has(ray_cluster: None, recipe: dict[str, Any], tmp_path: Path) -> None:
    import ray

    (tmp_path / "checkpoint").write_bytes(bytes(1000))
    survey, before = survey_cluster(tmp_path), living()
    (node,) = survey.machines
    assert (node.node.cpus, node.node.gpus, node.object_store) == (16, 0, 256 * MIB)
    assert node.free is not None and node.free.disk is not None, node.silent
    assert node.free.memory > 0 and node.free.disk > 0 and survey.held == 1000 and survey.idle["CPU"] <= 16
    assert not [finding.line for finding in _found(recipe, survey) if finding.grade == "short"]

    here = {"ray.io/node-id": ray.nodes()[0]["NodeID"]}
    recipe["rollout"]["resources"] = {"cpus": 0.01, "labels": here}
    assert not [finding.line for finding in _found(recipe, survey) if finding.grade == "short"]
    recipe["rollout"]["resources"] = {"cpus": 0.01, "labels": {"ray.io/node-id": "another"}}
    assert [finding.key for finding in _found(recipe, survey) if finding.grade == "short"] == ["rollout.resources"]
    assert living() == before, "nothing stays reserved"


def living() -> set[str]:
    """Placement groups that reserve something, or wait to."""
    from ray.util import placement_group_table

    return {name for name, group in placement_group_table().items() if group["state"] != "REMOVED"}


def test_check_joins_a_cluster_lists_what_fits_and_refuses_what_does_not(
    ray_cluster: None, recipe: dict[str, Any], tmp_path: Path
) -> None:
    import ray

    file, address = tmp_path / "recipe.yaml", ray.get_runtime_context().gcs_address
    file.write_text(yaml.safe_dump(recipe))
    fitting, short = (
        _logratio("check", str(file), "--cluster", f"cluster.address={address}", *overrides)
        for overrides in ((), ("rollout.members=3000", "checkpoint.keep=1000000000"))
    )
    output, _ = fitting.communicate(timeout=60)
    assert fitting.returncode == 0 and "the cluster can hold it" in output, output
    assert "fits: models: student, teacher share 259 tokens and the end tokens" in output, output
    assert "fits: run.root: 2 checkpoints" in output and "fits: cluster.object_store_mib" in output, output

    output, _ = short.communicate(timeout=60)
    refused = [line for line in output.splitlines() if line.startswith("logratio: ")]
    assert short.returncode == 2 and len(refused) == 2, output
    assert "30.03 CPU" in refused[0] and "the cluster has 16 on 1 node: 14.03 short" in refused[0]
    assert "1000000001 checkpoints of" in refused[1] and "the cluster can hold it" not in output
