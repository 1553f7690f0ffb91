"""Shared by all tests: the tiny models, and one Ray cluster with its engines for every test that needs real ones."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from orchestrator.preflight import cluster
from tests import tiny

cluster.prepare_local()  # before any test module imports ray

# a machine that others use too makes inputs slowly now and then: that is no fault of a test
hypothesis.settings.register_profile("shared", suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("shared")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """student and teacher share a tokenizer; `wide` has more padding, `foreign` another tokenizer."""
    root = tmp_path_factory.mktemp("models")
    return {
        "student": tiny.build_model(root / "student", seed=0, tied=True),  # as small models are
        "teacher": tiny.build_model(root / "teacher", seed=1),
        "wide": tiny.build_model(root / "wide", seed=1, padding=9),
        "poet": tiny.build_model(root / "poet", seed=2),
        "reward": tiny.build_reward_model(root / "reward", seed=3),
        "foreign": tiny.build_model(root / "foreign", seed=0, extra_token="<extra>"),
    }


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("prompts")
    return {
        "train": tiny.write_prompts(root / "train.jsonl", 24),
        "heldout": tiny.write_prompts(root / "heldout.jsonl", 4),
        "data": tiny.write_prompts(root / "data.jsonl", 24, response=True),
        "heldout_data": tiny.write_prompts(root / "heldout_data.jsonl", 4, response=True),
    }


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    """One event loop for all tests that share engines."""
    with asyncio.Runner() as shared:
        yield shared


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    cluster.start_local(cpus=16, object_store_mib=256)
    yield
    import ray

    ray.shutdown()


@pytest.fixture(scope="session")
def ranks(
    ray_cluster: None,
    runner: asyncio.Runner,
    models: dict[str, Path],
    prompts: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """Runs on learners of their own, whose ranks can be struck; nothing is started yet."""
    from tests.engines.ranks import Ranks

    return Ranks(models, prompts, tmp_path_factory.mktemp("ranks"), runner)


@pytest.fixture(scope="session")
def engines(
    ray_cluster: None,
    runner: asyncio.Runner,
    models: dict[str, Path],
    prompts: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """Two vLLM rollouts, two torch scorers, a vLLM scorer, and learners of one and of two ranks; started once."""
    from tests.engines.shared import Engines

    shared = Engines(models, prompts, tmp_path_factory.mktemp("engines"), runner)
    shared.start()
    yield shared
    shared.stop()
