"""The full-vocabulary Jensen-Shannon loss with its gradients: the learner's chunks against Liger's, alternating.

`python -m benchmarks fused [--tokens 512] [--width 576] [--vocabulary 49152] [--chunk 256] [--dtype float32]`
Prints the median seconds of each, and how far loss and gradients are from float64, relative, on 64 tokens. Liger's loss
is measured where `liger-kernel` is installed: the one in torch, since its kernels are Triton's and need a GPU.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from actors.learning.student import Hidden, Student, Targets
from actors.models.causal_lm import DTYPES, Projection
from actors.models.handling import PLAIN
from benchmarks.step.limits import CLOCKS, took
from configs.objective import Objective
from objectives import objective
from objectives.schedule import Dials
from objectives.tokens import Scores, Tokens

CPU = torch.device("cpu")
TEACHER = ("teacher", 0)
HALF = 0.5  # of the Jensen-Shannon divergence; there Liger's mixture and ours are the same
FEW = 64


@dataclass(frozen=True)
class Heads:
    """Last hidden states [tokens, width] and heads [vocabulary, width] of student and teacher."""

    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor

    def few(self) -> Heads:
        return Heads(self.hidden[:FEW], self.weight, self.teacher_hidden[:FEW], self.teacher_weight)


Found = tuple[Tensor, Tensor, Tensor]  # loss, and the gradients of hidden states and head
Way = Callable[[Heads], Found]


class Model(nn.Module):
    """An LM head alone."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.head = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
        self.head.weight.data = weight.clone()

    def get_output_embeddings(self) -> nn.Linear:
        return self.head


def ours(heads: Heads, chunk: int, measured: bool) -> Found:
    """As the learner does it: a chunk is computed again in the backward pass. `measured`: with a step's metrics."""
    config = Objective.model_validate({"target": "teacher", "support": "full", "family": "jsd", "reverse_weight": HALF})
    built, dials = objective.build(config), Dials(reverse_weight=HALF)
    student = Student(Model(heads.weight), built, len(heads.weight), chunk, PLAIN)
    student.heads[TEACHER] = Projection(heads.teacher_weight, None, 1.0, None)
    hidden, rows = heads.hidden.clone().requires_grad_(), torch.arange(len(heads.hidden))
    tokens = _tokens(len(rows))
    targets = Targets(tokens, {"teacher": [Hidden.of(TEACHER, rows, heads.teacher_hidden)]})

    def read(states: Tensor, part: Targets) -> Any:
        if measured:
            return student._lazily(states, part, {}, dials)
        return checkpoint(lambda s: student._read(s, part, {}, dials, measured=False), states, use_reentrant=False)

    found = [read(*one) for one in zip(hidden.split(chunk), targets.split(chunk), strict=True)]
    loss = built.loss({name: torch.cat([part[name] for part in found]) for name in found[0]}, tokens, dials)
    loss.backward()
    return loss.detach(), _known(hidden.grad), _known(student.model.head.weight.grad)


def ligers(heads: Heads, chunk: int) -> Found:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss  # type: ignore[import-not-found]

    loss_of = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=HALF, compiled=False, chunk_size=chunk
    )
    hidden, weight = heads.hidden.clone().requires_grad_(), heads.weight.clone().requires_grad_()
    labels = torch.zeros(len(hidden), dtype=torch.long)
    loss = loss_of(hidden, weight, heads.teacher_hidden, heads.teacher_weight, labels)
    loss.backward()
    return loss.detach(), _known(hidden.grad), _known(weight.grad)


def exact(heads: Heads) -> Found:
    """In float64, without chunks."""
    hidden, weight = heads.hidden.double().requires_grad_(), heads.weight.double().requires_grad_()
    q = (hidden @ weight.t()).log_softmax(-1)
    p = (heads.teacher_hidden.double() @ heads.teacher_weight.double().t()).log_softmax(-1)
    m = (HALF * (q.exp() + p.exp())).log()
    loss = HALF * (p.exp() * (p - m) + q.exp() * (q - m)).sum(-1).mean()
    loss.backward()
    return loss.detach(), _known(hidden.grad), _known(weight.grad)


def _known(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    return gradient


def _tokens(count: int) -> Tokens:
    ones = torch.ones(count)
    return Tokens(
        token_ids=torch.zeros(count, dtype=torch.long),
        sequence=torch.zeros(count, dtype=torch.long),
        position=torch.arange(count),
        on=ones.bool(),
        weights={"distillation": ones / count},
        rollout_logprob=-ones,
        advantage=0.0 * ones,
        reward=0.0 * ones,
        drawn=ones.bool(),
        scores={"teacher": Scores(logprob=-ones)},
        lengths=(count,),
    )


def drawn(tokens: int, width: int, vocabulary: int, dtype: torch.dtype) -> Heads:
    """Random: logits with a standard deviation of 4, and a teacher near the student."""
    torch.manual_seed(0)
    hidden, other, weight = (torch.randn(n, width) for n in (tokens, tokens, vocabulary))
    weight = (weight * 4 / width**0.5).to(dtype)
    return Heads(hidden.to(dtype), weight, (0.95 * hidden + 0.3 * other).to(dtype), weight)


def ways(chunk: int) -> dict[str, Way]:
    found: dict[str, Way] = {
        "ours, with a step's metrics": lambda heads: ours(heads, chunk, True),
        "ours": lambda heads: ours(heads, chunk, False),
    }
    try:
        import liger_kernel.chunked_loss  # noqa: F401  # type: ignore[import-not-found]
    except ImportError:
        print("liger-kernel is not installed")
        return found
    return found | {"liger": lambda heads: ligers(heads, chunk)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"tokens": 512, "width": 576, "vocabulary": 49_152, "chunk": 256, "rounds": 5, "threads": 2}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of the process, on a shared machine")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    heads = drawn(asked.tokens, asked.width, asked.vocabulary, DTYPES[asked.dtype])
    rounds: dict[str, list[float]] = {}
    for number in range(asked.rounds + 1):  # the first warms up
        for name, way in ways(asked.chunk).items():
            seconds = took(lambda way=way: way(heads), CPU, CLOCKS[asked.clock])
            rounds.setdefault(name, []).extend([seconds] if number else [])
    right = exact(heads.few())
    for name, way in ways(asked.chunk).items():
        pairs = zip(way(heads.few()), right, strict=True)
        off = [float((one.double() - other).norm() / other.norm()) for one, other in pairs]
        errors = ", ".join(f"{what} {error:.1e}" for what, error in zip(("loss", "hidden", "head"), off, strict=True))
        print(f"{name:28} {statistics.median(rounds[name]):8.3f} s   off by {errors}")


if __name__ == "__main__":
    main()
