"""The student inside the learner: a module whose forward is the packed model, the chunked LM head and the objective.

No [tokens, vocabulary] tensor of a whole batch exists. The LM head runs chunk by chunk; a chunk yields one number for
each token and stream, and is recomputed in the backward pass unless it is the only one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from actors.learning.adapting.base_scores import BaseScores, as_streams, taken, with_scores
from actors.learning.value_head import ValueHead
from actors.models import causal_lm
from actors.models.causal_lm import Pack, Projection
from actors.models.handling import Handling
from objectives.devices import moved
from objectives.objective import Objective
from objectives.schedule import Dials
from objectives.tokens import Tokens

STREAMS = ("logprob", "class_logprob", "value")  # per token; kept for later passes and for the metrics
Head = tuple[str, int]  # model and version: the projection that hidden states need


@dataclass(frozen=True)
class Hidden:
    """Last hidden states [n, width] of one model for the tokens `rows` [n] (ascending) of a micro-batch. `known`: the
    same rows, for the host, which cuts chunks by them."""

    head: Head
    rows: Tensor
    states: Tensor
    known: np.ndarray

    @classmethod
    def of(cls, head: Head, rows: Tensor, states: Tensor) -> Hidden:
        """From tensors on the host."""
        return cls(head, rows, states, rows.numpy())

    def within(self, start: int, end: int) -> Hidden:
        first, last = np.searchsorted(self.known, (start, end))
        own = slice(int(first), int(last))
        return Hidden(self.head, self.rows[own] - start, self.states[own], self.known[own] - start)

    def to(self, device: torch.device) -> Hidden:
        return Hidden(self.head, moved(self.rows, device), moved(self.states, device), self.known)


@dataclass(frozen=True)
class Targets:
    """The targets of a micro-batch. `hidden` by target slot, on full support; `base` by slot that the base fills: the
    responses behind its prompts. A part of a micro-batch has none."""

    tokens: Tokens
    hidden: Mapping[str, Sequence[Hidden]] = field(default_factory=dict)
    base: Mapping[str, Pack] = field(default_factory=dict)

    def split(self, size: int) -> list[Targets]:
        starts = range(0, max(1, len(self.tokens)), size)
        return [
            Targets(
                self.tokens[s : s + size],
                {slot: [h.within(s, s + size) for h in hs] for slot, hs in self.hidden.items()},
            )
            for s in starts
        ]

    def to(self, device: torch.device) -> Targets:
        hidden = {slot: [h.to(device) for h in hs] for slot, hs in self.hidden.items()}
        return Targets(self.tokens.to(device), hidden, {slot: pack.to(device) for slot, pack in self.base.items()})


class _Again(AbstractContextManager[None]):
    """The context of a recomputation: notes that it has begun."""

    begun = False

    def __enter__(self) -> None:
        self.begun = True

    def __exit__(self, *_: object) -> None:
        pass


class Student(nn.Module):
    """`forward` returns (loss, metric sums, streams [N] by name, detached).

    Without a gradient the streams include the KLs and the entropy of each token, nats. Gradients of a bf16 model are
    float32 (`grad_dtype`): autograd sums those of chunks in float32, and none is rounded before the optimizer.
    """

    def __init__(
        self,
        model: Any,
        objective: Objective,
        vocabulary: int,
        tokens_per_chunk: int,
        handling: Handling,
        temperature: float = 1.0,
        value_head: ValueHead | None = None,
        base: BaseScores | None = None,
    ) -> None:
        super().__init__()
        self.base = base
        self.model = model
        self.objective = objective
        self.heads: dict[Head, Projection] = {}
        self._vocabulary = vocabulary
        self._handling = handling
        self._chunk = tokens_per_chunk
        self._temperature = temperature
        self.value_head = value_head
        for parameter in model.parameters():
            if parameter.dtype in (torch.bfloat16, torch.float32):
                parameter.grad_dtype = torch.float32

    @contextmanager
    def reading(self, objective: Objective, temperature: float) -> Iterator[None]:
        """Inside of it `forward` reads another objective, at another temperature; without a gradient."""
        own = self.objective, self._temperature
        self.objective, self._temperature = objective, temperature
        try:
            yield
        finally:
            self.objective, self._temperature = own

    def forward(
        self, batch: Pack, targets: Targets, dials: Dials
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        base = {} if self.base is None else self.base.states(targets.base)
        hidden = causal_lm.hidden_states(self.model, batch, self._handling)
        if not len(batch.token_ids):
            return self._placeholder(hidden), {}, {}
        targets = self._with_base(targets, base)
        parts = targets.split(self._chunk)
        read = self._lazily if len(parts) > 1 and torch.is_grad_enabled() else self._read
        rows = _split(base, self._chunk, len(parts))
        chunks = [read(*piece, dials) for piece in zip(hidden.split(self._chunk), parts, rows, strict=True)]
        streams = {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
        tokens = with_scores(targets.tokens, taken(streams))
        if self.value_head is not None:
            streams["value"] = self.value_head(hidden)
        loss = self.objective.loss(streams, tokens, dials)
        sums = self.objective.metrics(streams, tokens, dials)
        kept = {name: streams[name].detach() for name in STREAMS if name in streams}
        if not torch.is_grad_enabled():  # an evaluation
            kept |= self.objective.each(streams, tokens)
        return loss, sums, kept | as_streams({slot: tokens.scores[slot] for slot in base})

    def _with_base(self, targets: Targets, states: Mapping[str, Tensor]) -> Targets:
        """The targets with the base's scores where only those of the sampled tokens are read."""
        if self.base is None:
            return targets
        return replace(targets, tokens=with_scores(targets.tokens, self.base.sampled(states, targets.tokens.token_ids)))

    def _lazily(self, hidden: Tensor, targets: Targets, base: Mapping[str, Tensor], dials: Dials) -> dict[str, Tensor]:
        """`_read` that keeps nothing of the vocabulary: it is computed again in the backward pass, but for metrics."""
        again = _Again()
        found = checkpoint(
            lambda h: self._read(h, targets, base, dials, measured=not again.begun),
            hidden,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), again),
        )
        assert isinstance(found, dict)
        return found

    def _read(
        self, hidden: Tensor, targets: Targets, base: Mapping[str, Tensor], dials: Dials, measured: bool = True
    ) -> dict[str, Tensor]:
        """Streams of a chunk, [n] each. `base`: the base's hidden states [n, width] by slot."""
        student = causal_lm.head_distributions(self.model, hidden, self._vocabulary, self._handling, self._temperature)
        scores = dict(targets.tokens.scores)
        for slot, pieces in targets.hidden.items():
            scores[slot] = replace(scores[slot], logprobs=self._tempered(self._project(pieces, len(targets.tokens))))
        of_base = {} if self.base is None else self.base.whole(base, targets.tokens.token_ids)
        tokens = replace(targets.tokens, scores=scores | of_base)
        return self.objective.read(student, tokens, dials, measured) | as_streams(of_base)

    def _tempered(self, logprobs: Tensor) -> Tensor:
        """Another model's log-probs at the student's temperature."""
        return logprobs if self._temperature == 1.0 else (logprobs / self._temperature).log_softmax(-1)

    @torch.no_grad()
    def _project(self, pieces: Sequence[Hidden], count: int) -> Tensor:
        """Hidden states of a slot -> log-probs [count, V], each piece through the LM head of its model."""
        projected = [(piece, self._head(piece.head).logprobs(piece.states)) for piece in pieces if len(piece.rows)]
        if len(projected) == 1 and len(projected[0][0].rows) == count:
            return projected[0][1][..., : self._vocabulary]
        whole = torch.full((count, self._vocabulary), -torch.inf, device=projected[0][1].device)
        for piece, logprobs in projected:
            whole.index_copy_(0, piece.rows, logprobs[..., : self._vocabulary])
        return whole

    def _head(self, head: Head) -> Projection:
        if head not in self.heads:
            raise RuntimeError(
                f"full support needs the head of {head[0]} at version {head[1]}; load_projection() first"
            )
        return self.heads[head]

    def _placeholder(self, hidden: Tensor) -> Tensor:
        """A zero loss that depends on every parameter, because ZeRO's collectives wait for every gradient."""
        return (hidden.float().sum() + causal_lm.head_logits(self.model, hidden[:0]).sum()) * 0.0


def _split(states: Mapping[str, Tensor], size: int, count: int) -> list[dict[str, Tensor]]:
    """Rows of every slot in chunks, `count` in all."""
    return [{slot: own[i * size : (i + 1) * size] for slot, own in states.items()} for i in range(count)]
