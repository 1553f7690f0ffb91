"""Where a learner's ranks meet: on one address, and on loopback where all are on one machine."""

from __future__ import annotations

import multiprocessing
import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from actors.address import interface_of, own_address
from actors.learning.ranks.meeting import join
from orchestrator.weights.learner_group import meeting_of


def test_ranks_of_one_machine_meet_on_loopback() -> None:
    assert meeting_of([("10.0.0.7", 4001), ("10.0.0.7", 4002)]) == ("127.0.0.1", 4001)
    assert meeting_of([("10.0.0.7", 4001), ("10.0.0.8", 4002)]) == ("10.0.0.7", 4001)


def test_the_interface_is_that_of_the_address() -> None:
    assert own_address(reaching="127.0.0.1") == "127.0.0.1"
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None


@pytest.mark.skipif(own_address() == "127.0.0.1", reason="this machine has no other address to knock at")
@pytest.mark.timeout(120)
def test_nobody_reaches_the_meeting_at_another_address() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    answers: multiprocessing.Queue = context.Queue()
    ranks = [context.Process(target=_rank, args=(("127.0.0.1", port), rank, answers)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    found = [answers.get(timeout=90) for _ in ranks]
    for process in ranks:
        process.join(30)
    assert sorted(found) == [(0, 3.0, False), (1, 3.0, False)]


def _rank(meeting: tuple[str, int], rank: int, answers: multiprocessing.Queue) -> None:
    """Meet, sum over the ranks, and knock at the machine's other address."""
    join(meeting, rank, 2, "gloo", timedelta(seconds=60))
    total = torch.tensor(float(rank + 1))
    dist.all_reduce(total)
    with socket.socket() as knock:
        open_elsewhere = knock.connect_ex((own_address(), meeting[1])) == 0
    dist.barrier()
    answers.put((rank, total.item(), open_elsewhere))
