"""Scored samples between rollout and learner: add, drop, select. Holds references, opens no payload.

A batch holds whole groups in lease order, and their samples in uid order. The learner may skip a group that is still
being sampled and train a later one first. `on_stale` decides what happens when the skipped group passes the staleness
bound:

    wait         it never does: the learner waits for a group before the group can pass the bound
    mask_tokens  tokens older than the bound carry no loss; a sample with only such tokens is resampled, together with
                 the samples of its group that are in the second half of the bound
    drop         a group with any token older than the bound is resampled

A group resampled for age more than DROPS times is resampled whole, and the learner waits for it. With `scores_age` the
learner also waits for groups that hold responses of another source: these do not age, but their scores refer to an LM
head that the learner keeps only for a while.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from actors.wire.records import SampleHeader

DROPS = 2  # how often a group may be resampled for age before the learner waits for it


@dataclass(frozen=True, slots=True)
class Scored:
    """A scored sample. `samples` refers to the payload with its row, `scores` to the payloads with its scores, by model
    and one per segment. `components` are the parts of `reward` by name, unweighted. `teacher_entropy` and `log_ratio`
    (first target to sampler) are sums over its tokens in nats, None if unknown. `aged` counts loss tokens past the
    staleness bound, which its header no longer counts. `base_prompts`: prompt ids of models that the learner scores
    behind a prompt of their own."""

    header: SampleHeader
    samples: Any
    scores: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    reward: float | None = None
    components: Mapping[str, float] = field(default_factory=dict)
    source: str = "student"
    teacher_entropy: float | None = None
    log_ratio: float | None = None
    aged: int = 0
    base_prompts: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def given_tokens(self) -> int:
        """Loss tokens before masking for age; the loss is normalised by these."""
        return self.header.loss_tokens + self.aged


@dataclass
class Group:
    """`version` was current when the group was leased, so no token is older. A dropped sample is None. `opened`:
    seconds of the monotonic clock."""

    version: int
    samples: dict[str, Scored | None] = field(default_factory=dict)
    opened: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step trains: samples in uid order, and their groups. Student tokens with a version below `oldest` carry
    no loss, and the samples' headers do not count them; `masked` holds those headers before masking."""

    samples: tuple[Scored, ...]
    groups: Mapping[int, Group]
    oldest: int = 0
    masked: tuple[SampleHeader, ...] = ()

    @property
    def tokens_masked(self) -> int:
        """Loss tokens masked for age."""
        return sum(count for header in self.masked for version, count in header.versions if version < self.oldest)


class ByVersion:
    """Group indices, each under one version. Reads cost O(versions), not O(groups); there are few versions."""

    def __init__(self) -> None:
        self._under: dict[float, set[int]] = defaultdict(set)

    def put(self, index: int, version: float) -> None:
        self._under[version].add(index)

    def remove(self, index: int, version: float) -> None:
        """Does nothing for a group that is not there."""
        under = self._under.get(version, set())
        under.discard(index)
        if not under:
            self._under.pop(version, None)

    def counts(self) -> Counter[float]:
        """Number of groups under each version."""
        return Counter({version: len(under) for version, under in self._under.items()})

    def first(self, count: int) -> list[int]:
        """The first `count` groups by version, then index."""
        found: list[int] = []
        for version in sorted(self._under):
            if len(found) >= count:
                break
            found += sorted(self._under[version])
        return found[:count]

    def below(self, version: float) -> list[int]:
        """Groups under lower versions, in index order."""
        return sorted(index for under, indices in self._under.items() if under < version for index in indices)


@dataclass
class Buffer:
    """`max_staleness` in versions; `on_stale` and `scores_age` as above. `drops` counts, by group index, how often a
    group was resampled for age; training the group deletes its count."""

    groups_per_step: int
    samples_per_group: int
    max_staleness: int = 0
    on_stale: str = "wait"
    scores_age: bool = False
    drops: Counter[int] = field(default_factory=Counter)
    last_dropped: tuple[str, str] | None = None
    _groups: dict[int, Group] = field(default_factory=dict)  # leased, not yet in a batch; the first opened first
    _held: int = 0  # samples in them
    _leased: ByVersion = field(default_factory=ByVersion)  # all of _groups, by version at lease
    _complete: dict[int, float] = field(default_factory=dict)  # complete groups -> version below which they expire
    _ready: ByVersion = field(default_factory=ByVersion)  # complete groups, by version at lease
    _expiring: ByVersion = field(default_factory=ByVersion)  # complete groups, by expiry version
    _waited_for: set[int] = field(default_factory=set)  # groups the learner waits for under any policy

    def open(self, index: int, version: int) -> None:
        """Note a group that is leased while `version` is current. A group leased again in part keeps its version."""
        if index not in self._groups:
            self._put(index, Group(version))

    def add(self, scored: Scored) -> None:
        """Add a sample. A second copy of a uid, from a lease presumed lost, is ignored."""
        self._place(scored.header.uid, scored)

    def drop(self, uid: str, reason: str) -> None:
        """Leave a sample's place in its group empty: bad data is not resampled."""
        self.last_dropped = uid, reason
        self._place(uid, None)

    def missing(self, index: int) -> list[str]:
        """Uids of a group that have not arrived; empty for a trained group."""
        if index not in self._groups:
            return []
        there = self._groups[index].samples
        uids = [f"{index:08d}.{sample:03d}" for sample in range(self.samples_per_group)]
        return [uid for uid in uids if uid not in there]

    def expire(self, version: int) -> list[Scored]:
        """Remove from complete groups the samples too old for a step from `version`; return them, to be resampled."""
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
        """The samples to resample in a group that expired: those in the second half of the bound, which would expire
        while the others are sampled. All of them under `drop`, or when the learner will wait for the group."""
        drawn = [s for s in group.samples.values() if s and s.source == "student"]
        if self.on_stale == "drop" or self.drops[index] > DROPS:
            return drawn
        return [s for s in drawn if _youngest(s) < version - self.max_staleness / 2]

    def next_batch(self, version: int) -> Batch | None:
        """The batch of a step from the weights of `version`; None while there is none."""
        if len(self._complete) < self.groups_per_step:
            return None
        chosen = sorted(self._ready.first(self.groups_per_step))
        if len(self._complete) < len(self._groups) and not self._leaves_time(chosen, version):
            return None
        groups = {index: self._pop(index) for index in chosen}
        entries = [scored for group in groups.values() for _, scored in sorted(group.samples.items()) if scored]
        oldest = max(0, version - self.max_staleness)
        young = tuple(_without_old(scored, oldest) for scored in entries)
        masked = tuple(came.header for came, left in zip(entries, young, strict=True) if left is not came)
        return Batch(young, groups, oldest, masked)

    def give_back(self, batch: Batch, lost: Container[str]) -> None:
        """Take a batch back without its `lost` uids, whose payloads are gone."""
        for index, group in batch.groups.items():
            kept = {uid: scored for uid, scored in group.samples.items() if uid not in lost}
            self._put(index, Group(group.version, kept))

    def oldest(self, now: float) -> float:
        """Seconds since the first of the groups that hold samples was leased; 0 without any."""
        return next((now - group.opened for group in self._groups.values() if group.samples), 0.0)

    def __len__(self) -> int:
        return self._held

    def _leaves_time(self, chosen: Sequence[int], version: int) -> bool:
        """Whether every group that the learner waits for can still be trained within the bound after this batch: for
        each later version, no more groups fall due than the steps until then train."""
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
        self._held += len(group.samples)
        self._leased.put(index, group.version)
        self._index(index, group)

    def _pop(self, index: int) -> Group:
        group = self._groups.pop(index)
        self._held -= len(group.samples)
        self._leased.remove(index, group.version)
        self._waited_for.discard(index)
        if index in self._complete:
            self._ready.remove(index, group.version)
            self._expiring.remove(index, self._complete.pop(index))
        return group

    def _place(self, uid: str, scored: Scored | None) -> None:
        index = int(uid.split(".")[0])
        group = self._groups.get(index)
        if group is None or uid in group.samples:
            return
        group.samples[uid] = scored
        self._held += 1
        self._index(index, group)

    def _index(self, index: int, group: Group) -> None:
        """Index a group by its samples: whether the learner waits for it, and whether it is complete."""
        if self._is_waited_for(index):
            self._waited_for.add(index)
        if len(group.samples) == self.samples_per_group:
            age = _oldest if self.on_stale == "drop" else _youngest
            drawn = (s for s in group.samples.values() if s and s.source == "student")
            self._complete[index] = min(map(age, drawn), default=math.inf)
            self._ready.put(index, group.version)
            self._expiring.put(index, self._complete[index])


def _oldest(scored: Scored) -> float:
    return scored.header.version_min


def _youngest(scored: Scored) -> float:
    """The version of a sample's youngest loss token; infinity without one, since it does not age."""
    return scored.header.versions[-1][0] if scored.header.versions else math.inf


def _without_old(scored: Scored, oldest: int) -> Scored:
    """The sample with a header that does not count tokens below version `oldest`. Other sources do not age."""
    header = scored.header
    if scored.source != "student" or header.version_min >= oldest:
        return scored
    young = tuple((version, count) for version, count in header.versions if version >= oldest)
    left = sum(count for _, count in young)
    return replace(
        scored, header=header._replace(versions=young, loss_tokens=left), aged=scored.aged + header.loss_tokens - left
    )
