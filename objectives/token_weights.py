"""The weight of a token in the loss of a term: one over a denominator, or 0 where the token carries no loss.

The denominators are counted over the whole batch, before masks (`objective.normalise`; docs/objectives.md), by
`term_totals` in orchestrator/weights/learner_group.py. actors/learning/batch.py asks for the weights of each response.
"""

from __future__ import annotations

from torch import Tensor


def token_weights(on: Tensor, in_term: bool, weight: float) -> Tensor:
    """[N] float32: `weight` where a token of a response is `on` [N] bool, else 0; all 0 if the response is not in the
    term."""
    return on.float() * (weight if in_term else 0.0)


def token_weight(normalise: str, loss_tokens: int, total_tokens: int, total_sequences: int, constant: int) -> float:
    """Weight of each of a response's `loss_tokens` loss tokens, given its term's *global* totals. Totals are counted
    before masks, so that a mask leaves other weights unchanged.

    token: 1 / all loss tokens. sequence: 1 / (its own loss tokens * all sequences). constant: 1 / `constant`.
    """
    if normalise == "constant":
        return 1.0 / constant
    if normalise == "token":
        return 1.0 / max(1, total_tokens)
    return 1.0 / (max(1, loss_tokens) * max(1, total_sequences))
