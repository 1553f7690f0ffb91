"""A ready pipeline on tiny models and real engines: killed in its second stage, resumed, better in each, exported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from configs.roles.sizes import Resources
from orchestrator.pools.layout import environment
from tests.cli.test_kill_and_resume import _lines, _logratio, _wait_for
from tests.contributing.pages import ROOT
from tests.processes import alive, descendants

PIPELINES = ROOT / "configs" / "pipelines"
LETTERS = (
    "[" + ", ".join(f"{{kind: regex, text: {letter}, weight: 0.25}}" for letter in "abcdefghijklmnopqrstuvwxyz") + "]"
)


def overrides(models: dict[str, Path], prompts: dict[str, Path], root: Path, name: str) -> list[str]:
    """A ready recipe on the tests' models and prompts. What a random model can learn to earn is letters."""
    small = {"cpus": 0.1, "threads": 1}
    common = {
        "run.root": root,
        "run.seed": 3,
        "models.student.path": models["student"],
        "models.teacher.path": models["teacher"],
        "data.prompts": prompts["train"],
        "data.heldout": prompts["heldout"],
        "evaluate.samples_per_prompt": 8,
        "sampling.max_response_tokens": 12,
        "learner.optimizer.lr": 1e-2,
        "learner.tokens_per_chunk": 16,
        "cluster.dashboard": "false",
        "metrics.trackers": "[]",
        "checkpoint.every": 4,
    } | {f"{role}.resources": json.dumps(small) for role in ("rollout", "learner", "scorer.teacher")}
    own = {
        "sft_rl_opd": {
            "stages.sft.data.prompts": prompts["data"],
            "stages.sft.run.steps": 10,
            "stages.rl.run.steps": 12,
            "stages.rl.run.stop": "[]",
            "stages.rl.learner.optimizer.lr": 1e-2,
            "stages.rl.reward.rules": LETTERS,
            "stages.opd.run.steps": 10,
            "stages.opd.learner": "{optimizer: {lr: 5.0e-3}}",
        }
    }
    return [f"{key}={value}" for key, value in (common | own[name]).items()]


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.acceptance  # minutes of three stages on real engines, started twice
@pytest.mark.timeout(1200)
def test_sft_rl_opd_killed_in_its_second_stage(
    models: dict[str, Path], prompts: dict[str, Path], tmp_path: Path
) -> None:
    directory = tmp_path / "sft_rl_opd"
    runs = {stage: directory / f"sft_rl_opd-0{n}-{stage}" for n, stage in enumerate(("sft", "rl", "opd"), 1)}
    command = ["run", str(PIPELINES / "sft_rl_opd.yaml"), *overrides(models, prompts, tmp_path, "sft_rl_opd")]
    driver = _logratio(*command)
    _wait_for(lambda: len(_lines(runs["rl"])) >= 6, driver, 500.0)
    session = descendants(driver.pid)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    _wait_for(lambda: not alive(session))
    sft = {file: file.stat().st_mtime_ns for file in runs["sft"].rglob("*")}
    resumed = _logratio("resume", str(directory))
    output, _ = resumed.communicate(timeout=600)
    assert resumed.returncode == 0, output
    assert sft == {file: file.stat().st_mtime_ns for file in runs["sft"].rglob("*")}, "an earlier stage is not touched"
    assert output.splitlines().count("starting the engines") == 2, "of rl and of opd"
    assert [stage["exit"] for stage in summary(directory)["stages"]] == [0, 0, 0]
    assert [line["step"] for line in _lines(runs["rl"])] == list(range(1, 13))

    losses = [line["loss"] for line in _lines(runs["sft"])]
    assert sum(losses[-2:]) < 0.9 * sum(losses[:2]), losses
    rewards = [line["reward_mean"] for line in _lines(runs["rl"])]
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 3 * 0.05, rewards
    before, after = (summary(runs["opd"])["evaluation"][when]["reverse_kl"] for when in ("before", "after"))
    assert after < 0.8 * before, (before, after)

    out = tmp_path / "out"
    exported = _logratio("export", str(directory), str(out))
    said, _ = exported.communicate(timeout=120)
    assert exported.returncode == 0, said
    assert (out / "README.md").read_text().index("### sft_rl_opd-01-sft") > 0
    loaded = subprocess.run(
        [sys.executable, "-c", VLLM, str(out)],
        env=os.environ | environment(Resources(threads=1)),
        capture_output=True,
        text=True,
        timeout=300.0,
        check=False,
    )
    assert loaded.returncode == 0 and "8 tokens" in loaded.stdout, loaded.stderr[-2000:]


VLLM = """
import sys
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    model = LLM(sys.argv[1], max_model_len=64, enforce_eager=True, dtype="float32", distributed_executor_backend="uni")
    answer = model.generate(["say 1"], SamplingParams(max_tokens=8, ignore_eos=True))
    print(len(answer[0].outputs[0].token_ids), "tokens")
"""
