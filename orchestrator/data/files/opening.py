"""Opens what a path of the data names, by its kind."""

from __future__ import annotations

import os
from pathlib import Path

from configs.data import DataSet
from configs.names.hub import HUB, hub_name
from configs.refusal import RecipeError
from orchestrator.data.files import arrow
from orchestrator.data.files.lines import JsonLines
from orchestrator.data.files.table import Table

SEPARATORS = {".csv": ",", ".tsv": "\t"}


def open_table(entry: DataSet) -> Table:
    """The rows of a file (Parquet, CSV and TSV by their suffix, else JSON lines), of a saved data set, or of one on the
    Hub. Raises RecipeError."""
    if entry.path.startswith(HUB):
        name = hub_name(entry.path)
        if name is None:
            raise RecipeError(f"{entry.path}: is no name on the Hub; write hub:owner/name@revision:split")
        return arrow.of_the_hub(name, entry.split)
    path, split = _with_split(entry.path, entry.split)
    if _is_directory(path):
        return _saved(path, split)
    if split:
        raise RecipeError(f"{path}: is a file, and has no split {split!r}; leave the split out")
    if path.suffix.lower() == ".parquet":
        return arrow.parquet(path)
    if separator := SEPARATORS.get(path.suffix.lower()):
        return arrow.separated(path, separator)
    return JsonLines(path)


def _with_split(path: str, split: str | None) -> tuple[Path, str | None]:
    """A path and its split: `saved:test` is the split `test` of the directory `saved`."""
    head, colon, tail = path.rpartition(":")
    if colon and tail.isidentifier() and not _exists(Path(path)) and _is_directory(Path(head)):
        return Path(head), tail if split is None else split
    return Path(path), split


def _saved(path: Path, split: str | None) -> Table:
    if not any(_exists(path / name) for name in ("dataset_dict.json", "state.json")):
        raise RecipeError(
            f"{path}: cannot be read (Is a directory); give a file of JSON lines, Parquet, CSV or a data set that "
            "save_to_disk wrote in data.prompts and data.heldout"
        )
    return arrow.saved(path, split)


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _exists(path: Path) -> bool:
    try:
        return os.path.lexists(path)
    except (OSError, ValueError):
        return False
