"""The inputs of an objective: tensors over the N response tokens of a micro-batch, response after response."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from objectives.devices import moved


@dataclass(frozen=True)
class Scores:
    """One model's log-probs of N response tokens, nats, float32 or wider. Supports that were not scored are None.

    logprob [N] of the sampled token; support_ids (-1: unused place) and support_logprobs [N, K] with tail_logprob [N];
    logprobs [N, V] over the whole vocabulary.
    """

    logprob: Tensor
    support_ids: Tensor | None = None
    support_logprobs: Tensor | None = None
    tail_logprob: Tensor | None = None
    logprobs: Tensor | None = None

    def __getitem__(self, rows: slice | Tensor) -> Scores:
        present = {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}
        return replace(self, **{name: value[rows] for name, value in present.items()})


@dataclass(frozen=True)
class Tokens:
    """N response tokens of whole responses, or a chunk of them.

    token_ids [N]; sequence [N]: which response of the micro-batch a token is of, non-decreasing; position [N] in its
    response; on [N] bool: carries loss; weights: by term [N] (token_weights.py); rollout_logprob [N] (mu);
    scores: by target slot. Of the learner at the start of the step, else None: old_logprob, old_value [N], and
    old_class_logprob [N] where end tokens are a class. The response's, repeated on its tokens: advantage [N],
    reward [N], drawn [N] bool (the student sampled it). `lengths` of the responses, where the host knows them: reading
    them off `sequence` would wait for a GPU.
    """

    token_ids: Tensor
    sequence: Tensor
    position: Tensor
    on: Tensor
    weights: Mapping[str, Tensor]
    rollout_logprob: Tensor
    advantage: Tensor
    reward: Tensor
    drawn: Tensor
    scores: Mapping[str, Scores] = field(default_factory=dict)
    old_logprob: Tensor | None = None
    old_value: Tensor | None = None
    old_class_logprob: Tensor | None = None
    lengths: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.token_ids)

    def __getitem__(self, rows: slice | Tensor) -> Tokens:
        return replace(self._map(lambda tensor: tensor[rows], lambda scores: scores[rows]), lengths=None)

    def as_first(self) -> Tokens:
        """The same tokens in a first pass, in which the learner at the start of the step is the student itself."""
        return replace(self, old_logprob=None, old_value=None, old_class_logprob=None)

    def to(self, device: torch.device) -> Tokens:
        def move(scores: Scores) -> Scores:
            present = {f.name: v for f in fields(scores) if (v := getattr(scores, f.name)) is not None}
            return replace(scores, **{name: moved(value, device) for name, value in present.items()})

        return self._map(lambda tensor: moved(tensor, device), move)

    def by_response(self, function: Callable[..., Tensor], *streams: Tensor) -> Tensor:
        """Apply a function of one response's tokens, [T] x k -> [T], to every response: [N] x k -> [N]."""
        lengths = self.lengths or torch.unique_consecutive(self.sequence, return_counts=True)[1].tolist()
        parts = zip(*(stream.split(lengths) for stream in streams), strict=True)
        results = [function(*part) for part in parts]
        return torch.cat(results) if results else streams[0]

    def _map(self, tensor: Callable[[Tensor], Tensor], scores: Callable[[Scores], Scores]) -> Tokens:
        changed: dict[str, object] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                changed[f.name] = tensor(value)
        changed["weights"] = {name: tensor(value) for name, value in self.weights.items()}
        changed["scores"] = {name: scores(value) for name, value in self.scores.items()}
        return replace(self, **changed)  # type: ignore[arg-type]
