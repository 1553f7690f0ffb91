"""End tokens as a class: in each model's distribution the ids of a set E are one outcome (arXiv 2609.20511).

Distributions are merged before anything else reads them, so that every identity of a divergence holds. The outcome has
the column of the smallest id of E, the other columns of E are removed: V - |E| + 1 outcomes. Its log-prob is a
log-sum-exp, so the gradient reaches each id of E by its share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from objectives.devices import constant
from objectives.tokens import Scores, Tokens


def is_end(token_ids: Tensor, ends: Sequence[int]) -> Tensor:
    """Whether each id is in E, bool."""
    return torch.isin(token_ids, constant(tuple(ends), token_ids.device))


def class_mass(logprobs: Tensor, ends: Sequence[int]) -> Tensor:
    """Log-prob of E, [..., V] -> [...], nats."""
    return logprobs.index_select(-1, constant(tuple(ends), logprobs.device)).logsumexp(-1)


def class_logprob(logprobs: Tensor, token_ids: Tensor, ends: Sequence[int]) -> Tensor:
    """Log-prob of each token's outcome: the token, or E. [N, V], [N] -> [N], nats."""
    own = logprobs.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
    return torch.where(is_end(token_ids, ends), class_mass(logprobs, ends), own)


def merged(logprobs: Tensor, ends: Sequence[int]) -> Tensor:
    """The distribution over outcomes: [..., V] -> [..., V - |E| + 1], nats."""
    first, *others = sorted(ends)
    starts, stops = [first + 1, *(end + 1 for end in others)], [*others, logprobs.shape[-1]]
    between = [logprobs[..., start:stop] for start, stop in zip(starts, stops, strict=True)]
    return torch.cat([logprobs[..., :first], class_mass(logprobs, ends).unsqueeze(-1), *between], dim=-1)


def places(token_ids: Tensor, ends: Sequence[int]) -> Tensor:
    """Column of each id's outcome in `merged`; -1 (unused) stays -1."""
    first, *others = sorted(ends)
    moved = token_ids - sum((token_ids > end).to(token_ids.dtype) for end in others)
    return torch.where(is_end(token_ids, ends), first, moved)


def merged_scores(scores: Scores, ends: Sequence[int]) -> Scores:
    """A model's scores over outcomes. Scorers have already merged `logprob` and the support's log-probs."""
    return replace(
        scores,
        support_ids=None if scores.support_ids is None else places(scores.support_ids, ends),
        logprobs=None if scores.logprobs is None else merged(scores.logprobs, ends),
    )


def merged_tokens(tokens: Tokens, student_logprobs: Tensor, teachers: Sequence[str], ends: Sequence[int]) -> Tokens:
    """Tokens as outcomes, with the scores of the slots `teachers` merged. log mu is shifted by log q(outcome) -
    log q(token), so that q/mu in a user's own loss is still the ratio of the token."""
    token = student_logprobs.gather(-1, tokens.token_ids.unsqueeze(-1)).squeeze(-1)
    share = (class_logprob(student_logprobs, tokens.token_ids, ends) - token).detach()
    scores = {slot: merged_scores(s, ends) if slot in teachers else s for slot, s in tokens.scores.items()}
    return replace(
        tokens,
        token_ids=places(tokens.token_ids, ends),
        rollout_logprob=tokens.rollout_logprob + share,
        scores=scores,
    )
