"""Known targets as functions of the student, each implemented from its definition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from audit.tree import Tree


def kl(a: Tensor, b: Tensor) -> Tensor:
    """KL(a||b) = sum_v a (log a - log b), [S, V] -> [S], nats."""
    return (a.exp() * (a - b)).sum(-1)


def token_kl(student: Tensor, teacher: Tensor, reverse_weight: float, visits: Tensor) -> Tensor:
    """Sum over prefixes of visits * (lambda KL(q||p) + (1 - lambda) KL(p||q)); visits [S] are constants."""
    mixed = reverse_weight * kl(student, teacher) + (1.0 - reverse_weight) * kl(teacher, student)
    return (visits * mixed).sum()


def sequence_reverse_kl(tree: Tree, student: Tensor, teacher: Tensor) -> Tensor:
    """KL(Q||P) over whole responses; visits of prefixes depend on the student, with gradient."""
    q, p = tree.of_responses(student), tree.of_responses(teacher)
    return (q.exp() * (q - p)).sum()


def sequence_forward_kl(tree: Tree, student: Tensor, teacher: Tensor) -> Tensor:
    """KL(P||Q) over whole responses."""
    q, p = tree.of_responses(student), tree.of_responses(teacher)
    return (p.exp() * (p - q)).sum()


def discounted_reverse_kl(tree: Tree, student: Tensor, teacher: Tensor, discount: float) -> Tensor:
    """Token reverse KL (0) to sequence reverse KL (1): W(s) = KL(s) + discount * sum_a q(a|s) sg W(sa), by visits."""
    now = kl(student, teacher)
    later = torch.zeros_like(now).detach()
    for prefix in reversed(range(tree.prefixes)):  # children come after their parents
        children = tree.children[prefix]
        beyond = torch.where(children >= 0, later[children.clamp(min=0)], 0.0)
        later[prefix] = (now[prefix] + discount * (student[prefix].exp() * beyond).sum()).detach()
    beyond = torch.where(tree.children >= 0, later[tree.children.clamp(min=0)], 0.0)
    return (tree.visits(student) * (now + discount * (student.exp() * beyond).sum(-1))).sum()


def expected_reward(tree: Tree, student: Tensor, reward: Tensor) -> Tensor:
    """E[R] of a response, [R] rewards."""
    return (tree.of_responses(student).exp() * reward).sum()


def merged(logprobs: Tensor, support: Tensor) -> Tensor:
    """The support's tokens and all others as one more outcome: [S, V], ids [S, K] -> [S, K + 1]."""
    inside = logprobs.gather(-1, support)
    outside = logprobs.scatter(-1, support, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([inside, outside], dim=-1)


def gradient(value: Tensor, student: Tensor) -> Tensor:
    """d value / d student logits, flat [S * V]; 0 where the value does not depend on them."""
    if not value.requires_grad:
        return torch.zeros(student.numel(), dtype=student.dtype)
    (found,) = torch.autograd.grad(value, student, retain_graph=True)
    return found.flatten()


def weighted(values: Sequence[tuple[float, Tensor]]) -> Tensor:
    return torch.stack([weight * value for weight, value in values]).sum()
