"""The product of an LM head in float32, whatever the head's dtype.

A bf16 product rounds each logit to 8 bits: up to 0.06 nats at a logit of 20, more than the differences that late
distillation learns from. The operands stay bf16, and float32 holds their products exactly. A GPU multiplies bf16 into
float32. On a CPU torch cannot. There a bf16 product is corrected by a second one, which adds up in float32 what the
first has rounded away: 16 bits for half the time of a float32 product. A CPU without bf16 instructions is slower in
bf16: it widens the head block by block, without a float32 copy of the whole.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from configs.hardware import cpu_has_bf16

BLOCK = 8192  # rows of the head that are multiplied at a time, on a CPU

_cpu_has_bf16 = functools.cache(cpu_has_bf16)


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
        if _multiplies_into_float32(hidden, weight):
            logits = torch.mm(hidden, weight.t(), out_dtype=torch.float32)
        else:
            logits = _corrected(hidden, weight) if _multiplies_bf16(hidden, weight) else _widened(hidden, weight)
        return logits if bias is None else logits.add_(bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (gradient,), (hidden, weight) = gradients, ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            _to_hidden(gradient, hidden, weight) if wanted[0] else None,
            _to_weight(gradient, hidden, weight) if wanted[1] else None,
            gradient.sum(0) if wanted[2] else None,
        )


def _multiplies_into_float32(hidden: Tensor, weight: Tensor) -> bool:
    return hidden.is_cuda and hidden.dtype == weight.dtype


def _multiplies_bf16(hidden: Tensor, weight: Tensor) -> bool:
    return not hidden.is_cuda and hidden.dtype == weight.dtype == torch.bfloat16 and _cpu_has_bf16()


def _corrected(hidden: Tensor, weight: Tensor) -> Tensor:
    """Within 2^-16 of the largest logit: the second product is the difference to the first, rounded only then."""
    logits = hidden.new_empty((len(hidden), len(weight)), dtype=torch.float32)
    for rows in _blocks(weight):
        block = weight[rows].t()
        rounded = hidden @ block
        logits[:, rows] = rounded
        logits[:, rows] += torch.addmm(rounded, hidden, block, beta=-1)
    return logits


def _widened(hidden: Tensor, weight: Tensor) -> Tensor:
    logits = hidden.new_empty((len(hidden), len(weight)), dtype=torch.float32)
    wide = hidden.float()
    for rows in _blocks(weight):
        logits[:, rows] = wide @ weight[rows].float().t()
    return logits


def _to_hidden(gradient: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
    """[N, V] x [V, width] -> [N, width], in the dtype of the hidden states, which rounds it in any case."""
    if _multiplies_into_float32(hidden, weight) or _multiplies_bf16(hidden, weight):
        return gradient.to(weight.dtype) @ weight
    total = gradient.new_zeros((len(gradient), weight.shape[1]))
    for rows in _blocks(weight):
        total.addmm_(gradient[:, rows], weight[rows].float())
    return total.to(hidden.dtype)


def _to_weight(gradient: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
    """[V, N] x [N, width] -> [V, width] float32: chunks and micro-batches are added to it."""
    if _multiplies_into_float32(hidden, weight):
        return torch.mm(gradient.to(weight.dtype).t(), hidden, out_dtype=torch.float32)
    return gradient.t() @ hidden.float()


def _blocks(weight: Tensor) -> Iterator[slice]:
    return (slice(start, start + BLOCK) for start in range(0, len(weight), BLOCK))
