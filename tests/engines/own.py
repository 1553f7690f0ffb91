"""An objective of somebody's own, as a recipe's `objective.loss` names it."""

from __future__ import annotations

from torch import Tensor

from objectives.tokens import Tokens


def squared_log_ratio(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    """Half the squared log-ratio of the sampled token: k2, which has the reverse KL's gradient on policy. [n]"""
    logprob = student_logprobs.gather(-1, tokens.token_ids.unsqueeze(-1)).squeeze(-1)
    return 0.5 * (logprob - tokens.scores["teacher"].logprob).square()


def lost_teacher(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    """k1 back-propagated: it has no gradient in expectation."""
    logprob = student_logprobs.gather(-1, tokens.token_ids.unsqueeze(-1)).squeeze(-1)
    return logprob - tokens.scores["teacher"].logprob
