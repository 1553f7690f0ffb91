"""Compares a measured gradient with known ones."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from audit import promise, targets
from audit.bench import Bench, Draws
from audit.estimate import Estimate, cosine, scale, without_correction
from audit.report import Match, Staleness

Claim = Literal["reverse_kl", "forward_kl"]
CLAIMED = {
    "reverse_kl": ("token reverse KL", "sequence reverse KL", "top-k reverse KL with its tail"),
    "forward_kl": ("token forward KL", "sequence forward KL", "top-k forward KL with its tail"),
}
OTHER: dict[Claim, Claim] = {"reverse_kl": "forward_kl", "forward_kl": "reverse_kl"}
EXPLAINS = {  # findings that explain why the gradient is not the target's
    "no_signal",
    "ignores_teacher",
    "tail_dropped",
    "teacher_not_minimum",
    "clamped_at_zero",
    "support_blind",
    "nan_gradient",
    "end_token_dropped",
    "wrong_direction",
    "reverse_minus_forward",
}


def known(bench: Bench) -> dict[str, Tensor]:
    """Gradients of the KLs and the reward that exist here, by name, flat [S * V]."""
    student = bench.world.student.clone().requires_grad_()
    values = promise.known(bench, student.log_softmax(-1))
    return {name: targets.gradient(value, student) for name, value in values.items()}


def promised(bench: Bench) -> tuple[str, Tensor] | None:
    """The recipe's own target by name, and its gradient."""
    student = bench.world.student.clone().requires_grad_()
    named = promise.promised(bench, student.log_softmax(-1))
    return None if named is None else (named[0], targets.gradient(named[1], student))


def matches(measured: Estimate, known: dict[str, Tensor]) -> tuple[Match, ...]:
    if measured.silent:
        return tuple(Match(name, 0.0, 0.0) for name in known)
    return tuple(Match(name, cosine(measured.mean, g), scale(measured.mean, g)) for name, g in known.items())


def direction(measured: Estimate, against: dict[str, Tensor], claimed: Claim, asked: bool) -> list[str]:
    """Findings where the gradient is not of the claimed KL; `asked`: the user claimed it, so any other is biased."""

    def near(names: tuple[str, ...]) -> bool:
        return any(cosine(measured.mean, against[name]) > 1.0 - 1e-6 for name in names if name in against)

    if near(CLAIMED[claimed]):
        return []
    difference = against["token reverse KL"] - against["token forward KL"]
    if cosine(measured.mean, difference) > 1.0 - 1e-6:
        return ["reverse_minus_forward"]
    if near(CLAIMED[OTHER[claimed]]):
        return ["wrong_direction"]
    return ["biased"] if asked else []


def settled(names: list[str]) -> bool:
    """Whether a finding already explains why the gradient is not the target's."""
    return not EXPLAINS.isdisjoint(names)


def drift(fresh: Estimate, stale: Estimate, bare: Estimate) -> Staleness:
    return Staleness(
        cosine(stale.mean, fresh.mean),
        scale(stale.mean, fresh.mean),
        cosine(bare.mean, fresh.mean),
        scale(bare.mean, fresh.mean),
    )


def bare(draws: Draws, bench: Bench) -> Draws:
    return without_correction(draws, bench.world.student)
