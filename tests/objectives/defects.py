"""Losses with one defect each, as found in released frameworks, and their healthy counterparts.

Each takes (student log-probs [n, V], tokens) and returns [n] losses, or a scalar where it normalises by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from objectives import support_kl, token_kl
from objectives.tokens import Scores, Tokens

FLOOR = -50.0
PAD = 3  # the id of padding, which is that of the end token too


def sampled(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    return student_logprobs.gather(-1, tokens.token_ids.unsqueeze(-1)).squeeze(-1)


def teacher(tokens: Tokens) -> Scores:
    return tokens.scores["teacher"]


def ratio(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    """l = log p - log q of the sampled token, detached."""
    return teacher(tokens).logprob.clamp(min=FLOOR) - sampled(student_logprobs, tokens).detach()


def fresh(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    """sg(min(q/mu, 2))."""
    return (sampled(student_logprobs, tokens).detach() - tokens.rollout_logprob).exp().clamp(max=2.0)


def on_support(student_logprobs: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Student's and teacher's log-probs on the support, -inf in both where a place is unused."""
    scores = teacher(tokens)
    assert scores.support_ids is not None and scores.support_logprobs is not None
    unused = scores.support_ids < 0
    student = student_logprobs.gather(-1, scores.support_ids.clamp(min=0)).masked_fill(unused, -torch.inf)
    return student, scores.support_logprobs


# --- healthy ---


def k1_reward(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    weighted = fresh(student_logprobs, tokens) * ratio(student_logprobs, tokens)
    return -weighted * sampled(student_logprobs, tokens)


def k2_loss(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    gap = sampled(student_logprobs, tokens) - teacher(tokens).logprob.clamp(min=FLOOR)
    return fresh(student_logprobs, tokens) * 0.5 * gap.square()


def k3_loss(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    gap = teacher(tokens).logprob.clamp(min=FLOOR) - sampled(student_logprobs, tokens)
    return fresh(student_logprobs, tokens) * (torch.expm1(gap) - gap)


def exact_reverse(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    logprobs = teacher(tokens).logprobs
    assert logprobs is not None
    return token_kl(student_logprobs, logprobs, 1.0)


def exact_forward(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    logprobs = teacher(tokens).logprobs
    assert logprobs is not None
    return token_kl(student_logprobs, logprobs, 0.0)


def topk_with_tail(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    student, p = on_support(student_logprobs, tokens)
    return support_kl(student, p, 1.0, teacher_tail=teacher(tokens).tail_logprob)


def with_exact_baseline(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    """The log-ratio less its mean at each prefix, -KL(q||p)."""
    credit = ratio(student_logprobs, tokens) + exact_reverse(student_logprobs, tokens).detach()
    return -fresh(student_logprobs, tokens) * credit * sampled(student_logprobs, tokens)


def global_denominator(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    per_token = torch.where(tokens.on, k1_reward(student_logprobs, tokens), 0.0)
    return (per_token * tokens.weights["distillation"]).sum()


# --- no signal, or another one ---


def k1_back_propagated(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    return sampled(student_logprobs, tokens) - teacher(tokens).logprob.clamp(min=FLOOR)


def reward_and_mean_gap(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    """AReaL's joint branch: a policy gradient of the reward plus mean(S - sg T)."""
    gap = sampled(student_logprobs, tokens) - teacher(tokens).logprob.detach().clamp(min=FLOOR)
    per_token = -fresh(student_logprobs, tokens) * tokens.advantage * sampled(student_logprobs, tokens)
    return (torch.where(tokens.on, per_token + gap, 0.0) * tokens.weights["distillation"]).sum()


def k3_reward(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    gap = ratio(student_logprobs, tokens)
    return fresh(student_logprobs, tokens) * (torch.expm1(gap) - gap) * sampled(student_logprobs, tokens)


def swapped(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    """Meant as KL(student||teacher); torch's kl_div takes its arguments the other way round."""
    logprobs = teacher(tokens).logprobs
    assert logprobs is not None
    terms = torch.nn.functional.kl_div(student_logprobs, logprobs.clamp(min=FLOOR), log_target=True, reduction="none")
    return terms.sum(-1)


def whitened(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    """z-scores of the log-ratio over the micro-batch."""
    gap = ratio(student_logprobs, tokens)
    inside = gap[tokens.on]
    score = (gap - inside.mean()) / (inside.std() + 1e-6)
    return -fresh(student_logprobs, tokens) * score * sampled(student_logprobs, tokens)


def penalty_in_the_advantage(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    """A top-k KL as a penalty on whatever was sampled."""
    penalty = topk_with_tail(student_logprobs, tokens).detach()
    return fresh(student_logprobs, tokens) * penalty * sampled(student_logprobs, tokens)


# --- supports ---


def clamped_topk(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    """Forward KL on the teacher's top-k without a tail, negative at times and clamped there."""
    student, p = on_support(student_logprobs, tokens)
    terms = torch.where(p == -torch.inf, 0.0, p.exp() * (p.clamp(min=FLOOR) - student.clamp(min=4 * FLOOR)))
    return terms.sum(-1).clamp(min=0.0)


def reverse_topk_without_tail(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    student, p = on_support(student_logprobs, tokens)
    return (student.exp() * (student.clamp(min=4 * FLOOR) - p.clamp(min=FLOOR))).sum(-1)


def renormalised_topk(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    student, p = on_support(student_logprobs, tokens)
    empty = (p == -torch.inf).all(-1, keepdim=True)
    student, p = student.masked_fill(empty, 0.0), p.masked_fill(empty, 0.0)
    return support_kl(student, p, 1.0, tail="renormalise")


def unmasked_support(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    """Ragged supports padded with -inf, multiplied before anything masks them."""
    scores = teacher(tokens)
    assert scores.support_ids is not None and scores.support_logprobs is not None
    student = student_logprobs.gather(-1, scores.support_ids.clamp(min=0))
    terms = student.exp() * (student - scores.support_logprobs)
    return torch.where(scores.support_ids >= 0, terms, 0.0).sum(-1)


def unused_places_counted(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    """An unused place read as token 0 of a floored teacher."""
    scores = teacher(tokens)
    assert scores.support_ids is not None and scores.support_logprobs is not None
    student = student_logprobs.gather(-1, scores.support_ids.clamp(min=0))
    return (student.exp() * (student - scores.support_logprobs.clamp(min=FLOOR))).sum(-1)


# --- staleness, masks, denominators ---


def ratio_to_itself(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    """exp(S - sg S) for q/mu."""
    logprob = sampled(student_logprobs, tokens)
    return -(logprob - logprob.detach()).exp() * ratio(student_logprobs, tokens)


def padding_counted(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    """The mean over all positions, those without loss too."""
    return k1_reward(student_logprobs, tokens).mean()


def local_mean(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    """The mean over the micro-batch's own tokens: too large by the number of micro-batches, once they are summed."""
    return k1_reward(student_logprobs, tokens)[tokens.on].mean()


def mask_by_id(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    return k1_reward(student_logprobs, tokens) * (tokens.token_ids != PAD)


def zero_is_padding_of_teacher(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    return k1_reward(student_logprobs, tokens) * (teacher(tokens).logprob != 0)


def zero_is_padding_of_sampler(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    return k1_reward(student_logprobs, tokens) * (tokens.rollout_logprob != 0)


def zero_is_padding_of_student(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
    there = tokens.on & (sampled(student_logprobs, tokens).detach() != 0)
    return k1_reward(student_logprobs, tokens)[there].sum() / there.sum()
