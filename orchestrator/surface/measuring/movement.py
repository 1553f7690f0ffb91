"""How far the weights of an evaluated model moved from where its training began: numbers, and rows for a table."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from rich.table import Table

from actors.metrics import finite
from configs.load import model_directory
from configs.refusal import reason

if TYPE_CHECKING:
    from actors.models.movement import Moved

LAYER = re.compile(r"\.\d+(?=\.)")  # the number of a layer, or of an expert, in a tensor's name


def measured(start: str, model: Path, saved: Path | None = None) -> dict[str, Any]:
    """The numbers of MOVEMENT_METRICS, and those of each tensor in `tensors`; of a checkpoint `saved` of `model`, or of
    the directory. `unknown` alone, with the reason, where the two cannot be compared."""
    from actors.learning.saved_model import saved_tensors
    from actors.models.movement import Files, movement

    try:
        folder = model_directory(str(model))
        now = Files(folder) if saved is None else saved_tensors(saved, folder)
        return finite({"start": start, **summed(dict(movement(Files(model_directory(start)), now)))})
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        return {"start": start, "unknown": reason(error)}


def summed(tensors: Mapping[str, Moved]) -> dict[str, Any]:
    """By the names of MOVEMENT_METRICS, over all tensors, and `tensors` by name."""
    weights = sum(one.weights for one in tensors.values())
    ranks = [one.rank for one in tensors.values() if one.rank is not None]
    return {
        "weights": weights,
        "weights_changed": sum(one.changed for one in tensors.values()) / max(1, weights),
        "weights_distance": _distance(list(tensors.values())),
        "effective_rank": median(ranks) if ranks else None,
        "tensors": {name: asdict(one) for name, one in tensors.items()},
    }


def table_of(found: Mapping[str, Any]) -> Table:
    """A row for each kind of tensor, over its layers, and one of all."""
    title = f"weights against {found['start']}"
    if "unknown" in found:
        return Table(f"not compared: {found['unknown']}", title=title)
    table = Table("tensors", "weights", "changed", "distance", "effective rank", "of", title=title)
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for name, one in found["tensors"].items():
        kinds.setdefault(LAYER.sub(".*", name), []).append(one)
    for kind, several in kinds.items():
        table.add_row(kind, *_row(several))
    whole = f"{found['weights_changed']:.2%}", _written(found["weights_distance"]), _written(found["effective_rank"])
    table.add_row("all; the rank is the median", str(found["weights"]), *whole, "", style="bold")
    return table


def _row(several: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    weights = sum(one["weights"] for one in several)
    ranks = [one["rank"] for one in several if one["rank"] is not None]
    distance = math.sqrt(sum(one["change"] for one in several) / (sum(one["start"] for one in several) or math.inf))
    most = [one["most"] for one in several if one["most"] is not None]
    changed = sum(one["changed"] for one in several) / max(1, weights)
    rank = _written(fmean(ranks)) if ranks else "-"
    return str(weights), f"{changed:.2%}", _written(distance), rank, str(max(most)) if most else "-"


def _distance(tensors: Sequence[Moved]) -> float | None:
    start = sum(one.start for one in tensors)
    return math.sqrt(sum(one.change for one in tensors) / start) if start else None


def _written(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
