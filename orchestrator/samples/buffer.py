"""Scored samples between rollout and learner: admit, drop, select. Owns references, opens no payload.

A batch is whole groups in lease order, and within it samples in uid order. The learner may pass over a group that is
still being sampled and take a later one instead; what then becomes of a group's age is `on_stale`:

    wait         a batch leaves every group time to be trained before it passes the bound: nothing is ever too old
    mask_tokens  nobody is waited for; tokens older than the bound carry no loss, and a sample that has no others is
                 sampled again, with those of its group that would soon follow it
    drop         nobody is waited for; a group with a token older than the bound is sampled again

A group that was sampled again for its age more than twice is waited for; the third time it is all of it. So is one that
holds what the student did not draw, where `scores_age`: that has no age of its own, but its scores need a head that the
learner keeps no longer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from actors.wire.records import SampleHeader
from orchestrator.samples.by_version import ByVersion

DROPS = 2  # times a group may be dropped for its age before the learner waits for it


@dataclass(frozen=True, slots=True)
class Scored:
    """A scored sample: its header and references to the payloads that hold its row, of scores (one for each segment)
    by the model that gave them. `source` wrote it. Sums over its tokens, nats, where known: `teacher_entropy`, and
    `log_ratio` of the first target to the sampler. `aged` loss tokens are too old, and its header counts them no more.
    """

    header: SampleHeader
    samples: Any
    scores: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    reward: float | None = None
    source: str = "student"
    teacher_entropy: float | None = None
    log_ratio: float | None = None
    aged: int = 0

    @property
    def given_tokens(self) -> int:
        """Loss tokens before any mask for their age: what denominators count."""
        return self.header.loss_tokens + self.aged


@dataclass
class Group:
    """`version` was current when the group was leased: none of its tokens is older. A dropped sample is None."""

    version: int
    samples: dict[str, Scored | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step trains: samples in uid order, of these groups. Tokens that the student drew with a version below
    `oldest` carry no loss, and the samples' headers do not count them; `masked` are those headers, as they came."""

    samples: tuple[Scored, ...]
    groups: Mapping[int, Group]
    oldest: int = 0
    masked: tuple[SampleHeader, ...] = ()

    @property
    def tokens_masked(self) -> int:
        """Loss tokens that lose their loss for their age."""
        return sum(count for header in self.masked for version, count in header.versions if version < self.oldest)


@dataclass
class Buffer:
    """`max_staleness` in versions; `on_stale` and `scores_age` as above. `drops` counts how often some of a group was
    sampled again for its age, by index; whoever trains the group forgets it."""

    groups_per_step: int
    samples_per_group: int
    max_staleness: int = 0
    on_stale: str = "wait"
    scores_age: bool = False
    drops: Counter[int] = field(default_factory=Counter)
    last_dropped: tuple[str, str] | None = None
    _groups: dict[int, Group] = field(default_factory=dict)  # leased, and in no batch yet
    _leased: ByVersion = field(default_factory=ByVersion)  # all of them, by the version at their lease
    _whole: dict[int, float] = field(default_factory=dict)  # those with all their samples, and what they expire below
    _ready: ByVersion = field(default_factory=ByVersion)  # the same, by the version at their lease
    _expiring: ByVersion = field(default_factory=ByVersion)  # and by what they expire below
    _waited_for: set[int] = field(default_factory=set)  # those that are waited for under any policy

    def open(self, index: int, version: int) -> None:
        """A group is leased while `version` is current. Leased again in part, it keeps its age."""
        if index not in self._groups:
            self._put(index, Group(version))

    def admit(self, scored: Scored) -> None:
        """Take a sample in. A second copy of a uid, from a lease presumed lost, is ignored: the first one counts."""
        self._place(scored.header.uid, scored)

    def drop(self, uid: str, reason: str) -> None:
        """Bad data is not retried: its place in the group stays empty."""
        self.last_dropped = uid, reason
        self._place(uid, None)

    def missing(self, index: int) -> list[str]:
        """Uids of a group that are not in; none of one that is trained."""
        if index not in self._groups:
            return []
        there = self._groups[index].samples
        uids = [f"{index:08d}.{sample:03d}" for sample in range(self.samples_per_group)]
        return [uid for uid in uids if uid not in there]

    def expire(self, version: int) -> list[Scored]:
        """What whole groups hold that is too old for a step from `version`, taken out of them to be leased again."""
        oldest, expired = version - self.max_staleness, []
        for index in self._expiring.below(oldest):
            group = self._pop(index)
            self.drops[index] += 1
            old = self._old_of(index, group, version)
            out = {s.header.uid for s in old}
            kept = {uid: scored for uid, scored in group.samples.items() if uid not in out}
            ages = [_youngest(s) for s in kept.values() if s and s.source == "student"]
            self._put(index, Group(int(min([version, *ages])), kept))
            expired += old
        return expired

    def _old_of(self, index: int, group: Group, version: int) -> list[Scored]:
        """Of a group with too old a sample: all in the second half of the bound, which would soon be too old themselves
        and not outlast the sampling of the others; all of it where the learner is to wait for it, as late as can be."""
        drawn = [s for s in group.samples.values() if s and s.source == "student"]
        if self.on_stale == "drop" or self.drops[index] > DROPS:
            return drawn
        return [s for s in drawn if _youngest(s) < version - self.max_staleness / 2]

    def next_batch(self, version: int) -> Batch | None:
        """The batch of a step that starts from the weights of `version`; None while it must be waited for."""
        if len(self._whole) < self.groups_per_step:
            return None
        chosen = sorted(self._ready.first(self.groups_per_step))
        if len(self._whole) < len(self._groups) and not self._leaves_time(chosen, version):
            return None
        groups = {index: self._pop(index) for index in chosen}
        entries = [scored for group in groups.values() for _, scored in sorted(group.samples.items()) if scored]
        oldest = max(0, version - self.max_staleness)
        young = tuple(_without(scored, oldest) for scored in entries)
        masked = tuple(came.header for came, left in zip(entries, young, strict=True) if left is not came)
        return Batch(young, groups, oldest, masked)

    def give_back(self, batch: Batch, lost: Container[str]) -> None:
        """A batch could not be trained, since the payloads of the `lost` uids are gone: keep the rest of it."""
        for index, group in batch.groups.items():
            kept = {uid: scored for uid, scored in group.samples.items() if uid not in lost}
            self._put(index, Group(group.version, kept))

    def __len__(self) -> int:
        return sum(len(group.samples) for group in self._groups.values())

    def _leaves_time(self, chosen: Sequence[int], version: int) -> bool:
        """Whether, of the groups whose age is waited for, those that must be trained by any later version still can be:
        no more of them are left than the steps until then take."""
        if self.on_stale == "wait":
            left = self._leased.counts()
            left.subtract(self._groups[index].version for index in chosen)
        else:
            left = Counter[float](self._groups[index].version for index in self._waited_for.difference(chosen))
        due = 0
        for leased in sorted(left):
            due += left[leased]
            if due > max(0, leased + self.max_staleness - version) * self.groups_per_step:
                return False
        return True

    def _is_waited_for(self, index: int) -> bool:
        if self.drops[index] > DROPS:
            return True
        return self.scores_age and any(s and s.source != "student" for s in self._groups[index].samples.values())

    def _put(self, index: int, group: Group) -> None:
        self._groups[index] = group
        self._leased.put(index, group.version)
        self._note(index, group)

    def _pop(self, index: int) -> Group:
        group = self._groups.pop(index)
        self._leased.remove(index, group.version)
        self._waited_for.discard(index)
        if index in self._whole:
            self._ready.remove(index, group.version)
            self._expiring.remove(index, self._whole.pop(index))
        return group

    def _place(self, uid: str, scored: Scored | None) -> None:
        index = int(uid.split(".")[0])
        group = self._groups.get(index)
        if group is None or uid in group.samples:
            return
        group.samples[uid] = scored
        self._note(index, group)

    def _note(self, index: int, group: Group) -> None:
        """What a group's samples make of it: one that is waited for, and with all of them a whole one."""
        if self._is_waited_for(index):
            self._waited_for.add(index)
        if len(group.samples) == self.samples_per_group:
            age = _oldest if self.on_stale == "drop" else _youngest
            drawn = (s for s in group.samples.values() if s and s.source == "student")
            self._whole[index] = min(map(age, drawn), default=math.inf)
            self._ready.put(index, group.version)
            self._expiring.put(index, self._whole[index])


def _oldest(scored: Scored) -> float:
    return scored.header.version_min


def _youngest(scored: Scored) -> float:
    """The version of a sample's youngest loss token; without any it does not age."""
    return scored.header.versions[-1][0] if scored.header.versions else math.inf


def _without(scored: Scored, oldest: int) -> Scored:
    """A sample whose header does not count tokens below version `oldest`. What the student did not draw has no age."""
    header = scored.header
    if scored.source != "student" or header.version_min >= oldest:
        return scored
    young = tuple((version, count) for version, count in header.versions if version >= oldest)
    left = sum(count for _, count in young)
    return replace(
        scored, header=header._replace(versions=young, loss_tokens=left), aged=scored.aged + header.loss_tokens - left
    )
