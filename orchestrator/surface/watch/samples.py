"""Recorded responses for the page: text by text, with log-ratios and, where they are recorded, what else the teacher
would have written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from orchestrator.surface.report.recorded import Decode, Row, recorded_steps, rows_of, shown, table_of

VOCABULARY = "vocabulary.json"  # {id: bytes as latin-1}: a recorded run's own, where no tokenizer is at hand
TOKENS_SHOWN, PAGE = 800, 8


class Samples:
    """The samples of a run directory. `models`: directories that may hold the tokenizer, the likeliest first."""

    def __init__(self, directory: Path, models: Callable[[], Sequence[Path]]) -> None:
        self._directory = directory
        self._models = models
        self._decode: Decode | None = None
        self._piece: Callable[[int], str] | None = None
        self._listed: tuple[int, list[int], int] = (-1, [], 0)

    def steps(self) -> list[int]:
        """Recorded steps, ascending. The folder is read again only where it changed."""
        try:
            changed = (self._directory / "samples").stat().st_mtime_ns
        except OSError:
            return []
        if changed != self._listed[0]:
            files = len(list((self._directory / "samples").glob("step_*.rank*.arrow")))
            self._listed = (changed, recorded_steps(self._directory), files)
        return self._listed[1]

    def recorded(self) -> list[int] | None:
        """The first recorded step, the last, how many, and in how many files: of a step each rank writes its own, and
        one may come seconds after another. None without any."""
        steps = self.steps()
        return [steps[0], steps[-1], len(steps), self._listed[2]] if steps else None

    def page(self, step: int, start: int) -> dict[str, Any] | None:
        """PAGE samples of a step from `start` on; None where the step was not recorded."""
        stem = f"step_{step:06d}"
        table = table_of(self._directory, stem)
        if table is None:
            return None
        decode, piece = self._decoders()
        rows = rows_of(self._directory, stem, PAGE, start)
        samples = [_plain(shown(row, decode, piece)) for row in rows]
        return {
            "step": step,
            "start": start,
            "total": len(table),
            "samples": samples,
            "readable": self._decode is not None,
        }

    def _decoders(self) -> tuple[Decode, Callable[[int], str]]:
        """Decoders of many ids and of one. Without a tokenizer ids are shown as numbers, and it is looked for again."""
        if self._decode is None:
            self._decode = vocabulary(self._directory / VOCABULARY) or tokenizer(self._models())
            decode = self._decode or _numbers
            self._piece = lru_cache(maxsize=1 << 16)(lambda token: decode([token]))
        assert self._piece is not None
        return self._decode or _numbers, self._piece


def tokenizer(models: Sequence[Path]) -> Decode | None:
    """The decoder of the first directory that holds a tokenizer.json; special tokens are kept."""
    from tokenizers import Tokenizer

    for model in models:
        if (model / "tokenizer.json").is_file():
            found = Tokenizer.from_file(str(model / "tokenizer.json"))
            return lambda ids: found.decode(list(ids), skip_special_tokens=False)
    return None


def vocabulary(path: Path) -> Decode | None:
    """The decoder of a recorded vocabulary; None without the file."""
    if not path.is_file():
        return None
    pieces = {int(token): text.encode("latin-1") for token, text in json.loads(path.read_text()).items()}
    return lambda ids: b"".join(pieces.get(token, b"\xff") for token in ids).decode(errors="replace")


def _numbers(ids: Sequence[int]) -> str:
    return "".join(f"⟨{token}⟩" for token in ids)


def _plain(row: Row) -> dict[str, Any]:
    """What the page needs of a sample: [text, log-ratio, student, teacher, in loss, alternatives] a token."""
    versions = row["versions"] or []
    return {
        "uid": row["uid"],
        "question": row["question"],
        "prompt": row["prompt"],
        "finish": row["finish"],
        "reward": _rounded(row["reward"]),
        "versions": [min(versions), max(versions)] if versions else None,
        "length": len(row["response_ids"]),
        "mean": _rounded(row["mean"]),
        "tokens": [
            [
                token.text,
                *(_rounded(value) for value in (token.ratio, token.student, token.teacher)),
                token.in_loss,
                [(text, _rounded(logprob)) for text, logprob in token.likeliest],
            ]
            for token in row["tokens"][:TOKENS_SHOWN]
        ],
        "more": max(0, len(row["tokens"]) - TOKENS_SHOWN),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
