"""Dataset member: serves a dataset's own responses through the rollout protocol, so that off-policy data flows alike.

Tokens come from the data, so their behaviour log-prob is unknown (NaN) and their version is the current one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from actors.rollout.writer import Writer
from actors.wire.records import Request, Sample, pack_samples
from configs.roles import Stream
from configs.schema import Sampling


class Dataset(Writer):
    def __init__(self) -> None:
        super().__init__()
        self._version = 0

    def start(self) -> None:
        """Nothing to build."""

    def load(self, version: int, headers: Sequence[Any], *buckets: Any) -> int:
        self._version = version
        return version

    async def generate(
        self, requests: Sequence[Request], sampling: Sampling, stream: Stream, end_token_ids: Sequence[int]
    ) -> AsyncIterator[Any]:
        """Yield payload, header, ... of the requests' own responses, cut at the response cap."""
        size = stream.coalesce_samples
        for start in range(0, len(requests), size):
            samples = [self._sample(r, sampling.max_response_tokens) for r in requests[start : start + size]]
            payload, header = pack_samples(samples)
            yield payload
            yield header

    def cut(self, uids: Sequence[str]) -> None:
        """Its responses leave whole."""

    def _sample(self, request: Request, cap: int) -> Sample:
        assert request.response_ids is not None, f"{request.uid} has no response; prefix: dataset needs one a row"
        ids = request.response_ids[:cap]
        finish = "length" if len(ids) < len(request.response_ids) else "data"
        return request.answered(ids, [float("nan")] * len(ids), finish, [self._version] * len(ids))
