"""The scores of a recorded step that are kept for `logratio replay`: rows of all models in one file a rank."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from actors.wire.records import Score, pack_scores

KEPT = pa.schema(
    [
        ("model", pa.string()),
        ("uid", pa.string()),
        ("scorer_version", pa.int32()),
        (
            "logprobs",
            pa.list_(pa.float32()),
        ),  # of the response's tokens; 0 where a token was not scored: it has no loss
        ("support_ids", pa.list_(pa.int32())),  # [tokens * k], row-major; this and what follows null where not scored
        ("support_logprobs", pa.list_(pa.float16())),
        ("tail_logprob", pa.list_(pa.float32())),
        ("hidden", pa.large_binary()),  # [tokens, width] last hidden states, in `hidden_dtype`
        ("hidden_dtype", pa.string()),
    ]
)
ARRAYS = ("support_ids", "support_logprobs", "tail_logprob")


class Kept(NamedTuple):
    """A model's scores of a whole response; `dtype` of its hidden states, if it has some."""

    model: str
    score: Score
    dtype: str | None = None


def stem(step: int) -> str:
    """The name of a step's files under samples/, before the rank."""
    return f"scores_{step:06d}"


def file_beside(record: str, step: int, rank: int) -> Path:
    """The file of a rank's scores, beside its `record` of trained samples."""
    return Path(record).with_name(f"{stem(step)}.rank{rank}.arrow")


def kept_batch(rows: Sequence[Kept]) -> pa.RecordBatch:
    columns = [
        [row.model for row in rows],
        [row.score.uid for row in rows],
        [row.score.version for row in rows],
        [row.score.logprobs for row in rows],
        *([_flat(getattr(row.score, name)) for row in rows] for name in ARRAYS),
        [row.score.hidden for row in rows],
        [row.dtype for row in rows],
    ]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, KEPT, strict=True)]
    return pa.record_batch(arrays, schema=KEPT)


def by_model(table: pa.Table) -> dict[str, pa.RecordBatch]:
    """Rows of KEPT as a payload of scores for each model."""
    found: defaultdict[str, list[Score]] = defaultdict(list)
    dtypes: dict[str, str | None] = {}
    for row in table.to_pylist():
        tokens = len(row["logprobs"])
        arrays: dict[str, Any] = {
            name: None if row[name] is None else _rows(row[name], name, tokens) for name in ARRAYS
        }
        logprobs = np.asarray(row["logprobs"], np.float32)
        found[row["model"]].append(
            Score(row["uid"], logprobs, hidden=row["hidden"], version=row["scorer_version"], **arrays)
        )
        dtypes[row["model"]] = row["hidden_dtype"]
    return {model: pack_scores(scores, {}, dtypes[model])[0] for model, scores in found.items()}


def _flat(values: np.ndarray | None) -> np.ndarray | None:
    return None if values is None else values.reshape(-1)


def _rows(values: Sequence[float], name: str, tokens: int) -> np.ndarray:
    found = np.asarray(values, KEPT.field(name).type.value_type.to_pandas_dtype())
    return found if name == "tail_logprob" else found.reshape(tokens, -1)
