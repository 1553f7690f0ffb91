"""The student of a checkpoint as a model directory, without a learner: read from DeepSpeed's files on the host.

They are pickles: only a run that is trusted to resume is trusted to export.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actors.learning.export import name_ends, write_model
from actors.models import causal_lm
from actors.models.stored import read_stored

TAG = "deepspeed"  # the folder of a checkpoint with the engine's files
STUDENT = "model."  # before the names of the student's parameters in the engine's module


def write_saved_model(checkpoint: Path, source: Path, dtype: str, ends: Sequence[int], directory: Path) -> None:
    """Write the model of a `checkpoint` that a learner with `dtype` saved. `source`: the directory that training began
    from; `ends`: see name_ends.

    Raises OSError or ValueError where the files are not those of a learner of this model.
    """
    model, tensors = _read(checkpoint, source, dtype)
    write_model(model, tensors, read_stored(source).others, source, directory)
    name_ends(directory, ends)


def saved_tensors(checkpoint: Path, source: Path) -> dict[str, Tensor]:
    """The student's tensors in a checkpoint, float32, by their names in the files of `source`: with ZeRO the
    optimizer's own copy, finer than what is published. Raises as write_saved_model does."""
    return _read(checkpoint, source, "float32")[1]


def put_saved(model: torch.nn.Module, checkpoint: Path) -> None:
    """Give a model the weights that a checkpoint holds. Raises OSError, or ValueError if it is of another model."""
    _put(model, _saved(checkpoint))


def _read(checkpoint: Path, source: Path, dtype: str) -> tuple[Any, dict[str, Tensor]]:
    model, stored = causal_lm.load_model(source, dtype), read_stored(source)
    _put(model, _saved(checkpoint))
    values = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    tensors: dict[str, Tensor] = {}
    for group in stored.groups:
        tensors |= group.split({name: values[name].detach() for name in group.parameters})
    return model, {name: tensor.contiguous().clone() for name, tensor in tensors.items()}


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
    """Copy parameters into a model. Raises ValueError if some are missing; a tied one may be there once."""
    unset = {id(parameter): name for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in saved:
            parameter.copy_(saved[name])
            unset.pop(id(parameter), None)
    if unset:
        raise ValueError(f"the checkpoint lacks {sorted(unset.values())[:3]}; is it one of this model?")
