"""Who shares a group with the learner, and who is to blame when it does not come to be. Pure."""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from orchestrator.pools.transport import MemberDied, ValueLost

Member = TypeVar("Member", bound=Hashable)


@dataclass(frozen=True)
class Group:
    """Rank 0 of one learner, then the `workers` processes of each member in turn. Members and learners are told apart
    by identity: a replacement is another one."""

    learner: Hashable
    members: tuple[Hashable, ...]
    workers: int

    @property
    def size(self) -> int:
        """Processes."""
        return 1 + self.workers * len(self.members)

    def first_rank(self, member: Hashable) -> int:
        """The rank of the first of a member's workers."""
        return 1 + self.workers * self.members.index(member)

    def serves(self, learner: Hashable, members: Sequence[Hashable]) -> bool:
        """Whether a transfer from this learner to exactly these members can go through the group. It could not with one
        that does not want the version, since all of a group receive what is sent."""
        return self.learner is learner and set(self.members) == set(members)


def taking_part(line: Iterable[Member], alive: Container[Any]) -> tuple[list[Member], dict[Member, Exception]]:
    """Who of those in line takes part in the next transfer, in their order, and the errors of the others: one that died
    while it waited would only be waited for."""
    members = list(line)
    gone: dict[Member, Exception] = {m: MemberDied("it died before its transfer") for m in members if m not in alive}
    return [member for member in members if member not in gone], gone


def failures(answers: Mapping[Any, Any]) -> dict[Any, Exception]:
    """The errors among the answers of members."""
    return {member: answer for member, answer in answers.items() if isinstance(answer, Exception)}


def with_senders_error(answers: Mapping[Any, Any], sender: Exception | None) -> dict[Any, Any]:
    """The answers, with the learner's error named in the errors of members that only waited for it."""

    def told(answer: Any) -> Any:
        waited = isinstance(answer, Exception) and not isinstance(answer, MemberDied)
        return RuntimeError(f"{answer}; the learner's end: {sender}") if sender and waited else answer

    return {member: told(answer) for member, answer in answers.items()}


def unopened(answers: Mapping[Any, Any], sender: Exception | None) -> dict[Any, Exception]:
    """Every member's error, if a group did not come to be; empty if it did. `sender`: the learner's error.

    No engine is touched yet, so whoever is not to blame tries again (ValueLost). To blame are the dead: the others
    waited for them. Without a death it is who raised; without such a one the learner, and another try would come to
    the same.
    """
    failed = failures(answers)
    if not failed and sender is None:
        return {}
    blamed = {m: e for m, e in failed.items() if isinstance(e, MemberDied)} or failed
    again = ValueLost("the group was not whole")
    return {member: blamed.get(member) or (again if blamed else sender or again) for member in answers}
