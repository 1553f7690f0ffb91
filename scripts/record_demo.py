"""Keep a finished run as the demo that `logratio watch --demo` opens: .venv/bin/python -m scripts.record_demo RUN

Takes curves, status, summary, a few samples of each recorded step, and the pieces of text that these need in place of a
tokenizer. Paths of this machine stay out.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from tokenizers import Tokenizer

from orchestrator.surface.report.recorded import object_of, recorded_steps, table_of
from orchestrator.surface.watch.samples import VOCABULARY
from orchestrator.surface.watch.server import DEMO

SAMPLES, LIMIT = 5, 300_000  # samples of a step; bytes of the whole
UNSEEN = ["group", "attempt", "seed", "rollout_logprobs", "support_ids", "start"]  # columns that the page does not show
RECIPE = ("run", "batch", "objective", "max_staleness", "rollout", "scorer", "reward", "learner")
SUMMARY = ("exit", "steps", "seconds", "seconds_startup", "evaluation", "restarts")


def record(run: Path, demo: Path) -> int:
    """Write the demo; returns its bytes. Raises ValueError for a run that has not ended well, or a demo too large."""
    summary = object_of(run / "summary.json")
    if summary.get("exit") != 0:
        raise ValueError(f"{run}: the demo is a run that ended with 0")
    shutil.rmtree(demo, ignore_errors=True)
    (demo / "samples").mkdir(parents=True)
    shutil.copy(run / "metrics.jsonl", demo)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    kept = {key: recipe[key] for key in RECIPE if key in recipe}
    kept["run"] = {key: kept["run"][key] for key in ("name", "steps")}
    (demo / "recipe.yaml").write_text(yaml.safe_dump(kept))
    (demo / "summary.json").write_text(json.dumps({key: summary.get(key) for key in SUMMARY}, indent=1) + "\n")
    if status := object_of(run / "status.json"):
        (demo / "status.json").write_text(json.dumps(status | {"exit": 0, "phase": "done"}, indent=1) + "\n")
    pieces = _pieces(run / "model" / "tokenizer.json", _copy_samples(run, demo))
    (demo / VOCABULARY).write_text(json.dumps(pieces, indent=0) + "\n")
    size = sum(path.stat().st_size for path in demo.rglob("*") if path.is_file())
    if size > LIMIT:
        raise ValueError(f"{demo} has {size} bytes, of at most {LIMIT}; record a shorter run")
    return size


def _copy_samples(run: Path, demo: Path) -> set[int]:
    """Copy the first samples of each step; returns the ids in them."""
    ids: set[int] = set()
    for step in recorded_steps(run):
        table = table_of(run, f"step_{step:06d}")
        assert table is not None
        table = table.slice(0, SAMPLES).combine_chunks().drop_columns(UNSEEN)
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(str(demo / f"samples/step_{step:06d}.rank0.arrow"), table.schema, options=options) as sink:
            sink.write_table(table)
        for column in ("prompt_ids", "response_ids", "likeliest_ids"):
            ids.update(token for row in table.column(column).to_pylist() for token in row or () if token >= 0)
    return ids


def _pieces(path: Path, ids: Iterable[int]) -> dict[str, str]:
    """The bytes of each id, as latin-1 text, of a byte-level tokenizer."""
    tokenizer, letters = Tokenizer.from_file(str(path)), _bytes_of_letters()
    added = {token: added.content for token, added in tokenizer.get_added_tokens_decoder().items()}

    def piece(token: int) -> str:
        if token in added:
            return added[token].encode().decode("latin-1")
        return bytes(letters[letter] for letter in tokenizer.id_to_token(token) or "").decode("latin-1")

    return {str(token): piece(token) for token in sorted(ids)}


def _bytes_of_letters() -> Mapping[str, int]:
    """How byte-level tokenizers write bytes: printable ones as themselves, the others from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def main(arguments: list[Any]) -> None:
    if len(arguments) != 1:
        sys.exit(__doc__)
    try:
        print(f"{DEMO}: {record(Path(arguments[0]), DEMO)} bytes")
    except (OSError, ValueError) as error:
        sys.exit(f"record_demo: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
