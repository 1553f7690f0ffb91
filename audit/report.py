"""The result of an audit, and its text."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from audit.findings import Finding

WIDTH = 112


@dataclass(frozen=True)
class Match:
    """The expected gradient and a target's: their cosine, and the scale s that minimises |gradient - s * target|."""

    target: str
    cosine: float
    scale: float

    @property
    def exact(self) -> bool:
        return self.cosine > 1.0 - 1e-6


@dataclass(frozen=True)
class Staleness:
    """The expected gradient of an older student's responses against the on-policy one; `bare` without any ratio."""

    cosine: float
    scale: float
    bare_cosine: float
    bare_scale: float


@dataclass(frozen=True)
class Audit:
    """One audit. `target`: the promised gradient; `bias`: norm of the difference to it, relative to its norm, None
    where nothing is promised; `variance`: trace of the covariance of one response's gradient, relative to the
    squared norm of the mean; `silent`: the expected gradient is zero; `staleness` is None without student responses."""

    subject: str
    matches: tuple[Match, ...]
    silent: bool
    target: str | None
    bias: float | None
    variance: float
    staleness: Staleness | None
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    @property
    def identities(self) -> tuple[str, ...]:
        """Targets whose gradient equals this one up to a factor."""
        return () if self.silent else tuple(match.target for match in self.matches if match.exact)

    @property
    def verdict(self) -> str:
        """The gradient's identity, in one line."""
        if self.silent:
            return "no gradient"
        if not self.identities:
            exact = self.bias is not None and self.bias < 1e-6
            return f"its own target, {self.target}" if exact else "none of them"
        first = next(match for match in self.matches if match.exact)
        return f"{' = '.join(self.identities)}, times {_short(first.scale)}"

    @property
    def healthy(self) -> bool:
        return not self.findings


def describe(audit: Audit) -> str:
    """Lines of text, at most 120 wide."""
    lines = [f"audit of {audit.subject}", f"  the expected gradient is: {audit.verdict}", ""]
    if audit.matches:
        width = max(len(match.target) for match in audit.matches)
        lines.append(f"  {'against the gradient of':<{width + 2}} {'cosine':>8} {'scale':>8}")
        lines += [
            f"  {match.target:<{width + 2}} {match.cosine:>8.4f} {_short(match.scale):>8}{'  exact' * match.exact}"
            for match in audit.matches
        ]
        lines.append("")
    if audit.bias is not None:
        lines.append(f"  bias       {_short(audit.bias)} of the norm of its target: {audit.target}")
    if not audit.silent:
        lines.append(f"  variance   {_short(audit.variance)} of one response, relative to the squared mean gradient")
    if audit.staleness:
        stale = audit.staleness
        lines.append(
            f"  staleness  cosine {stale.cosine:.4f}, scale {_short(stale.scale)} on an older student's responses"
            f" (no ratio: {stale.bare_cosine:.4f}, {_short(stale.bare_scale)})"
        )
    lines += _wrapped([f"note: {note}" for note in audit.notes], "  ")
    lines.append("")
    if audit.healthy:
        lines.append("  no findings")
    for found in audit.findings:
        lines += _wrapped([f"{found.severity}: {found.name}: {found.explanation}"], "  ")
        lines += _wrapped([f"remedy: {found.remedy}"], "    ")
    return "\n".join(lines)


def _wrapped(texts: list[str], indent: str) -> list[str]:
    return [
        line
        for text in texts
        for line in textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ")
    ]


def _short(value: float) -> str:
    return "0" if abs(value) < 1e-9 else f"{value:.3g}"
