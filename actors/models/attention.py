"""Attention over a packed row, one sequence at a time, without a [length, length] mask.

transformers marks the sequences of a row by a dense mask, and every layer then computes all pairs of the row's tokens.
Here each sequence attends to itself alone: on a GPU through torch's variable-length attention, elsewhere through one
causal call a sequence. Layers that need a mask of their own (a window, a block) get it and use it, as under `sdpa`.

How many sequences a row has, and how long they are, the host knows. Asking the tensors would make it wait for a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

NAME = "apart"
KERNEL_DTYPES = (torch.bfloat16, torch.float16)  # of the variable-length kernel, up to KERNEL_WIDTH a head
KERNEL_WIDTH = 256
_LENGTHS = "lengths_on_host"  # attribute of a tensor of bounds
_SEQUENCES: ContextVar[int | None] = ContextVar("sequences", default=None)  # of the packed row under way


def attend_apart(model: Any) -> None:
    """Let sequences of a packed row attend apart, wherever the row's bounds reach an attention layer. Whether they do
    is for the probe to measure. Raises what transformers raises for a model that takes no attention by name."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, mask)
    model.set_attn_implementation(NAME)


@contextmanager
def attending_apart(model: Any) -> Iterator[None]:
    """The same for a while."""
    used = model.config._attn_implementation
    try:
        attend_apart(model)
        yield
    finally:
        model.set_attn_implementation(used)


@contextmanager
def packing(sequences: int | None) -> Iterator[None]:
    """Inside of it transformers is told how many sequences, whose positions begin at 0, a row packs. It would look at
    the positions once a mask. None: it looks."""
    _listen()
    token = _SEQUENCES.set(sequences)
    try:
        yield
    finally:
        _SEQUENCES.reset(token)


@cache
def _listen() -> None:
    """Have transformers ask here, in this process, which sequence each position of a row belongs to."""
    from transformers import masking_utils

    look = masking_utils.find_packed_sequence_indices

    def find(position_ids: Tensor) -> Tensor | None:
        sequences = _SEQUENCES.get()
        if sequences is None:
            return look(position_ids)
        return (position_ids == 0).cumsum(-1) - 1 if sequences > 1 else None

    masking_utils.find_packed_sequence_indices = find


def with_lengths(bounds: Tensor, lengths: Sequence[int]) -> Tensor:
    """The bounds of a row's sequences, [sequences + 1], with their lengths attached."""
    setattr(bounds, _LENGTHS, tuple(lengths))
    return bounds


def mask(
    *,
    q_length: int,
    kv_length: int,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    allow_is_bidirectional_skip: bool = False,
    **rest: Any,
) -> Tensor | None:
    """No mask for plain causal attention, within a window that holds the whole row too; else that of `sdpa`."""
    from transformers.masking_utils import sdpa_mask

    causal = q_length == kv_length and not use_vmap and not allow_is_bidirectional_skip
    if causal and attention_mask is None and (local_size is None or kv_length < local_size):
        return None
    return sdpa_mask(
        q_length=q_length,
        kv_length=kv_length,
        attention_mask=attention_mask,
        local_size=local_size,
        use_vmap=use_vmap,
        allow_is_bidirectional_skip=allow_is_bidirectional_skip,
        **rest,
    )


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention: query [rows, heads, length, width], key and value with as many heads or a divisor of
    it -> [rows, length, heads, width]."""
    bounds: Tensor | None = kwargs.get("cu_seq_lens_q")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    one_row = attention_mask is None and len(query) == 1 and query.shape[2] == key.shape[2]
    if bounds is None or not one_row or not causal or kwargs.get("position_bias") is not None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal=is_causal, **kwargs
        )
    if _in_kernel(query, value, dropout):
        return _together(query, key, value, bounds, int(kwargs["max_length_q"]), scaling), None
    return _one_by_one(query, key, value, bounds, dropout, scaling), None


def _in_kernel(query: Tensor, value: Tensor, dropout: float) -> bool:
    fits = query.dtype in KERNEL_DTYPES and query.shape[-1] == value.shape[-1] <= KERNEL_WIDTH
    return query.is_cuda and fits and not dropout


def _together(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scaling: float | None) -> Tensor:
    """All sequences in one call of torch's variable-length attention, which wants [tokens, heads, width]."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (part[0].transpose(0, 1).contiguous() for part in (query, key, value))
    output = varlen_attn(
        q,
        k,
        v,
        bounds,
        bounds,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0),  # causal
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(output, Tensor)
    return output.unsqueeze(0)


def _one_by_one(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, dropout: float, scaling: float | None
) -> Tensor:
    lengths = getattr(bounds, _LENGTHS, None) or bounds.diff().tolist()
    grouped = query.shape[1] != key.shape[1]
    parts = zip(*(whole.split(lengths, dim=2) for whole in (query, key, value)), strict=True)
    outputs = [
        nn.functional.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped
        ).transpose(1, 2)
        for q, k, v in parts
    ]
    return torch.cat(outputs, dim=1)
