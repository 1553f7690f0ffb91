"""Rewards of a response's length in tokens."""

from __future__ import annotations

from configs.reward_rules import LengthRule, OverlongRule
from rewards.response import Response


def length(rule: LengthRule, response: Response) -> float:
    """1 inside [low, high]; outside it falls by 1/slope a token, to 0; at once where slope is 0."""
    beyond = max(rule.low - response.tokens, response.tokens - rule.high, 0)
    return max(0.0, 1.0 - beyond / rule.slope) if rule.slope else float(not beyond)


def overlong(rule: OverlongRule, response: Response) -> float:
    """DAPO's soft penalty: 0 up to `low` tokens, -1 from `high` on, linear between (arXiv 2503.14476, eq. 13)."""
    return -min(1.0, max(0.0, (response.tokens - rule.low) / max(1, rule.high - rule.low)))
