"""From the recipe's objective to one callable: tensors of a chunk of tokens in, loss and metrics out.

A loss is a sum over response tokens with a weight each; weights carry the *global* denominator, so ranks,
micro-batches and chunks change nothing. Metrics are returned as sums over tokens, to be divided once, globally.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.schema import DATA
from configs.schema import Objective as ObjectiveConfig
from objectives import divergence, signal, trust


@dataclass(frozen=True)
class Tokens:
    """A chunk of N response tokens. Log-probs in nats, float32.

    student_logprobs [N, V] over the real vocabulary; token_ids [N]; weight [N] (1 / global denominator, 0 off the
    loss); rollout_logprob [N]; advantage [N] or None. By support, else None: teacher_logprob [N] of the sampled token,
    support_ids and support_logprobs [N, K] with tail_logprob [N], teacher_logprobs [N, V], teacher_entropy [N].
    """

    student_logprobs: Tensor
    token_ids: Tensor
    weight: Tensor
    rollout_logprob: Tensor
    advantage: Tensor | None = None
    teacher_logprob: Tensor | None = None
    support_ids: Tensor | None = None
    support_logprobs: Tensor | None = None
    tail_logprob: Tensor | None = None
    teacher_logprobs: Tensor | None = None
    teacher_entropy: Tensor | None = None

    @property
    def student_logprob(self) -> Tensor:
        """log q of each sampled token, [N]."""
        return self.student_logprobs.gather(-1, self.token_ids.unsqueeze(-1)).squeeze(-1)


Loss = Callable[[Tokens], Tensor]  # [N] unweighted
Sums = dict[str, Tensor]  # scalar sums over tokens with loss


@dataclass(frozen=True)
class Objective:
    """`loss(tokens)` is the weighted sum to minimise, nats; `metrics(tokens)` are sums over loss tokens, detached."""

    config: ObjectiveConfig
    terms: tuple[Loss, ...]

    def loss(self, tokens: Tokens) -> Tensor:
        per_token = torch.stack([term(tokens) for term in self.terms]).sum(0)
        return (per_token * tokens.weight).sum()

    @torch.no_grad()
    def metrics(self, tokens: Tokens) -> Sums:
        on = tokens.weight > 0
        return {name: value[on].sum() for name, value in _readings(self.config, tokens).items()}


def build(config: ObjectiveConfig) -> Objective:
    """The objective a recipe names. Every combination that reaches here has a meaning: the schema refuses the rest."""
    if config.target == DATA:
        return Objective(config, (cross_entropy,))
    terms: list[Loss] = []
    if config.support == "sampled":
        terms.append(lambda tokens: sampled_token(config, tokens))
    elif config.support == "topk":
        terms.append(lambda tokens: on_support(config, tokens))
    else:
        terms.append(lambda tokens: full_vocabulary(config, tokens))
    if config.outcome.weight:
        terms.append(lambda tokens: outcome(config, tokens))
    return Objective(config, tuple(terms))


def cross_entropy(tokens: Tokens) -> Tensor:
    """-log q(y) on the dataset's own tokens: forward KL to the data, up to its entropy. [N] nats."""
    return -tokens.student_logprob


def sampled_token(config: ObjectiveConfig, tokens: Tokens) -> Tensor:
    """-sg(min(q/mu, C) * A) * log q, A the log-ratio reward. [N]"""
    assert tokens.teacher_logprob is not None
    reward = signal.log_ratio_signal(
        tokens.student_logprob,
        tokens.teacher_logprob.clamp(min=config.logprob_floor),
        config.reverse_weight,
        _interval(config),
    )
    return signal.policy_gradient_loss(tokens.student_logprob, reward * _mismatch(config, tokens))


def on_support(config: ObjectiveConfig, tokens: Tokens) -> Tensor:
    """The mixture of KLs on the teacher's top-k and one tail bucket. [N] nats."""
    return _support_kl(config, tokens, config.reverse_weight)


def full_vocabulary(config: ObjectiveConfig, tokens: Tokens) -> Tensor:
    """The mixture of KLs over the whole vocabulary. [N] nats."""
    assert tokens.teacher_logprobs is not None
    return divergence.token_kl(
        tokens.student_logprobs, tokens.teacher_logprobs, config.reverse_weight, config.logprob_floor
    )


def outcome(config: ObjectiveConfig, tokens: Tokens) -> Tensor:
    """Policy gradient on the response's advantage, with the same mismatch weight as the sampled signal. [N]"""
    assert tokens.advantage is not None
    advantage = config.outcome.weight * tokens.advantage * _mismatch(config, tokens)
    return signal.policy_gradient_loss(tokens.student_logprob, advantage)


def token_weight(config: ObjectiveConfig, loss_tokens: int, total_tokens: int, total_sequences: int) -> float:
    """Weight of each loss token of a response with `loss_tokens` of them, given the batch's *global* totals.

    token: 1 / all loss tokens. sequence: 1 / (its own loss tokens * all sequences).
    """
    if config.normalise == "token":
        return 1.0 / max(1, total_tokens)
    return 1.0 / (max(1, loss_tokens) * max(1, total_sequences))


def _mismatch(config: ObjectiveConfig, tokens: Tokens) -> Tensor:
    return trust.truncated_importance_weight(tokens.student_logprob, tokens.rollout_logprob, config.truncation)


def _support_kl(config: ObjectiveConfig, tokens: Tokens, reverse_weight: float) -> Tensor:
    assert tokens.support_ids is not None and tokens.support_logprobs is not None
    student = tokens.student_logprobs.gather(-1, tokens.support_ids)
    return divergence.support_kl(
        student,
        tokens.support_logprobs,
        reverse_weight,
        floor=config.logprob_floor,
        teacher_tail=tokens.tail_logprob,
    )


def _interval(config: ObjectiveConfig) -> tuple[float, float] | None:
    assert config.clip is None or isinstance(config.clip, tuple)
    return config.clip


def _readings(config: ObjectiveConfig, tokens: Tokens) -> dict[str, Tensor]:
    """Per-token metrics of a support, [N] each; unclipped, since a clip changes the step and not the distance."""
    q = tokens.student_logprobs
    readings = {"entropy": divergence.entropy(q)}
    if tokens.teacher_logprobs is not None:
        p = tokens.teacher_logprobs
        readings["reverse_kl"] = divergence.reverse_kl(q, p, config.logprob_floor)
        readings["forward_kl"] = divergence.forward_kl(q, p)
        readings["teacher_entropy"] = divergence.entropy(p)
    elif tokens.support_ids is not None:
        readings["reverse_kl"] = _support_kl(config, tokens, 1.0)
        readings["forward_kl"] = _support_kl(config, tokens, 0.0)
    elif tokens.teacher_logprob is not None:
        teacher = tokens.teacher_logprob.clamp(min=config.logprob_floor)
        readings["reverse_kl"] = -signal.clipped_log_ratio(tokens.student_logprob, teacher)
        readings["reverse_kl_k3"] = signal.k3(tokens.student_logprob, teacher)
    if tokens.teacher_entropy is not None:
        readings["teacher_entropy"] = tokens.teacher_entropy
    return readings
