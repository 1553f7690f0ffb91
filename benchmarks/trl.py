"""Whole steps of on-policy distillation on this machine, ours and TRL's, in turns: A B A B.

`python -m benchmarks trl [--responses 16] [--tokens 48] [--steps 3] [--rounds 2] [--dtype float32] [--out FILE]`
Both train the bundled student on the same prompts, by the reverse KL over the whole vocabulary to a teacher that is the
student with disturbed weights. Response tokens a second, medians over the steps after each start's first, which warms
up. Then TRL takes a first step on the responses of our first step: the relative difference of the losses.

TRL is installed into .trl as `make test-trl` does; it runs with our torch and transformers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from benchmarks import machine
from configs.load import model_directory

ROOT = Path(__file__).resolve().parent.parent
PEER = ROOT / ".trl"
LR, MICROBATCH_TOKENS = 4e-5, 1024
DISTURBANCE = 0.02  # of the teacher's weights, in standard deviations of each matrix
PHASES = ("rollout", "score", "learn", "publish")
Step = dict[str, Any]  # {"seconds", "tokens", "loss", "phases"}


def main() -> None:
    asked = _arguments()
    if not (PEER / "trl").exists():
        sys.exit("benchmarks: TRL is not installed; run `make test-trl` once")
    taken: dict[str, list[Step]] = {"logratio": [], "trl": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _prepare(folder, asked.responses)
        for number in range(asked.rounds):
            taken["logratio"] += ours(asked, folder, number)[1:]
            taken["trl"] += theirs(asked, folder)[1:]
        first = _steps_of(folder / "run-0")[0]
        loss = theirs(asked, folder, given=_responses(folder / "run-0", folder / "given.jsonl"))[0]["loss"]
    report = {name: _medians(steps) for name, steps in taken.items()}
    report["agreement"] = {"ours": first["loss"], "trl": loss, "relative": abs(first["loss"] / loss - 1)}
    report["asked"] = {k: str(v) if isinstance(v, Path) else v for k, v in vars(asked).items()}
    for line in lines(report):
        print(line)
    if asked.out:
        found = machine.described("transformers", "vllm", "deepspeed") | report | {"steps": taken}
        found["versions"] |= {peer.name: peer.version for peer in distributions(name="trl", path=[str(PEER)])}
        asked.out.write_text(json.dumps(found, indent=1) + "\n")


def ours(asked: argparse.Namespace, folder: Path, number: int) -> list[Step]:
    """Steps of a run of our own, in a process of its own."""
    recipe = _recipe(asked, folder, f"run-{number}")
    file = folder / f"run-{number}.yaml"
    file.write_text(yaml.safe_dump(recipe))
    _run([sys.executable, "-m", "orchestrator.cli", "run", str(file)])
    return _steps_of(folder / f"run-{number}")


def theirs(asked: argparse.Namespace, folder: Path, given: Path | None = None) -> list[Step]:
    """Steps of TRL, in a process of its own; one step on `given` responses, if any."""
    command = [sys.executable, str(ROOT / "benchmarks" / "peers" / "trl_steps.py")]
    command += ["--student", str(folder / "student"), "--teacher", str(folder / "teacher")]
    command += ["--prompts", str(folder / "prompts.jsonl"), "--responses", str(asked.responses)]
    command += ["--tokens", str(asked.tokens), "--steps", str(1 if given else asked.steps), "--lr", str(LR)]
    command += ["--microbatch", str(asked.peer_microbatch or asked.responses)]
    command += ["--bf16"] if asked.dtype == "bfloat16" else []
    command += ["--given", str(given)] if given else []
    said = _run(command, PYTHONPATH=str(PEER))
    return [json.loads(line.removeprefix("step ")) for line in said.splitlines() if line.startswith("step ")]


def _recipe(asked: argparse.Namespace, folder: Path, name: str) -> dict[str, Any]:
    context = 96 + asked.tokens  # tokens of the longest prompt and its response
    role = {"max_context_tokens": context, "resources": {"cpus": 0.4, "threads": 2}, "dtype": asked.dtype}
    return {
        "run": {"name": name, "root": str(folder), "steps": asked.steps},
        "models": {model: {"path": str(folder / model)} for model in ("student", "teacher")},
        "data": {"prompts": str(folder / "prompts.jsonl"), "shuffle": False},
        "batch": {"prompts_per_step": asked.responses, "tokens_per_microbatch": MICROBATCH_TOKENS},
        "sampling": {"temperature": 1.0, "max_response_tokens": asked.tokens},
        "objective": {"prefix": "student", "target": "teacher", "support": "full", "reverse_weight": 1.0},
        "rollout": role,
        "scorer": {"teacher": role | {"engine": "torch"}},
        "learner": {
            "dtype": asked.dtype,
            "optimizer": {"name": "adamw", "lr": LR},
            "resources": {"cpus": 0.4, "threads": 2},
        },
        "checkpoint": {"every": 0},
        "cluster": {"dashboard": False},
    }


def _prepare(folder: Path, prompts: int) -> None:
    """The student, a teacher near it, and as many prompts as a step has responses: each step has the same."""
    import torch
    from safetensors.torch import load_file, save_file

    student = model_directory("bundled:SmolLM2-135M-Instruct")
    for model in ("student", "teacher"):
        shutil.copytree(student, folder / model)
    torch.manual_seed(0)
    for file in (folder / "teacher").glob("*.safetensors"):
        tensors = load_file(file)
        noisy = {k: v + torch.randn_like(v) * v.float().std().to(v) * DISTURBANCE for k, v in tensors.items()}
        save_file(noisy, file, {"format": "pt"})
    lines = (ROOT / "configs" / "prompts" / "questions.jsonl").read_text().splitlines()[:prompts]
    (folder / "prompts.jsonl").write_text("".join(line + "\n" for line in lines))


def _steps_of(directory: Path) -> list[Step]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [
        {
            "seconds": line["seconds_step"],
            "tokens": line["tokens_trained"],
            "loss": line["loss"],
            "phases": {phase: line[f"seconds_{phase}"] for phase in PHASES},
        }
        for line in lines
    ]


def _responses(directory: Path, file: Path) -> Path:
    """Write the responses of a run's first step as JSON lines."""
    with file.open("w") as out:
        for part in sorted((directory / "samples").glob("step_000001*.arrow")):
            with pa.ipc.open_file(part) as reader:
                for row in reader.read_all().select(["prompt_ids", "response_ids"]).to_pylist():
                    out.write(json.dumps(row) + "\n")
    return file


def _medians(steps: Sequence[Step]) -> dict[str, Any]:
    names = steps[0]["phases"]
    return {
        "tokens_per_second": statistics.median(step["tokens"] / step["seconds"] for step in steps),
        "seconds": statistics.median(step["seconds"] for step in steps),
        "phases": {name: statistics.median(step["phases"][name] for step in steps) for name in names},
        "steps": len(steps),
    }


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    for name in ("logratio", "trl"):
        one = report[name]
        phases = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in one["phases"].items())
        yield f"{name:9} {one['tokens_per_second']:6.1f} response tokens/s, {one['seconds']:6.1f} s a step ({phases})"
    yield f"ratio     {report['logratio']['tokens_per_second'] / report['trl']['tokens_per_second']:.2f}"
    agreement = report["agreement"]
    losses = f"ours {agreement['ours']:.6f}, TRL {agreement['trl']:.6f}"
    yield f"loss on the same tokens: {losses}: {agreement['relative']:.1e} apart"


HEAD = ("| whole steps, the same prompts | logratio | TRL | ratio | measured |", "|---|---|---|---|---|")


def row(found: Mapping[str, Any]) -> str:
    """The same as a row of a table."""
    asked, (ours, peer) = found["asked"], (found[name]["tokens_per_second"] for name in ("logratio", "trl"))
    sizes = f"{asked['responses']} x {asked['tokens']} tokens, full reverse KL, SmolLM2-135M, {asked['dtype']}"
    measured = f"TRL {found['versions']['trl']}, {found['cores']} cores, {found['date'][:10]}"
    return f"| {sizes} | {ours:.1f} response tokens/s | {peer:.1f} | {ours / peer:.2f} | {measured} |"


def _run(command: Sequence[str], **environment: str) -> str:
    """What a command printed. Ends the benchmark with its last lines if it fails."""
    quiet = {"KMP_BLOCKTIME": "0", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | quiet | environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(
            f"benchmarks: {' '.join(command[:4])} ended with {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}"
        )
    return done.stdout


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("responses", 16), ("tokens", 48), ("steps", 3), ("rounds", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--peer-microbatch", type=int, help="responses a micro-batch of TRL; default all at once")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
