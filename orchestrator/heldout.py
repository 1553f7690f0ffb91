"""What an evaluation found, and the comparison of two: on the samples that both could score."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from actors.metrics import EVALUATION_COUNTS, EVALUATION_METRICS

OF_TOKENS = ("reverse_kl", "forward_kl", "entropy")  # means over tokens; others are means over responses
Sums = Mapping[str, float]


@dataclass(frozen=True)
class Found:
    """`means` by the names of EVALUATION_METRICS and EVALUATION_COUNTS; `each` holds what they are means of, by uid:
    KLs and entropy summed over a response's `tokens` (nats), and what is known of the response as a whole."""

    means: Mapping[str, Any]
    each: Mapping[str, Sums]

    def among(self, uids: Iterable[str]) -> dict[str, Any]:
        """The same of these samples alone; where they are all there are, what the learner said of them."""
        mine = [self.each[uid] for uid in sorted(uids)]
        if len(mine) == len(self.each):
            return dict(self.means)
        found = {name: _mean(mine, name, "tokens" if name in OF_TOKENS else None) for name in EVALUATION_METRICS}
        skipped = self.means["samples"] + self.means["samples_skipped"] - len(mine)
        counts = dict(zip(EVALUATION_COUNTS, (len(mine), skipped), strict=True))
        return found | counts | {"kl_support": self.means["kl_support"]}

    def to_state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"means": dict(self.means), "each": {uid: dict(sums) for uid, sums in self.each.items()}}


def compared(before: Found, after: Found) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Two evaluations on the samples that both could score; None, None where there is no such sample."""
    common = before.each.keys() & after.each.keys()
    return (before.among(common), after.among(common)) if common else (None, None)


def _mean(samples: list[Sums], name: str, per: str | None) -> float | None:
    """Over what knows it; None where nobody does."""
    known = [sums for sums in samples if name in sums]
    count = sum(sums[per] if per else 1 for sums in known)
    return sum(sums[name] for sums in known) / count if count else None
