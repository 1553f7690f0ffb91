"""A scorer that asks a real vLLM server: its scores are those of the torch engine, alone and in a whole run."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from actors.scoring.engine import Item
from actors.scoring.scorer import Scorer
from actors.wire.records import ScoreRequest
from configs.roles.scorer import Scorer as ScorerConfig
from configs.roles.scorer import Server
from tests.contributing.pages import ROOT
from tests.processes import alive, descendants

K, CONTEXT = 8, 96

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Serving:
    address: str
    key_file: Path
    model: Path


@pytest.fixture(scope="module")
def server(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """vLLM's own server on loopback with the tests' teacher and a key."""
    folder = tmp_path_factory.mktemp("server")
    key, log = secrets.token_urlsafe(), folder / "log"
    (folder / "key").write_text(key)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(models["teacher"])]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", str(CONTEXT + 1), "--max-logprobs", str(K), "--served-model-name", "teacher"]
    quiet = {"VLLM_API_KEY": key, "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=folder, env=os.environ | quiet, stdout=out, stderr=out)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(address, process, log)
        yield Serving(address, folder / "key", models["teacher"])
    finally:
        under = descendants(process.pid)
        process.terminate()
        process.wait(60)
        for pid in alive(under):
            os.kill(pid, signal.SIGKILL)


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(f"{address}/health", timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])


def test_its_scores_are_those_of_the_torch_engine(server: Serving) -> None:
    keys = Server(address=server.address, token_file=str(server.key_file))
    rng = np.random.default_rng(5)
    items = [
        Item(str(n), rng.integers(5, 60, 1 + n).tolist(), rng.integers(5, 60, 3 + 2 * n).tolist(), 0, True, [])
        for n in range(6)
    ]

    async def scores(config: ScorerConfig, request: ScoreRequest) -> Any:
        scorer = Scorer(config, str(server.model), _width(server.model))
        await scorer.start()
        try:
            assert scorer._engine is not None
            return await scorer._engine.score(items, request)
        finally:
            await scorer.stop()

    elsewhere = ScorerConfig(engine="server", server=keys, dtype="float32", max_context_tokens=CONTEXT)
    here = ScorerConfig(engine="torch", dtype="float32", max_context_tokens=CONTEXT)
    for request in (ScoreRequest("sampled"), ScoreRequest("topk", topk=K)):
        for asked, ours in zip(*(asyncio.run(scores(c, request)) for c in (elsewhere, here)), strict=True):
            assert asked.logprobs == pytest.approx(ours.logprobs, abs=1e-4)
            if request.support == "topk":
                assert np.array_equal(asked.support_ids, ours.support_ids)
                assert asked.support_logprobs == pytest.approx(ours.support_logprobs, abs=2e-3)
                assert asked.tail_logprob == pytest.approx(ours.tail_logprob, abs=1e-3)


def _width(model: Path) -> int:
    return json.loads((model / "config.json").read_text())["vocab_size"]


def test_a_run_is_taught_by_a_teacher_whose_weights_are_not_here(
    server: Serving, models: dict[str, Path], prompts: dict[str, Path], tmp_path: Path
) -> None:
    described = tmp_path / "teacher"
    described.mkdir()
    for file in server.model.iterdir():
        if file.suffix != ".safetensors":
            (described / file.name).write_bytes(file.read_bytes())
    small = {"cpus": 0.1, "threads": 1}
    tree = {
        "run": {"name": "taught", "root": str(tmp_path), "steps": 24},
        "models": {"student": {"path": str(models["student"])}, "teacher": {"path": str(described)}},
        "data": {"prompts": str(prompts["train"]), "heldout": str(prompts["heldout"])},
        "batch": {"prompts_per_step": 4},
        "sampling": {"max_response_tokens": 12},
        "objective": {"target": "teacher", "support": "topk", "topk": K},
        "learner": {"optimizer": {"lr": 0.02}, "resources": small},
        "rollout": {"max_context_tokens": CONTEXT, "resources": small},
        "scorer": {
            "teacher": {
                "engine": "server",
                "server": {"address": server.address, "token_file": str(server.key_file)},
                "max_context_tokens": CONTEXT,
                "resources": small,
            }
        },
        "metrics": {"trackers": []},
        "cluster": {"dashboard": False},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "orchestrator.cli", "run", str(tmp_path / "recipe.yaml")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400.0, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-2000:]
    run, key = tmp_path / "taught", server.key_file.read_text()
    evaluation = json.loads((run / "summary.json").read_text())["evaluation"]
    assert evaluation["after"]["reverse_kl"] < 0.9 * evaluation["before"]["reverse_kl"]
    assert key not in ended.stdout + ended.stderr
    assert not [f for f in run.rglob("*") if f.is_file() and key.encode() in f.read_bytes()]
