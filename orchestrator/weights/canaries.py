"""Which scorer members are wrong, by what they give for fixed texts. A state machine without tasks or clients.

The first reading of a model at a version is its reference, and how far its repeats in other batches lie apart is the
noise. A reading that lies further from the reference than the noise allows is one of a wrong member. Where a model has
been loaded in one place only, nobody knows which of two places is right: both are replaced, and what two places load
alike outvotes what one did.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from statistics import fmean
from typing import NamedTuple

Reading = Sequence[float]  # log-probs of all tokens of the texts, nats

MARGIN = 3.0  # times the noise that was measured
ALIKE = 1e-6  # nats: no model gives so many different tokens the same
KEPT = 3  # versions of a model whose references are remembered


class Apart(NamedTuple):
    """How far two readings lie apart, nats: mean and largest over tokens."""

    mean: float
    largest: float

    def beyond(self, other: Apart) -> bool:
        return self.mean > other.mean or self.largest > other.largest


# What rounding alone may do, on machines of other kinds too; and beyond what repeats are no noise any more.
FLOORS = {"float32": Apart(1e-3, 1e-2), "bfloat16": Apart(1e-2, 0.1)}
CEILING = Apart(0.25, 5.0)


class Occasion(Enum):
    """Why a member is asked. `TRIAL`: whether a directory can be swapped in, which decides nothing for the role."""

    LOAD = "load"
    WAKE = "wake"
    ALARM = "alarm"
    TRIAL = "trial"


class Asked(NamedTuple):
    """A member, by number and by the place it has taken over from those that it replaces; `newest` is the number that
    the next one of its role will have."""

    number: int
    place: int
    newest: int


class Verdict(NamedTuple):
    """Numbers of the members that are to be replaced, and why. `final`: it has come twice in a row."""

    wrong: frozenset[int] = frozenset()
    why: str = ""
    final: bool = False


@dataclass
class _Claim:
    """What a model gives, as the places see it that have loaded it like this."""

    reading: Reading
    author: int
    places: set[int]


@dataclass
class _Strike:
    """A member was found wrong. Members from `since` on came later."""

    since: int
    disputed: bool


@dataclass
class Canaries:
    """Of one scored model; `dtype` is what it is scored in."""

    dtype: str
    noise: Apart | None = None  # None until it was measured
    _claims: dict[int, list[_Claim]] = field(default_factory=dict)  # by version; the first is the reference
    _strikes: dict[Occasion, _Strike] = field(default_factory=dict)

    @property
    def tolerance(self) -> Apart:
        noise, floor = self.noise or Apart(0.0, 0.0), FLOORS.get(self.dtype, FLOORS["bfloat16"])
        return Apart(*(max(low, MARGIN * value) for value, low in zip(noise, floor, strict=True)))

    def judge(self, asked: Asked, version: int, occasion: Occasion, readings: Sequence[Reading]) -> Verdict:
        """Take in what a member gives for the texts, once or in several batchings."""
        if occasion is Occasion.TRIAL:  # what another directory gave that came to nothing is no reference
            self._claims.pop(version, None)
        if fault := self._fault(readings):
            return self._wrong(asked, occasion, {asked.number}, fault, disputed=False)
        self._measure(readings)
        reading, claims = readings[0], self._claims.setdefault(version, [])
        self._forget()
        if not claims:
            claims.append(_Claim(reading, asked.number, {asked.place}))
            return self._right(asked, occasion, sure=False)
        reference = claims[0]
        if not (lies := apart(reading, reference.reading)).beyond(self.tolerance):
            reference.places |= {asked.place} if occasion is Occasion.LOAD else set()
            return self._right(asked, occasion, sure=len(reference.places) > 1)
        if occasion is Occasion.LOAD and self._outvotes(claims, reading, asked):
            why = f"{len(claims[0].places)} members load version {version} otherwise; {self._said(lies)}"
            return Verdict(frozenset({reference.author}), why)
        disputed = len(reference.places) == 1 and reference.places != {asked.place} and occasion is Occasion.LOAD
        wrong = {asked.number, reference.author} if disputed else {asked.number}
        why = (
            f"of version {version} its scores of fixed texts {self._said(lies)} from those of member {reference.author}"
        )
        return self._wrong(asked, occasion, wrong, why, disputed)

    def _fault(self, readings: Sequence[Reading]) -> str:
        """What is wrong with readings whatever the model."""
        first = readings[0]
        if not all(math.isfinite(value) for reading in readings for value in reading):
            return "its scores of fixed texts are not finite"
        if max(first) - min(first) <= ALIKE:
            return f"all of its scores of fixed texts are {first[0]:.4f}"
        repeats = [apart(first, other) for other in readings[1:]]
        unlike = [lies for lies in repeats if lies.beyond(CEILING)]
        return f"repeats of its scores {_numbers(unlike[0])}" if unlike else ""

    def _measure(self, readings: Sequence[Reading]) -> None:
        for other in readings[1:]:
            lies, noise = apart(readings[0], other), self.noise or Apart(0.0, 0.0)
            self.noise = Apart(max(lies.mean, noise.mean), max(lies.largest, noise.largest))

    def _outvotes(self, claims: list[_Claim], reading: Reading, asked: Asked) -> bool:
        """Note a claim beside the reference; whether more places have loaded the model so, and it is the reference."""
        alike = [c for c in claims[1:] if not apart(reading, c.reading).beyond(self.tolerance)]
        if not alike:
            alike = [_Claim(reading, asked.number, set())]
            claims += alike
        alike[0].places.add(asked.place)
        if len(alike[0].places) <= len(claims[0].places):
            return False
        claims.remove(alike[0])
        claims.insert(0, alike[0])
        return True

    def _right(self, asked: Asked, occasion: Occasion, sure: bool) -> Verdict:
        strike = self._strikes.get(occasion)
        if strike and asked.number >= strike.since and (sure or not strike.disputed):
            del self._strikes[occasion]
        return Verdict()

    def _wrong(self, asked: Asked, occasion: Occasion, wrong: set[int], why: str, disputed: bool) -> Verdict:
        """A member that came since the last one was found wrong, on such an occasion, is the second in a row; so is one
        that is wrong as it comes, whatever the last one was found at."""
        earlier = self._strikes.values() if occasion is Occasion.LOAD else [self._strikes.get(occasion)]
        again = any(strike is not None and asked.number >= strike.since for strike in earlier)
        if occasion is not Occasion.TRIAL:
            self._strikes[occasion] = _Strike(asked.newest, disputed)
        return Verdict(frozenset(wrong), why, again and occasion is not Occasion.TRIAL)

    def _forget(self) -> None:
        for version in list(self._claims)[:-KEPT]:
            del self._claims[version]

    def _said(self, lies: Apart) -> str:
        allowed = self.tolerance
        return f"{_numbers(lies)} ({allowed.mean:.2g} and {allowed.largest:.2g} are allowed)"


def apart(one: Reading, other: Reading) -> Apart:
    """How far two readings of the same texts lie apart."""
    distances = [abs(a - b) for a, b in zip(one, other, strict=True)]
    return Apart(fmean(distances), max(distances))


def _numbers(lies: Apart) -> str:
    return f"differ by {lies.mean:.2g} nats a token and at most {lies.largest:.2g}"
