"""Optimizer and learning-rate schedule of the learner."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from actors.learning.compiled import load_ops
from configs.roles.learner import Learner as LearnerConfig
from configs.roles.learner import Optimizer as OptimizerConfig


def build_optimizer(config: LearnerConfig, parameters: Iterable[Any]) -> Any:
    """torch's AdamW or SGD; DeepSpeed's CPU Adam for an off-loaded optimizer."""
    optimizer = config.optimizer
    if optimizer.name == "sgd":
        return torch.optim.SGD(parameters, lr=optimizer.lr, weight_decay=optimizer.weight_decay)
    settings: dict[str, Any] = {
        "lr": optimizer.lr,
        "betas": optimizer.betas,
        "eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
    }
    if config.offload_optimizer == "cpu":
        load_ops(("CPUAdamBuilder",))
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(parameters, adamw_mode=True, **settings)
    return torch.optim.AdamW(parameters, fused=True, **settings)  # one pass over the weights, not ten


def plain_grad_norm(config: LearnerConfig, parameters: Iterable[Any]) -> float | None:
    """The norm before clipping under ZeRO-0 in float32, where DeepSpeed computes none; None elsewhere."""
    if config.zero_stage or config.dtype != "float32":
        return None
    norms = [parameter.grad.norm() for parameter in parameters if parameter.grad is not None]
    return float(torch.stack(norms).norm())


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Rate of update `step` (1 is the first) of `steps`: linear warm-up, then constant, linear or cosine to 0."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.decay == "constant":
        return config.lr
    left = (steps - step + 1) / max(1, steps - config.warmup_steps)
    return config.lr * (left if config.decay == "linear" else 0.5 * (1.0 - math.cos(math.pi * left)))


def deepspeed_config(config: LearnerConfig, ranks: int) -> dict[str, Any]:
    """DeepSpeed's configuration. The learner itself sets the accumulation boundary, at a step's last micro-batch.

    Under bf16 gradients are float32 from the parameter on (`Student`), and are reduced in float32.
    """
    zero: dict[str, Any] = {"stage": config.deepspeed_stage}
    if config.offload_optimizer == "cpu":
        zero["offload_optimizer"] = {"device": "cpu"}
    narrow = config.dtype == "bfloat16"
    if narrow and zero["stage"] == 2:
        zero["reduce_bucket_size"] = 250_000_000  # in float32 the bytes of DeepSpeed's default of 500 million in bf16
    if narrow and zero["stage"] == 3:
        zero["contiguous_gradients"] = False  # its buffer is bf16 and would round gradients
    types = {"data_types": {"grad_accum_dtype": "fp32"}} if narrow else {}
    return types | {
        "train_batch_size": ranks,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optimizer.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": narrow},
        "communication_data_type": "fp32",
        "steps_per_print": 10**9,
    }


def reduce_in_float32(engine: Any) -> None:
    """Make ZeRO-2 keep gradients in float32: by default its buckets have the parameters' dtype, which rounds."""
    if _zero_2(engine):
        engine.optimizer._gradient_reduction_buffer_dtype = lambda: torch.float32


def forget_gradients(engine: Any) -> None:
    """Drop the gradients of an update that DeepSpeed skipped. ZeRO-2 with its optimizer on the host keeps them, and
    would add the next ones to them."""
    if _zero_2(engine):
        kept = engine.optimizer.averaged_gradients
        kept.update(dict.fromkeys(kept))


def _zero_2(engine: Any) -> bool:
    """Whether the engine's optimizer is that of ZeRO-1 and 2."""
    return hasattr(engine.optimizer, "_gradient_reduction_buffer_dtype")
