"""Scores of responses that come again, in a folder that epochs, members and runs share (`scorer.NAME.cache`).

A file a response, under the digest of all that its scores depend on: weights and config.json of the model, engine,
dtype, vocabulary, support and token ids. Names, texts and templates are no part of it. A file is the BLAKE3 digest (32
bytes) of its key and its Arrow stream, then that stream: one row. One that is not what was written is said, removed
and written anew.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from blake3 import blake3

from actors.lora.files import base_fingerprint
from actors.scoring.engine import Item
from actors.scoring.score_cache import Key, key_of
from actors.wire.records import Score
from configs.roles.scorer import Scorer as ScorerConfig

TEMPERATURE = 1.0  # of all scores
DIGEST, BLOCK = 32, 4096  # bytes: of a digest; of a disk's block
LOOK = 16  # a member looks at the folder again after it wrote this part of the bound
LEAVE = 0.9  # of the bound, once the oldest make room

_ROW = pa.schema(
    [
        ("logprobs", pa.list_(pa.float32())),
        ("support_ids", pa.list_(pa.int32())),
        ("support_logprobs", pa.list_(pa.float16())),
        ("tail_logprob", pa.list_(pa.float32())),
        ("entropy_sum", pa.float64()),
        ("tails_floored", pa.int64()),
    ]
)
_ARRAYS = _ROW.names[:4]


class Unreadable(Exception):
    """A file does not hold what was written. The reason in words."""


@dataclass(frozen=True)
class Entry:
    path: Path
    seconds: float  # when it was last used, unix
    nbytes: int  # on disk


class ScoreFiles:
    """`most_bytes` on disk, the longest unused go first. Members that share a folder look at it now and then, so it may
    hold a sixteenth more for each. Reads and writes files: not for an event loop."""

    def __init__(self, folder: Path, most_bytes: int, identity: Sequence[object]) -> None:
        """Raises OSError if the folder cannot be made or read."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder, self._most, self._identity = folder, most_bytes, tuple(identity)
        self._written = 0  # bytes since the last look
        self._writes = True
        self._make_room()

    @classmethod
    def of(cls, config: ScorerConfig, model: Path, vocabulary: int) -> ScoreFiles | None:
        """The folder that a scorer's configuration names, if it can be used, for the weights in a directory. These are
        read whole: a second for about 2 GiB."""
        if config.cache is None:
            return None
        about = json.loads((model / "config.json").read_text())
        weights = base_fingerprint(model), json.dumps(about, sort_keys=True)
        identity = *weights, config.engine, config.dtype, vocabulary, TEMPERATURE
        try:
            return cls(Path(config.cache), int(config.cache_gib * 2**30), identity)
        except OSError as error:
            print(f"{config.cache}: {error}; no scores are kept there, and the run goes on", flush=True)
            return None

    def get(self, kind: object, item: Item) -> Score | None:
        """The scores of a whole response, or None. `kind`: what was asked of it."""
        key = self._key(kind, item)
        path = self._path(key)
        try:
            score = _unpacked(path.read_bytes(), key, item)
        except FileNotFoundError:
            return None
        except (OSError, Unreadable) as error:
            print(f"{path}: {error}; the response is scored again", flush=True)
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):
            path.touch()
        return score

    def put(self, kind: object, item: Item, score: Score) -> None:
        """Keep the scores of a whole response, unless they are kept already. After a failure to write, said once, no
        more are."""
        key = self._key(kind, item)
        path = self._path(key)
        if not self._writes or path.exists() or not np.isfinite(score.logprobs).all():
            return
        try:
            self._write(path, _packed(key, score))
        except OSError as error:
            self._writes = False
            print(f"{self._folder}: {error}; scores are no longer kept there, and the run goes on", flush=True)

    def _write(self, path: Path, data: bytes) -> None:
        """Under another name first, so that a reader never sees half a file."""
        path.parent.mkdir(mode=0o700, exist_ok=True)
        partial = path.with_name(f"{uuid.uuid4().hex}.partial")
        partial.write_bytes(data)
        partial.replace(path)
        self._written += _on_disk(len(data))
        if self._written > self._most // LOOK:
            self._make_room()

    def _make_room(self) -> None:
        self._written = 0
        entries = [entry for folder in self._folder.iterdir() if folder.is_dir() for entry in _entries(folder)]
        for entry in oldest_beyond(entries, self._most):
            with suppress(OSError):  # another member may be doing the same
                entry.path.unlink()

    def _key(self, kind: object, item: Item) -> Key:
        return key_of((self._identity, kind), item.prompt_ids, item.response_ids, item.support_ids)

    def _path(self, key: Key) -> Path:
        return self._folder / key.hex()[:2] / f"{key.hex()}.scores"


def oldest_beyond(entries: Sequence[Entry], most_bytes: int) -> list[Entry]:
    """The longest unused entries, without which the others take `LEAVE` of the bound; none if all fit."""
    total, found = sum(entry.nbytes for entry in entries), []
    if total <= most_bytes:
        return found
    for entry in sorted(entries, key=lambda entry: entry.seconds):
        if total <= LEAVE * most_bytes:
            break
        found.append(entry)
        total -= entry.nbytes
    return found


def _entries(folder: Path) -> list[Entry]:
    """Files of scores, and what a killed member left half written."""
    found = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            if path.suffix in (".scores", ".partial"):
                stat = path.stat()
                found.append(Entry(path, stat.st_mtime, _on_disk(stat.st_size)))
    return found


def _on_disk(nbytes: int) -> int:
    return -(-nbytes // BLOCK) * BLOCK


def _packed(key: Key, score: Score) -> bytes:
    arrays = [getattr(score, name) for name in _ARRAYS]
    flat = [None if array is None else array.reshape(-1) for array in arrays]
    columns = [*flat, score.entropy_sum, score.tails_floored]
    row = pa.record_batch([pa.array([c], f.type) for c, f in zip(columns, _ROW, strict=True)], schema=_ROW)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _ROW) as writer:
        writer.write_batch(row)
    stream = sink.getvalue().to_pybytes()
    return blake3(key + stream).digest() + stream


def _unpacked(data: bytes, key: Key, item: Item) -> Score:
    """Raises Unreadable unless it is what `_packed` made of the item's scores. Nothing is parsed before its digest is
    found right."""
    digest, stream = data[:DIGEST], data[DIGEST:]
    if blake3(key + stream).digest() != digest:
        raise Unreadable(f"its {len(data)} bytes are not those that were written")
    with pa.ipc.open_stream(stream) as reader:
        table = reader.read_all()
    if table.schema != _ROW or len(table) != 1:
        raise Unreadable("it is of another version")
    tokens = len(item.new_ids)
    logprobs, ids, of_ids, tail = (_array(table.column(name)[0]) for name in _ARRAYS)
    entropy, floored = (table.column(name)[0].as_py() for name in _ROW.names[4:])
    if logprobs is None or len(logprobs) != tokens:
        raise Unreadable(f"it has not the log-probs of {tokens} tokens")
    return Score(
        item.uid,
        logprobs,
        None if ids is None else ids.reshape(tokens, -1),
        None if of_ids is None else of_ids.reshape(tokens, -1),
        tail,
        entropy_sum=entropy,
        tails_floored=floored,
        from_file=True,
    )


def _array(value: Any) -> np.ndarray | None:
    return value.values.to_numpy(zero_copy_only=False) if value.is_valid else None
