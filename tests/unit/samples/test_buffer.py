"""The buffer yields whole groups in lease order within the staleness bound, whatever the order of arrival."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.wire.records import SampleHeader
from orchestrator.samples.buffer import DROPS, Batch, Buffer, Scored


def scored(uid: str, payload: str = "first", version: int = 0, tokens: int = 2) -> Scored:
    header = SampleHeader(uid, uid.split(".")[0], 0, 3, tokens, tokens, "stop", ((version, tokens),))
    return Scored(header, payload)


def uids(batch: Batch | None) -> list[str]:
    return [s.header.uid for s in batch.samples] if batch else []


def leased(groups: int, samples: int, **more: Any) -> Buffer:
    """A buffer of one step's groups, all leased at version 0."""
    buffer = Buffer(groups, samples, **more)
    for index in range(groups):
        buffer.open(index, 0)
    return buffer


GROUPS = [f"{group:08d}.{sample:03d}" for group in range(2) for sample in range(2)]
SINGLES = [f"{group:08d}.000" for group in range(12)]


def test_a_batch_waits_for_its_last_sample() -> None:
    buffer = leased(2, 2)
    for uid in GROUPS:
        assert buffer.next_batch(0) is None
        buffer.add(scored(uid))
    assert uids(buffer.next_batch(0)) == GROUPS
    assert buffer.next_batch(0) is None and len(buffer) == 0


def test_any_order_of_arrival_gives_the_same_batch() -> None:
    for order in itertools.permutations(GROUPS):
        buffer = leased(2, 2)
        for uid in order:
            buffer.add(scored(uid))
        assert uids(buffer.next_batch(0)) == GROUPS


def test_the_first_copy_of_a_uid_counts() -> None:
    buffer = leased(1, 1)
    buffer.add(scored(GROUPS[0]))
    buffer.add(scored(GROUPS[0], "second"))
    batch = buffer.next_batch(0)
    assert batch and [s.samples for s in batch.samples] == ["first"]


def test_a_copy_that_comes_after_its_batch_is_ignored() -> None:
    buffer = leased(1, 1)
    buffer.add(scored(GROUPS[0]))
    buffer.next_batch(0)
    buffer.add(scored(GROUPS[0], "late"))
    assert len(buffer) == 0 and buffer.next_batch(0) is None


def test_a_dropped_sample_leaves_its_place_empty_and_its_reason_behind() -> None:
    buffer = leased(2, 2)
    for uid in GROUPS[1:]:
        buffer.add(scored(uid))
    buffer.drop(GROUPS[0], "too long")
    assert uids(buffer.next_batch(0)) == GROUPS[1:]
    assert buffer.last_dropped == (GROUPS[0], "too long")


def test_nothing_is_missing_of_a_group_that_is_trained() -> None:
    buffer = leased(1, 1)
    assert buffer.missing(0) == [GROUPS[0]]
    buffer.add(scored(GROUPS[0]))
    buffer.next_batch(0)
    assert buffer.missing(0) == []


def test_a_wholly_dropped_batch_is_empty_and_not_awaited_for_ever() -> None:
    buffer = leased(1, 1)
    buffer.drop(GROUPS[0], "bad")
    batch = buffer.next_batch(0)
    assert batch and batch.samples == () and list(batch.groups) == [0]


# --- age ---


def test_a_group_still_sampled_is_passed_over_while_within_the_bound() -> None:
    buffer = leased(1, 1, max_staleness=1)
    buffer.open(1, 0)
    buffer.add(scored(SINGLES[1]))
    assert uids(buffer.next_batch(0)) == [SINGLES[1]]
    buffer.open(2, 1)
    buffer.add(scored(SINGLES[2], version=1))
    assert buffer.next_batch(1) is None, "group 0 would be too old for the step after this one"
    buffer.add(scored(SINGLES[0]))
    assert uids(buffer.next_batch(1)) == [SINGLES[0]], "lease order"
    assert uids(buffer.next_batch(2)) == [SINGLES[2]]


def test_strictly_on_policy_is_lease_order() -> None:
    buffer = leased(2, 1)
    buffer.add(scored(SINGLES[1]))
    assert buffer.next_batch(0) is None
    buffer.add(scored(SINGLES[0]))
    assert uids(buffer.next_batch(0)) == SINGLES[:2]


def test_with_mask_tokens_no_group_is_waited_for_and_old_tokens_are_not_counted() -> None:
    buffer = leased(1, 1, max_staleness=1, on_stale="mask_tokens")
    header = SampleHeader(SINGLES[0], "00000000", 0, 3, 9, 9, "stop", ((0, 4), (1, 3), (2, 2)))
    buffer.add(Scored(header, "long"))
    batch = buffer.next_batch(2)
    assert batch and batch.oldest == 1 and batch.tokens_masked == 4
    (sample,) = batch.samples
    assert (sample.header.loss_tokens, sample.header.response_tokens, sample.header.versions) == (
        5,
        9,
        ((1, 3), (2, 2)),
    )
    assert [h.response_tokens for h in batch.masked] == [9]


def test_a_sample_with_only_old_tokens_is_resampled_alone() -> None:
    buffer = leased(1, 2, max_staleness=1, on_stale="mask_tokens")
    buffer.add(scored(GROUPS[0]))
    buffer.add(scored(GROUPS[1], version=5))
    assert [s.header.uid for s in buffer.expire(5)] == [GROUPS[0]]
    assert buffer.next_batch(5) is None and buffer.missing(0) == [GROUPS[0]]
    buffer.add(scored(GROUPS[0], "again", version=5))
    assert uids(buffer.next_batch(5)) == GROUPS[:2]


def test_samples_in_the_second_half_of_the_bound_are_resampled_with_an_expired_one() -> None:
    buffer = Buffer(1, 3, max_staleness=8, on_stale="mask_tokens")
    buffer.open(0, 0)
    old, older_half, younger_half = [f"00000000.{sample:03d}" for sample in range(3)]
    for uid, version in ((old, 1), (older_half, 5), (younger_half, 6)):
        buffer.add(scored(uid, version=version))
    assert [s.header.uid for s in buffer.expire(10)] == [old, older_half]
    assert buffer.missing(0) == [old, older_half]


def test_the_third_time_a_group_is_resampled_whole_and_waited_for() -> None:
    buffer = Buffer(1, 2, max_staleness=4, on_stale="mask_tokens")
    first, second, *others = [f"{group:08d}.{sample:03d}" for group in range(3) for sample in range(2)]
    buffer.open(0, 0)
    for now, drawn_with, out in (
        (5, {first: 0, second: 4}, [first]),
        (10, {first: 5}, [first, second]),
        (15, {first: 10, second: 14}, [first, second]),
    ):
        for uid, version in drawn_with.items():
            buffer.add(scored(uid, version=version))
        assert sorted(s.header.uid for s in buffer.expire(now)) == out
    for index, now in ((1, 18), (2, 19)):
        buffer.open(index, now)
        for uid in others[2 * index - 2 : 2 * index]:
            buffer.add(scored(uid, version=now))
    assert uids(buffer.next_batch(18)) == others[:2], "nobody is waited for yet"
    assert buffer.next_batch(19) is None
    buffer.add(scored(first, version=15))
    buffer.add(scored(second, version=17))
    assert uids(buffer.next_batch(19)) == [first, second]


def test_samples_of_other_sources_do_not_age() -> None:
    buffer = leased(1, 1, max_staleness=1, on_stale="mask_tokens")
    buffer.add(replace(scored(SINGLES[0]), source="teacher"))
    batch = buffer.next_batch(5)
    assert buffer.expire(5) == [] and batch and uids(batch) == [SINGLES[0]] and batch.tokens_masked == 0


@pytest.mark.parametrize(
    ("source", "scores_age", "waits"), [("teacher", True, True), ("teacher", False, False), ("student", True, False)]
)
def test_samples_of_other_sources_are_waited_for_where_scores_age(source: str, scores_age: bool, waits: bool) -> None:
    """Half of the oldest group is scored, and the learner would go on with others."""
    buffer = Buffer(1, 2, max_staleness=1, on_stale="mask_tokens", scores_age=scores_age)
    half, missing, *others = [f"{group:08d}.{sample:03d}" for group in range(3) for sample in range(2)]
    for index, leased_at in enumerate((0, 0, 1)):
        buffer.open(index, leased_at)
    for uid in (half, *others):
        buffer.add(replace(scored(uid), source=source))
    assert uids(buffer.next_batch(0)) == others[:2], "there is time for the oldest yet"
    assert uids(buffer.next_batch(1)) == ([] if waits else others[2:])
    buffer.add(replace(scored(missing), source=source))
    assert uids(buffer.next_batch(1)) == [half, missing]


def test_dropped_for_age_a_group_is_open_again_and_after_the_third_time_waited_for() -> None:
    buffer = leased(1, 1, max_staleness=1, on_stale="drop")
    for version in (2, 4, 6):
        buffer.add(scored(SINGLES[0], version=version - 2))
        expired = buffer.expire(version)
        assert [s.header.uid for s in expired] == [SINGLES[0]]
    buffer.open(1, 6)
    buffer.add(scored(SINGLES[1], version=6))
    assert uids(buffer.next_batch(6)) == [SINGLES[1]]
    buffer.open(2, 7)
    buffer.add(scored(SINGLES[2], version=7))
    assert buffer.next_batch(7) is None, "dropped three times: the learner waits"
    buffer.add(scored(SINGLES[0], version=6))
    assert buffer.expire(7) == [] and uids(buffer.next_batch(7)) == [SINGLES[0]]


def test_a_batch_that_is_given_back_keeps_its_place_and_its_age() -> None:
    buffer = leased(2, 2, max_staleness=1)
    for uid in GROUPS[1:]:
        buffer.add(scored(uid))
    buffer.drop(GROUPS[0], "bad")
    batch = buffer.next_batch(0)
    assert batch
    buffer.give_back(batch, {GROUPS[2]})
    assert buffer.next_batch(1) is None and buffer.missing(1) == [GROUPS[2]]
    buffer.add(scored(GROUPS[2], "again"))
    again = buffer.next_batch(1)
    assert again and uids(again) == GROUPS[1:]
    assert [s.samples for s in again.samples] == ["first", "again", "first"]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=48, max_size=48),
    st.integers(1, 4),
    st.integers(0, 3),
    st.sampled_from(["wait", "mask_tokens", "drop"]),
)
def test_whatever_the_course_no_trained_token_passes_the_bound_and_every_group_is_trained_once(
    lengths: list[int], each: int, bound: int, policy: str
) -> None:
    """A clock ticks: each running response samples a token of the current version, the learner steps when it may."""
    steps, per_step = 6, 2
    buffer = Buffer(per_step, each, max_staleness=bound, on_stale=policy)
    version, opened, trained = 0, 0, []
    running: dict[tuple[int, int], list[int]] = {}
    again: Counter[int] = Counter()  # how often a group was aged out
    for _ in range(2000):
        while opened < min(steps, version + 1 + bound) * per_step:
            buffer.open(opened, version)
            running |= {(opened, sample): [] for sample in range(each)}
            opened += 1
        for index, sample in list(running):
            tokens = running[index, sample]
            tokens.append(version)
            if len(tokens) == lengths[index * 4 + sample]:
                del running[index, sample]
                versions = tuple(sorted(Counter(tokens).items()))
                uid = f"{index:08d}.{sample:03d}"
                buffer.add(Scored(SampleHeader(uid, uid[:8], 0, 1, len(tokens), len(tokens), "stop", versions), None))
        aged = [s.header.uid for s in buffer.expire(version)]
        running |= {(int(uid[:8]), int(uid[9:])): [] for uid in aged}
        again.update({int(uid[:8]) for uid in aged})
        if batch := buffer.next_batch(version):
            assert all(version - v <= bound for s in batch.samples for v, _ in s.header.versions)
            trained += list(batch.groups)
            version += 1
        if aged or batch:
            holding = [group for group in buffer._groups.values() if group.samples]
            assert len(buffer) == sum(len(group.samples) for group in holding)
            assert buffer.oldest(now := time.monotonic()) == max((now - group.opened for group in holding), default=0.0)
    assert sorted(trained) == list(range(steps * per_step))
    assert max(again.values(), default=0) <= DROPS + 1
