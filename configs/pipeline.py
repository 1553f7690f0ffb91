"""A recipe with `stages`: each of them is a run, with a recipe of its own.

What stands outside of `stages` is common to all; a stage's own keys come over it, as a child's over a parent's. A model
whose path is `stage:NAME` is what the earlier stage NAME trained, `stage:NAME/best` the best of its checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import yaml

from configs.load import merged, parse_override, parse_recipe
from configs.node import OF_STAGE, STUDENT
from configs.refusal import RecipeError, shown
from configs.schema import FORMAT, Recipe

STAGES = "stages"
MOST_STAGES = 99  # a run's name has two digits for them
BEST = "best"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NOT_A_STAGES = {  # keys that only the whole has
    "extends": "put it at the top of the file",
    "stages": "stages do not nest",
    "format": "put it at the top of the file",
    "cluster": "all stages share one; set it at the top",
}
_MADE_HERE = ("name", "root", "stage")  # of `run`


class Made(NamedTuple):
    """The model that a stage makes: its last weights, or those of its best checkpoint."""

    stage: str
    best: bool = False

    def __str__(self) -> str:
        return f"{OF_STAGE}{self.stage}{f'/{BEST}' if self.best else ''}"


@dataclass(frozen=True)
class Stage:
    """A stage before it is carried out. `run`: its run's name; `tree`: its recipe, still with `stage:` paths; `uses`:
    by model, what an earlier stage makes."""

    name: str
    run: str
    tree: Mapping[str, Any]
    uses: Mapping[str, Made]


@dataclass(frozen=True)
class Pipeline:
    """The stages in order. `tree`: what the file, its parents and the overrides say; `name` and `root`: of the run
    directory, which holds one for each stage."""

    tree: Mapping[str, Any]
    name: str
    root: str
    stages: tuple[Stage, ...]

    def recipe(self, stage: Stage, directory: str, place: Callable[[Made], str | None]) -> Recipe:
        """The recipe of a stage's run in the pipeline's `directory`. `place(made)`: the directory of what an earlier
        stage makes; None: as it is not there yet, the model that it is made of, which has the same shapes.

        Raises RecipeError.
        """
        run = {"name": stage.run, "root": directory, "stage": stage.name}
        models = {name: {"path": place(made) or self._origin(made, place)} for name, made in stage.uses.items()}
        return parse_recipe(merged(dict(stage.tree), {"run": run, "models": models}))

    def plain(self) -> dict[str, Any]:
        """All keys of all stages, with their defaults, to compare two pipelines by. `stage:` paths stay."""
        whole = {}
        for stage in self.stages:
            tree = self.recipe(stage, self.root, lambda made: None).model_dump(mode="json")
            for model, made in stage.uses.items():
                tree["models"][model]["path"] = str(made)
            whole[stage.name] = tree
        return {"order": [*whole], STAGES: whole}

    def _origin(self, made: Made, place: Callable[[Made], str | None]) -> str:
        (stage,) = (stage for stage in self.stages if stage.name == made.stage)
        before = stage.uses.get(STUDENT)
        return (place(before) or self._origin(before, place)) if before else stage.tree["models"][STUDENT]["path"]


def parse_pipeline(tree: Mapping[str, Any]) -> Pipeline:
    """Check a tree with `stages`, and every stage's recipe. Raises RecipeError."""
    parts = _parts(tree[STAGES])
    common = {key: value for key, value in tree.items() if key != STAGES}
    run = common.get("run")
    if not isinstance(run, dict) or not isinstance(run.get("name"), str):
        raise RecipeError("run.name: missing; add it to the recipe, outside of its stages")
    if not isinstance(run.get("root", ""), str):
        raise RecipeError(f"run.root: {shown(run['root'])} is no path; write the folder of runs")
    if "stage" in run:
        raise RecipeError("run.stage: is set by `stages`; remove it")
    stages: list[Stage] = []
    for number, (name, part) in enumerate(parts.items(), 1):
        whole = merged(common, part)
        stages.append(Stage(name, f"{run['name']}-{number:02}-{name}", whole, _uses(name, whole, stages)))
    pipeline = Pipeline(tree, run["name"], run.get("root", "runs"), tuple(stages))
    _check(pipeline)
    return pipeline


def dump_pipeline(pipeline: Pipeline) -> str:
    """The recipe as YAML, without parents and overrides; `parse_pipeline` reads it back to an equal value."""
    return yaml.safe_dump({"format": FORMAT} | dict(pipeline.tree), sort_keys=False, allow_unicode=True)


def shadowed(pipeline: Pipeline, overrides: Sequence[str]) -> Iterator[str]:
    """A line for each override of the common part that some stage has a value of its own for."""
    for path in (path for override in overrides for path in _leaves(parse_override(override))):
        owners = [name for name, part in pipeline.tree[STAGES].items() if _has(part, path)]
        if path[0] != STAGES and owners:
            key = ".".join(path)
            yield f"{key}: not in {', '.join(owners)}, with a value of its own; write {STAGES}.NAME.{key}=..."


def _parts(stages: Any) -> dict[str, dict[str, Any]]:
    """What each stage says itself. Raises RecipeError."""
    if not isinstance(stages, dict) or not stages:
        raise RecipeError(f"stages: {shown(stages)} is no mapping; write the name of each stage, and its keys under it")
    if len(stages) > MOST_STAGES:
        raise RecipeError(f"stages: {len(stages)} are more than {MOST_STAGES}; chain two recipes")
    for name, part in stages.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise RecipeError(f"stages: {shown(name)} is no name; use letters, digits, `.`, `_` and `-`")
        if not isinstance(part, dict):
            raise RecipeError(f"stages.{name}: {shown(part)} is no mapping; write what differs, or {{}}")
        if wrong := next((key for key in part if key in _NOT_A_STAGES), None):
            raise RecipeError(f"stages.{name}.{wrong}: is no key of a stage; {_NOT_A_STAGES[wrong]}")
        if flat := next((key for key in ("run", "models") if not isinstance(part.get(key, {}), dict)), None):
            raise RecipeError(f"stages.{name}.{flat}: {shown(part[flat])} is no mapping; write the keys that differ")
        if made := [key for key in _MADE_HERE if key in part.get("run", {})]:
            raise RecipeError(f"stages.{name}.run.{made[0]}: follows from the recipe's run.name; remove it")
    return stages


def _uses(name: str, tree: Mapping[str, Any], earlier: Sequence[Stage]) -> dict[str, Made]:
    """By model of a stage, what an earlier one makes. Raises RecipeError."""
    models, found = tree.get("models"), {}
    for model, keys in models.items() if isinstance(models, dict) else ():
        path = keys.get("path") if isinstance(keys, dict) else None
        if isinstance(path, str) and path.startswith(OF_STAGE):
            found[model] = _made(f"stages.{name}: models.{model}.path", path, [stage.name for stage in earlier])
    return found


def _made(key: str, path: str, earlier: Sequence[str]) -> Made:
    stage, slash, which = path.removeprefix(OF_STAGE).partition("/")
    if stage not in earlier:
        raise RecipeError(f"{key}: {shown(path)} is no earlier stage; earlier ones: {[*earlier]}")
    if slash and which != BEST:
        raise RecipeError(f"{key}: {shown(path)}; write {OF_STAGE}{stage}, or {OF_STAGE}{stage}/{BEST}")
    return Made(stage, bool(slash))


def _check(pipeline: Pipeline) -> None:
    recipes: dict[str, Recipe] = {}
    for stage in pipeline.stages:
        try:
            recipes[stage.name] = pipeline.recipe(stage, pipeline.root, lambda made: None)
        except RecipeError as error:
            raise RecipeError(*(f"stages.{stage.name}: {line}" for line in error.lines)) from None
        for model, made in stage.uses.items():
            if made.best and recipes[made.stage].checkpoint.best is None:
                raise RecipeError(
                    f"stages.{stage.name}: models.{model}.path: '{made}', and {made.stage} keeps no best; set "
                    f"stages.{made.stage}.checkpoint.best"
                )


def _leaves(tree: Any) -> Iterator[list[str]]:
    """The paths of all values of a tree."""
    if not isinstance(tree, dict):
        yield []
        return
    for key, value in tree.items():
        yield from ([str(key), *rest] for rest in _leaves(value))


def _has(tree: Any, path: Sequence[str]) -> bool:
    """Whether a tree has a value at a path, or at its beginning."""
    for key in path:
        if not isinstance(tree, dict):
            return True
        spelt = {str(name): name for name in tree}
        if key not in spelt:
            return False
        tree = tree[spelt[key]]
    return True
