"""The control file by which commands find a run; what a cluster must give it beside resources."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from configs.load import RecipeError, parse_recipe
from configs.roles.sizes import Resources
from orchestrator.pools.layout import environment
from orchestrator.preflight import cluster, survey
from orchestrator.preflight.environment import job_warnings
from tests.unit.recipes import SMALLEST


def test_a_control_file_is_absent_or_whole_with_mode_600(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    write_text = Path.write_text

    def watched(file: Path, text: str, **how: Any) -> int:
        seen.append((tmp_path / cluster.CONTROL_FILE).exists())
        assert file.stat().st_mode & 0o777 == 0o600
        return write_text(file, text, **how)

    context = SimpleNamespace(gcs_address="127.0.0.1:6379")
    monkeypatch.setattr(cluster, "_ray", lambda: SimpleNamespace(get_runtime_context=lambda: context))
    monkeypatch.setattr(Path, "write_text", watched)
    (tmp_path / f"{cluster.CONTROL_FILE}.partial").touch(mode=0o644)  # as a kill leaves it, and an umask
    cluster._write_control(tmp_path)
    assert seen == [False]
    control = tmp_path / cluster.CONTROL_FILE
    assert json.loads(control.read_text())["address"] == "127.0.0.1:6379" and control.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == [cluster.CONTROL_FILE]


def test_a_folder_counts_as_shared_only_if_what_a_node_writes_there_is_seen_here(tmp_path: Path) -> None:
    offered = {"NodeManagerAddress": "10.0.0.7", "NodeID": "ab" * 16, "Resources": {"CPU": 4.0}, "Labels": {}}
    probe = survey._probe(str(tmp_path), offered["NodeID"])
    answer = replace(survey._free_there(str(tmp_path), probe), memory=1)
    assert survey._is_there(probe) and not list(tmp_path.iterdir()), "the probe is gone once it was seen"
    assert survey._machine(offered, answer, True).free == answer and answer.disk
    assert not survey._is_there(probe, seconds=0.0)
    elsewhere = survey._free_there(str(tmp_path), survey._probe(str(tmp_path / "none"), offered["NodeID"]))
    alone = survey._machine(offered, elsewhere, survey._shown(elsewhere, probe)).free
    assert elsewhere.disk and alone and alone.disk is None and "No such file" in alone.unwritten


def test_a_job_is_warned_if_ray_would_kill_it_before_its_checkpoint() -> None:
    job = {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}
    recipe = parse_recipe(SMALLEST)
    assert job_warnings(recipe, {}) == [], "no Ray job"
    (line,) = job_warnings(recipe, job)
    assert "Ray kills a job 3 s after" in line and "RAY_JOB_STOP_WAIT_TIME_S=30" in line
    assert job_warnings(recipe, job | {"RAY_JOB_STOP_WAIT_TIME_S": "30"}) == []


def test_a_cluster_and_its_members_report_no_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    with monkeypatch.context() as prepared:
        prepared.setattr(os, "environ", dict(os.environ))
        cluster.prepare_local()
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0" and os.environ["RAY_AUTH_MODE"] == "token"
    assert environment(Resources())["VLLM_NO_USAGE_STATS"] == "1"


class Broken(Exception):
    """What a Ray raises that has no better word for it."""


def unstartable(**_: Any) -> None:
    raise Broken("GCS\ndid not come up")


def test_a_ray_that_does_not_start_is_bad_input_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_ray", lambda: SimpleNamespace(init=unstartable))
    monkeypatch.setattr(cluster, "prepare_local", lambda dashboard: None)
    with pytest.raises(RecipeError, match=r"^Ray does not start on this machine: GCS$") as raised:
        cluster.start_local(1, None)
    assert "\n" not in str(raised.value)


def test_a_run_whose_ray_cannot_be_joined_is_said_not_to_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = SimpleNamespace(init=unstartable, is_initialized=lambda: False, shutdown=lambda: None)
    monkeypatch.setattr(cluster, "_ray", lambda: ray)
    monkeypatch.setattr(cluster, "_prepare_to_join", lambda address: None)
    with pytest.raises(RecipeError, match=rf"^{tmp_path} does not answer \(GCS\).*resume") as raised:
        cluster._control_at("127.0.0.1:1", tmp_path)
    assert "\n" not in str(raised.value)
