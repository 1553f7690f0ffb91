"""Seconds from a million-row file to the first prompt that could be leased, and memory.

`python -m benchmarks data [--rows 1000000] [--kind parquet|jsonl] [--model bundled:SmolLM2-135M-Instruct] [--out FILE]`
Writes a temporary file, then reads it in new processes: once with an empty cache, once again. Prints seconds to the
first prompt, prompts a second after it, both by the wall and of the processor, and the growth of memory: anonymous, and
of mapped files, which the system may drop.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import machine

CACHES = ("empty", "filled")
BATCH = 50_000  # rows written at a time
TEXT = "Compute the sum of the first numbers whose digits add up to it, and explain each step. "


def rows(first: int, count: int) -> Iterator[dict[str, Any]]:
    for i in range(first, first + count):
        yield {"prompt": f"{TEXT * (1 + i % 4)}({i})", "answer": str(i), "reward_model": {"ground_truth": str(i)}}


def write(file: Path, count: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    starts = range(0, count, BATCH)
    if file.suffix == ".jsonl":
        with file.open("w") as lines:
            for start in starts:
                lines.writelines(json.dumps(row) + "\n" for row in rows(start, min(BATCH, count - start)))
        return
    writer = None
    for start in starts:
        table = pa.Table.from_pylist(list(rows(start, min(BATCH, count - start))))
        writer = writer or pq.ParquetWriter(file, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def clocks() -> tuple[float, float]:
    """Seconds by the wall, and of this process on the processor."""
    return time.perf_counter(), time.process_time()


def since(began: tuple[float, float]) -> list[float]:
    return [now - then for now, then in zip(clocks(), began, strict=True)]


def memory() -> dict[str, float]:
    """MiB of this process, by kind, as the kernel counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines if line.startswith(("RssAnon", "RssFile")))
    return {name: int(value.split()[0]) / 1024 for name, value in found.items()}


def read(file: Path, model: str, leases: int) -> dict[str, Any]:
    """What a run does before its first lease, with its imports done and its tokenizer loaded."""
    import datasets  # noqa: F401 - its import is no part of what is measured
    from transformers import AutoTokenizer

    from configs.data import DataSet
    from configs.load import model_directory
    from configs.schema import Model
    from orchestrator.data.prompting import Limit, Prompting
    from orchestrator.data.sets import order, read_sets
    from orchestrator.samples.templates import Chat

    tokenizer = AutoTokenizer.from_pretrained(model_directory(model), local_files_only=True)
    chats = {name: Chat(name, Model(path=model), tokenizer) for name in ("student", "teacher")}
    prompting = Prompting(chats, tuple(Limit(name, name, 2048, 512) for name in chats))
    before, began = memory(), clocks()
    (prompts,) = read_sets([DataSet(path=str(file))], prompting, (), drops=False).sets
    stream = order(prompts, seed=0, shuffle=True)
    assert stream[0].ids["student"]
    first, began = since(began), clocks()
    for index in range(1, leases):
        _ = stream[index]
    rate = [(leases - 1) / seconds for seconds in since(began)]
    grown = {name: mib - before[name] for name, mib in memory().items()}
    return {"first": first, "rate": rate, **grown}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kind", choices=("parquet", "jsonl"), default="parquet")
    parser.add_argument("--model", default="bundled:SmolLM2-135M-Instruct")
    parser.add_argument("--leases", type=int, default=1000, help="prompts taken in the order of a run")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.read:
        return print(json.dumps(read(asked.read, asked.model, asked.leases)))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"prompts.{asked.kind}"
        write(file, asked.rows)
        found: dict[str, Any] = {"rows": asked.rows, "kind": asked.kind, "file_mib": file.stat().st_size / 2**20}
        print(f"{asked.rows} rows, {found['file_mib']:.0f} MiB of {asked.kind}")
        for cache in CACHES:
            found[cache] = _measured(asked, file, folder)
            print(_line(cache, found[cache]))
    if asked.out:
        asked.out.write_text(json.dumps(machine.described("datasets", "pyarrow", "transformers") | found, indent=1))


def _measured(asked: argparse.Namespace, file: Path, folder: str) -> dict[str, Any]:
    """The figures of a new process whose caches lie in `folder`; models stay in the user's."""
    from configs.load import model_directory

    command = [sys.executable, "-m", "benchmarks.data", "--read", str(file), "--leases", str(asked.leases)]
    command += ["--model", str(model_directory(asked.model))]
    output = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | {"LOGRATIO_CACHE": folder}
    )
    return json.loads(output.stdout.splitlines()[-1])


def table(found: Mapping[str, Any]) -> str:
    """The figures of a run that was written with --out."""
    head = f"{found['rows']} rows, {found['file_mib']:.0f} MiB of {found['kind']}"
    return "\n".join(["```", head, *(_line(cache, found[cache]) for cache in CACHES), "```"])


def _line(cache: str, found: Mapping[str, Any]) -> str:
    (wall, processor), (rate, most) = found["first"], found["rate"]
    return (
        f"cache {cache:6}  first prompt after {wall:.1f} s ({processor:.1f} s of the processor), then {rate:.0f} "
        f"prompts/s ({most:.0f}); memory + {found['RssAnon']:.0f} MiB, + {found['RssFile']:.0f} MiB of mapped files"
    )


if __name__ == "__main__":
    main()
