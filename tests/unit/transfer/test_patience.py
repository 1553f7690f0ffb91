"""No end of a transfer waits for ever, and its process tells of it without looking sick."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from actors.transfer.patience import TransferBroken, in_time, letting_go


def test_what_comes_in_time_is_left_alone() -> None:
    let_go = threading.Event()
    with letting_go(60.0, let_go.set):
        pass
    assert in_time(60.0, lambda: 7) == 7 and not let_go.is_set()


def test_a_wait_beyond_its_limit_is_ended() -> None:
    let_go = threading.Event()
    with (
        pytest.raises(TransferBroken, match=r"the other end did not go on within 0\.05 s"),
        letting_go(0.05, let_go.set),
    ):
        assert let_go.wait(10.0)


def test_an_error_after_the_limit_tells_of_the_limit() -> None:
    let_go = threading.Event()
    with pytest.raises(TransferBroken, match="within"), letting_go(0.05, let_go.set):
        let_go.wait(10.0)
        raise RuntimeError("NCCL error: communicator was aborted")


def test_a_peers_death_is_told_without_the_error_that_looks_like_a_fault_of_this_device() -> None:
    with pytest.raises(TransferBroken, match="remote process exited") as told, letting_go(60.0, lambda: None):
        raise RuntimeError("NCCL error: remote process exited")
    assert told.value.__cause__ is None and told.value.__suppress_context__


def test_a_lack_of_memory_is_this_processs_own() -> None:
    def fills() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(torch.OutOfMemoryError), letting_go(60.0, lambda: None):
        fills()
    with pytest.raises(torch.OutOfMemoryError):
        in_time(60.0, fills)


def test_a_group_that_is_not_whole_in_time_is_given_up() -> None:
    never = threading.Event()
    began = time.monotonic()
    with pytest.raises(TransferBroken, match=r"did not come within 0\.05 s"):
        in_time(0.05, lambda: never.wait(30.0))
    assert time.monotonic() - began < 10.0
    never.set()
    with pytest.raises(TransferBroken, match="no NCCL here"):
        in_time(60.0, _raise)


def _raise() -> None:
    raise RuntimeError("no NCCL here")
