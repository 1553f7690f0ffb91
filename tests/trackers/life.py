"""One life of a run at a tracker's real library, or what the library has kept of all lives.

`python -m tests.trackers.life NAME FOLDER FIRST LAST EXIT` tells it of steps FIRST to LAST and of an evaluation;
`python -m tests.trackers.life NAME FOLDER` prints what it has, as JSON. Both run in the environment of
requirements/trackers.txt.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from configs.load import parse_recipe
from orchestrator.surface.trackers import feed as feeds
from orchestrator.surface.trackers.libraries import TRACKERS

RECIPE: dict[str, Any] = {
    "run": {"name": "mine", "steps": 4},
    "models": {"student": {"path": "/s"}, "teacher": {"path": "/t"}},
    "data": {"prompts": "/p.jsonl"},
    "batch": {"prompts_per_step": 4},
    "sampling": {"max_response_tokens": 16},
    "objective": {"target": "teacher"},
    "learner": {"optimizer": {"lr": 0.1}},
}
Points = dict[str, list[list[float]]]  # of a metric: [step, value]


def write(name: str, directory: Path, first: int, last: int, code: int) -> None:
    feeds.LAST_SECONDS = 250.0  # a library may take long to import
    notices: list[str] = []
    feed = feeds.Feed([partial(TRACKERS[name], parse_recipe(RECIPE), directory)], notices.append)
    for step in range(first, last + 1):
        feed.step({"step": step, "time": 1.7e9 + step, "loss": 1.0 / step, "reverse_kl": None, "kl_support": "full"})
    feed.evaluated(last, {"reverse_kl": 0.25, "kl_support": "full"})
    feed.status({})
    feed.close(code)
    assert not notices, notices


def mlflow_has(directory: Path) -> dict[str, Any]:
    mlflow = import_module("mlflow")
    client = mlflow.MlflowClient()
    experiments = [one.experiment_id for one in client.search_experiments() if one.name == "logratio"]
    runs = client.search_runs(experiments)
    points: Points = {
        key: [[metric.step, metric.value] for metric in client.get_metric_history(run.info.run_id, key)]
        for run in runs
        for key in run.data.metrics
    }
    recipe = yaml.safe_load(mlflow.artifacts.load_text(f"{runs[0].info.artifact_uri}/recipe.yaml"))
    return {"runs": len(runs), "ended": runs[0].info.status, "points": points, "recipe": recipe}


def trackio_has(directory: Path) -> dict[str, Any]:
    run_of = import_module("trackio").Api().runs("logratio")
    storage = import_module("trackio.sqlite_storage").SQLiteStorage
    points: Points = {}
    for line in storage.get_logs("logratio", run_of[0].name):
        for key, value in line.items():
            if "/" in key:
                points.setdefault(key, []).append([line["step"], value])
    return {"runs": len(run_of), "ended": None, "points": points, "recipe": run_of[0].config}


def wandb_has(directory: Path) -> dict[str, Any]:
    """What `wandb sync` would send: the records of each life's file."""
    record_of = import_module("wandb.proto.wandb_internal_pb2").Record.FromString
    found: dict[str, Any] = {"ids": set(), "ended": None, "points": {}, "recipe": {}}
    for file in sorted(directory.glob("wandb/offline-run-*/*.wandb"), key=os.path.getmtime):
        for data in _records(file.read_bytes()):
            _take(record_of(data), found)
    return {**found, "runs": len(found["ids"]), "ids": sorted(found["ids"])}


def _records(content: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log: blocks of 32 KiB with pieces of (checksum, length, kind), after a header."""
    at, whole = 7, b""
    while at + 7 <= len(content):
        if -at % 32768 < 7:  # no piece begins in the last bytes of a block
            at += -at % 32768
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield whole
            whole = b""


def _take(record: Any, found: dict[str, Any]) -> None:
    kind = record.WhichOneof("record_type")
    if kind == "run":
        found["ids"].add(record.run.run_id)
        found["recipe"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
    elif kind == "exit":
        found["ended"] = record.exit.exit_code
    elif kind == "history":
        line = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for key, value in line.items():
            if "/" in key:
                found["points"].setdefault(key, []).append([line["step"], value])


READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "mlflow": mlflow_has,
    "trackio": trackio_has,
    "wandb": wandb_has,
}

if __name__ == "__main__":
    tracker, folder, *numbers = sys.argv[1:]
    if numbers:
        write(tracker, Path(folder), *map(int, numbers))
    else:
        print(json.dumps(READERS[tracker](Path(folder))))
