"""`logratio probe`: a few hundred responses before any training, by the members that the run will have; then what the
rules say of them, and what a thousand steps will cost."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from rich.table import Table

from actors.metrics import PROBE_METRICS, STEP_METRICS, finite
from configs.load import RecipeError, parse_recipe
from configs.node import STUDENT
from configs.schema import Recipe
from objectives.schedule import dials_at
from orchestrator import checkpoint
from orchestrator.data.sets import order
from orchestrator.run import DONE
from orchestrator.surface.carry_out import carry_out
from orchestrator.surface.measuring.advice import Finding, findings, recommended, settings
from orchestrator.surface.measuring.cost import Cost, Took, cost
from orchestrator.surface.measuring.evaluating import Evaluating
from orchestrator.surface.measuring.probed import Measured, measured
from orchestrator.surface.outcome import console

if TYPE_CHECKING:
    from orchestrator.pools.layout import MemberSpecs

MOST = 10_000  # responses
TOPK = 16  # that of arXiv 2604.13016, whose overlaps the rules refer to
FILE = "probe.json"  # in the probe's directory
RECORD = "probe"  # of its samples


@dataclass
class Probing(Evaluating):
    """A run that answers the first `responses` prompts of its data, once, and trains nothing. `asked`: the recipe as it
    was given; `recipe` is that of `recipe_for`."""

    asked: Recipe = field(kw_only=True)
    responses: int = field(kw_only=True)

    def __post_init__(self) -> None:
        prompts = order(self.inputs.train, self.recipe.run.seed, self.recipe.data.shuffle)
        self.inputs = replace(self.inputs, heldout=[prompts[index] for index in range(self.responses)])
        super().__post_init__()

    async def _evaluated(self) -> int:
        self.observer.phase("starting the engines")
        await self.stopping.unless_asked(self.roles.bring_up(1, self.progress.version, self.saved))
        began = time.monotonic()
        await self.stopping.unless_asked(self.roles.load(1))
        sync = time.monotonic() - began
        await self.stopping.unless_asked(self._probe(sync))
        await self.summarise(DONE)
        return DONE

    async def _probe(self, sync: float) -> None:
        evaluation, dials = self.measurements.evaluation, dials_at(self.recipe.objective, 1, self.progress.beta)
        samples = self.directory / "samples"
        self.observer.phase("warming the engines up on a few greedy answers")
        await evaluation.answer_greedily(self.progress.version, dials, samples / f"{RECORD}_greedy")
        self.evaluation_meter.read_and_reset()
        self.observer.phase(f"probing with {self.responses} responses")
        batch, metrics = await evaluation.read(self.progress.version, dials, samples / RECORD, self.recipe.sampling)
        if not batch.samples:
            raise RuntimeError("no response could be sampled and scored; `skipped` in summary.json has the reasons")
        took = _took(self.evaluation_meter.read_and_reset(), [s.header.response_tokens for s in batch.samples], sync)
        rows = await asyncio.to_thread(lambda: list(recorded(samples)))
        found = results(self.asked, measured(metrics, rows), took)
        text = json.dumps(found, indent=1, allow_nan=False) + "\n"
        await asyncio.to_thread(checkpoint.write_whole, self.directory / FILE, text)


def recipe_for(recipe: Recipe) -> Recipe:
    """The recipe of a probe: its student, teachers, data, sampling and members; responses of the student, scored by the
    teachers' top k; no reward, evaluation or checkpoint. Raises RecipeError."""
    objective = recipe.objective
    if not objective.teachers:
        raise RecipeError(f"objective.target: {objective.target!r} is no teacher to compare with; name a model")
    tree = recipe.model_dump(mode="json", exclude_unset=True)
    models = (STUDENT, *objective.teachers)
    target = recipe.model_dump(mode="json")["objective"]["target"]
    tree["objective"] = {"target": target, "support": "topk", "topk": TOPK, "end_tokens": objective.end_tokens}
    tree["models"] = {name: tree["models"][name] for name in models}
    tree["scorer"] = _without_lone_turns({n: scorer for n, scorer in tree.get("scorer", {}).items() if n in models})
    for unneeded in ("reward", "evaluate", "checkpoint", "early_stop", "stream_tokens", "autoscale", "on_stale"):
        tree.pop(unneeded, None)
    tree["data"].pop("heldout", None)
    tree["run"].pop("stop", None)
    tree["batch"].pop("max_replacements", None)
    tree["metrics"] = {"trackers": []}
    tree["run"]["name"] = f"{recipe.run.name}.probe-{time.strftime('%Y%m%d-%H%M%S')}"
    return parse_recipe(tree)


def _without_lone_turns(scorers: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The scorers' keys; one whose partners in turns are left out has its GPUs to itself."""
    named = Counter(scorer.get("turns") for scorer in scorers.values())
    return {name: {k: v for k, v in s.items() if k != "turns" or named[v] > 1} for name, s in scorers.items()}


def carry_out_of(asked: Recipe, recipe: Recipe, responses: int, directory: Path, members: MemberSpecs | None) -> int:
    """Probe; returns the exit code. Raises RecipeError."""
    if not 1 <= responses <= MOST:
        raise RecipeError(f"--responses {responses}: say 1 to {MOST}; a few hundred are enough")
    return carry_out(recipe, directory, members, partial(Probing, asked=asked, responses=responses))


def recorded(samples: Path) -> Iterator[Mapping[str, Any]]:
    """The responses of a probe, by the columns of TRAINED."""
    for file in sorted(samples.glob(f"{RECORD}.rank*.arrow")):
        with pa.OSFile(str(file)) as source:
            yield from pa.ipc.open_file(source).read_all().to_pylist()


def results(recipe: Recipe, found: Measured, took: Took) -> dict[str, Any]:
    """What a probe says, as JSON."""
    judged = findings(found, recipe)
    return finite(
        {
            "recommendation": recommended(judged),
            "settings": settings(judged),
            "rules": [_line(finding) for finding in judged],
            "measured": {"responses": took.samples, "topk": TOPK, **asdict(found)},
            "cost": dict(cost(recipe, took).to_json()),
            "took": asdict(took),
        }
    )


def tables_of(found: Mapping[str, Any]) -> Iterator[Table]:
    """The rules, and what was measured with the cost."""
    rules = Table("rule", "measured", "needed", "holds", "what to do", "source", title=found["recommendation"])
    for line in found["rules"]:
        rules.add_row(line["name"], f"{line['metric']} {_written(line['value'])}", *_verdict(line), line["source"])
    yield rules
    numbers = Table("measured", "value", "meaning", title=f"{found['measured']['responses']} responses")
    meanings = STEP_METRICS | PROBE_METRICS
    for name, value in found["measured"].items():
        if name in meanings and value is not None:
            numbers.add_row(name, _written(value), meanings[name])
    yield numbers


def lines_of(found: Mapping[str, Any]) -> Iterator[str]:
    """The settings that the recipe lacks, and the cost."""
    if found["settings"]:
        yield f"set in the recipe: {'; '.join(found['settings'])}"
    of = Cost(**found["cost"])
    parts = {"sampling": of.rollout, "scoring": of.score, "learning": of.learn, "weights": of.sync}
    shares = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in parts.items())
    gpus = f", {of.gpu_hours:.3g} GPU-hours on {of.gpus:g} GPUs" if of.gpus else ""
    yield f"1000 steps: about {of.hours:.3g} hours{gpus}; a step {of.step_seconds:.3g} s: {shares}"


def tell(found: Mapping[str, Any], as_json: bool) -> None:
    """Print the results as tables or as JSON."""
    if as_json:
        return console.print_json(data=found)
    for table in tables_of(found):
        console.print(table)
    for line in lines_of(found):
        console.print(line, markup=False, soft_wrap=True)


def read(directory: Path) -> dict[str, Any]:
    """The results that a probe wrote."""
    return json.loads((directory / FILE).read_text())


def _took(figures: Mapping[str, float], lengths: Sequence[int], sync: float) -> Took:
    seconds = {role: figures.get(f"seconds_{role}", 0.0) for role in ("rollout", "score", "learn")}
    return Took(samples=len(lengths), tokens=sum(lengths), sync=sync, **seconds)


def _line(finding: Finding) -> dict[str, Any]:
    rule = finding.rule
    known = {name: getattr(rule, name) for name in ("name", "metric", "advice", "reason", "source")}
    needed = {"bound": rule.bound, "at_least": rule.at_least, "settings": list(rule.settings)}
    return known | needed | {"value": finding.value, "holds": finding.holds, "done": finding.done}


def _verdict(line: Mapping[str, Any]) -> tuple[str, str, str]:
    needed = f"{'at least' if line['at_least'] else 'at most'} {line['bound']:g}"
    if line["holds"] is not False:
        return needed, "-" if line["holds"] is None else "yes", ""
    return needed, "no", f"{line['advice']}{'; the recipe has the settings' if line['done'] else ''}"


def _written(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
