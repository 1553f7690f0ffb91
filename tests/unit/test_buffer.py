"""The buffer gives whole groups in lease order; arrival, doubles and bad data change nothing else."""

from __future__ import annotations

import itertools

from actors.records import SampleHeader
from orchestrator.buffer import Buffer, Scored


def scored(uid: str, payload: str = "first") -> Scored:
    return Scored(SampleHeader(uid, uid.split(".")[0], 0, 3, 2, 2, "stop", ((0, 2),)), payload)


def uids(batch: list[Scored] | None) -> list[str]:
    return [s.header.uid for s in batch or []]


GROUPS = [f"{group:08d}.{sample:03d}" for group in range(2) for sample in range(2)]


def test_a_batch_waits_for_its_last_sample() -> None:
    buffer = Buffer(groups_per_step=2, samples_per_group=2)
    for uid in GROUPS:
        assert buffer.take() is None
        buffer.admit(scored(uid))
    assert uids(buffer.take()) == GROUPS
    assert buffer.take() is None and len(buffer) == 0


def test_any_order_of_arrival_gives_the_same_batch() -> None:
    for order in itertools.permutations(GROUPS):
        buffer = Buffer(2, 2)
        for uid in order:
            buffer.admit(scored(uid))
        assert uids(buffer.take()) == GROUPS


def test_a_later_group_does_not_overtake() -> None:
    buffer = Buffer(groups_per_step=1, samples_per_group=1)
    buffer.admit(scored("00000001.000"))
    assert buffer.take() is None and len(buffer) == 1
    buffer.admit(scored("00000000.000"))
    assert [uids(buffer.take()), uids(buffer.take())] == [["00000000.000"], ["00000001.000"]]


def test_the_first_copy_of_a_uid_counts() -> None:
    buffer = Buffer(1, 1)
    buffer.admit(scored(GROUPS[0]))
    buffer.admit(scored(GROUPS[0], "second"))
    (only,) = buffer.take() or []
    assert only.samples == "first"


def test_a_copy_that_comes_after_its_batch_is_ignored() -> None:
    buffer = Buffer(1, 1)
    buffer.admit(scored(GROUPS[0]))
    buffer.take()
    buffer.admit(scored(GROUPS[0], "late"))
    assert len(buffer) == 0 and buffer.take() is None


def test_a_dropped_sample_leaves_its_place_empty_and_its_reason_behind() -> None:
    buffer = Buffer(2, 2)
    for uid in GROUPS[1:]:
        buffer.admit(scored(uid))
    buffer.drop(GROUPS[0], "too long")
    assert uids(buffer.take()) == GROUPS[1:]
    assert buffer.last_dropped == (GROUPS[0], "too long")


def test_a_wholly_dropped_batch_is_empty_and_not_awaited_for_ever() -> None:
    buffer = Buffer(1, 1)
    buffer.drop(GROUPS[0], "bad")
    assert buffer.take() == []


def test_a_resumed_buffer_begins_at_its_first_group() -> None:
    buffer = Buffer(1, 1, first=7)
    buffer.admit(scored("00000006.000"))
    assert buffer.take() is None
    buffer.admit(scored("00000007.000"))
    assert uids(buffer.take()) == ["00000007.000"]
