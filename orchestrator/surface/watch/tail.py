"""Follows metrics.jsonl while it grows, and starts over where a resumed run has cut it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from actors.metrics import finite
from orchestrator.surface.report.recorded import COMPONENTS

ANCHOR = 256  # bytes before the place read up to, by which it is known again
ROWS = 2000  # of one answer


class Tail:
    """The whole lines of a file of steps, as columns; each component of the reward has one. `generation` changes where
    lines that were there are gone."""

    def __init__(self, path: Path, names: Iterable[str]) -> None:
        self._path = path
        self._names = ("step", *names)
        self._forget()
        self.generation = 1

    def __len__(self) -> int:
        return len(self.columns["step"])

    @property
    def last_step(self) -> int:
        return self.columns["step"][-1] if len(self) else 0

    def refresh(self) -> None:
        """Read what was written since. A last line without its end is left for later."""
        try:
            with self._path.open("rb") as file:
                if not self._is_same(file):
                    self._restart()
                file.seek(self._offset)
                found = file.read()
        except OSError:
            self._restart()
            return
        whole = found[: found.rfind(b"\n") + 1]
        self._offset += len(whole)
        self._anchor = (self._anchor + whole)[-ANCHOR:]
        for line in whole.splitlines():
            self._add(_values(line))

    def part(self, generation: int, start: int) -> dict[str, Any]:
        """At most ROWS rows of every column from `start` on, or from 0 where `generation` is not this one."""
        start = start if generation == self.generation and start <= len(self) else 0
        end = min(start + ROWS, len(self))
        columns = {name: values[start:end] for name, values in self.columns.items()}
        return {
            "generation": self.generation,
            "start": start,
            "end": end,
            "total": len(self),
            "columns": {name: values for name, values in columns.items() if any(v is not None for v in values)},
        }

    def sums(self, rows: int) -> dict[str, float]:
        """The sum of each column over the last rows, without what is unknown."""
        known = {name: [v for v in values[-rows:] if v is not None] for name, values in self.columns.items()}
        return {name: sum(values) for name, values in known.items() if values}

    def _add(self, values: dict[str, Any]) -> None:
        step = values.get("step")
        if not isinstance(step, int):
            return
        if len(self) and step <= self.last_step:  # the run went on from an earlier step
            self.generation += 1
            keep = next(i for i, known in enumerate(self.columns["step"]) if known >= step)
            self.columns = {name: column[:keep] for name, column in self.columns.items()}
        components = _components(values)
        for name in components.keys() - self.columns.keys():
            self.columns[name] = [None] * len(self)
        for name, column in self.columns.items():
            column.append(_number(components.get(name, values.get(name))))

    def _is_same(self, file: Any) -> bool:
        """Whether what was read is still there, before the place read up to."""
        file.seek(self._offset - len(self._anchor))
        return file.read(len(self._anchor)) == self._anchor

    def _restart(self) -> None:
        if self._offset:
            self.generation += 1
        self._forget()

    def _forget(self) -> None:
        self._offset, self._anchor = 0, b""
        self.columns: dict[str, list[Any]] = {name: [] for name in self._names}


def _values(line: bytes) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _components(values: dict[str, Any]) -> dict[str, Any]:
    """Values of a line's components, by the names of their columns."""
    found = values.get(COMPONENTS)
    return {f"{COMPONENTS}.{name}": value for name, value in found.items()} if isinstance(found, dict) else {}


def _number(value: Any) -> int | float | None:
    """A finite number, to six digits; None for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return finite(float(f"{value:.6g}")) if isinstance(value, float) else value
