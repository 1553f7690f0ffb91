"""Trackers through their own libraries. One that is not installed is refused before work starts.

Their accounts and servers are set as each library wants it, by its environment variables; no secret is in a recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from configs.refusal import RecipeError
from configs.schema import Recipe
from orchestrator.surface.trackers.feed import Tracker, numbers

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}


class TensorBoard:
    """Event files under <run>/tensorboard: `tensorboard --logdir <run.root>` shows runs beside each other."""

    name = "tensorboard"

    def __init__(self, recipe: Recipe, directory: Path) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(directory / "tensorboard"), flush_secs=10)

    def step(self, line: Mapping[str, Any]) -> None:
        for name, value in numbers(line).items():
            self._writer.add_scalar(f"step/{name}", value, line["step"], walltime=line["time"])

    def evaluated(self, step: int, result: Mapping[str, Any]) -> None:
        for name, value in numbers(result).items():
            self._writer.add_scalar(f"held_out/{name}", value, step)

    def status(self, status: Mapping[str, Any]) -> None:
        """Its curves are over steps, and a status is between two."""

    def close(self, exit_code: int | None) -> None:
        self._writer.close()


class Wandb:
    """One W&B run for a run, however often it is resumed."""

    name = "wandb"

    def __init__(self, recipe: Recipe, directory: Path) -> None:
        wandb = import_module("wandb")

        name = recipe.run.name
        self._run = wandb.init(
            project="logratio",
            name=name,
            id=_identity(directory),
            resume="allow",
            dir=str(directory),
            config=recipe.model_dump(mode="json"),
        )
        self._run.define_metric("*", step_metric="step")  # steps go back where a learner was rebuilt

    def step(self, line: Mapping[str, Any]) -> None:
        self._run.log({"step": line["step"]} | {f"step/{name}": value for name, value in numbers(line).items()})

    def evaluated(self, step: int, result: Mapping[str, Any]) -> None:
        self._run.log({"step": step} | {f"held_out/{name}": value for name, value in numbers(result).items()})

    def status(self, status: Mapping[str, Any]) -> None:
        """W&B has system metrics of its own."""

    def close(self, exit_code: int | None) -> None:
        self._run.finish(exit_code=exit_code)


class Mlflow:
    """A run of the experiment `logratio`; resumed by the name of the run directory."""

    name = "mlflow"

    def __init__(self, recipe: Recipe, directory: Path) -> None:
        mlflow = import_module("mlflow")

        mlflow.set_experiment("logratio")
        mark = {"logratio.run": _identity(directory)}
        found = mlflow.search_runs(
            filter_string=f"tags.`logratio.run` = '{mark['logratio.run']}'", output_format="list"
        )
        self._mlflow = mlflow
        if found:
            mlflow.start_run(run_id=found[0].info.run_id)
        else:
            mlflow.start_run(run_name=recipe.run.name, tags=mark)
            mlflow.log_dict(recipe.model_dump(mode="json"), "recipe.yaml")

    def step(self, line: Mapping[str, Any]) -> None:
        self._mlflow.log_metrics({f"step/{name}": v for name, v in numbers(line).items()}, step=line["step"])

    def evaluated(self, step: int, result: Mapping[str, Any]) -> None:
        self._mlflow.log_metrics({f"held_out/{name}": v for name, v in numbers(result).items()}, step=step)

    def status(self, status: Mapping[str, Any]) -> None:
        """Its metrics are over steps."""

    def close(self, exit_code: int | None) -> None:
        self._mlflow.end_run({0: "FINISHED", 3: "KILLED"}.get(exit_code or 0, "FAILED"))


class Trackio:
    """A run of the local Trackio project `logratio`."""

    name = "trackio"

    def __init__(self, recipe: Recipe, directory: Path) -> None:
        trackio = import_module("trackio")

        config = recipe.model_dump(mode="json")
        self._run = trackio.init(project="logratio", name=recipe.run.name, config=config, resume="allow", embed=False)

    def step(self, line: Mapping[str, Any]) -> None:
        self._run.log({f"step/{name}": value for name, value in numbers(line).items()}, step=line["step"])

    def evaluated(self, step: int, result: Mapping[str, Any]) -> None:
        self._run.log({f"held_out/{name}": value for name, value in numbers(result).items()}, step=step)

    def status(self, status: Mapping[str, Any]) -> None:
        """Its metrics are over steps."""

    def close(self, exit_code: int | None) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[Recipe, Path], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": Mlflow,
    "trackio": Trackio,
}


def check_installed(names: Sequence[str]) -> None:
    """Raises RecipeError with a line for each tracker whose package is not installed."""
    missing = [name for name in names if find_spec(PACKAGES[name]) is None]
    if missing:
        raise RecipeError(
            *(f"metrics.trackers: {name} is not installed; pip install {PACKAGES[name]}" for name in missing)
        )


def _identity(directory: Path) -> str:
    """The same for every life of a run."""
    return directory.name
