"""How a weight version gets from a member into its vLLM engine: whole, as an adapter, or as an adapter that is merged.

A file in shared memory carries it, because vLLM's workers may be other processes.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from configs.roles.lora import Lora

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM reserves room for
NAME, NUMBER = "student", 1


def delivery(model: Path, lora: Lora | None, gpus: float) -> Whole:
    """The delivery of versions to an engine that was built of the directory `model`."""
    if lora is None:
        return Whole(model)
    return Merged(model, lora) if lora.merges(gpus) else AsAdapter(model, lora)


@dataclass(frozen=True)
class Whole:
    """All weights, reloaded in place."""

    model: Path

    @property
    def engine_options(self) -> dict[str, Any]:
        """For vLLM's engine arguments."""
        return {}

    @property
    def request_options(self) -> dict[str, Any]:
        """For each request."""
        return {}

    def write(self, headers: Sequence[Any], buckets: Sequence[np.ndarray], path: Path) -> None:
        """Check a version and write it to `path`. Raises BadWeights. Not on an event loop."""
        from actors.models.weights import write_shared

        write_shared(self._tensors(headers, buckets), path)

    async def read(self, engine: Any, path: Path) -> None:
        """Have the engine's workers load it. Generation is paused."""
        await engine.collective_rpc("load_version", args=(str(path),))

    def remove(self, path: Path) -> None:
        """Remove what `write` wrote, if anything."""
        path.unlink(missing_ok=True)

    def _tensors(self, headers: Sequence[Any], buckets: Sequence[np.ndarray]) -> dict[str, Tensor]:
        from actors.models.weights import checked

        return checked(headers, buckets, self.model)


@dataclass(frozen=True)
class Merged(Whole):
    """Adapters, merged into the weights of the directory here: vLLM's LoRA layers copy the adapter for every token on a
    CPU."""

    lora: Lora

    def _tensors(self, headers: Sequence[Any], buckets: Sequence[np.ndarray]) -> dict[str, Tensor]:
        from actors.lora.wire import adapter, whole

        return whole(adapter(headers, buckets, self.model, self.lora.rank), self.model, self.lora)


@dataclass(frozen=True)
class AsAdapter(Whole):
    """Adapters, by vLLM's own LoRA layers. All requests name one adapter, which each version replaces in place: so
    running responses go on with the new one, as they do with whole weights."""

    lora: Lora

    @property
    def engine_options(self) -> dict[str, Any]:
        room = min(rank for rank in RANKS if rank >= self.lora.rank)
        return {"enable_lora": True, "max_loras": 1, "max_lora_rank": room}

    @property
    def request_options(self) -> dict[str, Any]:
        from vllm.lora.request import LoRARequest

        return {"lora_request": LoRARequest(NAME, NUMBER, str(self.model))}  # loaded already: its path is not read

    def write(self, headers: Sequence[Any], buckets: Sequence[np.ndarray], path: Path) -> None:
        from actors.lora.files import write_adapter
        from actors.lora.wire import adapter, module_ends

        tensors = adapter(headers, buckets, self.model, self.lora.rank)
        write_adapter(tensors, module_ends(tensors), self.lora, str(self.model), path)

    async def read(self, engine: Any, path: Path) -> None:
        from vllm.lora.request import LoRARequest

        if not await engine.add_lora(LoRARequest(NAME, NUMBER, str(path), load_inplace=True)):
            raise RuntimeError(f"vLLM did not take the adapter in {path}")

    def remove(self, path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)
