"""A rollout member that sleeps: tokens, lengths and ends follow from a request's seed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from actors.models.fingerprint import fingerprint
from actors.rollout.writer import Writer
from actors.simulated.decoding import Decoding, Piece
from actors.simulated.known import STUDENT, Speeds
from actors.wire.records import BadWeights, BucketHeader, Request, Sample
from configs.schema import Sampling


class SimulatedRollout(Writer):
    def __init__(self, speeds: Speeds, on_update: str = "keep") -> None:
        super().__init__()
        self._seconds = speeds.rollout
        self._on_update = on_update
        self._version = 0
        self._running: set[_Response] = set()

    async def start(self) -> None:
        """Nothing to build."""

    async def write(self, request: Request, sampling: Sampling, end_token_ids: Sequence[int]) -> AsyncIterator[Sample]:
        ids, finish = _drawn(request, self.length(request, sampling), sampling, end_token_ids)
        decoding = Decoding(len(ids), request.segment_tokens)
        response = _Response(request.uid, decoding, self._seconds)
        self._running.add(response)
        try:
            while decoding.open:
                await response.until_due()
                decoding.pass_until(decoding.due, self._version)
                yield _row(request, decoding.take(), ids, finish, decoding.versions)
        finally:
            self._running.remove(response)

    def length(self, request: Request, sampling: Sampling) -> int:
        """Tokens of the response."""
        return _length(request, sampling)

    async def cut(self, uids: Sequence[str]) -> None:
        for response in self._running:
            if response.uid in uids:
                response.end("cut", self._version)

    async def load(self, version: int, headers: Sequence[Any], *buckets: np.ndarray) -> int:
        await asyncio.to_thread(_check, version, headers, buckets)
        for response in self._running:
            if self._on_update == "abort":
                response.end("abort", self._version)
            else:
                response.pass_time(self._version)
        self._version = version
        return version

    async def sleep(self) -> None:
        """Holds no memory."""

    async def wake(self) -> None:
        """Holds no memory."""

    async def drain(self) -> None:
        while self._running:
            await asyncio.sleep(0.001)

    async def stop(self) -> None:
        """Nothing to release."""


class _Response:
    """A response that is being decoded, and its clock: a tick takes `seconds`."""

    def __init__(self, uid: str, decoding: Decoding, seconds: float) -> None:
        self.uid = uid
        self._decoding = decoding
        self._seconds = seconds
        self._now = asyncio.get_running_loop().time
        self._since = self._now()  # when the last tick passed
        self._ended = asyncio.Event()

    async def until_due(self) -> None:
        """Wait until the next piece is whole, or the response is ended."""
        ticks = self._decoding.due - len(self._decoding.versions)
        if not self._seconds:
            for _ in range(ticks):  # shorter pieces come first
                await asyncio.sleep(0.0)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(ticks * self._seconds):
                await self._ended.wait()
        self._since = self._now()

    def pass_time(self, version: int) -> None:
        """Let the ticks since the last one pass, at most up to the next piece."""
        ticks = int((self._now() - self._since) / self._seconds) if self._seconds else 0
        self._since += ticks * self._seconds
        self._decoding.pass_until(min(len(self._decoding.versions) + ticks, self._decoding.due), version)

    def end(self, finish: str, version: int) -> None:
        self.pass_time(version)
        self._decoding.end(finish)
        self._ended.set()


def _check(version: int, headers: Sequence[BucketHeader], buckets: Sequence[np.ndarray]) -> None:
    for header, bucket in zip(headers, buckets, strict=True):
        if fingerprint(bucket) != header.fingerprint:
            raise BadWeights(f"version {version} changed on the way; pull it again")


def _length(request: Request, sampling: Sampling) -> int:
    return random.Random(request.seed).randint(1, sampling.max_response_tokens)


def _drawn(request: Request, length: int, sampling: Sampling, end_token_ids: Sequence[int]) -> tuple[list[int], str]:
    """Tokens of a whole response, and why it ends."""
    rng = random.Random(request.seed + 1)
    ids = [rng.randint(3, 50) for _ in range(length)]
    if length == sampling.max_response_tokens:
        return ids, "length"
    if end_token_ids:
        ids[-1] = end_token_ids[0]
    return ids, "stop"


def _row(request: Request, piece: Piece, ids: Sequence[int], finish: str, versions: Sequence[int]) -> Sample:
    so_far = slice(piece.end)
    ending = finish if piece.finish is None else piece.finish
    return request.answered(list(ids[so_far]), [STUDENT] * piece.end, ending, list(versions[so_far]), start=piece.start)
