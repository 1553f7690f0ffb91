"""Responses with what a real batch also has: padding, unused places of a support, tokens of probability 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from audit.bench import Draws
from audit.tree import END
from objectives.tokens import Scores, Tokens


def padded(draws: Draws, fill: float | None = None, count: int = 5) -> Draws:
    """The responses with `count` positions without loss after the last one; `fill`: all log-probs there.

    They hold the end token, as where padding and end share an id.
    """
    tokens, place = draws.tokens, torch.cat([torch.arange(len(draws.node)), torch.full((count,), len(draws.node) - 1)])
    longer, beyond = tokens[place], torch.arange(len(place)) >= len(draws.node)
    return replace(
        draws,
        node=draws.node[place],
        tokens=replace(
            longer,
            token_ids=torch.where(beyond, END, longer.token_ids),
            on=longer.on & ~beyond,
            weights={name: weight * ~beyond for name, weight in longer.weights.items()},
            scores=longer.scores if fill is None else _filled(longer.scores, beyond, fill),
        ),
    )


def _filled(scores: Mapping[str, Scores], where: Tensor, value: float) -> dict[str, Scores]:
    """Scores with every log-prob of the rows `where` replaced, and no support there."""
    found: dict[str, Scores] = {}
    for name, score in scores.items():
        row = where.unsqueeze(-1)
        inside = (
            {}
            if score.support_ids is None or score.support_logprobs is None or score.tail_logprob is None
            else {
                "support_ids": torch.where(row, -1, score.support_ids),
                "support_logprobs": torch.where(row, value, score.support_logprobs),
                "tail_logprob": torch.where(where, 0.0, score.tail_logprob),
            }
        )
        full = {} if score.logprobs is None else {"logprobs": torch.where(row, value, score.logprobs)}
        found[name] = replace(score, logprob=torch.where(where, value, score.logprob), **inside, **full)
    return found


def with_a_zero(draws: Draws) -> Draws:
    """Teachers that give a token other than the sampled one probability 0, on supports of the whole vocabulary."""
    ids = draws.tokens.token_ids

    def zeroed(score: Scores) -> Scores:
        if score.logprobs is None:
            return score
        vocabulary = score.logprobs.shape[-1]
        barred = torch.nn.functional.one_hot((ids + 1) % vocabulary, vocabulary).bool()
        logprobs = score.logprobs.masked_fill(barred, -torch.inf).log_softmax(-1)
        return replace(score, logprobs=logprobs, logprob=logprobs.gather(-1, ids.unsqueeze(-1)).squeeze(-1))

    return _rescored(draws, zeroed)


def with_unused_places(draws: Draws) -> Draws:
    """Supports with one more place, unused at every token."""

    def wider(score: Scores) -> Scores:
        if score.support_ids is None or score.support_logprobs is None:
            return score
        ids = torch.nn.functional.pad(score.support_ids, (0, 1), value=-1)
        return replace(
            score,
            support_ids=ids,
            support_logprobs=torch.nn.functional.pad(score.support_logprobs, (0, 1), value=-torch.inf),
        )

    return _rescored(draws, wider)


def _rescored(draws: Draws, change: Callable[[Scores], Scores]) -> Draws:
    tokens: Tokens = draws.tokens
    return replace(draws, tokens=replace(tokens, scores={n: change(score) for n, score in tokens.scores.items()}))
