"""The linear layers that adapters adapt: found by `learner.lora.targets`, refused where an adapter would do nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from actors.models.model_files import tensor_shapes
from actors.models.probing.shrink import VOCABULARY
from actors.models.probing.small_copy import small_copy
from actors.models.stored import Stored, empty_model, stored_as
from configs.roles.lora import Lora

Targets = str | tuple[str, ...]  # learner.lora.targets


class Unfit(ValueError):
    """A model that cannot be trained with these adapters. One line with the reason and a remedy."""


@dataclass(frozen=True)
class Site:
    """A linear layer with an adapter: its module's name, and the tensor [out, in] of the files that is its weight."""

    module: str
    tensor: str
    shape: tuple[int, ...]

    def parameters(self, rank: int) -> int:
        """Numbers in its adapter."""
        return rank * sum(self.shape)


def find_sites(model: Any, targets: Targets, files: Stored) -> tuple[Site, ...]:
    """The sites in `model`, which may lack storage, stored as `files` says. Raises Unfit."""
    linear = _linear(model)
    weights = {p: t for group in files.groups if group.splitting is None for p, t in _alone(group)}
    found = [
        Site(name, *weights[f"{name}.weight"])
        for name in linear
        if _named(name, targets) and f"{name}.weight" in weights
    ]
    _refuse_targets(targets, linear, found, files)
    return tuple(found)


@lru_cache(maxsize=4)
def read_sites(directory: Path, targets: Targets) -> tuple[Site, ...]:
    """The sites of the model in a directory, by its headers and config.json; without weight files as transformers would
    store it. Raises Unfit."""
    model = empty_model(directory)
    headers = tensor_shapes(directory) or {name: (tuple(t.shape), "F32") for name, t in model.state_dict().items()}
    return find_sites(model, targets, stored_as(model, headers))


def inject(model: Any, modules: Sequence[str], lora: Lora, seed: int) -> None:
    """Put adapters into these modules, in place, and freeze all else. A is drawn by `seed` alone, B is 0."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(modules), lora_dropout=0.0)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)


def check_reach(directory: Path, lora: Lora) -> None:
    """Raise Unfit if peft refuses the architecture, or if a target's adapters are out of the way of what a small random
    copy computes: some models read a layer's weight without calling the layer."""
    model = _small(directory)
    if model is None:
        return
    modules = [name for name in _linear(model) if _named(name, lora.targets)]
    try:
        inject(model, modules, lora, seed=0)
    except ValueError as error:
        raise Unfit(f"peft cannot adapt it: {error}") from error
    _reach(model)
    idle = {name for name in modules if not _moved(model.get_submodule(name))}
    for end in dict.fromkeys(name.rsplit(".", 1)[-1] for name in modules):
        same = {name for name in modules if name.rsplit(".", 1)[-1] == end}
        if same <= idle:
            raise Unfit(
                f"{end}: the model does not call this layer, so an adapter there would do nothing; name other layers"
            )


def _alone(group: Any) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    """The parameter and the tensor of a group that is one tensor unchanged."""
    if len(group.parameters) == len(group.tensors) == 1:
        yield next(iter(group.parameters)), next(iter(group.tensors.items()))


def _linear(model: Any) -> list[str]:
    """Names of the linear layers but the LM head, whose weight is read without a call."""
    head = model.get_output_embeddings()
    return [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head]


def _named(module: str, targets: Targets) -> bool:
    return isinstance(targets, str) or any(module == t or module.endswith(f".{t}") for t in targets)


def _refuse_targets(targets: Targets, linear: Sequence[str], found: Sequence[Site], files: Stored) -> None:
    """Each target names linear layers, all of them stored as they are, and no tensor that is part of a larger
    parameter."""
    ends = sorted({name.rsplit(".", 1)[-1] for name in linear})
    if not found:
        raise Unfit(f"{_said(targets)} match no linear layer; allowed: {ends}, or all-linear")
    adapted = {site.tensor for site in found}
    for target in () if isinstance(targets, str) else targets:
        if not any(_named(site.module, (target,)) for site in found):
            raise Unfit(f"{target!r} matches no linear layer; allowed: {ends}, or all-linear")
        fused = [t for t in files.tensors if _named(t.removesuffix(".weight"), (target,)) and t not in adapted]
        if fused and fused[0].endswith(".weight"):
            raise Unfit(
                f"{target!r} also names {len(fused)} tensors that are no linear layers of their own, such as "
                f"{fused[0]}: fused experts have no adapters; name the others in full, e.g. {found[0].module}"
            )


def _said(targets: Targets) -> str:
    return targets if isinstance(targets, str) else str(list(targets))


def _small(directory: Path) -> Any:
    """A small random copy; None where none can be built."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        return small_copy(config, "eager")
    except Exception:  # sizes that do not go together, a package that is missing: as in probing/small_copy.py
        return None


def _reach(model: Any) -> None:
    """Give every B a gradient: of the logits of some tokens, where the adapter takes part in them."""
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.01)
    ids = torch.randint(5, VOCABULARY, (1, 24), generator=torch.Generator().manual_seed(0))
    model(input_ids=ids).logits.float().square().sum().backward()


def _moved(layer: Any) -> bool:
    gradient = layer.lora_B["default"].weight.grad
    return gradient is not None and bool(gradient.any())
