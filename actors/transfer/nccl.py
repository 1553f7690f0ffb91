"""A group of the learner's rank 0 and the rollouts' workers, in which rank 0 broadcasts a version.

vLLM's engine broadcasts and receives; the orchestrator calls both ends, so vLLM's client has nothing to do. The group's
id reaches the members in such a call too: vLLM's other way would open a port on which it reads pickles.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actors.transfer.layout import Layout
from actors.transfer.patience import TransferBroken, in_time, letting_go

Tensors = Callable[[], Iterable[tuple[str, Tensor]]]

BUFFER_BYTES = 256 * 2**20  # of one broadcast; each end holds BUFFERS of them on its GPU
BUFFERS = 2


def joining(token: str, first_rank: int, size: int) -> dict[str, Any]:
    """vLLM's initialisation info of a member whose workers have the ranks from `first_rank` on, in a group of `size`
    processes that the id `token` names."""
    return {
        "nccl_unique_id_b64": token,
        "rank_offset": first_rank,
        "world_size": size,
        "packed": True,
        "packed_buffer_size_bytes": BUFFER_BYTES,
        "packed_num_buffers": BUFFERS,
    }


class Sender:
    """A learner rank's end. Rank 0 is in the group and sends; the others gather with it. `tensors` yields the student's
    tensors on rank 0, in the order of the layout."""

    def __init__(self, rank: int, tensors: Tensors) -> None:
        self._rank = rank
        self._tensors = tensors
        self._group: Any = None

    def mint(self) -> str:
        """Leave the last group; the id of a new one from rank 0, and nothing from the others."""
        self.close()
        return "" if self._rank else self.new_id()

    def open(self, token: str, size: int, seconds: float) -> None:
        """Join the group of `size` processes as its rank 0. Raises TransferBroken if they do not all come in time."""
        if self._rank == 0:
            self._group = in_time(seconds, lambda: self.joined(token, size))

    def send(self, layout: Layout, seconds: float) -> None:
        """Broadcast the student's weights. Raises TransferBroken, and has left the group and the gathering then."""
        tensors = iter(self._tensors())
        engine = self.engine(Source(layout, lambda: tensors), self._rank == 0)
        engine.model_update_group = self._group
        try:
            with letting_go(seconds, self.close):
                engine.send_weights()
        except Exception:
            self.close()
            for _ in tensors:
                pass  # the other ranks gather on: without this one they would wait for it
            raise

    def close(self) -> None:
        """Leave the group; a broadcast that waits for its peers ends."""
        group, self._group = self._group, None
        leave(group)

    def new_id(self) -> str:
        from vllm.distributed.device_communicators.pynccl_wrapper import NCCLLibrary

        return base64.b64encode(bytes(NCCLLibrary().ncclGetUniqueId().internal)).decode()

    def joined(self, token: str, size: int) -> Any:
        """vLLM's communicator. Ray shows a rank its own GPU alone, so it is the first."""
        from vllm.distributed.weight_transfer.nccl_common import uid_init_process_group

        return uid_init_process_group(base64.b64decode(token), 0, size, device=0)

    def engine(self, source: Source, sends: bool) -> Any:
        """vLLM's engine, without a group."""
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine

        return NCCLTrainerWeightTransferEngine(
            client=Silent(),
            source=source,  # pyright: ignore[reportArgumentType]  # it needs no base class
            is_sender=sends,
            packed=True,
            packed_buffer_size_bytes=BUFFER_BYTES,
            packed_num_buffers=BUFFERS,
        )


@dataclass(frozen=True)
class Source:
    """What vLLM calls a weight source: the tensors of a version, and what they will be before any is gathered."""

    layout: Layout
    tensors: Tensors

    def metadata(self) -> list[Any]:
        from vllm.distributed.weight_transfer import ParamMeta

        layout = self.layout
        return [
            ParamMeta(name, getattr(torch, dtype), shape)
            for name, dtype, shape in zip(layout.names, layout.dtypes, layout.shapes, strict=True)
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        dtypes = dict(zip(self.layout.names, self.layout.dtypes, strict=True))
        for name, tensor in self.tensors():
            yield name, tensor.detach().to(getattr(torch, dtypes[name]))


class Silent:
    """vLLM's client to the members. The orchestrator calls them, each with a deadline of its own."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: Any) -> None: ...

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


def leave(group: Any) -> None:
    """Leave a group, if any, also from beside a thread that waits in it, which must not broadcast in it again."""
    if group is not None:
        group.broadcast = _refused
        group.destroy()


def _refused(*_: Any, **__: Any) -> None:
    raise TransferBroken("the group was left")
