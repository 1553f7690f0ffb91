"""The student inside the learner: one module whose forward is the packed model, the chunked head and the objective.

No [tokens, vocabulary] tensor of a whole batch exists: the head runs chunk by chunk, and all chunks but the only one
are recomputed in the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from actors import causal_lm
from actors.causal_lm import Pack, Projection
from objectives.objective import Objective, Tokens


@dataclass(frozen=True)
class Targets:
    """What a micro-batch of N response tokens is trained towards; see objectives.Tokens for names and shapes.

    `hidden` [N, width] are the teacher's last hidden states on full support.
    """

    weight: Tensor
    rollout_logprob: Tensor
    advantage: Tensor
    teacher_logprob: Tensor | None = None
    support_ids: Tensor | None = None
    support_logprobs: Tensor | None = None
    tail_logprob: Tensor | None = None
    teacher_entropy: Tensor | None = None
    hidden: Tensor | None = None

    def split(self, size: int) -> list[Targets]:
        rows = range(0, max(1, len(self.weight)), size)
        return [Targets(**{k: v[r : r + size] for k, v in self._present()}) for r in rows]

    def to(self, device: torch.device) -> Targets:
        return Targets(**{name: value.to(device) for name, value in self._present()})

    def _present(self) -> list[tuple[str, Tensor]]:
        return [(f.name, v) for f in fields(self) if (v := getattr(self, f.name)) is not None]


class Student(nn.Module):
    """`forward` returns (loss, metric sums [M], student log-prob of each response token [N], detached)."""

    def __init__(self, model: Any, objective: Objective, vocabulary: int, tokens_per_chunk: int) -> None:
        super().__init__()
        self.model = model
        self._objective = objective
        self._vocabulary = vocabulary
        self._chunk = tokens_per_chunk
        self.teacher: Projection | None = None
        self.metric_names: tuple[str, ...] = ()

    def forward(self, batch: Pack, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
        hidden = causal_lm.hidden_states(self.model, batch)
        chunks = list(zip(hidden.split(self._chunk), batch.token_ids.split(self._chunk), strict=True))
        if not len(batch.token_ids):
            return self._placeholder(hidden)
        loss, sums, logprobs = torch.zeros((), device=hidden.device), [], []
        for (h, ids), part in zip(chunks, targets.split(self._chunk), strict=True):
            if len(chunks) == 1 or not torch.is_grad_enabled():
                chunk_loss, chunk_sums, chunk_logprobs = self._chunk_loss(h, ids, part)
            else:
                chunk_loss, chunk_sums, chunk_logprobs = checkpoint(self._chunk_loss, h, ids, part, use_reentrant=False)  # type: ignore[misc]
            loss = loss + chunk_loss
            sums.append(chunk_sums)
            logprobs.append(chunk_logprobs)
        return loss, torch.stack(sums).sum(0), torch.cat(logprobs)

    def _chunk_loss(self, hidden: Tensor, ids: Tensor, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
        tokens = Tokens(
            student_logprobs=causal_lm.head_logprobs(self.model, hidden, self._vocabulary),
            token_ids=ids,
            weight=targets.weight,
            rollout_logprob=targets.rollout_logprob,
            advantage=targets.advantage,
            teacher_logprob=targets.teacher_logprob,
            support_ids=targets.support_ids,
            support_logprobs=targets.support_logprobs,
            tail_logprob=targets.tail_logprob,
            teacher_logprobs=self._project(targets.hidden),
            teacher_entropy=targets.teacher_entropy,
        )
        sums = self._objective.metrics(tokens)
        self.metric_names = tuple(sums)
        return self._objective.loss(tokens), torch.stack(list(sums.values())), tokens.student_logprob.detach()

    def _project(self, hidden: Tensor | None) -> Tensor | None:
        if hidden is None:
            return None
        if self.teacher is None:
            raise RuntimeError("full support needs the teacher's projection; load_projection() comes first")
        with torch.no_grad():
            return self.teacher.logprobs(hidden)[..., : self._vocabulary]

    def _placeholder(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A zero loss that touches every parameter: collectives of ZeRO wait for each one's gradient."""
        zero = (hidden.sum() + causal_lm.head_logits(self.model, hidden[:0]).sum()).float() * 0.0
        return zero, torch.zeros(len(self.metric_names), device=hidden.device), torch.zeros(0)
