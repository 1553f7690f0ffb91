"""Joins responses that arrive in segments, each scored while the next is sampled.

The last segment's row holds the whole response, so only its payload is kept; of the scores, every segment's.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from actors.wire.records import SampleHeader
from configs.roles.streaming import EarlyStop
from orchestrator.samples.buffer import Scored


@dataclass
class Segments:
    """Scored segments of responses that have not ended, by uid."""

    _parts: dict[str, dict[int, Scored]] = field(default_factory=dict)

    def join(self, part: Scored) -> Scored | None:
        """Add a scored segment; return the whole response if it is complete. Segments may come in any order; those of
        an earlier attempt are dropped. A response in one segment is returned as it is."""
        header = part.header
        if header.start == 0 and header.last:
            return part
        parts = self._parts.setdefault(header.uid, {})
        if any(other.header.attempt != header.attempt for other in parts.values()):
            parts.clear()
        parts[header.start] = part if header.last else replace(part, samples=None)
        ordered = [parts[start] for start in sorted(parts)]
        ends = [0, *(p.header.end for p in ordered)]
        if not ordered[-1].header.last or ends[:-1] != [p.header.start for p in ordered]:
            return None
        del self._parts[header.uid]
        return _joined(ordered)

    def should_cut(self, header: SampleHeader, rule: EarlyStop | None) -> bool:
        """Whether to cut a response after this segment: the mean log-ratio of its scored tokens (nats) is below the
        rule's."""
        parts = self._parts.get(header.uid, {}).values()
        known = [part.log_ratio for part in parts if part.log_ratio is not None]
        if rule is None or header.last or header.end < rule.after_tokens or not known:
            return False
        return sum(known) / sum(part.header.response_tokens for part in parts) < rule.log_ratio

    def forget(self, uid: str) -> None:
        """Drop the segments of a response that is lost or rejected."""
        self._parts.pop(uid, None)

    def __len__(self) -> int:
        return len(self._parts)


def _joined(parts: list[Scored]) -> Scored:
    last, versions = parts[-1], Counter[int]()
    for part in parts:
        versions.update(dict(part.header.versions))
    known = [part.teacher_entropy for part in parts if part.teacher_entropy is not None]
    return replace(
        last,
        header=last.header._replace(
            start=0,
            response_tokens=last.header.end,
            loss_tokens=sum(part.header.loss_tokens for part in parts),
            versions=tuple(sorted(versions.items())),
        ),
        scores={model: tuple(ref for part in parts for ref in part.scores[model]) for model in last.scores},
        teacher_entropy=sum(known) if len(known) == len(parts) else None,
    )
