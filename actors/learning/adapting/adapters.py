"""The student's adapters inside a learner rank: put into the model before DeepSpeed takes it, merged when it leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from actors.lora.files import base_fingerprint, check_base, record_base, write_adapter
from actors.lora.sites import Site, find_sites, inject
from actors.lora.wire import merge, names
from actors.models.stored import Group, Stored
from actors.wire.jobs import LearnerSpec
from configs.roles.lora import Lora

FOLDER = "adapter"  # of an exported model


class Adapters:
    """Adapters in `model`, in place; its weights are the files of `directory`. A is drawn by `seed`."""

    def __init__(self, model: Any, lora: Lora, directory: Path, stored: Stored, seed: int) -> None:
        self._lora = lora
        self._directory = directory
        self._model = model
        sites = find_sites(model, lora.targets, stored)
        inject(model, [site.module for site in sites], lora, seed)
        self._layers: dict[str, tuple[Site, Any]] = {s.tensor: (s, model.get_submodule(s.module)) for s in sites}
        self.groups = tuple(group for group in stored.groups if group.tensors.keys() & self._layers.keys())

    def trained(self) -> list[nn.Parameter]:
        """The parameters of all adapters."""
        return [parameter for _, layer in self._layers.values() for parameter in _parts(layer)]

    def pairs(self) -> Iterator[list[tuple[str, nn.Parameter]]]:
        """A and B of each site, by wire name."""
        for tensor, (_, layer) in self._layers.items():
            yield list(zip(names(tensor), _parts(layer), strict=True))

    def beside(self, group: Group) -> list[nn.Parameter]:
        """The adapters of a group's tensors."""
        layers = [self._layers[tensor][1] for tensor in group.tensors if tensor in self._layers]
        return [parameter for layer in layers for parameter in _parts(layer)]

    def merged(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors of the base, by their names in the files, with their adapters merged, in their own dtype."""
        return {name: self._merged(name, tensor) for name, tensor in tensors.items()}

    def without_names(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters of the base by the names that they have without adapters."""
        return {name.replace(".base_layer.", "."): value for name, value in values.items() if ".lora_" not in name}

    def save_only_adapters(self, engine: Any) -> None:
        """Leave the base out of DeepSpeed's checkpoints, a tied LM head too, which has a second name."""
        whole = engine.module_state_dict

        def adapters(*arguments: Any, **options: Any) -> dict[str, Tensor]:
            return {name: value for name, value in whole(*arguments, **options).items() if ".lora_" in name}

        engine.module_state_dict = adapters

    def record(self, folder: Path) -> None:
        """Write to a checkpoint what base its adapters are of."""
        record_base(self._directory, self._lora, self._fingerprint, folder)

    def check(self, folder: Path) -> None:
        """Raise RuntimeError if a checkpoint's adapters are of another base."""
        check_base(self._directory, self._lora, self._fingerprint, folder)

    def export(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        """Write the adapters beside the merged model, named as peft does. `tensors`: by wire name."""
        sites = [site for site, _ in self._layers.values()]
        own = {to: tensors[wire] for s in sites for to, wire in zip(names(s.module), names(s.tensor), strict=True)}
        targets = [site.module.rsplit(".", 1)[-1] for site in sites]
        write_adapter(own, targets, self._lora, str(self._directory), folder / FOLDER)

    def move_base(self, device: torch.device) -> None:
        """Move the frozen weights. Under ZeRO-1 and 2 DeepSpeed moves only what it trains; under 3 all."""
        for parameter in self._model.parameters():
            if not parameter.requires_grad and not hasattr(parameter, "ds_tensor"):
                parameter.data = parameter.data.to(device)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the model is its base."""
        self._switch(off=True)
        try:
            yield
        finally:
            self._switch(off=False)

    def _switch(self, off: bool) -> None:
        for _, layer in self._layers.values():  # peft's own switch would freeze parameters that DeepSpeed trains
            layer._disable_adapters = off

    def _merged(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self._layers:
            return tensor
        a, b = _parts(self._layers[name][1])
        return merge(tensor, a.detach(), b.detach(), self._lora.scale).to(tensor.dtype)

    @cached_property
    def _fingerprint(self) -> str:
        return base_fingerprint(self._directory)


def adapters_of(spec: LearnerSpec, model: Any, stored: Stored) -> Adapters | None:
    """Put a learner's adapters into its model, if it trains any."""
    lora = spec.config.lora
    return None if lora is None else Adapters(model, lora, Path(spec.model), stored, spec.seed)


def _parts(layer: Any) -> tuple[nn.Parameter, nn.Parameter]:
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight
