"""The base class of a recipe's nodes, frozen and strict about keys, and types that they share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WrapValidator

STUDENT = "student"  # the model that is trained
START = "start"  # the student's weights before the first step, for metrics.start_kl
OF_STAGE = "stage:"  # begins the path of a model that an earlier stage of the recipe trains

LARGEST_INTEGER = 2**53  # a float64 and every file format of a run hold it exactly

Positive = Annotated[int, Field(gt=0, le=LARGEST_INTEGER)]
Seconds = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[int, Field(ge=0, le=LARGEST_INTEGER)]
Members = Annotated[int, Field(gt=0, le=65_536)]  # of a role; each is a process
Momentum = Annotated[float, Field(ge=0.0, lt=1.0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]

AUTO = "auto"  # written in a recipe in place of a number that follows from memory
UNSIZED = 0  # what the key then holds, until preflight has put the number there


def _sized(value: Any, check: Callable[[Any], int]) -> int:
    return UNSIZED if value == AUTO else check(value)


FromMemory = Annotated[Positive, WrapValidator(_sized), PlainSerializer(lambda number: number or AUTO)]


class Node(BaseModel):
    """Its numbers are finite, unless a field says otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
