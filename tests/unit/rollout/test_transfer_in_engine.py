"""A member's end of a transfer, by recorded calls of vLLM's worker."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actors.rollout import transfer_in_engine
from actors.rollout.transfer_in_engine import Receiver
from actors.transfer.layout import layout_of
from actors.transfer.nccl import joining
from actors.transfer.patience import TransferBroken
from actors.transfer.shared import OF_STORAGE

LAYOUT = layout_of({"w": (2, 3), "b": (3,)}, "float32")


class Worker(Receiver):
    """vLLM's part of a worker, which notes what it is called with. `waits`: updates wait until their group is left."""

    def __init__(self, waits: bool = False, fails: bool = False) -> None:
        self.calls: list[Any] = []
        self.device = torch.device("cpu")
        self.left = threading.Event()
        self.group = SimpleNamespace(destroy=self.left.set, broadcast=None)
        self.weight_transfer_engine = SimpleNamespace(model_update_group=self.group)
        self._waits, self._fails = waits, fails

    def init_weight_transfer_engine(self, info: dict[str, Any]) -> None:
        self.calls.append(("init", info))
        if self._waits:
            self.left.clear()
            assert self.left.wait(10.0)

    def start_weight_update(self) -> None:
        self.calls.append("start")

    def update_weights(self, info: dict[str, Any]) -> None:
        self.calls.append(("update", info))
        if self._waits:
            assert self.left.wait(10.0)
        if self._fails:
            raise RuntimeError("NCCL error: remote process exited")

    def finish_weight_update(self) -> None:
        self.calls.append("finish")

    def _forget_packed_experts(self) -> None:
        self.calls.append("unpack")

    def _tie_head(self) -> None:
        self.calls.append("tie")


def test_a_version_is_one_update_of_vllms_engine() -> None:
    worker = Worker()
    worker.receive_version(LAYOUT.plain, 60.0)
    assert worker.calls == ["unpack", "start", ("update", LAYOUT.update), "finish", "tie"]


def test_a_worker_leaves_its_last_group_before_it_joins_the_next() -> None:
    worker, info = Worker(), joining("id", 1, 3)
    worker.join_transfer(info, 60.0)
    assert worker.left.is_set() and worker.calls == [("init", info)]


def test_a_worker_whose_peers_do_not_come_lets_go() -> None:
    worker = Worker(waits=True)
    with pytest.raises(TransferBroken, match="within"):
        worker.join_transfer(joining("id", 1, 3), 0.05)
    worker.left.set()


def test_a_worker_in_a_broadcast_that_does_not_go_on_lets_go_and_holds_half_a_version() -> None:
    worker = Worker(waits=True)
    with pytest.raises(TransferBroken, match="within"):
        worker.receive_version(LAYOUT.plain, 0.05)
    assert worker.left.is_set()
    with pytest.raises(TransferBroken):
        worker.group.broadcast(torch.empty(1), src=0)


def test_a_peers_death_is_told_as_a_broken_transfer() -> None:
    worker = Worker(fails=True)
    with pytest.raises(TransferBroken, match="remote process exited"):
        worker.receive_version(LAYOUT.plain, 60.0)
    assert "finish" not in worker.calls


def test_a_worker_opens_the_copy_under_the_name_of_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer_in_engine, "_physical", lambda device: "GPU-7")
    worker = Worker()
    worker.read_shared(LAYOUT.plain, dict.fromkeys(OF_STORAGE, b"x"))
    first, unpack, start, (update, info), finish, tie = worker.calls
    assert first == ("init", {"packed": False}) and (unpack, start, update) == ("unpack", "start", "update")
    assert (finish, tie) == ("finish", "tie")
    assert [list(handles) for handles in info["ipc_handles"]] == [["GPU-7"], ["GPU-7"]]
    assert info["names"] == ["w", "b"] and info["ipc_handles"][1]["GPU-7"][1] == torch.Size((3,))


def test_its_methods_are_none_of_vllms_worker() -> None:
    """vLLM refuses an extension whose names it has itself."""
    taken = {
        "init_weight_transfer_engine",
        "update_weights",
        "start_weight_update",
        "finish_weight_update",
        "load_model",
    }
    assert not taken & set(dir(Receiver))
