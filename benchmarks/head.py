"""The cost of float32 logits of a bf16 LM head: bf16 product then float32, against ours, alternating.

`python -m benchmarks head [--tokens 256] [--width 576] [--vocabulary 49152] [--rounds 7] [--backward] [--step]
[--clock wall|cpu] [--out FILE]`
Prints the median seconds a chunk of each, and the p99 error of its log-probs against a float64 head, nats. `--step`:
also the seconds of a learner's forward and backward passes of the bundled model in bf16 (5 x 88 tokens) with each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from actors.models import causal_lm
from actors.models.head_product import product
from benchmarks import machine
from benchmarks.step import learn
from benchmarks.step.limits import CLOCKS, took
from benchmarks.step.models import BUNDLE, build


def rounded(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.nn.functional.linear(hidden, weight, bias).float()


KINDS: dict[str, Callable[[Tensor, Tensor, Any], Tensor]] = {"rounded": rounded, "float32": product}


def seconds(call: Callable[[Tensor, Tensor, None], Tensor], hidden: Tensor, weight: Tensor, backward: bool) -> float:
    synchronise = torch.cuda.synchronize if hidden.is_cuda else (lambda: None)
    synchronise()
    began = time.perf_counter()
    logits = call(hidden, weight, None)
    if backward:
        logits.log_softmax(-1)[:, 0].sum().backward()
    synchronise()
    return time.perf_counter() - began


def steps(rounds: int, clock: str) -> dict[str, dict[str, float]]:
    """Median seconds of the learner's passes, by support and kind of head, alternating; the first round warms up."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    built = build(BUNDLE, device)
    built.model.bfloat16()
    found: dict[str, dict[str, list[float]]] = {}
    for case in learn.cases(built, device, [5], 512):
        times = found[case.name] = {name: [] for name in KINDS}
        for number in range(rounds + 1):
            for name, call in KINDS.items():
                built.model.zero_grad()
                with mock.patch.object(causal_lm, "product", call):
                    seconds = took(case.run, device, CLOCKS[clock])
                times[name] += [seconds] * (number > 0)
    return {case: {name: statistics.median(times) for name, times in kinds.items()} for case, kinds in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("tokens", 256), ("width", 576), ("vocabulary", 49_152), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--backward", action="store_true")
    parser.add_argument("--step", action="store_true")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="of --step; cpu: on a shared machine")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    hidden = torch.randn(asked.tokens, asked.width, device=device).bfloat16().requires_grad_(asked.backward)
    weight = (torch.randn(asked.vocabulary, asked.width, device=device) * 4 / asked.width**0.5).bfloat16()
    weight.requires_grad_(asked.backward)
    weight.grad_dtype = torch.float32
    taken: dict[str, list[float]] = {name: [] for name in KINDS}
    for _ in range(asked.rounds):
        for name, call in KINDS.items():
            taken[name].append(seconds(call, hidden, weight, asked.backward))
    report: dict[str, Any] = {name: {"seconds": statistics.median(times)} for name, times in taken.items()}
    exact = (hidden[:32].double() @ weight.double().t()).log_softmax(-1)
    for name, call in KINDS.items():
        error = (call(hidden[:32], weight, None).log_softmax(-1) - exact).abs().detach().flatten()
        report[name]["p99"] = float(error.kthvalue(int(0.99 * len(error))).values)
    if asked.step:
        report["step"] = steps(asked.rounds, asked.clock)
    sizes = ("tokens", "width", "vocabulary", "backward", "clock")
    found = machine.described() | {"asked": {name: getattr(asked, name) for name in sizes}} | report
    for line in lines(found):
        print(line)
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1) + "\n")


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    for name in ("rounded", "float32"):
        one = report[name]
        yield f"{name:8} {one['seconds']:8.4f} s a chunk, log-probs p99 off by {one['p99']:.2e} nats"
    yield f"ratio    {report['float32']['seconds'] / report['rounded']['seconds']:8.2f}"
    unit = "CPU s" if report["asked"]["clock"] == "cpu" else "s"
    for case, taken in report.get("step", {}).items():
        more, pair = taken["float32"] / taken["rounded"] - 1.0, f"{taken['rounded']:.2f} and {taken['float32']:.2f}"
        yield f"passes of the learner, {case} tokens: {pair} {unit} ({more:+.1%})"


if __name__ == "__main__":
    main()
