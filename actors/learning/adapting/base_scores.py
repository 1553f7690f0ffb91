"""Scores of the base: what the student is without its adapters, computed by the learner itself. No other copy of the
weights is needed, and no payload travels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from actors.learning.adapting.adapters import Adapters
from actors.models import causal_lm
from actors.models.causal_lm import Pack
from actors.models.handling import Handling
from actors.wire.jobs import LearnerSpec
from objectives.distributions import Distributions
from objectives.objective import full_slots
from objectives.tokens import Scores, Tokens

PREFIX = "base."  # of the streams that carry the base's log-probs of the sampled tokens, [N], nats
ByName = Mapping[str, Tensor]  # [response tokens, ...] by slot or by stream


@dataclass(frozen=True)
class BaseScores:
    """Scores of the slots that the base fills: those in `full` over the whole vocabulary, the others of the sampled
    tokens, `chunk` of them at a time. The LM head is the student's: it has no adapter."""

    model: Any
    adapters: Adapters
    handling: Handling
    vocabulary: int
    chunk: int
    full: frozenset[str]

    @torch.no_grad()
    def states(self, packs: Mapping[str, Pack]) -> dict[str, Tensor]:
        """By slot, [response tokens, width]. Each pack holds the responses behind the slot's own prompts. Under
        ZeRO-3 a collective: every rank calls it, also for an empty batch."""
        with self.adapters.off():
            return {slot: causal_lm.hidden_states(self.model, pack, self.handling) for slot, pack in packs.items()}

    @torch.no_grad()
    def sampled(self, states: ByName, token_ids: Tensor) -> dict[str, Scores]:
        """Of a micro-batch's tokens, by slot that is read at the sampled tokens alone."""
        return {slot: Scores(self._gathered(own, token_ids)) for slot, own in states.items() if slot not in self.full}

    @torch.no_grad()
    def whole(self, states: ByName, token_ids: Tensor) -> dict[str, Scores]:
        """Of a chunk's n tokens, by slot that is read over the whole vocabulary; holds [n, V] each."""
        rows = {slot: self._distributions(own).rows() for slot, own in states.items() if slot in self.full}
        ids = token_ids.unsqueeze(-1)
        return {slot: Scores(own.gather(-1, ids).squeeze(-1), logprobs=own) for slot, own in rows.items()}

    def _gathered(self, states: Tensor, token_ids: Tensor) -> Tensor:
        parts = zip(states.split(self.chunk), token_ids.unsqueeze(-1).split(self.chunk), strict=True)
        return torch.cat([self._distributions(part).at(ids)[0].squeeze(-1) for part, ids in parts])

    def _distributions(self, states: Tensor) -> Distributions:
        return causal_lm.head_distributions(self.model, states, self.vocabulary, self.handling)


def with_scores(tokens: Tokens, scores: Mapping[str, Scores]) -> Tokens:
    """Tokens with more slots filled."""
    return replace(tokens, scores={**tokens.scores, **scores}) if scores else tokens


def as_streams(scores: Mapping[str, Scores]) -> dict[str, Tensor]:
    """The base's log-probs of the sampled tokens as streams."""
    return {PREFIX + slot: found.logprob for slot, found in scores.items()}


def of_streams(streams: Mapping[str, Any]) -> dict[str, Any]:
    """By slot, what its stream holds."""
    return {name.removeprefix(PREFIX): found for name, found in streams.items() if name.startswith(PREFIX)}


def taken(streams: dict[str, Tensor]) -> dict[str, Scores]:
    """Take the base's streams out of `streams`; by slot."""
    found = of_streams(streams)
    return {slot: Scores(streams.pop(PREFIX + slot)) for slot in found}


def base_scores(spec: LearnerSpec, model: Any, adapters: Adapters | None, handling: Handling) -> BaseScores | None:
    """None where the learner scores nothing."""
    if adapters is None or not spec.base:
        return None
    full = frozenset(full_slots(spec.objective)) & frozenset(spec.base)
    rows = spec.config.rows_per_chunk(spec.vocabulary)
    return BaseScores(model, adapters, handling, spec.vocabulary, rows, full)
