"""The keys of low-rank adapters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from configs.node import Node


class Lora(Node):
    """Trains low-rank adapters instead of the weights: W + alpha / rank B A, with A [rank, in] and B [out, rank] for
    each linear layer that `targets` name; B starts at 0, and the base W stays as it is.

    `targets`: ends of module names, e.g. [q_proj, v_proj], or `all-linear`. `serving`: how a vLLM rollout uses a
    version: `adapter` by vLLM's own LoRA layers, `merged` into its weights; `auto`: adapter on GPUs, merged on a CPU.
    """

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    alpha: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 32.0
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    serving: Literal["auto", "adapter", "merged"] = "auto"

    @property
    def scale(self) -> float:
        """The factor of B A."""
        return self.alpha / self.rank

    def merges(self, gpus: float) -> bool:
        """Whether a rollout with so many GPUs merges versions into its weights."""
        return self.serving == "merged" or (self.serving == "auto" and not gpus)
