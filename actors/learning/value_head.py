"""The value head: a linear map of the student's detached last hidden states, outside the policy's engine.

It has `width + 1` numbers, so every rank holds all of it, in float32, with an optimizer, a learning rate and a gradient
norm of its own. Its gradient does not count in the norm by which the policy's gradient is clipped.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from configs.roles.learner import ValueHead as ValueHeadConfig

FILE = "value_head.safetensors"


class ValueHead:
    """Not a module: DeepSpeed takes, shards and clips every parameter that it finds in one."""

    def __init__(self, width: int, config: ValueHeadConfig, betas: tuple[float, float]) -> None:
        self._limit = config.max_grad_norm
        self.weight = torch.zeros(width, requires_grad=True)
        self.bias = torch.zeros((), requires_grad=True)
        self._optimizer = torch.optim.AdamW([self.weight, self.bias], lr=config.lr, betas=betas, weight_decay=0.0)

    def __call__(self, hidden: Tensor) -> Tensor:
        """[N, width] of any dtype -> [N] float32 values. No gradient flows into `hidden`."""
        return hidden.detach().float() @ self.weight + self.bias

    def gradient(self, ranks: int) -> Tensor:
        """[width + 1] float32: the mean over ranks of accumulated gradients. A collective: every rank calls it."""
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in (self.weight, self.bias)]
        whole = torch.cat([part.reshape(-1) for part in parts])
        if ranks > 1:
            dist.all_reduce(whole)
        return whole / ranks

    def step(self, gradient: Tensor, rate: float) -> float:
        """Take a step with `gradient`, clipped by its own norm; none if the norm is not finite. Returns the norm before
        clipping."""
        norm = float(gradient.norm())
        if not math.isfinite(norm):
            self.forget()
            return norm
        if self._limit and norm > self._limit:
            gradient = gradient * (self._limit / norm)
        self.weight.grad, self.bias.grad = gradient[:-1].clone(), gradient[-1].clone()
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self.forget()
        return norm

    def forget(self) -> None:
        """Drop the gradient."""
        self._optimizer.zero_grad()

    def to(self, device: torch.device) -> None:
        """Move weights and moments to a device, and drop gradients."""
        for tensor in (self.weight, self.bias):
            tensor.data = tensor.data.to(device)
            tensor.grad = None
        for state in self._optimizer.state.values():
            state |= {name: state[name].to(device) for name in ("exp_avg", "exp_avg_sq") if name in state}

    def save(self, directory: Path) -> None:
        from safetensors.torch import save_file

        tensors = {"weight": self.weight.detach(), "bias": self.bias.detach()}
        for index, state in self._optimizer.state_dict()["state"].items():
            tensors |= {f"state.{index}.{name}": value for name, value in state.items()}
        save_file({name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}, directory / FILE)

    def load(self, directory: Path) -> None:
        """Inverse of `save`; every rank reads the same file. Raises RuntimeError if it is missing, as in checkpoints of
        earlier versions."""
        from safetensors.torch import load_file

        if not (directory / FILE).exists():
            raise RuntimeError(
                f"{directory} has no {FILE}: it is of an earlier version; start a new run from its export"
            )
        tensors = load_file(directory / FILE)
        self.weight.data.copy_(tensors.pop("weight"))
        self.bias.data.copy_(tensors.pop("bias"))
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
