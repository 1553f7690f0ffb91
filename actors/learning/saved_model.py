"""The student of a checkpoint as a model directory, without a learner: read from DeepSpeed's files on the host.

Adapters are merged into their base.

The files are pickles: only a run that is trusted to resume is trusted to export.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actors.learning.adapting.adapters import Adapters
from actors.learning.export import name_ends, write_model
from actors.lora.files import recorded_lora
from actors.models import causal_lm
from actors.models.stored import Stored, read_stored

TAG = "deepspeed"  # the folder of a checkpoint with the engine's files
STUDENT = "model."  # before the names of the student's parameters in the engine's module


def write_saved_model(checkpoint: Path, source: Path, dtype: str, ends: Sequence[int], directory: Path) -> None:
    """Write the model of a `checkpoint` that a learner with `dtype` saved, and beside it the adapters of one that holds
    those. `source`: the directory that training began from; `ends`: see name_ends.

    Raises OSError or ValueError where the files are not those of a learner of this model.
    """
    model, tensors, adapters = _read(checkpoint, source, dtype)
    write_model(model, tensors, read_stored(source).others, source, directory)
    name_ends(directory, ends)
    if adapters is not None:
        adapters.export({name: own.detach() for pair in adapters.pairs() for name, own in pair}, directory)


def saved_tensors(checkpoint: Path, source: Path) -> dict[str, Tensor]:
    """The student's tensors in a checkpoint, float32, by their names in the files of `source`: with ZeRO the
    optimizer's own copy, finer than what is published. Raises as write_saved_model does."""
    return _read(checkpoint, source, "float32")[1]


@torch.no_grad()
def put_saved(model: torch.nn.Module, checkpoint: Path, source: Path) -> None:
    """Give a model of `source` the weights that a checkpoint holds, adapters merged. Raises as write_saved_model
    does."""
    if recorded_lora(checkpoint) is None:
        return _put(model, _saved(checkpoint))
    own, tensors = model.state_dict(), saved_tensors(checkpoint, source)
    for group in read_stored(source).groups:
        for name, tensor in group.join(tensors).items():
            own[name].copy_(tensor)


def _read(checkpoint: Path, source: Path, dtype: str) -> tuple[Any, dict[str, Tensor], Adapters | None]:
    model, stored = causal_lm.load_model(source, dtype), read_stored(source)
    adapters = _adapters(checkpoint, model, source, stored)
    _put(model, _saved(checkpoint))
    values: dict[str, Any] = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    if adapters is not None:
        values = adapters.without_names(values)
    tensors: dict[str, Tensor] = {}
    for group in stored.groups:
        held = group.split({name: values[name].detach() for name in group.parameters})
        tensors |= held if adapters is None else adapters.merged(held)
    return model, {name: tensor.contiguous().clone() for name, tensor in tensors.items()}, adapters


def _adapters(checkpoint: Path, model: Any, source: Path, stored: Stored) -> Adapters | None:
    """Put the adapters of a checkpoint into its base, not yet with their values; None if it holds all weights."""
    lora = recorded_lora(checkpoint)
    if lora is None:
        return None
    adapters = Adapters(model, lora, source, stored, seed=0)
    try:
        adapters.check(checkpoint)
    except RuntimeError as error:  # another base
        raise ValueError(str(error)) from None
    return adapters


def _saved(checkpoint: Path) -> dict[str, Tensor]:
    """The student's parameters by name: of one file without ZeRO, of the ranks' parts in float32 with it."""
    folder = checkpoint / TAG
    if any(folder.glob("*_optim_states.pt")):
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        found = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=TAG) or {}
    else:
        file = folder / "mp_rank_00_model_states.pt"
        found = torch.load(file, map_location="cpu", weights_only=False)["module"]
    return {name.removeprefix(STUDENT): tensor for name, tensor in found.items() if name.startswith(STUDENT)}


@torch.no_grad()
def _put(model: torch.nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Copy parameters into a model. Raises ValueError if some that are trained are missing; a tied one may be there
    once."""
    unset = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in saved:
            parameter.copy_(saved[name])
            unset.pop(id(parameter), None)
    if unset:
        raise ValueError(f"the checkpoint lacks {sorted(unset.values())[:3]}; is it one of this model?")
