"""The families, written out in probabilities from their definitions in OBJECTIVES.md. Nothing of objectives here."""

from __future__ import annotations

from torch import Tensor

from tests.objectives.enumeration import kl


def jsd(q: Tensor, p: Tensor, weight: float, unit: bool = False) -> Tensor:
    """weight KL(p||m) + (1 - weight) KL(q||m), m = weight p + (1 - weight) q; the KLs at its end points."""
    if weight in (0.0, 1.0):
        return kl(q, p) if weight else kl(p, q)
    m = (weight * p.exp() + (1.0 - weight) * q.exp()).log()
    value = weight * kl(p, m) + (1.0 - weight) * kl(q, m)
    return value / (weight * (1.0 - weight)) if unit else value


def skew(q: Tensor, p: Tensor, weight: float, alpha: float) -> Tensor:
    """weight KL(q||(1 - alpha) p + alpha q) + (1 - weight) KL(p||alpha p + (1 - alpha) q)."""
    towards_q = ((1.0 - alpha) * p.exp() + alpha * q.exp()).log()
    towards_p = (alpha * p.exp() + (1.0 - alpha) * q.exp()).log()
    return weight * kl(q, towards_q) + (1.0 - weight) * kl(p, towards_p)


def power(q: Tensor, p: Tensor, alpha: float) -> Tensor:
    """sum_v q^(1+alpha)/(1+alpha) - q p^alpha + alpha p^(1+alpha)/(1+alpha)."""
    q, p, a = q.exp(), p.exp(), 1.0 + alpha
    return (q**a / a - q * p**alpha + alpha * p**a / a).sum(-1)
