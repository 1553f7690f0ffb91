"""How responses leave rollout members."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from configs.node import Node, Positive


class EarlyStop(Node):
    """Cuts a response once `after_tokens` of it are scored and their mean log-ratio, teacher less sampler, is below
    `log_ratio` nats a token."""

    log_ratio: Annotated[float, Field(lt=0.0, allow_inf_nan=False)]
    after_tokens: Positive


class Stream(Node):
    """A block leaves a rollout member `coalesce_ms` after its first response, or with `coalesce_samples` of them."""

    coalesce_ms: Annotated[float, Field(ge=0.0)] = 20.0
    coalesce_samples: Positive = 64
