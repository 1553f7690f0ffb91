"""End tokens as a class: in each model's distribution the ids of a set E are one outcome (arXiv 2609.20511).

A coarser partition of the vocabulary, formed before anything else, so that every identity of a divergence holds on it.
The outcome takes the place of the smallest id of E, the columns of the others go: V - |E| + 1 outcomes are left. Its
log-prob is a log-sum-exp, so a gradient reaches each member of E through its share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from objectives.tokens import Scores, Tokens


def is_end(token_ids: Tensor, ends: Sequence[int]) -> Tensor:
    """Which ids are in E, bool."""
    return torch.isin(token_ids, torch.tensor(ends, dtype=token_ids.dtype, device=token_ids.device))


def class_mass(logprobs: Tensor, ends: Sequence[int]) -> Tensor:
    """log of the mass on E, [..., V] -> [...], nats."""
    return logprobs[..., list(ends)].logsumexp(-1)


def class_logprob(logprobs: Tensor, token_ids: Tensor, ends: Sequence[int]) -> Tensor:
    """log-prob of each token's outcome: its own, or E's. [N, V], [N] -> [N], nats."""
    own = logprobs.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
    return torch.where(is_end(token_ids, ends), class_mass(logprobs, ends), own)


def merged(logprobs: Tensor, ends: Sequence[int]) -> Tensor:
    """The distribution over outcomes: [..., V] -> [..., V - |E| + 1], nats."""
    first, *others = sorted(ends)
    starts, stops = [first + 1, *(end + 1 for end in others)], [*others, logprobs.shape[-1]]
    between = [logprobs[..., start:stop] for start, stop in zip(starts, stops, strict=True)]
    return torch.cat([logprobs[..., :first], class_mass(logprobs, ends).unsqueeze(-1), *between], dim=-1)


def places(token_ids: Tensor, ends: Sequence[int]) -> Tensor:
    """Where each id's outcome stands in `merged`; -1, an unused place, stays."""
    first, *others = sorted(ends)
    moved = token_ids - sum((token_ids > end).to(token_ids.dtype) for end in others)
    return torch.where(is_end(token_ids, ends), first, moved)


def merged_scores(scores: Scores, ends: Sequence[int]) -> Scores:
    """A model's scores over outcomes. Of a sampled end token and on a support the scorer has merged them already."""
    return replace(
        scores,
        support_ids=None if scores.support_ids is None else places(scores.support_ids, ends),
        logprobs=None if scores.logprobs is None else merged(scores.logprobs, ends),
    )


def merged_tokens(tokens: Tokens, student_logprobs: Tensor, teachers: Sequence[str], ends: Sequence[int]) -> Tokens:
    """Tokens as outcomes, and the scores of these slots. log mu moves by log q(outcome) - log q(token), so that the
    ratio that a loss of one's own takes to it is still the token's: q(outcome) is never held against mu(token)."""
    token = student_logprobs.gather(-1, tokens.token_ids.unsqueeze(-1)).squeeze(-1)
    share = (class_logprob(student_logprobs, tokens.token_ids, ends) - token).detach()
    scores = {slot: merged_scores(s, ends) if slot in teachers else s for slot, s in tokens.scores.items()}
    return replace(
        tokens,
        token_ids=places(tokens.token_ids, ends),
        rollout_logprob=tokens.rollout_logprob + share,
        scores=scores,
    )
