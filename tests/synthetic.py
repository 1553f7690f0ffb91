"""A small made-up run directory, and a byte-level vocabulary to write its texts with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from actors.metrics import step_line
from actors.wire.records import Sample
from actors.wire.trained import TRAINED, trained_batch

SPECIALS = ("<|im_start|>", "<|im_end|>")
HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='hacked=1'>"
WORDS = (" the", " a", " sea", " ship", " captain", " and", " of", " sail", "Arr", " treasure", " map", ",", ".", "\n")
_PIECES = [bytes([byte]) for byte in range(256)] + [text.encode() for text in (*SPECIALS, *WORDS)]


def decode(ids: Sequence[int]) -> str:
    """Ids -> text. An id below 256 is one byte, so a character outside ASCII takes several."""
    return b"".join(_PIECES[i] for i in ids).decode(errors="replace")


def encode(text: str) -> list[int]:
    """Text -> ids, the longest piece first."""
    data, ids = text.encode(), []
    pieces = sorted(range(256, len(_PIECES)), key=lambda i: -len(_PIECES[i]))
    while data:
        best = next((i for i in pieces if data.startswith(_PIECES[i])), data[0])
        ids.append(best)
        data = data[len(_PIECES[best]) :]
    return ids


def sample(uid: str, question: str, answer: str, version: int = 0) -> Sample:
    """A finished chat sample whose every response token carries loss."""
    response = encode(answer + "<|im_end|>")
    count = len(response)
    prompt = f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return Sample(
        uid=uid, group=uid, attempt=0, seed=1, prompt_ids=encode(prompt), response_ids=response,
        rollout_logprobs=[-1.0] * count, loss_spans=[(0, count)], finish="stop",
        versions=[version] * count,
    )  # fmt: skip


def write_samples(
    path: Path, samples: Sequence[Sample], ratios: Sequence[Sequence[float] | None], likeliest: Sequence[Any] = ()
) -> None:
    """One Arrow file of `samples` with these log-ratios, nats; None is a sample no teacher scored. `likeliest`: (ids,
    log-probs) of the teacher's, [tokens, 4] each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    student = [np.full(len(s.response_ids), -2.0, np.float32) for s in samples]
    teacher = [None if r is None else q + np.asarray(r, np.float32) for q, r in zip(student, ratios, strict=True)]
    tops = [(np.asarray(ids, np.int32), np.asarray(logprobs, np.float16)) for ids, logprobs in likeliest]
    batch = trained_batch(samples, [None] * len(samples), student, teacher, likeliest=tops)
    with pa.ipc.new_file(str(path), TRAINED) as sink:
        sink.write_batch(batch)


def write_vocabulary(directory: Path) -> None:
    """What a recorded run has in place of a tokenizer."""
    pieces = {token: piece.decode("latin-1") for token, piece in enumerate(_PIECES)}
    (directory / "vocabulary.json").write_text(json.dumps(pieces))


def metrics_of(step: int, steps: int) -> dict[str, Any]:
    """A line of metrics.jsonl of a run that learns. No reward."""
    left = 1.0 - step / (steps + 1)
    values: dict[str, Any] = {
        "step": step, "policy_version": step, "loss": 0.3 * left, "reverse_kl": 0.31 * left + 0.05,
        "forward_kl": 0.4 * left + 0.06, "kl_support": "full", "entropy": 1.4 + 0.2 * left, "teacher_entropy": 1.3,
        "grad_norm": 4 * left + 0.3 * np.sin(step), "lr": 2e-5, "response_length": 46 - 6 * left,
        "truncated_fraction": 0.7 * left, "staleness_mean": 0.4, "staleness_max": 1, "logprob_gap_mean": 0.004,
        "tokens_generated": 780, "tokens_scored": 760, "tokens_trained": 740, "samples_dropped": 0,
        "seconds_step": 5.2, "seconds_rollout": 2.4, "seconds_score": 1.1, "seconds_learn": 2.6,
        "seconds_publish": 0.5, "seconds_wait": 1.9,
    }  # fmt: skip
    return step_line(values)


def status_of(step: int, steps: int) -> dict[str, Any]:
    """What a live run writes to status.json, without the time: rollout holds it up."""
    sizes = {"rollout": 4, "scorer.teacher": 2, "reward": 1, "learner": 1}
    busy = {"rollout": (0.93, 0.02), "scorer.teacher": (0.41, 0.5), "reward": (0.03, 0.9), "learner": (0.55, 0.4)}
    waiting = {"rollout": (12, 3.2), "score": (640, 0.4), "reward": (0, None), "learn": (38, 11.0)}
    return {
        "run": "pirate-opd", "step": step, "steps": steps, "version": step, "phase": "training", "exit": None,
        "members": [
            {"name": f"{role}-{i}", "state": "loading" if (role, i) == ("rollout", 2) else "serving",
             "version": step if role == "rollout" else None, "load": 7.0 * i, "restarts": int(role == "reward"),
             "place": i}
            for role, size in sizes.items() for i in range(size)
        ],
        "roles": [
            {"role": role, "members": size, "restarts": int(role == "reward"), "elastic": role != "learner",
             "busy": busy[role][0], "waiting": busy[role][1]}
            for role, size in sizes.items()
        ],
        "queues": [{"edge": edge, "depth": n, "oldest_seconds": age} for edge, (n, age) in waiting.items()],
        "bottleneck": {"role": "rollout", "busy": 0.93, "samples_per_second": 12.4,
                       "one_more": {"rollout": 0.21, "scorer.teacher": 0.0, "reward": 0.0}},
        "samples_per_step": 16, "seconds": 60.0, "saved_at": None,
    }  # fmt: skip


def write_run(directory: Path, steps: int = 15, evaluations: int = 5, seed: int = 0) -> Path:
    """A whole run directory: metrics, summary, recipe, trained and held-out samples, a hostile one among them."""
    rng = np.random.default_rng(seed)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "recipe.yaml").write_text("run:\n  name: pirate-opd\n  steps: 15\nmodels: {}  # <b>not bold</b>\n")
    lines = [json.dumps(metrics_of(step, steps)) + "\n" for step in range(1, steps + 1)]
    (directory / "metrics.jsonl").write_text("".join(lines))
    evaluation = {
        when: {"reverse_kl": kl, "forward_kl": 1.2 * kl, "kl_support": "full", "entropy": 1.5, "response_length": 44.2,
               "truncated_fraction": 0.5}
        for when, kl in (("before", 0.36), ("after", 0.09))
    }  # fmt: skip
    summary = {"exit": 0, "steps": steps, "seconds": 141.7, "seconds_startup": 38.2, "evaluation": evaluation}
    (directory / "summary.json").write_text(json.dumps(summary))
    for when, style in (("before", "It is made of water and salt."), ("after", "Arr, the sea, matey! 🏴‍☠️")):
        held_out = [sample(f"held-{i:03d}", f"What is thing {i}?", style) for i in range(evaluations)]
        write_samples(directory / f"samples/eval_{when}.rank0.arrow", held_out, [None] * evaluations)
    for step in range(1, steps + 1):
        for rank in (0, 1):
            texts = ["".join(rng.choice(WORDS, 40)) + " naïve 🏴‍☠️", HOSTILE]
            samples = [sample(f"s{step:03d}-{rank}{n}", "Where is the ship?", t, step) for n, t in enumerate(texts)]
            ratios = [rng.normal(-0.2, 1.2, len(s.response_ids)).tolist() for s in samples]
            write_samples(directory / f"samples/step_{step:06d}.rank{rank}.arrow", samples, ratios)
    return directory
