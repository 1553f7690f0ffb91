"""Who shares a group with the learner, and who is to blame when it does not come to be."""

from __future__ import annotations

import pytest

from actors.transfer.patience import TransferBroken
from orchestrator.pools.sick import fault_of
from orchestrator.pools.transport import MemberDied, MemberSick, ValueLost
from orchestrator.weights.transfer.groups import Group, taking_part, unopened, with_senders_error

DEAD, LATE, SICK = (
    MemberDied("it is gone"),
    TransferBroken("the others did not come"),
    MemberSick("CUDA error", "device"),
)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_every_worker_of_every_member_has_a_rank_of_its_own(workers: int) -> None:
    group = Group("learner", ("a", "b", "c"), workers)
    ranks = [group.first_rank(member) + worker for member in group.members for worker in range(workers)]
    assert ranks == list(range(1, group.size)), "the learner is rank 0"


def test_a_group_serves_exactly_its_members_in_any_order_and_its_own_learner() -> None:
    learner, members = object(), ("a", "b")
    group = Group(learner, members, 1)
    assert group.serves(learner, ["b", "a"])
    for others in (["a"], ["a", "b", "joined"], ["a", "replacement"], []):
        assert not group.serves(learner, others)
    assert not group.serves(object(), ["a", "b"]), "a learner that was built anew"


def test_who_died_in_line_takes_no_part() -> None:
    members, gone = taking_part(["a", "b", "c"], alive=("c", "a", "other"))
    assert members == ["a", "c"] and [*gone] == ["b"] and isinstance(gone["b"], MemberDied)


def test_a_group_that_came_to_be_blames_nobody() -> None:
    assert unopened({"a": None, "b": None}, None) == {}


@pytest.mark.parametrize("death", [DEAD, SICK])
def test_who_waited_for_a_dead_member_tries_again(death: Exception) -> None:
    found = unopened({"a": LATE, "b": death, "c": None}, LATE)
    assert found["b"] is death
    assert isinstance(found["a"], ValueLost) and isinstance(found["c"], ValueLost)


def test_without_a_death_who_raised_is_to_blame() -> None:
    found = unopened({"a": None, "b": LATE}, LATE)
    assert found["b"] is LATE and isinstance(found["a"], ValueLost)


def test_where_the_learner_alone_fails_another_try_would_come_to_the_same() -> None:
    assert unopened({"a": None, "b": None}, LATE) == {"a": LATE, "b": LATE}


def test_who_only_waited_for_the_learner_tells_of_its_error() -> None:
    told = with_senders_error({"a": None, "b": LATE, "c": DEAD}, ValueError("tensor w has 3 columns, not 4"))
    assert told["a"] is None and told["c"] is DEAD
    assert str(told["b"]) == "the others did not come; the learner's end: tensor w has 3 columns, not 4"
    assert with_senders_error({"b": LATE}, None) == {"b": LATE}


def test_a_broken_transfer_is_no_fault_of_the_process_that_tells_of_it() -> None:
    """Else the learner would be built anew because a rollout died."""
    assert fault_of(TransferBroken("NCCL error: remote process exited")) is None
    assert fault_of(RuntimeError("NCCL error: remote process exited")) == "device"
