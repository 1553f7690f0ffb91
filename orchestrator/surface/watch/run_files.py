"""One run directory, as the page asks about it. It may still be empty, half written, or gone."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from actors.metrics import EVALUATION_METRICS, STEP_METRICS
from orchestrator.surface.report.recorded import EXITS, held_out_points, object_of, text_of
from orchestrator.surface.watch.pipeline import LAST_STEPS, pipeline
from orchestrator.surface.watch.samples import Samples
from orchestrator.surface.watch.tail import Tail

QUIET = 30.0  # seconds without a new status after which a run may be dead; it writes one every 5


class RunFiles:
    """Files are read anew at each call, and parsed where they changed; `tail` and `samples` keep what they read."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._parsed: dict[str, tuple[str, dict[str, Any]]] = {}  # by file: its text, and what it says
        self.tail = Tail(directory / "metrics.jsonl", [name for name in STEP_METRICS if name != "step"])
        self.samples = Samples(directory, self._models)

    def overview(self) -> dict[str, Any]:
        """What the page asks for every two seconds."""
        self.tail.refresh()
        status, summary = self._read("status.json", object_of), self._read("summary.json", object_of)
        recipe = self._read("recipe.yaml", _yaml_of)
        run = _object(recipe.get("run"))
        stage = status.get("stage") or run.get("stage")
        sums = self.tail.sums(LAST_STEPS) | {"rows": min(LAST_STEPS, len(self.tail))}
        return {
            "name": str(status.get("run") or run.get("name") or self._directory.name),
            "stage": str(stage) if stage else None,
            "state": self._state(status, summary),
            "step": max(self.tail.last_step, _whole(status.get("step"))),
            "steps": _whole(status.get("steps")) or _whole(run.get("steps")),
            "version": status.get("version"),
            "phase": status.get("phase") if status.get("exit") is None else None,
            "saved": _since(status.get("saved_at"), status.get("time")),
            "generation": self.tail.generation,
            "rows": len(self.tail),
            "recorded": self.samples.recorded(),
            "pipeline": pipeline(status, recipe, sums),
            "held_out": self._held_out(summary),
            "notes": _notes(summary),
        }

    def _state(self, status: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
        """What a person should think of the run: `kind` live, good, bad or quiet, in words, and the status's age."""
        if not self._directory.is_dir():
            return {"kind": "bad", "text": "the run directory is gone", "age": None}
        written = status.get("time")
        age = max(0.0, time.time() - written) if isinstance(written, int | float) else None
        code = status.get("exit") if status else summary.get("exit")
        if code is None and age is not None and age < QUIET:
            return {"kind": "live", "text": "running", "age": age}
        code = summary.get("exit") if code is None and self._is_newer("summary.json", "status.json") else code
        if code is not None:
            return {
                "kind": "good" if code == 0 else "bad" if code in (1, 2) else "quiet",
                "text": _exit(code),
                "age": age,
            }
        text = (
            "not begun" if not len(self.tail) and age is None else "not finished" if age is None else "no sign of life"
        )
        return {"kind": "quiet" if age is None else "bad", "text": text, "age": age}

    def _is_newer(self, one: str, other: str) -> bool:
        """Whether file `one` was written after `other`, or is there alone."""
        times = []
        for name in (one, other):
            try:
                times.append((self._directory / name).stat().st_mtime)
            except OSError:
                times.append(0.0)
        return times[0] > times[1]

    def _read(self, name: str, parse: Callable[[Path, str], dict[str, Any]]) -> dict[str, Any]:
        """What a file says; nothing, if it cannot be read."""
        path = self._directory / name
        known = self._parsed.get(name, ("", {}))
        if (text := text_of(path)) != known[0]:
            known = self._parsed[name] = text, parse(path, text)
        return known[1]

    def _models(self) -> list[Path]:
        """Where the tokenizer may be: beside the trained model, or with the student that training began from."""
        path = _object(_object(self._read("recipe.yaml", _yaml_of).get("models")).get("student")).get("path")
        return [self._directory / "model", *([Path(path)] if isinstance(path, str) else [])]

    def _held_out(self, summary: dict[str, Any]) -> list[dict[str, Any]]:
        """The evaluations on held-out prompts, each with its step; known once the run has ended."""
        names = ("step", *(n for n in EVALUATION_METRICS if n != "kl_support"))
        points = held_out_points(summary, self.tail.last_step) if summary.get("evaluation") else []
        return [{name: point.get(name) for name in names} for point in points]


def _yaml_of(path: Path, text: str) -> dict[str, Any]:
    """The YAML mapping in `text`; empty if it cannot be read."""
    try:
        return _object(yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except yaml.YAMLError:
        return {}


def _notes(summary: dict[str, Any]) -> list[str]:
    """What a reader must know to read the curves aright."""
    swaps, restarts = summary.get("swaps") or (), summary.get("restarts") or {}
    notes = [f"biased on request: {bias}" for bias in summary.get("biased") or ()]
    notes += [f"from step {s.get('step')} on models.{s.get('model')} was {s.get('path')}" for s in swaps]
    notes += [f"members replaced: {', '.join(f'{role} {n}' for role, n in restarts.items())}"] if restarts else []
    if left_out := (summary.get("prompts_dropped") or {}).get("count"):
        notes.append(f"prompts left out: {left_out}")
    if skipped := summary.get("skipped"):
        notes.append(f"samples skipped: {len(skipped)}")
    return notes


def _exit(code: Any) -> str:
    return EXITS.get(code, f"exit {code}") if isinstance(code, int) else "ended"


def _since(then: Any, now: Any) -> float | None:
    """Seconds between two times; None where either is unknown."""
    return now - then if isinstance(then, int | float) and isinstance(now, int | float) else None


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0
