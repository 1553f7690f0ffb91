"""Whether a learner's state is finite, decided by all ranks together. What is not finite spreads to every weight with
one update, and there is no way back."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def spoiling(loss: Tensor) -> Tensor:
    """The same loss. Where it is not finite neither is any gradient of it, even where the objective's own would be: so
    the norm of the gradient, which all ranks share, tells of every rank's loss."""
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)


def all_finite(parameters: Iterable[Tensor]) -> bool:
    """Whether all ranks' weights are, said alike on every rank. Under ZeRO-3 a rank looks at its own part of each."""
    parts = [_own(parameter) for parameter in parameters]
    largest = [torch.linalg.vector_norm(part, torch.inf).float() for part in parts if part.numel()]
    bad = (~torch.isfinite(torch.stack(largest))).any().float() if largest else torch.zeros(())
    if dist.get_backend() == "nccl":
        bad = bad.cuda()
    dist.all_reduce(bad)
    return not bad.item()


def _own(parameter: Tensor) -> Tensor:
    """What a rank holds of a parameter. The last parts under ZeRO-3 are padded, with whatever was there."""
    part: Tensor | None = getattr(parameter, "ds_tensor", None)
    if part is None:
        return parameter.detach()
    start = dist.get_rank() * part.numel()
    return part.detach().flatten()[: max(0, parameter.ds_numel - start)]  # pyright: ignore[reportAttributeAccessIssue]
