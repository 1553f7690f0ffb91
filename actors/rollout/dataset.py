"""Dataset member: serves a dataset's own responses through the rollout protocol.

The log-probs of its tokens are unknown (NaN), and their version is the current one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from actors.rollout.writer import Writer
from actors.wire.records import Request, Sample
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

    async def write(self, request: Request, sampling: Sampling, end_token_ids: Sequence[int]) -> AsyncIterator[Sample]:
        """The request's own response, whole, up to the response cap."""
        assert request.response_ids is not None, f"{request.uid} has no response; prefix: dataset needs one a row"
        ids = request.response_ids[: sampling.max_response_tokens]
        finish = "length" if len(ids) < len(request.response_ids) else "data"
        yield request.answered(ids, [float("nan")] * len(ids), finish, [self._version] * len(ids))

    def cut(self, uids: Sequence[str]) -> None:
        """Does nothing: its responses leave whole."""
