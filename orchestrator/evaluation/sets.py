"""The held-out sets of `evaluate.sets`: each with its own prompts, rewards and sampling, on the run's own members.

A set of prompts is evaluated as data.heldout is, under a recipe of its own; a set of text is read by the learner alone.
"""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.metrics import AVERAGE_AT, PASS_AT, finite, set_metrics
from configs.evaluation import MOST_PROMPTS, HeldOutSet
from configs.objective import PLAIN
from configs.reward_rules import Rule, component_names
from configs.schema import Recipe
from objectives.schedule import Dials
from orchestrator.evaluation.estimates import averages, passes
from orchestrator.evaluation.heldout import COMPONENT, HELDOUT_INDEX, Evaluation, Found, Sums, mean_of
from orchestrator.evaluation.intervals import interval
from orchestrator.evaluation.texts import Texts
from orchestrator.pools.pools import Pools
from orchestrator.pools.suspects import Suspects
from orchestrator.pools.telemetry import Meter
from orchestrator.samples.flow import Flow
from orchestrator.samples.prompts import Prompt
from orchestrator.weights.learner_group import LearnerGroup

OF_DRAWN = ("reverse_kl", "start_kl")  # on sampled support they are means over drawn tokens


@dataclass(frozen=True)
class Sets:
    """`prompts` by the name of the set; `flow_of` makes the calls of a set under its recipe; the rest as in
    Evaluation."""

    recipe: Recipe
    pools: Pools
    flow_of: Callable[[Recipe], Flow]
    learner: LearnerGroup
    prompts: Mapping[str, Sequence[Prompt]]
    suspects: Suspects
    meter: Meter
    notice: Callable[[str], None]
    skipped: dict[str, str]

    async def measure(self, name: str, version: int, dials: Dials, record: Path | None) -> dict[str, Any] | None:
        """One set's line of numbers, by the names of SET_METRICS and SET_COUNTS, with `intervals` of some: [low, high].
        None if no sample could be scored."""
        one, prompts = self.recipe.evaluate.sets[name], self.prompts[name]
        if one.text is not None:
            return await Texts(self.learner, prompts, self._first(name), self.recipe.run.seed).measure(version, dials)
        found = await self._evaluation(name).run(version, dials, record)
        if found is None:
            return None
        return await asyncio.to_thread(line_of, self.recipe, one, found, len(prompts))

    def _evaluation(self, name: str) -> Evaluation:
        one = self.recipe.evaluate.sets[name]
        recipe = self.recipe.of_set(name)
        return Evaluation(
            recipe,
            self.pools,
            self.flow_of(recipe),
            self.learner,
            self.prompts[name],
            self.suspects,
            self.meter,
            self.notice,
            self.skipped,
            self._first(name),
            None if one.teachers else PLAIN,
        )

    def _first(self, name: str) -> int:
        return first_group(self.recipe, name)

    @property
    def first(self) -> int:
        """The number of the first group of any set."""
        return HELDOUT_INDEX + MOST_PROMPTS if self.prompts else sys.maxsize

    def prompt(self, index: int) -> Prompt:
        """The prompt of a set's group, by its number."""
        place, row = divmod(index - HELDOUT_INDEX, MOST_PROMPTS)
        return self.prompts[list(self.recipe.evaluate.sets)[place - 1]][row]


def first_group(recipe: Recipe, name: str) -> int:
    """The number of the first prompt group of a set; those of data.heldout come before."""
    return HELDOUT_INDEX + MOST_PROMPTS * (1 + list(recipe.evaluate.sets).index(name))


def line_of(recipe: Recipe, one: HeldOutSet, found: Found, prompts: int) -> dict[str, Any]:
    """The numbers of a set of prompts, from those of its samples."""
    seed, rewards = recipe.run.seed, rewards_of(found.each, one.rules)
    values = {f"{PASS_AT}{k}": passes(rewards, k, one.pass_at) for k in one.k}
    values[f"{AVERAGE_AT}{one.samples_per_prompt}"] = averages(rewards)
    intervals = {name: interval(of_prompts, seed) for name, of_prompts in values.items()}
    names = set_metrics(one.k, one.samples_per_prompt, one.format is not None)
    line: dict[str, Any] = {name: mean_of(found.each.values(), name) for name in names}
    line |= {name: known.mean for name, known in intervals.items() if known}
    if one.format is not None:
        line["format_rate"] = _share_above_0(found.each, f"{COMPONENT}{one.format}")
    if one.temperature == 0.0:
        line |= dict.fromkeys(_meaningless_when_greedy(recipe, one))
    counts = {"samples": found.means["samples"], "samples_skipped": found.means["samples_skipped"]}
    bounds = {name: [known.low, known.high] for name, known in intervals.items() if known}
    return finite({"prompts": prompts, **counts, **line}) | {"intervals": bounds}


def rewards_of(each: Mapping[str, Sums], rules: Sequence[Rule] | None = None) -> dict[str, list[float]]:
    """By prompt group: the rewards of its responses, by uid. With `rules` the weighted sum of their components:
    a reward that a member gives has the run's reward model in it."""
    groups: defaultdict[str, list[float]] = defaultdict(list)
    weights = [] if rules is None else [rule.weight for rule in rules]
    names = [f"{COMPONENT}{name}" for name in component_names(rules or (), model=False)]
    for uid in sorted(each):
        known = each[uid]
        if rules is not None and all(name in known for name in names):
            reward = sum(weight * known[name] for weight, name in zip(weights, names, strict=True))
            groups[uid.split(".")[0]].append(reward)
        elif rules is None and "reward_mean" in known:
            groups[uid.split(".")[0]].append(known["reward_mean"])
    return groups


def _share_above_0(each: Mapping[str, Sums], name: str) -> float | None:
    known = [sums[name] > 0.0 for sums in each.values() if name in sums]
    return sum(known) / len(known) if known else None


def _meaningless_when_greedy(recipe: Recipe, one: HeldOutSet) -> list[str]:
    """KLs that are estimated from tokens drawn from the student: greedy ones are not."""
    sampled = {"reverse_kl": one.teachers and recipe.objective.support == "sampled"}
    sampled["start_kl"] = recipe.metrics.start_kl == "sampled"
    return [name for name in OF_DRAWN if sampled[name]]
