"""The keys of the learner."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from configs.names.own_code import or_own
from configs.node import Members, Momentum, Node, NonNegative, Positive
from configs.roles.computing import Attention, Dtype
from configs.roles.lora import Lora
from configs.roles.sizes import Resources


class Optimizer(Node):
    name: Literal["adamw", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    betas: tuple[Momentum, Momentum] = (0.9, 0.95)
    eps: Annotated[float, Field(gt=0.0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    warmup_steps: NonNegative = 0
    decay: Literal["constant", "linear", "cosine"] = "constant"
    max_grad_norm: Annotated[float, Field(ge=0.0)] = 1.0  # 0 does not clip


class ValueHead(Node):
    """A value head's own AdamW, with the policy's betas, warm-up and decay; its gradient norm is clipped separately. A
    linear map that starts at zero needs a larger rate than a pretrained policy."""

    lr: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 1e-4
    max_grad_norm: Annotated[float, Field(ge=0.0)] = 1.0  # 0 does not clip


CHUNK_BYTES = 2**28


class Learner(Node):
    """DeepSpeed learner. `ranks` actors form one member. `tokens_per_chunk` bounds the [tokens, vocabulary] tensors;
    null: as many rows as CHUNK_BYTES hold in float32. A micro-batch of one chunk is not computed again in the backward
    pass.

    `packing`: several sequences in a row without padding. `auto`: if a probe finds that no sequence attends to another;
    true: always, and a model whose sequences leak is refused; false: never.

    `dropout`: train with the dropout of the student's configuration. Off by default, so that log-probs are those of the
    policy that sampled. `lora`: train adapters instead of the weights; null: all weights.
    """

    engine: Annotated[str, or_own("deepspeed")] = "deepspeed"
    ranks: Members = 1
    resources: Resources = Resources()
    dtype: Dtype = "auto"
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload_optimizer: Literal["none", "cpu"] = "none"
    gradient_checkpointing: bool = False
    attention: Attention = "auto"
    packing: Literal["auto", True, False] = "auto"
    tokens_per_chunk: Positive | None = None
    dropout: bool = False
    lora: Lora | None = None
    optimizer: Optimizer
    value_head: ValueHead = ValueHead()

    def rows_per_chunk(self, vocabulary: int) -> int:
        """Rows of the largest [tokens, vocabulary] tensor."""
        return self.tokens_per_chunk or max(1, CHUNK_BYTES // (4 * vocabulary))

    @property
    def deepspeed_stage(self) -> int:
        """The ZeRO stage passed to DeepSpeed, at least 2 under bf16: stage 0 has no float32 gradients there, stage 1
        keeps them twice and cannot move states to the host, and stage 2 makes the same steps."""
        return max(2, self.zero_stage) if self.dtype == "bfloat16" else self.zero_stage
