"""A response while vLLM samples it: takes in what there is of it so far and hands it on as rows. No engine in here.

A segment leaves once the token behind it is sampled. So something is always left to carry the end of the response,
whoever ends it and whenever.
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
        self._start = 0  # tokens before it have left

    def __len__(self) -> int:
        return len(self._ids)

    def grow(self, completion: Any, version: int) -> None:
        """Take in vLLM's CompletionOutput of all tokens so far. Those that are new were sampled with `version`, until
        the engine itself says with which: it does with the last token."""
        new = range(len(self._ids), len(completion.token_ids))
        self._ids += completion.token_ids[new.start :]
        self._logprobs += sampled_logprobs(completion.logprobs, new)
        self._support += ranked_ids(completion.logprobs, new, self.request.topk, self.request.ends)
        self._versions += [version] * len(new)
        for span in completion.weight_versions or ():
            self._versions[span.start : span.end] = [int(span.version)] * (span.end - span.start)

    def rows(self, segment: int, finish: str) -> list[Sample]:
        """Segments of so many tokens that are ready to leave, 0: none; and the rest once there is a `finish`."""
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
    """Log-prob of each sampled token: the first entry of its position. vLLM's FlatLogprobs -> [tokens]."""
    return [float(flat.logprobs[flat.start_indices[t]]) for t in positions]


def ranked_ids(flat: Any, positions: range, k: int, ends: Sequence[int] = ()) -> list[int]:
    """The k most likely tokens of each position but for `ends`, row-major: [tokens * k]. vLLM was asked for k + |ends|.
    The sampled token stands among them once."""
    found: list[int] = []
    for t in positions:
        start, end = flat.start_indices[t], flat.end_indices[t]
        by_rank = dict(zip(flat.ranks[start:end], flat.token_ids[start:end], strict=True))
        ranked = [by_rank[rank] for rank in range(1, k + len(ends) + 1)] if k else []
        found += [token for token in ranked if token not in ends][:k]
    return found
