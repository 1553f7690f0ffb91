"""How a causal language model is to be run, as the probe (probe.py) found it: never from a list of names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Handling:
    """`packs`: sequences may stand in one row; else each has a padded row. `continues`: a cache of the tokens before
    stands for them. `neck`: the module between the body's last hidden state and the head, by its dotted name.
    Logits are cap * tanh(scale * product / cap), or scale * product where `soft_cap` is None."""

    packs: bool = True
    continues: bool = True
    neck: str | None = None
    scale: float = 1.0
    soft_cap: float | None = None


PLAIN = Handling()


def body_of(model: Any) -> Any:
    """The model without its head; its last hidden state is behind the final norm."""
    named = getattr(model, model.base_model_prefix, None)
    return model.model if named is None else named  # a prefix that a class has inherited may name nothing (Llama 4)


def neck_of(model: Any, handed_on: Tensor, head_input: Tensor, outputs: Mapping[str, Tensor]) -> str | None:
    """The module whose output the head reads, where that is not the body's last hidden state (ModernBERT, BERT).
    `outputs`: what each module outside the body put out."""
    if handed_on.shape == head_input.shape and torch.equal(handed_on, head_input):
        return None
    body = set(map(id, body_of(model).modules()))
    inside = [name for name, module in model.named_modules() if id(module) in body]
    found = [
        name
        for name, output in outputs.items()
        if name not in inside and output.shape == head_input.shape and torch.equal(output, head_input)
    ]
    return min(found, key=len, default=None)  # a module rather than its last part


def find_logits(product: Tensor, own: Tensor, config: Any) -> tuple[float, float | None]:
    """The scale and soft-cap under which the head's product [N, V] comes closest to the model's own logits [N, V].

    Candidates are 1 and the numbers of the configuration, whatever their names: v, 1 / v and v / width as scales, and
    values whose name speaks of a cap as caps. Of candidates that are as good the simplest is taken.
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
    """Columns [V] that no model masks away."""
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
