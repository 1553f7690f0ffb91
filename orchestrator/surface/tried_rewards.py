"""The rewards of a recipe, tried on responses that a file holds, without a run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.table import Table

from configs.load import model_directory
from configs.node import STUDENT
from configs.reading.text_file import read_text
from configs.refusal import RecipeError, reason, shown
from configs.reward_rules import Rule, component_names
from configs.schema import Recipe
from orchestrator.preflight.inputs.own_code import check_own_code
from rewards.apart.process import Apart
from rewards.response import Response
from rewards.scoring import Rewarded, score

NAMED = 10  # rejected responses that are listed


@dataclass(frozen=True)
class Tried:
    """What a recipe's rules gave to the responses of a file, by line. `left_out`: a reward model, which only a run
    asks."""

    rules: Sequence[Rule]
    lines_of: Sequence[int]
    found: Sequence[Rewarded]
    left_out: bool

    @property
    def rewarded(self) -> list[Rewarded]:
        return [one for one in self.found if one.reward is not None]

    def components(self) -> dict[str, dict[str, float | None]]:
        """Weight, mean, least and most of each component over the rewarded responses."""
        names = component_names(self.rules, model=False)
        columns = {name: [one.components[name] for one in self.rewarded] for name in names}
        return {
            name: {"weight": rule.weight, **_spread(columns[name])}
            for name, rule in zip(names, self.rules, strict=True)
        }

    def table(self) -> Table:
        """A row a component, and one of the weighted sum."""
        table = Table("component", "weight", "mean", "least", "most", title=f"{len(self.rewarded)} responses rewarded")
        for name, values in self.components().items():
            table.add_row(name, *(_written(values[key]) for key in ("weight", "mean", "least", "most")))
        total = _spread([one.reward for one in self.rewarded if one.reward is not None])
        table.add_row("reward", "", *(_written(total[key]) for key in ("mean", "least", "most")), style="bold")
        return table

    def lines(self) -> Iterator[str]:
        """The rejected responses and their reasons, and what was left out."""
        rejected = [(line, one.rejection) for line, one in zip(self.lines_of, self.found, strict=True) if one.rejection]
        if rejected:
            yield f"{len(rejected)} of {len(self.found)} responses rejected; a run would skip these samples:"
        yield from (f"  line {line}: {why}" for line, why in rejected[:NAMED])
        if len(rejected) > NAMED:
            yield f"  and {len(rejected) - NAMED} more; --json has them all"
        if self.left_out:
            yield "reward.model: left out; only a run asks it"

    def to_json(self) -> str:
        each = [
            {"line": line, "reward": one.reward, "components": one.components, "rejected": one.rejection}
            for line, one in zip(self.lines_of, self.found, strict=True)
        ]
        total = _spread([one.reward for one in self.rewarded if one.reward is not None])
        return json.dumps({"components": self.components(), "reward": total, "responses": each}, indent=1)


def on(recipe: Recipe, file: Path) -> Tried:
    """Reward the rows of a JSON-lines file by the text in their `response`. A row's `tokens` counts it; else the
    student's tokenizer does, and the end token. Raises RecipeError."""
    rules = recipe.reward.rules
    if not rules:
        raise RecipeError("reward.rules: is empty, so there is nothing to try; add a rule")
    check_own_code(recipe)
    rows = dict(_rows(file))
    lengths = _lengths(recipe, rows)
    responses = [Response(row["response"], lengths[line], row) for line, row in rows.items()]
    try:
        with closing(Apart()) as apart:
            found = score(rules, responses, apart)
    except RuntimeError as error:
        raise RecipeError(reason(error)) from None
    return Tried(rules, tuple(rows), found, recipe.reward.model is not None)


def _rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    text = read_text(file, "give JSON lines, a prompt's row with its response a line")
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise RecipeError(f'{file}: is empty; give lines of {{"prompt": "...", "response": "..."}}')
    for number, line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RecipeError(f"{file} line {number}: is no JSON ({reason(error)}); write one object a line") from None
        if not isinstance(row, dict) or not isinstance(row.get("response"), str):
            raise RecipeError(f'{file} line {number}: needs a "response" that is text; found {shown(line.strip(), 60)}')
        yield number, row


def _lengths(recipe: Recipe, rows: Mapping[int, Mapping[str, Any]]) -> dict[int, int]:
    """Tokens of each response. The tokenizer is read only where a row does not say."""
    given = {line: row["tokens"] for line, row in rows.items() if isinstance(row.get("tokens"), int)}
    if len(given) == len(rows):
        return given
    from tokenizers import Tokenizer

    file = model_directory(recipe.path_of(STUDENT)) / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exceptions
        raise RecipeError(
            f"models.{STUDENT}: {file} cannot be read to count tokens ({reason(error)}); give each row its `tokens`"
        ) from None
    counted = {line: len(tokenizer.encode(r["response"], add_special_tokens=False)) + 1 for line, r in rows.items()}
    return counted | given


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return dict.fromkeys(("mean", "least", "most"))
    return {"mean": fmean(values), "least": min(values), "most": max(values)}


def _written(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
