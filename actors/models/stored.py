"""Converts between a model's parameters and the tensors of its files.

transformers renames, fuses and splits tensors when it loads a model: it fuses the experts of a layer into one
parameter, and renames the text part of a multimodal model. Tensors that leave the learner have the names, shapes and
layout of the student's files, which every engine of the architecture reads. The conversion is derived from the files'
headers and a model without storage.

Source of the rules: transformers/core_model_loading.py, `convert_and_load_state_dict_in_model` and
`revert_weight_conversion`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actors.models.model_files import tensor_shapes

Shapes = Mapping[str, tuple[int, ...]]
Headers = Mapping[str, tuple[tuple[int, ...], str]]


@dataclass(frozen=True)
class Group:
    """Parameters (and buffers) that are converted together, and the tensors of the files that hold them.

    `joining` and `splitting` are transformers' converters, None if one tensor is one parameter unchanged."""

    parameters: Shapes
    tensors: Shapes
    model: Any = field(default=None, repr=False)
    joining: Any = field(default=None, repr=False)
    splitting: Any = field(default=None, repr=False)

    def split(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole parameters by name -> tensors named and shaped as in the files."""
        if self.splitting is None:
            return dict(zip(self.tensors, (parameters[name] for name in self.parameters), strict=True))
        made = _converted(self.splitting, parameters, self.model)
        return {name: made[name].reshape(shape) for name, shape in self.tensors.items()}

    def join(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inverse of `split`."""
        if self.joining is None:
            return dict(zip(self.parameters, (tensors[name] for name in self.tensors), strict=True))
        return _converted(self.joining, {name: tensors[name] for name in self.tensors}, self.model)

    def gives_back(self) -> bool:
        """Whether `split` returns tensors of the files' names and sizes."""
        if self.splitting is None:
            return False
        empty = {name: torch.empty(shape, device="meta") for name, shape in self.parameters.items()}
        made = {name: tensor.numel() for name, tensor in _converted(self.splitting, empty, self.model).items()}
        return made == {name: prod(shape) for name, shape in self.tensors.items()}


@dataclass(frozen=True)
class Stored:
    """How a directory stores a model. `others` are tensors of no parameter, as of a vision tower or of multi-token
    prediction heads; copies of tied parameters are in neither. `precise` are the float32 tensors of a model in another
    dtype. `unreadable`: why the files make no model; `unwritable`: why a model cannot be stored like the files; one
    line for each reason."""

    groups: tuple[Group, ...] = ()
    others: tuple[str, ...] = ()
    precise: frozenset[str] = frozenset()
    unreadable: tuple[str, ...] = ()
    unwritable: tuple[str, ...] = ()

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of the tensors of a weight version."""
        return {name: shape for group in self.groups for name, shape in group.tensors.items()}


def read_stored(directory: Path) -> Stored:
    """How `directory` stores its model. Raises what transformers raises if it cannot build the model."""
    return stored_as(empty_model(directory), tensor_shapes(directory))


@lru_cache(maxsize=1)
def stored(directory: Path) -> Stored:
    """Cached `read_stored`, for members, whose directories do not change."""
    return read_stored(directory)


def empty_model(directory: Path) -> Any:
    """The directory's causal language model without storage (device meta)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    dtype = torch.get_default_dtype()  # explicit: the default is shared with other threads
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False, dtype=dtype)


def described_size(directory: Path) -> tuple[int, int]:
    """Parameters (a tied head counts once) and width of the hidden states, by config.json alone. Raises what
    transformers raises if it cannot build the model."""
    model = empty_model(directory)
    return sum(parameter.numel() for parameter in model.parameters()), model.get_output_embeddings().weight.shape[1]


def stored_as(model: Any, headers: Headers) -> Stored:
    """How files with these `headers` (name -> shape, dtype) store `model`, which may lack storage but must be whole."""
    files = {name: shape for name, (shape, _) in headers.items()}
    whole = model.state_dict()
    state = {name: tuple(tensor.shape) for name, tensor in whole.items() if tensor.is_floating_point()}
    tied: set[str] = set(getattr(model, "all_tied_weights_keys", None) or ())
    rules = _Rules(model)
    sources = rules.sources(files)
    groups, partial = _groups(rules, {target: sources[target] for target in sources if target in state}, files)
    read = {name for _, names in sources.values() for name in names}
    numbers = [name for name in sources if name in whole and name not in state]
    kept = tuple(group for group in groups if not group.parameters.keys() <= tied)
    return Stored(
        groups=kept,
        others=tuple(sorted(files.keys() - read)),
        precise=_precise(headers),
        unreadable=(
            *partial,
            *_unreadable(kept, state, tied, getattr(model, "_keys_to_ignore_on_load_missing", None) or ()),
        ),
        unwritable=(*_unwritable(kept), *(f"{name} holds whole numbers" for name in numbers)),
    )


def _groups(
    rules: _Rules, sources: Mapping[str, tuple[Any, list[str]]], files: Shapes
) -> tuple[list[Group], list[str]]:
    """The groups, and a line for each parameter whose tensors do not fit together."""
    groups, partial = [], []
    for target, (joining, names) in sources.items():
        try:
            groups.append(rules.group(target, joining, {name: files[name] for name in names}))
        except Exception as error:  # a converter may raise anything
            said = (str(error).splitlines() or [""])[0][:200]
            partial.append(f"{target} cannot be made of the {len(names)} weights that there are for it ({said})")
    return groups, partial


def _unreadable(groups: Iterable[Group], state: Shapes, tied: set[str], optional: Iterable[str]) -> Iterator[str]:
    made = {name: shape for group in groups for name, shape in group.parameters.items()}
    lacking = state.keys() - made.keys() - tied
    if lacking := sorted(name for name in lacking if not any(re.search(pattern, name) for pattern in optional)):
        yield f"it lacks the weights {lacking[:3]}"
    for name, shape in made.items():
        if state.get(name) != shape:
            yield f"{name} is {list(shape)} in its files and {list(state.get(name, ()))} by its config.json"


def _unwritable(groups: Iterable[Group]) -> Iterator[str]:
    for group in groups:
        if group.joining is not None and not group.gives_back():
            yield f"{sorted(group.tensors)[0]} cannot be made of {sorted(group.parameters)[0]} again"


def _precise(headers: Headers) -> frozenset[str]:
    numbers: dict[str, int] = defaultdict(int)
    for shape, dtype in headers.values():
        numbers[dtype] += prod(shape)
    if max(numbers, key=lambda dtype: numbers[dtype], default="F32") == "F32":
        return frozenset()
    return frozenset(name for name, (_, dtype) in headers.items() if dtype == "F32")


class _Rules:
    """transformers' conversions of a model: to parameters, and back for those that its files have used."""

    def __init__(self, model: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        self._model = model
        self._state = model.state_dict()
        self._all = get_model_conversion_mapping(model)
        self._renamings = [rule for rule in self._all if isinstance(rule, WeightRenaming)]
        self._converters = [rule for rule in self._all if isinstance(rule, WeightConverter)]

    def sources(self, names: Iterable[str]) -> dict[str, tuple[Any, list[str]]]:
        """First parameter of a group -> its converter or None, and the tensors it is made of, in order."""
        from transformers.core_model_loading import dot_natural_key

        found: dict[str, tuple[Any, list[str]]] = {}
        for name in sorted(names, key=dot_natural_key):
            target, pattern = self._renamed(name)
            if target not in self._state:
                continue
            converter = next((rule for rule in self._converters if pattern in rule.source_patterns), None)
            if pattern is None:
                found[target] = (None, [name])
            else:
                found.setdefault(target, (_Conversion(converter, target), []))[1].append(name)
                found[target][0].patterns[name] = pattern
        return found

    def group(self, target: str, joining: Any, tensors: Shapes) -> Group:
        if joining is None:
            (shape,) = tensors.values()
            return Group({target: shape}, tensors)
        empty = {name: torch.empty(shape, device="meta") for name, shape in tensors.items()}
        made = {name: tuple(tensor.shape) for name, tensor in _converted(joining, empty, self._model).items()}
        return Group(made, tensors, self._model, joining, self._splitting(made))

    def _renamed(self, name: str) -> tuple[str, str | None]:
        from transformers.core_model_loading import rename_source_key

        prefix = self._model.base_model_prefix
        target, pattern = rename_source_key(name, self._renamings, self._converters, prefix, self._state)
        if target not in self._state and name in self._state:
            target, pattern = rename_source_key(name, [], [], prefix, self._state)
        return target, pattern

    def _splitting(self, parameters: Iterable[str]) -> Any:
        """The conversion of one group's parameters back to tensors, None if there is none."""
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        back = [rule.reverse_transform() for rule in reversed(self._all) if rule.was_used()]
        renamings = [rule for rule in back if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in back if isinstance(rule, WeightConverter)]
        conversion: _Conversion | None = None
        for name in parameters:
            target, pattern = rename_source_key(name, renamings, converters, reverse=True)
            converter = next((rule for rule in converters if pattern in rule.source_patterns), None)
            if converter is None:
                return None
            conversion = conversion or _Conversion(converter, target)
            conversion.patterns[name] = str(pattern)
        return conversion


class _Conversion:
    """A transformers converter for one group. `patterns`: tensor name -> the pattern that it matched."""

    def __init__(self, converter: Any, target: str) -> None:
        self.converter = deepcopy(converter)
        self.target = target
        self.patterns: dict[str, str] = {}


def _converted(conversion: _Conversion, tensors: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    converter = deepcopy(conversion.converter)  # a converter keeps its inputs
    for name, pattern in conversion.patterns.items():
        converter.add_tensor(conversion.target, name, pattern, tensors[name])
    made = converter.convert(conversion.target, model=model, config=model.config)
    return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}
