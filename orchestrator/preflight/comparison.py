"""The result of comparing a run with its machines: one line, with both numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from configs.load import RecipeError

MIB, GIB = 2**20, 2**30
Grade = Literal["fits", "tight", "short"]


@dataclass(frozen=True)
class Comparison:
    """The recipe's key, what the run asks for, what there is, and the remedy. `short` is refused; `tight` runs, but may
    wait or be slower. `fill`: amount asked / amount there."""

    grade: Grade
    key: str
    asked: str
    there: str
    remedy: str = ""
    fill: float = 0.0

    @property
    def line(self) -> str:
        text = f"{self.key}: {self.asked}; {self.there}"
        return text if self.grade == "fits" else f"{text}; {self.remedy}"


def compared(key: str, asked: str, need: int, there: str, available: int, remedy: str) -> Comparison:
    """Compare two amounts: short if `need` exceeds `available`."""
    return Comparison("short" if need > available else "fits", key, asked, there, remedy, need / max(1, available))


def notable(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Of one comparison on many nodes: those that are short, else the fullest."""
    fullest_first = sorted(comparisons, key=lambda one: -one.fill)
    return [one for one in fullest_first if one.grade == "short"] or fullest_first[:1]


def refuse(comparisons: Iterable[Comparison]) -> None:
    """Raises RecipeError with a line for each comparison that is short."""
    if short := [one.line for one in comparisons if one.grade == "short"]:
        raise RecipeError(*short)


def size(amount: float) -> str:
    """Bytes as readable text."""
    return f"{amount / GIB:.1f} GiB" if amount >= 10 * GIB else f"{amount / MIB:.1f} MiB"


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
