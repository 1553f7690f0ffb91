"""Turns dropout off in a model in training mode, which activation checkpointing needs."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd  # pyright: ignore[reportPrivateUsage]


def without_dropout(model: nn.Module) -> None:
    """Set to 0 every probability that acts in training only: dropout of attention, residuals and embeddings, dropped
    layers, a router's jitter.

    The model's own configuration, which an export writes, keeps its numbers; modules that read it while they compute
    get a changed copy.
    """
    from transformers import PreTrainedModel

    quiet: dict[int, Any] = {}
    for module in model.modules():
        _silence(module)
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        config = vars(module).get("config")
        if config is not None and not isinstance(module, PreTrainedModel):
            if id(config) not in quiet:
                quiet[id(config)] = copy.deepcopy(config)
                _silence(quiet[id(config)])
            module.config = quiet[id(config)]


def _silence(owner: Any) -> None:
    for name, value in list(vars(owner).items()):
        if isinstance(value, float) and ("drop" in name or "jitter" in name):
            setattr(owner, name, 0.0)
