"""`key=a,b,c seed=0,1`: the arms of a sweep. Pure but for the recipe's files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from configs.load import load_tree, parse_override, parse_recipe
from configs.pipeline import STAGES
from configs.refusal import RecipeError, shown
from configs.schema import Recipe
from orchestrator.surface.research.arms import key_of
from orchestrator.surface.submission import run_directory

SEED = "seed"  # short for run.seed
FIXED = ("run.name", "run.root")  # which say where the sweep lies
MOST = 256  # arms
OPENING, CLOSING, QUOTES = "[{(", "]})", "'\""


@dataclass(frozen=True)
class Arm:
    """One run of a sweep: what it sets, the hash of its recipe, and the recipe, placed in the sweep's folder."""

    sets: tuple[str, ...]
    key: str
    recipe: Recipe

    @property
    def label(self) -> str:
        return " ".join(self.sets) or "as it is"


def arms_of(recipe: Path, given: Sequence[str], pinned: Callable[[Recipe], Recipe]) -> tuple[str, str, list[Arm]]:
    """Name and root of a sweep, and its arms, the first key's values slowest. `pinned`: see hub.pinned. Raises
    RecipeError, for every arm that is no recipe by its own values."""
    axes = [_axis(text) for text in given]
    fixed = [values[0] for values in axes if len(values) == 1]
    varied = [values for values in axes if len(values) > 1]
    for name in FIXED:
        if any(values[0].startswith(f"{name}=") for values in varied):
            raise RecipeError(f"{name}: is where all arms lie; give it one value")
    _refuse_too_many(varied)
    found, name, root = [], "", ""
    for sets in product(*varied):
        base = _parsed(recipe, [*fixed, *sets], sets)
        name, root = base.run.name, base.run.root
        found.append(_arm(pinned(base), sets))
    _refuse_same(found)
    return name, root, found


def values_of(text: str) -> list[str]:
    """A text at its commas, but for those inside of brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in QUOTES:
            quote = character
        depth += (character in OPENING) - (character in CLOSING) if not quote else 0
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _axis(text: str) -> list[str]:
    """`key=a,b` as ["key=a", "key=b"]. Raises RecipeError."""
    key, equals, values = text.partition("=")
    if not equals or not key:
        raise RecipeError(f"{shown(text)}: write KEY=VALUE,VALUE, e.g. learner.optimizer.lr=1e-6,2e-6 seed=0,1,2")
    name = "run.seed" if key == SEED else key
    found = [f"{name}={value.strip()}" for value in values_of(values)]
    if empty := [one for one in found if one.endswith("=")]:
        raise RecipeError(f"{shown(text)}: {empty[0]} has no value; write one between each two commas")
    for one in found:
        parse_override(one)
    return found


def _refuse_too_many(varied: Sequence[Sequence[str]]) -> None:
    count = 1
    for values in varied:
        count *= len(values)
    if count > MOST:
        raise RecipeError(f"sweep: {count} arms are more than {MOST}; give fewer values")


def _parsed(recipe: Path, overrides: Sequence[str], sets: Sequence[str]) -> Recipe:
    tree = load_tree(recipe, overrides)
    if STAGES in tree:
        raise RecipeError(f"{recipe}: has stages; sweep a recipe without")
    try:
        return parse_recipe(tree)
    except RecipeError as error:
        raise RecipeError(*(f"{' '.join(sets)}: {line}" if sets else line for line in error.lines)) from None


def _arm(recipe: Recipe, sets: Sequence[str]) -> Arm:
    """The arm's run lies in the sweep's folder, under the sweep's name and its key."""
    key, run = key_of(recipe), recipe.run
    placed = run.model_copy(update={"name": f"{run.name}-{key}", "root": str(run_directory(run.name, run.root))})
    return Arm(tuple(sets), key, recipe.model_copy(update={"run": placed}))


def _refuse_same(arms: Sequence[Arm]) -> None:
    for one, other in _pairs(arms):
        if one.key == other.key:
            raise RecipeError(f"sweep: {shown(one.label)} and {shown(other.label)} are the same recipe; leave one out")


def _pairs(arms: Sequence[Arm]) -> Iterator[tuple[Arm, Arm]]:
    seen: dict[str, Arm] = {}
    for arm in arms:
        if arm.key in seen:
            yield seen[arm.key], arm
        seen[arm.key] = arm
