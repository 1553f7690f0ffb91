"""A scorer that sleeps; its log-probs are those of `liked`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from actors.member import Member
from actors.scoring.beginnings import Beginnings
from actors.scoring.canary import suspicion_of, ways_to_batch
from actors.simulated.known import Speeds, liked
from actors.wire.records import (
    Sample,
    Score,
    ScoreHeader,
    ScoreRequest,
    log_ratio_of,
    pack_scores,
    unpack_samples,
)


class SimulatedScorer(Member):
    def __init__(self, speeds: Speeds, vocabulary: int, version: int = 0) -> None:
        self._speeds = speeds
        self._vocabulary = vocabulary
        self._version = version
        self._beginnings = Beginnings()

    async def start(self) -> None:
        """Nothing to build."""

    async def score(
        self, payload: pa.RecordBatch, request: ScoreRequest, *earlier: pa.RecordBatch
    ) -> tuple[pa.RecordBatch, ScoreHeader]:
        asked = [s for s in unpack_samples(payload) if not request.prompts or s.uid in request.prompts]
        so_far, unknown = self._beginnings.complete(request.channel, asked, earlier)
        samples = [s for s in asked if s.uid in so_far]
        rejected = {s.uid: "empty response" for s in samples if not s.response_ids[s.new]}
        rejected |= {
            s.uid: "beyond the vocabulary" for s in samples if max(so_far[s.uid], default=0) >= self._vocabulary
        }
        good = [s for s in samples if s.uid not in rejected]
        await asyncio.sleep(sum(len(s.response_ids[s.new]) for s in good) * self._speeds.score)
        scores = [_score(s, self.logprobs(so_far[s.uid]), request, self._version) for s in good]
        payload, header = pack_scores(scores, rejected, "float32", unknown)
        tokens = [token for s in good for token in s.response_ids[s.new]]
        return payload, header._replace(suspicion=suspicion_of(scores, tokens, self._vocabulary))

    async def canary(self, texts: Sequence[Sequence[int]], repeats: bool) -> list[list[float]]:
        ways = len(ways_to_batch(len(texts))) if repeats else 1
        return [[float(value) for text in texts for value in self.logprobs(text)[1:]] for _ in range(ways)]

    def logprobs(self, response_ids: Sequence[int]) -> np.ndarray:
        """[T] of a response."""
        return liked(response_ids)

    async def projection(self) -> tuple[dict[str, Any], int]:
        head = {"weight": np.zeros(0, np.uint8), "dtype": "float32", "width": 1, "bias": None}
        return head | {"scale": 1.0, "soft_cap": None}, self._version

    async def load(self, version: int, headers: Sequence[Any], *buckets: Any) -> int:
        self._version = version
        return version

    async def swap(self, version: int, model: str) -> int:
        self._version = version
        return version

    async def drain(self) -> None:
        """Does not track its calls."""


def _score(sample: Sample, whole: np.ndarray, request: ScoreRequest, version: int) -> Score:
    """`whole`: log-probs of the response so far, from its first token on."""
    ids, start = sample.response_ids[sample.new], sample.start
    logprobs = whole[start:]
    support: dict[str, Any] = {}
    if request.support == "topk":
        columns = [*range(request.topk), *request.ends[:1]]
        support["support_ids"] = np.tile(np.array(columns, dtype=np.int32), (len(ids), 1))
        support["support_logprobs"] = np.full((len(ids), len(columns)), -3.0, np.float16)
        support["tail_logprob"] = np.full(len(ids), -1.0, np.float32)
    if request.support == "full":
        support["hidden"] = np.zeros(len(ids), np.float32).tobytes()
    log_ratio = log_ratio_of(logprobs, sample)
    return Score(sample.uid, logprobs, version=version, start=start, log_ratio=log_ratio, **support)
