"""The student's distributions at n prefixes, from logits, touched as few times as an objective needs.

Sampled support asks for a few log-probs a prefix: a normaliser and a gather. No log-softmax is made for them: the
probabilities take the place of the logits, block by block while a block is in the processor's cache, and the gradient
takes the place of the probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

BLOCK = {"cpu": 2**20, "cuda": 2**28}  # numbers of a block: what a CPU's cache holds; a GPU's memory, easily
LEAST = -200.0  # nats below the likeliest: no mass in float32, and finite times 0


class Distributions:
    """[n, V] logits, whose memory this object takes over. Ask once, for `rows` or for `at`."""

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits

    def rows(self) -> Tensor:
        """[n, V] log-probs, nats, with a graph."""
        return self._logits.log_softmax(-1)

    def at(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probs of ids [n, K], with a graph, and the entropy [n] of each distribution, detached; nats."""
        return _At.apply(self._logits, ids)  # pyright: ignore[reportReturnType]


class _At(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        found = logits.gather(-1, ids)
        normaliser, entropy = logits.new_empty(len(logits)), logits.new_empty(len(logits))
        for rows in blocks(logits):
            normaliser[rows], entropy[rows] = _to_mass(logits[rows])
        ctx.save_for_backward(logits, ids)
        ctx.mark_non_differentiable(entropy)
        return found - normaliser.unsqueeze(-1), entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """onehot - q for each id, in the memory of q: a second backward pass raises autograd's error."""
        mass, ids = ctx.saved_tensors
        of_found = gradients[0]
        mass.mul_(-of_found.sum(-1, keepdim=True))
        return mass.scatter_add_(-1, ids, of_found), None


def _to_mass(logits: Tensor) -> tuple[Tensor, Tensor]:
    """[m, V] logits become probabilities, in place. Returns the normaliser and the entropy, [m] nats."""
    top = logits.amax(-1, keepdim=True)
    below = logits.sub_(top).clamp_(min=LEAST)
    mass = below.exp()
    total = mass.sum(-1, keepdim=True)
    entropy = total.squeeze(-1).log() - torch.linalg.vecdot(mass, below) / total.squeeze(-1)
    torch.div(mass, total, out=logits)
    return (top + total.log()).squeeze(-1), entropy


def blocks(rows: Tensor) -> Iterator[slice]:
    """Slices of the first dimension of [n, V]."""
    size = max(1, BLOCK.get(rows.device.type, BLOCK["cuda"]) // max(1, rows.shape[-1]))
    return (slice(start, start + size) for start in range(0, max(1, len(rows)), size))


def by_blocks(whole: Tensor, read: Callable[[slice], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What `read` finds of each block of the rows of [n, V], [m] each by name -> [n] each."""
    found = [read(rows) for rows in blocks(whole)]
    return {name: torch.cat([part[name] for part in found]) for name in found[0]}
