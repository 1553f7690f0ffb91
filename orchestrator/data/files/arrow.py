"""Parquet, CSV, saved data sets and those of the Hub, as Arrow tables that the `datasets` library maps from disk.

Parquet and CSV are converted once, into the user's cache; the library finds a conversion by the file's path and time.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from configs.load import cache_directory
from configs.names.hub import HubName
from configs.reading.text_file import refuse_utf16, regular_size
from configs.refusal import RecipeError, reason, shown
from orchestrator.data.files.values import plain

LONGEST_CELL = 2**27  # characters
ANSWERS = 10.0  # seconds in which the Hub answers
_REMEDY = "write it anew, or give another file"


class ArrowRows:
    """The rows of a data set, by place."""

    unit = "row"

    def __init__(self, name: str, rows: Any) -> None:
        self.name = name
        self._rows = rows.with_format("arrow")
        if not len(rows):
            raise _empty(name)

    def __len__(self) -> int:
        return len(self._rows)

    def number(self, place: int) -> int:
        return place + 1

    def __getitem__(self, place: int) -> dict[str, Any]:
        try:
            (row,) = self._rows[place].to_pylist(maps_as_pydicts="strict")
            return plain(row)
        except UnicodeDecodeError:
            raise RecipeError(f"{self.name} row {place + 1}: holds text that is no UTF-8; {_REMEDY}") from None
        except (ValueError, KeyError, OSError) as error:
            raise RecipeError(f"{self.name} row {place + 1}: {reason(error)}") from None

    def weights(self, field: str) -> list[Any] | None:
        """The values of a column, where `field` names one; all null where it names none."""
        if field in self._rows.column_names:
            return self._rows.data.column(field).to_pylist()
        return None if "." in field else [None] * len(self)


def parquet(path: Path) -> ArrowRows:
    """The rows of a Parquet file. Raises RecipeError."""
    regular_size(path, _REMEDY)
    with _readable(str(path)) as datasets:
        if not _has_rows(path):
            raise _empty(str(path))
        return ArrowRows(str(path), datasets.Dataset.from_parquet(str(path), cache_dir=_cache()))


def _has_rows(path: Path) -> bool:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        return file.metadata.num_rows > 0


def _empty(name: str) -> RecipeError:
    return RecipeError(f"{name}: holds no row; give at least one prompt")


def separated(path: Path, separator: str) -> ArrowRows:
    """The rows of a CSV file whose first record names the columns. Every cell is text, and null if it is empty. Raises
    RecipeError."""
    names = _checked_names(path, separator)
    with _readable(str(path)) as datasets:
        text = datasets.Features({name: datasets.Value("string") for name in names})
        how: dict[str, Any] = {"sep": separator, "keep_default_na": False, "na_values": [""], "index_col": False}
        how |= {"features": text, "encoding": "utf-8-sig", "cache_dir": _cache()}
        return ArrowRows(str(path), datasets.Dataset.from_csv(str(path), **how))


def saved(path: Path, split: str | None) -> ArrowRows:
    """The rows of a directory that `save_to_disk` wrote. Raises RecipeError."""
    with _readable(str(path)) as datasets:
        found = datasets.load_from_disk(str(path))
        if isinstance(found, datasets.DatasetDict):
            return ArrowRows(f"{path}:{_split(str(path), found, split)}", found[_split(str(path), found, split)])
    if split not in (None, "", str(found.split)):
        raise RecipeError(f"{path}: has the one split {found.split}, not {split!r}; leave the split out")
    return ArrowRows(str(path), found)


def of_the_hub(name: HubName, split: str | None) -> ArrowRows:
    """The rows of a data set at a commit, from the library's cache, else from the network. Raises RecipeError."""
    with _readable(str(name)) as datasets:
        builder = _cached(datasets, name)
        if builder is None or (name.pinned and builder.hash != name.revision):
            revision = name.revision or None
            builder = datasets.load_dataset_builder(name.repository, name.subset or None, revision=revision)
            _refuse_other(builder.hash, name)
            builder.download_and_prepare()
        found = builder.as_dataset()
        return ArrowRows(str(name), found[_split(str(name), found, split or name.split)])


def _refuse_other(commit: str, name: HubName) -> None:
    """Raise RecipeError for another commit than the pinned one: without a network the library takes what it has."""
    if name.pinned and commit != name.revision:
        raise RecipeError(f"{name}: cannot be read (the cache has {commit}, and the Hub is not reached); connect once")


def commit_of(name: HubName) -> str:
    """The commit that a data set's revision is at; without a network, the one that the library's cache has. Raises
    what the library raises, of many types."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(name.repository, revision=name.revision or None, timeout=ANSWERS).sha)
    except Exception:
        if builder := None if name.revision else _cached(_library(), name):
            return str(builder.hash)
        raise


def _cached(datasets: Any, name: HubName) -> Any:
    """The data set as the library's cache has it, or None."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        return datasets.load_dataset_builder(name.repository, name.subset or None)
    except Exception:  # the library raises many types for what it lacks
        return None
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _split(name: str, found: Any, split: str | None) -> str:
    """The split that is asked for, else `train`, else the only one. Raises RecipeError."""
    wanted = split or ("train" if "train" in found or len(found) > 1 else next(iter(found)))
    if wanted not in found:
        raise RecipeError(f"{name}: has no split {wanted!r}; use one of {sorted(found)}: {name}:{sorted(found)[0]}")
    return wanted


def _cache() -> str:
    return str(cache_directory() / "datasets")


def _library() -> Any:
    """The library, quiet; it counts no downloads."""
    import datasets
    import datasets.config

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it logs what it raises
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    return datasets


@contextmanager
def _readable(name: str) -> Iterator[Any]:
    """The library. What it raises becomes one line about `name`."""
    datasets = _library()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield datasets
    except RecipeError:
        raise
    except Exception as error:  # Arrow, pandas, fsspec and the library raise many types
        cause = error.__cause__ or error
        raise RecipeError(f"{name}: cannot be read ({type(cause).__name__}: {reason(cause)}); {_REMEDY}") from None


def _checked_names(path: Path, separator: str) -> list[str]:
    """The columns of a CSV file, which is read once, a record at a time. Raises RecipeError for what pandas would guess
    at: a record that is longer or shorter than the first, a column that stands twice, bytes that are no UTF-8."""
    regular_size(path, _REMEDY)
    csv.field_size_limit(LONGEST_CELL)
    try:
        with open(path, "rb") as file:
            refuse_utf16(path, file.read(4))
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            return _checked_records(path, csv.reader(file, delimiter=separator, strict=True), separator)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({reason(error)}); {_REMEDY}") from None


def _checked_records(path: Path, reader: Any, separator: str) -> list[str]:
    """The names of the columns. Raises RecipeError with the row, and where that is not enough with its first line."""
    number = began = 0  # records after the first; lines before the record that is read
    names: list[str] = []
    try:
        for record in reader:
            if not all(map(_is_text, record)):
                where = f"row {number + 1}" if names else "line 1"
                raise RecipeError(f"{path} {where}: is no UTF-8; save the file as UTF-8")
            if not names:
                _check_names(path, names := record)
            elif record:
                number += 1
                if len(record) != len(names):
                    raise RecipeError(
                        f"{path} row {number}: has {len(record)} cells, the first record {len(names)}; quote what "
                        f"holds {shown(separator)}"
                    )
            began = reader.line_num
    except csv.Error as error:
        where = f"row {number + 1}, from line {began + 1} on" if names else "line 1"
        raise RecipeError(f"{path} {where}: cannot be read ({reason(error)}); {_REMEDY}") from None
    if not number:
        raise _empty(str(path))
    return names


def _is_text(cell: str) -> bool:
    """Whether its bytes were UTF-8: other ones became halves of surrogate pairs."""
    try:
        cell.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_names(path: Path, names: list[str]) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise RecipeError(f"{path}: the column {shown(twice[0])} stands twice; remove one of them")
    if not names:
        raise _empty(str(path))
    if "" in names:
        raise RecipeError(f"{path}: a column has no name; name it in the first record")
