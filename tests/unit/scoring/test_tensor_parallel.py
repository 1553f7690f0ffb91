"""vLLM is asked for one engine on several GPUs, by rollouts and scorers alike. vLLM itself is a stand-in."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from actors.rollout.rollout import Rollout
from actors.scoring.vllm_engine import VllmEngine
from configs.roles.rollout import Rollout as RolloutConfig
from configs.roles.scorer import Scorer as ScorerConfig


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of the engines that are built."""
    found: list[dict[str, Any]] = []

    async def done(*args: Any, **kwargs: Any) -> None: ...

    def build(arguments: dict[str, Any], stat_loggers: list[Any]) -> SimpleNamespace:
        found.append(arguments)
        return SimpleNamespace(collective_rpc=done, update_weight_version=done)

    monkeypatch.setenv("RAY_enable_metrics_collection", "0")  # its loggers are vLLM's own
    modules = {name: ModuleType(name) for name in ("vllm", "vllm.v1", "vllm.v1.engine", "vllm.v1.engine.async_llm")}
    modules["vllm"].AsyncEngineArgs = dict  # type: ignore[attr-defined]
    modules["vllm.v1.engine.async_llm"].AsyncLLM = SimpleNamespace(from_engine_args=build)  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return found


@pytest.mark.parametrize(("parallel", "backend"), [(1, "uni"), (4, "mp")])
def test_rollouts_and_scorers_split_an_engine_alike(
    asked: list[dict[str, Any]], tmp_path: Path, parallel: int, backend: str
) -> None:
    """One worker lives in the engine's process; several are processes, one a GPU."""
    split: Any = {"tensor_parallel": parallel, "resources": {"gpus": parallel}, "dtype": "bfloat16"}
    asyncio.run(Rollout(RolloutConfig.model_validate(split), "/model", str(tmp_path)).start())
    asyncio.run(VllmEngine.start(ScorerConfig.model_validate(split | {"engine": "vllm"}), Path("/model")))
    for arguments in asked:
        assert (arguments["tensor_parallel_size"], arguments["distributed_executor_backend"]) == (parallel, backend)
        assert arguments["gpu_memory_utilization"] == 0.9 and arguments["enable_sleep_mode"]
    assert len(asked) == 2
