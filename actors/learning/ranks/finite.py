"""Whether a learner's state is finite, decided by all ranks together. One update spreads a number that is not finite to
all weights, for good."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def spoiling(loss: Tensor) -> Tensor:
    """The same loss. If it is not finite, all its gradients are NaN, even where the objective's own would be finite: so
    the gradient norm, which all ranks share, shows that a rank's loss was not finite."""
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)


def all_finite(parameters: Iterable[Tensor]) -> bool:
    """Whether all ranks' weights are finite, the same answer on each. Under ZeRO-3 a rank checks its own part."""
    parts = [_own(parameter) for parameter in parameters]
    largest = [torch.linalg.vector_norm(part, torch.inf).float() for part in parts if part.numel()]
    bad = (~torch.isfinite(torch.stack(largest))).any().float() if largest else torch.zeros(())
    if dist.get_backend() == "nccl":
        bad = bad.cuda()
    dist.all_reduce(bad)
    return not bad.item()


def _own(parameter: Tensor) -> Tensor:
    """The part of a parameter that a rank holds. Under ZeRO-3 the padding of the last parts is left out."""
    part: Tensor | None = getattr(parameter, "ds_tensor", None)
    if part is None:
        return parameter.detach()
    start = dist.get_rank() * part.numel()
    return part.detach().flatten()[: max(0, parameter.ds_numel - start)]  # pyright: ignore[reportAttributeAccessIssue]
