"""Finds scorer members that serve wrong weights, by their scores of fixed texts. A state machine without tasks.

The first reading of a model at a version is the reference. The noise is the distance between repeats in other batches.
A member is wrong if its reading is further from the reference than the noise allows. While the reference rests on one
place, either of two that differ may be wrong: both are replaced. Their successors are judged once that place has been
read again. A reading that more places agree on becomes the reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from enum import Enum
from statistics import fmean
from typing import NamedTuple

Reading = Sequence[float]  # log-probs of all tokens of the canary texts, nats

MARGIN = 3.0  # tolerance, in multiples of the measured noise
ALIKE = 1e-6  # nats: a range of scores this small over many tokens is a fault
KEPT = 3  # versions of a model whose references are kept


class Distance(NamedTuple):
    """Between two readings, in nats: mean and largest over tokens."""

    mean: float
    largest: float

    def beyond(self, other: Distance) -> bool:
        return self.mean > other.mean or self.largest > other.largest


# FLOORS: what rounding alone may cause, across kinds of machines. CEILING: repeats beyond it are a fault, not noise.
FLOORS = {"float32": Distance(1e-3, 1e-2), "bfloat16": Distance(1e-2, 0.1)}
CEILING = Distance(0.25, 5.0)


class Occasion(Enum):
    """Why a member is checked. `TRIAL`: before a swap; a wrong reading then does not count against the role."""

    LOAD = "load"
    WAKE = "wake"
    ALARM = "alarm"
    TRIAL = "trial"


class Examined(NamedTuple):
    """The member that is checked: its number, its place (a replacement keeps the place of the member it replaces), and
    `newest`, the number of the role's next member."""

    number: int
    place: int
    newest: int


class CanaryResult(NamedTuple):
    """Numbers of the members to replace, and why. `final`: two members in a row were wrong. `open`: it cannot be told
    before the place that the reference rests on is read again."""

    wrong: frozenset[int] = frozenset()
    why: str = ""
    final: bool = False
    open: bool = False


@dataclass
class _Claim:
    """A reading, the member that gave it first, and the places that loaded weights with this reading."""

    reading: Reading
    author: int
    places: set[int]


@dataclass
class _Strike:
    """A member was wrong; members from number `since` on started later. `disputed`: the reference may be wrong."""

    since: int
    disputed: bool


@dataclass
class Canaries:
    """The checks of one scored model; `dtype` is the scorer's."""

    dtype: str
    noise: Distance | None = None  # None until measured
    _claims: dict[int, list[_Claim]] = field(default_factory=dict)  # by version; the first is the reference
    _strikes: dict[Occasion, _Strike] = field(default_factory=dict)

    @property
    def tolerance(self) -> Distance:
        noise, floor = self.noise or Distance(0.0, 0.0), FLOORS.get(self.dtype, FLOORS["bfloat16"])
        return Distance(*(max(low, MARGIN * value) for value, low in zip(noise, floor, strict=True)))

    def judge(
        self,
        member: Examined,
        version: int,
        occasion: Occasion,
        readings: Sequence[Reading],
        joining: Set[int] = frozenset(),
    ) -> CanaryResult:
        """Judge a member by its readings: the first counts, others are repeats in other batches. `joining`: places with
        a member that is yet to be read."""
        if occasion is Occasion.TRIAL:  # a directory that failed before is no reference
            self._claims.pop(version, None)
        if fault := self._fault(readings):
            return self._wrong(member, occasion, {member.number}, fault, disputed=False)
        self._measure(readings)
        reading, claims = readings[0], self._claims.setdefault(version, [])
        self._forget()
        if not claims:
            claims.append(_Claim(reading, member.number, {member.place}))
            return self._right(member, occasion, sure=False)
        reference = claims[0]
        if not (gap := distance(reading, reference.reading)).beyond(self.tolerance):
            reference.places |= {member.place} if occasion is Occasion.LOAD else set()
            return self._right(member, occasion, sure=len(reference.places) > 1)
        if occasion is Occasion.LOAD and self._outvotes(claims, reading, member):
            why = f"{len(claims[0].places)} members load version {version} otherwise; {self._against_tolerance(gap)}"
            return CanaryResult(frozenset({reference.author}), why)
        disputed = len(reference.places) == 1 and reference.places != {member.place} and occasion is Occasion.LOAD
        if disputed and reference.places <= joining:
            return CanaryResult(open=True)
        wrong = {member.number, reference.author} if disputed else {member.number}
        differ = self._against_tolerance(gap)
        why = f"of version {version} its scores of fixed texts {differ} from those of member {reference.author}"
        return self._wrong(member, occasion, wrong, why, disputed)

    def _fault(self, readings: Sequence[Reading]) -> str:
        """A fault of the readings themselves, whatever the model; empty if there is none."""
        first = readings[0]
        if not all(math.isfinite(value) for reading in readings for value in reading):
            return "its scores of fixed texts are not finite"
        if max(first) - min(first) <= ALIKE:
            return f"all of its scores of fixed texts are {first[0]:.4f}"
        repeats = [distance(first, other) for other in readings[1:]]
        unlike = [gap for gap in repeats if gap.beyond(CEILING)]
        return f"repeats of its scores {_numbers(unlike[0])}" if unlike else ""

    def _measure(self, readings: Sequence[Reading]) -> None:
        for other in readings[1:]:
            gap, noise = distance(readings[0], other), self.noise or Distance(0.0, 0.0)
            self.noise = Distance(max(gap.mean, noise.mean), max(gap.largest, noise.largest))

    def _outvotes(self, claims: list[_Claim], reading: Reading, member: Examined) -> bool:
        """Count a place for a reading other than the reference. True if more places agree on it than on the reference;
        then it becomes the reference."""
        alike = [c for c in claims[1:] if not distance(reading, c.reading).beyond(self.tolerance)]
        if not alike:
            alike = [_Claim(reading, member.number, set())]
            claims += alike
        alike[0].places.add(member.place)
        if len(alike[0].places) <= len(claims[0].places):
            return False
        claims.remove(alike[0])
        claims.insert(0, alike[0])
        return True

    def _right(self, member: Examined, occasion: Occasion, sure: bool) -> CanaryResult:
        strike = self._strikes.get(occasion)
        if strike and member.number >= strike.since and (sure or not strike.disputed):
            del self._strikes[occasion]
        return CanaryResult()

    def _wrong(self, member: Examined, occasion: Occasion, wrong: set[int], why: str, disputed: bool) -> CanaryResult:
        """Final if this member started after the last one that was wrong on such an occasion; for a load, on any
        occasion."""
        earlier = self._strikes.values() if occasion is Occasion.LOAD else [self._strikes.get(occasion)]
        again = any(strike is not None and member.number >= strike.since for strike in earlier)
        if occasion is not Occasion.TRIAL:
            self._strikes[occasion] = _Strike(member.newest, disputed)
        return CanaryResult(frozenset(wrong), why, again and occasion is not Occasion.TRIAL)

    def _forget(self) -> None:
        for version in list(self._claims)[:-KEPT]:
            del self._claims[version]

    def _against_tolerance(self, gap: Distance) -> str:
        allowed = self.tolerance
        return f"{_numbers(gap)} ({allowed.mean:.2g} and {allowed.largest:.2g} are allowed)"


def distance(one: Reading, other: Reading) -> Distance:
    """The distance between two readings of the same texts."""
    gaps = [abs(a - b) for a, b in zip(one, other, strict=True)]
    return Distance(fmean(gaps), max(gaps))


def _numbers(gap: Distance) -> str:
    return f"differ by {gap.mean:.2g} nats a token and at most {gap.largest:.2g}"
