"""A rollout member that takes versions from the learner's GPU, with a recorded engine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from actors.rollout.rollout import Rollout
from actors.transfer.layout import Layout
from actors.transfer.patience import TransferBroken
from actors.wire.records import BadWeights
from configs.roles.rollout import Rollout as RolloutConfig

LAYOUT = Layout(("w",), ("float32",), ((2, 3),))


class Engine:
    """vLLM's AsyncLLM, as far as a member calls it. `fails`: an error of its workers."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.calls: list[str] = []
        self._fails = fails

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any, **kwargs: Any) -> bool:
            method = args[0] if name == "collective_rpc" else name
            self.calls.append(method)
            if self._fails and method in ("receive_version", "read_shared"):
                raise self._fails
            return True

        return call


@pytest.fixture(autouse=True)
def _model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The member's own files hold one tensor, [2, 3]."""
    from actors.models import weights

    stored = type("Stored", (), {"tensors": {"w": (2, 3)}})
    monkeypatch.setattr(weights, "stored", lambda directory: stored)


def member(engine: Engine, **changes: Any) -> Rollout:
    made = Rollout(RolloutConfig(carrier="nccl", **changes), "/none", "/none")
    made._engine = engine
    return made


def test_a_version_is_taken_between_two_decoding_steps() -> None:
    for method, rest in (("receive", 60.0), ("load_shared", {})):
        engine = Engine()
        made = member(engine)
        assert asyncio.run(getattr(made, method)(7, LAYOUT, rest)) == 7 and made._version == 7
        first, read, *after = engine.calls
        assert first == "pause_generation" and read in ("receive_version", "read_shared")
        assert after == ["reset_prefix_cache", "update_weight_version", "resume_generation"]


def test_another_models_weights_are_refused_before_the_engine_is_touched() -> None:
    engine = Engine()
    for layout in (Layout(("w",), ("float32",), ((3, 2),)), Layout((), (), ())):
        with pytest.raises(BadWeights, match="same model"):
            asyncio.run(member(engine).receive(7, layout, 60.0))
    assert not engine.calls


def test_an_engine_that_holds_half_a_version_is_never_used_again() -> None:
    async def story() -> None:
        engine = Engine(TransferBroken("the other end did not go on"))
        made = member(engine)
        with pytest.raises(TransferBroken):
            await made.receive(7, LAYOUT, 60.0)
        assert made._version == 0 and "resume_generation" not in engine.calls
        for again in (
            made.receive(7, LAYOUT, 60.0),
            made.join_group("id", 1, 3, 60.0),
            made.load_shared(8, LAYOUT, {}),
        ):
            with pytest.raises(RuntimeError, match=r"holds half a version .*did not go on"):
                await again

    asyncio.run(story())


@pytest.mark.parametrize(
    ("carrier", "backend"), [("object_store", None), ("ipc", "ipc"), ("nccl", "nccl"), ("a:B", None)]
)
def test_vllm_has_the_backend_that_the_recipe_names(carrier: str, backend: str | None, tmp_path: Path) -> None:
    options = Rollout(RolloutConfig(carrier=carrier), "/none", "/none")._transfer_options()
    assert options == ({} if backend is None else {"weight_transfer_config": {"backend": backend}})
