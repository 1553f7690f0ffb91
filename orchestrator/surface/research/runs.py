"""A run directory as a curve of one metric: evaluations and steps from metrics.jsonl and summary.json, the values of
prompts from the recorded responses. Reads files only.

Files may be missing, cut short or half written: what cannot be read is left out, and a curve may be empty.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from actors.metrics import AVERAGE_AT, OF_RESPONSES, PASS_AT, STOP_METRICS
from configs.evaluation import HELDOUT
from configs.refusal import RecipeError, shown
from configs.schema import Recipe
from orchestrator.evaluation.estimates import Rewards, pass_at_k
from orchestrator.evaluation.heldout import COMPONENT
from orchestrator.evaluation.sets import rewards_of
from orchestrator.preflight.inputs.held_out import measured
from orchestrator.surface import submission
from orchestrator.surface.report.recorded import Row, object_of, table_of
from orchestrator.surface.research.curves import Curve, Point

REWARD = "reward_mean"
COLUMNS = ("uid", "group", "prompt_ids", "response_ids", "finish", "reward", "reward_components")
WHOLE = ""  # the key of a value that is of the whole run, and not of a prompt


@dataclass(frozen=True)
class ReadRun:
    """A run directory, its resolved recipe, the lines of its steps, and those of its evaluations: (set, when, step,
    line)."""

    directory: Path
    recipe: Recipe
    steps: Sequence[Row]
    evaluations: Sequence[tuple[str, str, int, Row]]

    def curve(self, metric: str, whole: bool = False) -> Curve:
        """`metric`: SET.NAME of an evaluation, or a number of a step's line. `whole`: without values of prompts. Raises
        RecipeError for a metric that the run has not."""
        of_set, dot, name = metric.partition(".")
        self._refuse_unknown(metric, of_set, name)
        budgets = self._budgets()
        if not dot:
            lines = [(line["step"], line, {WHOLE: line.get(metric)}) for line in self.steps]
        else:
            mine = sorted((e for e in self.evaluations if e[0] == of_set), key=lambda e: e[2])
            lines = [(step, line, self._values(of_set, name, when, line, whole)) for _, when, step, line in mine]
        points = [
            Point(_moved(budgets.get(step, {"steps": float(step)}), step, line), known)
            for step, line, values in lines
            if (known := {key: float(v) for key, v in values.items() if v is not None})
        ]
        return Curve(self.recipe.run.seed, points)

    def _refuse_unknown(self, metric: str, of_set: str, name: str) -> None:
        known = measured(self.recipe).get(of_set, ()) if name else STOP_METRICS
        if (name or of_set) not in known:
            found = ", ".join(f"{of}.{each}" for of, names in measured(self.recipe).items() for each in names)
            raise RecipeError(
                f"--metric {shown(metric)}: {self.directory.name} does not measure it; it has {found or 'no set'}, and "
                "the numbers of a step's line"
            )

    def _values(self, of_set: str, name: str, when: str, line: Row, whole: bool) -> Mapping[str, float | None]:
        """The metric by prompt where responses say it, else the evaluation's own number."""
        value = _of_prompts(name, self.recipe, of_set)
        if whole or value is None:
            return {WHOLE: line.get(name)}
        stem = f"eval_{when.replace(' ', '_')}" + ("" if of_set == HELDOUT else f"_{of_set}")
        table = table_of(self.directory, stem)
        return {} if table is None else value(_Responses.of(table, self._rules(of_set)))

    def _rules(self, of_set: str) -> Any:
        return None if of_set == HELDOUT else self.recipe.evaluate.sets[of_set].rules

    def _budgets(self) -> dict[int, dict[str, float | None]]:
        """By step: what was spent up to its end. Unknown from a line on that is missing, or does not say."""
        gpus = sum(size.gpus for size in self.recipe.roles.values())
        tokens, seconds = _Sum(), _Sum()
        nothing = {"steps": 0.0, "tokens": 0.0, "gpu_seconds": 0.0 if gpus else None, "kl": 0.0}
        found: dict[int, dict[str, float | None]] = {0: nothing}
        for expected, line in enumerate(self.steps, 1):
            gap = line["step"] != expected
            spent = seconds.add(None if gap else line.get("seconds_step"))
            found[line["step"]] = {
                "steps": float(line["step"]),
                "tokens": tokens.add(None if gap else line.get("tokens_generated")),
                "gpu_seconds": spent * gpus if spent is not None and gpus else None,
                "kl": line.get("start_kl"),
            }
        return found


class _Sum:
    """A running sum, unknown after a part that is."""

    def __init__(self) -> None:
        self._total: float | None = 0.0

    def add(self, part: Any) -> float | None:
        known = isinstance(part, int | float) and not isinstance(part, bool)
        self._total = self._total + part if known and self._total is not None else None
        return self._total


@dataclass(frozen=True)
class _Responses:
    """Recorded responses of an evaluation: `rewards` by prompt, and a number of each response by prompt."""

    rewards: Rewards
    numbers: Mapping[str, Mapping[str, Sequence[float]]]

    @staticmethod
    def of(table: pa.Table, rules: Any) -> _Responses:
        lengths = pc.call_function("list_value_length", [table["response_ids"]]).to_pylist()
        rows = table.select([name for name in COLUMNS if name in table.column_names and name != "response_ids"])
        listed, keys, sums = rows.to_pylist(), {}, {}
        numbers: dict[str, defaultdict[str, list[float]]] = {name: defaultdict(list) for name in OF_RESPONSES}
        for row, length in zip(listed, lengths, strict=True):
            group = row["uid"].split(".")[0]
            keys.setdefault(group, _key(row["prompt_ids"]))
            sums[row["uid"]] = _sums(row)
            numbers["response_length"][keys[group]].append(float(length))
            numbers["truncated_fraction"][keys[group]].append(float(row["finish"] == "length"))
        rewards: defaultdict[str, list[float]] = defaultdict(list)
        for group, mine in rewards_of(sums, rules).items():
            rewards[keys[group]] += mine
        return _Responses(rewards, numbers)


def read_run(directory: Path) -> ReadRun:
    """Raises RecipeError where the recipe of a run cannot be read, and for one with stages: each is a run."""
    lines = list(_lines(directory / "metrics.jsonl"))
    steps = _last_life([line for line in lines if isinstance(line.get("step"), int) and "evaluation" not in line])
    last = steps[-1]["step"] if steps else 0
    found = {(e[0], e[1]): e for e in (*_of_summary(object_of(directory / "summary.json"), last), *_of_lines(lines))}
    return ReadRun(directory, submission.recorded_recipe(directory), steps, list(found.values()))


def within(folder: Path) -> list[Path]:
    """The run directories in a folder that is none itself, as a sweep makes it; by name."""
    if not folder.is_dir() or (folder / submission.RECIPE).exists():
        return []
    return sorted(run.absolute() for run in folder.iterdir() if (run / submission.RECIPE).exists())


def _lines(path: Path) -> Iterator[Row]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def _last_life(lines: Sequence[Row]) -> list[Row]:
    """Lines of steps, ascending: a run that went on from an earlier step replaces what came after it."""
    found: dict[int, Row] = {}
    for line in lines:
        found = {step: row for step, row in found.items() if step < line["step"]} if line["step"] in found else found
        found[line["step"]] = line
    return [found[step] for step in sorted(found)]


def _of_lines(lines: Sequence[Row]) -> Iterator[tuple[str, str, int, Row]]:
    for line in lines:
        if isinstance(line.get("evaluation"), str) and isinstance(line.get("after_step"), int):
            yield line["evaluation"], str(line.get("when")), line["after_step"], line


def _of_summary(summary: Row, last: int) -> Iterator[tuple[str, str, int, Row]]:
    evaluation = summary.get("evaluation") or {}
    of_sets = evaluation.get("sets") or {}
    for name, of_set in ((HELDOUT, evaluation), *of_sets.items()):
        for when, step in (("before", 0), ("after", summary.get("steps", last))):
            if of_set.get(when):
                yield name, when, step, of_set[when]
        for line in of_set.get("steps") or ():
            yield name, f"step {line['step']}", line["step"], line


def _moved(budgets: Mapping[str, float | None], step: int, line: Row) -> dict[str, float | None]:
    """Budgets with the KL that the evaluation itself has measured, where it has; before the first step none moved."""
    own = line.get("start_kl")
    return dict(budgets) | ({} if own is None else {"kl": own}) | ({} if step else {"kl": 0.0})


def _of_prompts(name: str, recipe: Recipe, of_set: str) -> Callable[[_Responses], Mapping[str, float]] | None:
    """What gives a metric of each prompt from responses; None of a metric that is no mean over prompts."""
    if name in OF_RESPONSES:
        return lambda found: {key: sum(mine) / len(mine) for key, mine in found.numbers[name].items()}
    if name == REWARD or name.startswith(AVERAGE_AT):
        return lambda found: {key: sum(mine) / len(mine) for key, mine in found.rewards.items()}
    if name.startswith(PASS_AT):
        k, pass_at = int(name.removeprefix(PASS_AT)), recipe.evaluate.sets[of_set].pass_at
        return lambda found: {
            key: pass_at_k(len(mine), sum(reward >= pass_at for reward in mine), k)
            for key, mine in found.rewards.items()
            if len(mine) >= k
        }
    return None


def _sums(row: Row) -> dict[str, float]:
    parts = {f"{COMPONENT}{name}": value for name, value in row.get("reward_components") or ()}
    return parts if row["reward"] is None else parts | {REWARD: row["reward"]}


def _key(prompt_ids: Sequence[int]) -> str:
    """A prompt, by its tokens: runs with another file of prompts, or another template, share none."""
    return hashlib.sha256(json.dumps(prompt_ids).encode()).hexdigest()[:16]
