"""Steps of TRL's DistillationTrainer, a JSON line each. Run by `python -m benchmarks trl` with .trl on the path.

A line: {"seconds", "tokens" (of responses), "loss", "phases": {name: seconds}}. The loss is the reverse KL over the
whole vocabulary, nats a token; generation is Hugging Face's, which is what TRL has on a CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("student", "teacher", "prompts"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("responses", "tokens", "steps", "microbatch"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--given", type=Path, help="responses to train on: lines of {prompt_ids, response_ids}")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(asked, Path(folder))


def run(asked: argparse.Namespace, folder: Path) -> None:
    from datasets import Dataset
    from trl import DistillationTrainer  # type: ignore[import-not-found]

    rows = [json.loads(line) for line in asked.prompts.read_text().splitlines()]
    chats = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    trainer = DistillationTrainer(
        model=str(asked.student),
        teacher_model=str(asked.teacher),
        args=_config(asked, folder),
        train_dataset=Dataset.from_dict({"prompt": chats * (1 + asked.steps * asked.responses // len(chats))}),
    )
    counts, phases = defaultdict[str, int](int), defaultdict[str, float](float)
    _measure(trainer, counts, phases, _given(asked.given) if asked.given else None)
    trainer.add_callback(_lines(counts, phases))
    trainer.train()


def _config(asked: argparse.Namespace, folder: Path) -> Any:
    """AdamW at a constant rate, the reverse KL, no second forward pass: what our recipe says, in TRL's words."""
    from trl import DistillationConfig  # type: ignore[import-not-found]

    dtype = {"dtype": "bfloat16" if asked.bf16 else "float32"}
    return DistillationConfig(
        output_dir=str(folder),
        per_device_train_batch_size=asked.microbatch,
        gradient_accumulation_steps=asked.responses // asked.microbatch,
        max_steps=asked.steps,
        max_completion_length=asked.tokens,
        beta=1.0,  # reverse KL
        learning_rate=asked.lr,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        bf16=asked.bf16,
        gradient_checkpointing=False,  # its default costs a second forward pass; there is memory enough
        disable_dropout=True,
        shuffle_dataset=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        model_init_kwargs=dtype,
        teacher_model_init_kwargs=dtype,
    )


def _lines(counts: dict[str, int], phases: dict[str, float]) -> Any:
    """A callback that prints a line a step, once its loss is known."""
    from transformers import TrainerCallback

    class Lines(TrainerCallback):
        began = took = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            counts.clear()
            phases.clear()
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.took = time.perf_counter() - self.began

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                line = {"seconds": self.took, "tokens": counts["tokens"], "loss": float(logs["loss"])}
                print("step " + json.dumps(line | {"phases": dict(phases)}), flush=True)

    return Lines()


def _measure(
    trainer: Any, counts: dict[str, int], phases: dict[str, float], given: dict[tuple[int, ...], list[int]] | None
) -> None:
    """Count the tokens and the seconds of sampling; with `given`, its responses stand in for sampled ones."""
    sample: Callable[..., Any] = trainer._generate_single_turn

    def sampled(prompt_ids: list[list[int]], *arguments: Any, **names: Any) -> Any:
        began = time.perf_counter()
        if given is not None:
            responses = [given[tuple(ids)] for ids in prompt_ids]
        else:
            responses = sample(prompt_ids, *arguments, **names)
        phases["rollout"] += time.perf_counter() - began
        counts["tokens"] += sum(map(len, responses))
        return responses

    trainer._generate_single_turn = sampled


def _given(file: Path) -> dict[tuple[int, ...], list[int]]:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return {tuple(line["prompt_ids"]): line["response_ids"] for line in lines}


if __name__ == "__main__":
    sys.exit(main())
