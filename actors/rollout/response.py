"""A response while vLLM samples it: collects its tokens and hands them on as rows. Holds no engine.

A segment leaves only when the token after it is sampled. So at least one token is left for the last row, however and
whenever the response ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actors.wire.records import Request, Sample


class Response:
    def __init__(self, request: Request) -> None:
        self.request = request
        self._ids: list[int] = []
        self._logprobs: list[float] = []
        self._support: list[int] = []
        self._versions: list[int] = []
        self._start = 0  # tokens before this have left

    def __len__(self) -> int:
        return len(self._ids)

    def grow(self, completion: Any, version: int) -> None:
        """Take in vLLM's CompletionOutput, which holds all tokens so far. New tokens count as sampled with `version`
        until the engine reports the versions, which it does with the last token."""
        new = range(len(self._ids), len(completion.token_ids))
        self._ids += completion.token_ids[new.start :]
        self._logprobs += sampled_logprobs(completion.logprobs, new)
        self._support += ranked_ids(completion.logprobs, new, self.request.topk, self.request.ends)
        self._versions += [version] * len(new)
        for span in completion.weight_versions or ():
            self._versions[span.start : span.end] = [int(span.version)] * (span.end - span.start)

    def rows(self, segment: int, finish: str) -> list[Sample]:
        """Segments of `segment` tokens that are ready to leave (0: none), and, given a `finish`, the last row."""
        have = len(self._ids)
        ends = [*range(self._start + segment, have, segment)] if segment else []
        rows = [self._row(end, "") for end in ends]
        return [*rows, self._row(have, finish)] if finish else rows

    def _row(self, end: int, finish: str) -> Sample:
        start, self._start = self._start, end
        support = self._support[: end * self.request.topk]
        return self.request.answered(
            self._ids[:end], self._logprobs[:end], finish, self._versions[:end], support, start
        )


def sampled_logprobs(flat: Any, positions: range) -> list[float]:
    """[tokens] log-prob of each sampled token, nats. In vLLM's FlatLogprobs it is the first entry of a position."""
    return [float(flat.logprobs[flat.start_indices[t]]) for t in positions]


def ranked_ids(flat: Any, positions: range, k: int, ends: Sequence[int] = ()) -> list[int]:
    """[tokens * k], row-major: the k most likely tokens of each position, without `ends`. Needs k + |ends| ranks in
    `flat`. The sampled token stands among them once."""
    found: list[int] = []
    for t in positions:
        start, end = flat.start_indices[t], flat.end_indices[t]
        by_rank = dict(zip(flat.ranks[start:end], flat.token_ids[start:end], strict=True))
        ranked = [by_rank[rank] for rank in range(1, k + len(ends) + 1)] if k else []
        found += [token for token in ranked if token not in ends][:k]
    return found
