"""Runs inside vLLM's worker process: takes a weight version from the learner's GPU, by vLLM's transfer engine.

Arguments are plain values, so vLLM needs no pickles to pass them on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from actors.rollout.weights_in_engine import VersionLoader
from actors.transfer.layout import layout_from
from actors.transfer.nccl import leave
from actors.transfer.patience import in_time, letting_go
from actors.transfer.shared import opening


class Receiver(VersionLoader):
    """vLLM worker extension, see VersionLoader; `init_weight_transfer_engine` and the calls of an update are the
    worker's own. A worker that raises in the middle of an update holds half a version."""

    def join_transfer(self, info: dict[str, Any], seconds: float) -> None:
        """Leave the last group and join the next. Raises TransferBroken if it is not whole in time."""
        worker = self._as_worker()
        leave(_group(worker))
        in_time(seconds, _on(worker.device, lambda: worker.init_weight_transfer_engine(info)))

    def receive_version(self, plain: list[Any], seconds: float) -> None:
        """Load what rank 0 broadcasts; `plain` is its layout. Raises TransferBroken if it does not go on in time."""
        with letting_go(seconds, lambda: leave(_group(self))):
            self._update(layout_from(plain).update)

    def read_shared(self, plain: list[Any], handle: dict[str, Any]) -> None:
        """Load the copy on the learner's GPU, which is on this machine; it is closed when this returns."""
        worker, layout = self._as_worker(), layout_from(plain)
        worker.init_weight_transfer_engine({"packed": False})
        device = _physical(worker.device)
        self._update(layout.update | {"ipc_handles": [{device: each} for each in opening(handle, layout)]})

    def _as_worker(self) -> Any:
        return self

    def _update(self, info: dict[str, Any]) -> None:
        worker = self._as_worker()
        self._forget_packed_experts()
        worker.start_weight_update()
        worker.update_weights(info)
        worker.finish_weight_update()
        self._tie_head()
        if worker.device.type == "cuda":
            torch.cuda.synchronize(worker.device)  # the last layers are read when the update is finished


def _group(worker: Any) -> Any:
    return getattr(worker.weight_transfer_engine, "model_update_group", None)


def _on(device: torch.device, work: Callable[[], Any]) -> Callable[[], Any]:
    """The same work for another thread, whose current GPU would be the first."""

    def done() -> Any:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        return work()

    return done


def _physical(device: torch.device) -> str:
    """vLLM's name of a GPU in handles, whichever numbers a process sees."""
    return str(torch.cuda.get_device_properties(device.index).uuid)
