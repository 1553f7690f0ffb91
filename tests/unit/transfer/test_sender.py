"""The learner's end of a group, by recorded calls of vLLM's sender."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from actors.transfer.layout import layout_of
from actors.transfer.nccl import BUFFER_BYTES, BUFFERS, Sender, Source, joining
from actors.transfer.patience import TransferBroken

WEIGHTS = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3)}
LAYOUT = layout_of({"w": (2, 3), "b": (3,)}, "bfloat16", precise=("b",))


@dataclass
class Comm:
    """A communicator: `stuck` broadcasts wait until it is destroyed."""

    stuck: bool = False
    sent: list[Tensor] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)

    def broadcast(self, tensor: Tensor, src: int) -> None:
        if self.stuck:
            assert self.gone.wait(10.0)
        self.sent.append(tensor)

    def destroy(self) -> None:
        self.gone.set()


@dataclass
class Engine:
    source: Source
    sends: bool
    model_update_group: Any = None

    def send_weights(self) -> None:
        for _, tensor in self.source:
            if self.sends:
                self.model_update_group.broadcast(tensor, src=0)


class Recorded(Sender):
    def __init__(self, rank: int, comm: Callable[[], Comm], tensors: Any = lambda: WEIGHTS.items()) -> None:
        super().__init__(rank, tensors)
        self.comms: list[Comm] = []
        self.calls: list[Any] = []
        self._comm = comm

    def new_id(self) -> str:
        return f"id{len(self.comms)}"

    def joined(self, token: str, size: int) -> Comm:
        self.calls.append((token, size))
        self.comms.append(self._comm())
        return self.comms[-1]

    def engine(self, source: Source, sends: bool) -> Any:
        return Engine(source, sends)


def test_rank_0_sends_all_tensors_in_the_dtypes_of_the_layout() -> None:
    sender = Recorded(0, Comm)
    assert sender.mint() == "id0"
    sender.open("id0", 3, 60.0)
    sender.send(LAYOUT, 60.0)
    assert sender.calls == [("id0", 3)]
    first, second = sender.comms[0].sent
    assert first.dtype == torch.bfloat16 and torch.equal(first, WEIGHTS["w"].bfloat16())
    assert second.dtype == torch.float32 and torch.equal(second, WEIGHTS["b"])


def test_other_ranks_are_in_no_group_and_gather_all_the_same() -> None:
    gathered: list[str] = []

    def tensors() -> Iterator[tuple[str, Tensor]]:
        gathered.append("all")
        yield from ()

    sender = Recorded(1, Comm, tensors)
    assert sender.mint() == ""
    sender.open("id0", 3, 60.0)
    sender.send(LAYOUT, 60.0)
    assert not sender.calls and gathered == ["all"]


def test_a_new_group_leaves_the_last_one() -> None:
    sender = Recorded(0, Comm)
    for _ in range(2):
        sender.open(sender.mint(), 3, 60.0)
    assert [comm.gone.is_set() for comm in sender.comms] == [True, False]
    assert [token for token, _ in sender.calls] == ["id0", "id1"]


def test_a_broadcast_that_nobody_takes_is_let_go_and_its_group_is_not_used_again() -> None:
    sender = Recorded(0, lambda: Comm(stuck=True))
    sender.open(sender.mint(), 3, 60.0)
    with pytest.raises(TransferBroken, match="within"):
        sender.send(LAYOUT, 0.05)
    (comm,) = sender.comms
    assert comm.gone.is_set() and len(comm.sent) == 1, "the second tensor meets a group that was left"
    with pytest.raises(TransferBroken):
        sender.send(LAYOUT, 60.0)


@pytest.mark.parametrize("opened", [True, False], ids=["stuck", "without a group"])
def test_a_broadcast_that_breaks_gathers_to_its_end(opened: bool) -> None:
    """The other ranks gather all tensors; one that this rank leaves out they would wait for."""
    gathered: list[int] = []

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for number, name in enumerate(("w", "b", "w", "b")):
            gathered.append(number)
            yield name, WEIGHTS[name]

    sender = Recorded(0, lambda: Comm(stuck=True), tensors)
    if opened:
        sender.open(sender.mint(), 3, 60.0)
    with pytest.raises(TransferBroken):
        sender.send(LAYOUT, 0.05)
    assert gathered == [0, 1, 2, 3]


def test_a_rank_that_runs_out_of_memory_leaves_its_group_and_says_so() -> None:
    def tensors() -> Iterator[tuple[str, Tensor]]:
        yield "w", WEIGHTS["w"]
        raise torch.OutOfMemoryError("CUDA out of memory")

    sender = Recorded(0, Comm, tensors)
    sender.open(sender.mint(), 3, 60.0)
    with pytest.raises(torch.OutOfMemoryError):
        sender.send(LAYOUT, 60.0)
    assert sender.comms[0].gone.is_set()


def test_a_member_is_told_its_first_rank_and_the_geometry_of_the_buffers() -> None:
    assert joining("id", 3, 5) == {
        "nccl_unique_id_b64": "id",
        "rank_offset": 3,
        "world_size": 5,
        "packed": True,
        "packed_buffer_size_bytes": BUFFER_BYTES,
        "packed_num_buffers": BUFFERS,
    }
