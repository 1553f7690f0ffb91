"""How to run a causal language model, as measured by the probe (probing/probe.py), never from a list of names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Handling:
    """`packs`: sequences may share a row; else each has a padded row. `apart`: those of a row attend without a mask of
    the whole row (attention.py). `continues`: a KV cache can replace the tokens before. `neck`: dotted name of the
    module between the body's last hidden state and the LM head, or None. Logits are cap * tanh(scale * product / cap),
    or scale * product where `soft_cap` is None."""

    packs: bool = True
    continues: bool = True
    apart: bool = False
    neck: str | None = None
    scale: float = 1.0
    soft_cap: float | None = None


PLAIN = Handling()


def body_of(model: Any) -> Any:
    """The model without its LM head; its last hidden state is after the final norm."""
    named = getattr(model, model.base_model_prefix, None)
    return model.model if named is None else named  # an inherited prefix may name nothing (Llama 4)


def neck_of(model: Any, handed_on: Tensor, head_input: Tensor, outputs: Mapping[str, Tensor]) -> str | None:
    """Name of the module whose output the LM head reads, if it is not the body's last hidden state (ModernBERT, BERT).
    `outputs`: by the name of each module."""
    if handed_on.shape == head_input.shape and torch.equal(handed_on, head_input):
        return None
    body = set(map(id, body_of(model).modules()))
    inside = [name for name, module in model.named_modules() if id(module) in body]
    found = [
        name
        for name, output in outputs.items()
        if name not in inside and output.shape == head_input.shape and torch.equal(output, head_input)
    ]
    return min(found, key=len, default=None)  # the module rather than its last submodule


def find_logits(product: Tensor, own: Tensor, config: Any) -> tuple[float, float | None]:
    """The scale and soft-cap that bring the LM head's product [N, V] closest to the model's own logits [N, V].

    Candidates are 1 and the numbers of the configuration, whatever their names: v, 1 / v and v / width as scales, and
    values whose name contains "cap" as caps. Of equally good candidates the simplest wins.
    """
    product, own = product.float(), own.float()
    best: tuple[float, float, float | None] = (float("inf"), 1.0, None)
    for cap in (None, *_caps(config)):
        for scale in _scales(config):
            logits = product * scale if cap is None else cap * torch.tanh(product * scale / cap)
            error = float((logits - own).abs().mean())
            if error < 0.9 * best[0] - 1e-7:
                best = error, scale, cap
    return best[1], best[2]


def finite_columns(logits: Tensor) -> Tensor:
    """[V] bool: columns that the model does not mask."""
    return (logits > -1e4).all(0) & torch.isfinite(logits).all(0)


def apply_head(model: Any, hidden: Tensor) -> Tensor:
    head = model.get_output_embeddings()
    return nn.functional.linear(hidden, head.weight, getattr(head, "bias", None))


def _scales(config: Any) -> list[float]:
    numbers = list(dict.fromkeys(float(v) for _, v in _numbers(config) if v > 0))
    width = float(getattr(config.get_text_config(), "hidden_size", 0) or 0)
    ratios = [v / width for v in numbers] if width else []
    return list(dict.fromkeys([1.0, *numbers, *(1.0 / v for v in numbers), *ratios]))


def _caps(config: Any) -> list[float]:
    return list(dict.fromkeys(float(v) for name, v in _numbers(config) if "cap" in name and v > 0))


def _numbers(config: Any) -> Iterator[tuple[str, float]]:
    for part in (config, config.get_text_config()):
        for name, value in part.to_dict().items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield name, value
