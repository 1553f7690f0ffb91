"""The samples that a step trained, as samples/*.arrow holds them for a reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from actors.wire.records import SAMPLES, Sample

Likeliest = tuple[np.ndarray, np.ndarray]  # ids i32 and log-probs f16, [tokens, LIKELIEST]

LIKELIEST = 4  # tokens that the teacher finds likeliest at a position, of those that are recorded for a reader

TRAINED = pa.schema(
    [
        *SAMPLES,
        ("reward", pa.float32()),
        ("student_logprobs", pa.list_(pa.float32())),  # the learner's, before this step's update
        ("teacher_logprobs", pa.list_(pa.float32())),  # null without a teacher
        ("class_logprobs", pa.list_(pa.float32())),  # the learner's of what the teacher's are of; null: of tokens too
        ("likeliest_ids", pa.list_(pa.int32())),  # [tokens * LIKELIEST] the teacher's, row-major; -1: unknown; or null
        ("likeliest_logprobs", pa.list_(pa.float16())),  # [tokens * LIKELIEST]
        ("reward_components", pa.map_(pa.string(), pa.float32())),  # parts of the reward, unweighted; null: none known
    ]
)


def trained_batch(
    samples: Sequence[Sample],
    rewards: Sequence[float | None],
    student_logprobs: Sequence[np.ndarray],
    teacher_logprobs: Sequence[np.ndarray | None],
    class_logprobs: Sequence[np.ndarray] | None = None,
    likeliest: Sequence[Likeliest | None] = (),
    components: Mapping[str, Mapping[str, float]] | None = None,
) -> pa.RecordBatch:
    """The samples that a learner rank trained on, in the given order. `likeliest` may be shorter: it is unknown of the
    others. `components` of the rewards are by uid."""
    none = [None] * len(samples)
    known = [row for row, _ in zip_longest(likeliest, none)]
    columns: list[Any] = [[getattr(s, name) for s in samples] for name in SAMPLES.names]
    columns += [list(rewards), list(student_logprobs), list(teacher_logprobs), list(class_logprobs or none)]
    columns += [[None if row is None else row[part].reshape(-1) for row in known] for part in (0, 1)]
    columns.append([list(parts.items()) if (parts := (components or {}).get(s.uid)) else None for s in samples])
    arrays = [pa.array(c, f.type) for c, f in zip(columns, TRAINED, strict=True)]
    return pa.record_batch(arrays, schema=TRAINED)


def write_rows(rows: pa.RecordBatch, path: Path) -> None:
    """Write an Arrow file for a reader who may look at any time: it is there whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
            writer.write_batch(rows)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # half of one, on a disk that is full
