"""The product of an LM head in float32, whatever the head's dtype.

A bf16 product rounds each logit to 8 bits: up to 0.06 nats at a logit of 20, more than the differences that late
distillation learns from. The operands stay bf16, and float32 holds their products exactly. A GPU multiplies bf16 into
float32. On a CPU torch cannot, so the head is widened block by block, without a float32 copy of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 4096  # rows of the head that are widened at a time, on a CPU


def product(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """hidden [N, width] times weight [V, width], plus bias [V] or None, of any dtypes -> [N, V] float32 logits.

    Its gradients are float32 as well: that of a bf16 weight is rounded only where its parameter's `grad_dtype` says so.
    """
    if hidden.dtype == weight.dtype == torch.float32 and (bias is None or bias.dtype == torch.float32):
        return nn.functional.linear(hidden, weight, bias)
    return _Product.apply(hidden, weight, bias)  # pyright: ignore[reportReturnType]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        logits = _widened(hidden, weight) if _in_hardware(hidden, weight) else _in_blocks(hidden, weight)
        return logits if bias is None else logits.add_(bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (gradient,), (hidden, weight) = gradients, ctx.saved_tensors
        wanted = ctx.needs_input_grad
        bias = gradient.sum(0) if wanted[2] else None
        if _in_hardware(hidden, weight):
            narrow = gradient.to(weight.dtype)
            return (
                narrow @ weight if wanted[0] else None,
                torch.mm(narrow.t(), hidden, out_dtype=torch.float32) if wanted[1] else None,
                bias,
            )
        return (
            _through_blocks(gradient, weight).to(hidden.dtype) if wanted[0] else None,
            gradient.t() @ hidden.float() if wanted[1] else None,
            bias,
        )


def _in_hardware(hidden: Tensor, weight: Tensor) -> bool:
    return hidden.is_cuda and hidden.dtype == weight.dtype


def _widened(hidden: Tensor, weight: Tensor) -> Tensor:
    return torch.mm(hidden, weight.t(), out_dtype=torch.float32)


def _in_blocks(hidden: Tensor, weight: Tensor) -> Tensor:
    logits = hidden.new_empty((len(hidden), len(weight)), dtype=torch.float32)
    wide = hidden.float()
    for rows in _blocks(weight):
        logits[:, rows] = wide @ weight[rows].float().t()
    return logits


def _through_blocks(gradient: Tensor, weight: Tensor) -> Tensor:
    """[N, V] x [V, width] -> [N, width] float32."""
    total = gradient.new_zeros((len(gradient), weight.shape[1]))
    for rows in _blocks(weight):
        total.addmm_(gradient[:, rows], weight[rows].float())
    return total


def _blocks(weight: Tensor) -> Iterator[slice]:
    return (slice(start, start + BLOCK) for start in range(0, len(weight), BLOCK))
