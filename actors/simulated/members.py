"""Members that sleep instead of computing, with the methods of the real ones.

Deterministic: tokens follow from a request's seed, and the learner is a vector that moves with the tokens it trains on.
Leasing, staleness, resume and scaling are tested on these; tests/engines/test_contract.py holds real members to the
same behaviour.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from actors.learning.share_rows import JoinedScores, samples_of, tables_of
from actors.member import Member
from actors.models.fingerprint import fingerprint
from actors.rollout.writer import Writer
from actors.scoring.beginnings import Beginnings
from actors.scoring.canary import suspicion_of, ways_to_batch
from actors.simulated.decoding import Decoding, Piece
from actors.wire.jobs import LearnerSpec, Share
from actors.wire.records import (
    BadWeights,
    BrokenWeights,
    BucketHeader,
    Request,
    Sample,
    Score,
    ScoreHeader,
    ScoreRequest,
    log_ratio_of,
    pack_scores,
    unpack_samples,
)
from actors.wire.rewards import Rewards
from actors.wire.trained import trained_batch, write_rows
from configs.reward_rules import Rule, component_names
from configs.schema import Sampling

WEIGHTS = 8  # floats in the simulated model
STUDENT = -1.0  # nats: the log-prob that learner and rollout give to every token
REFERENCE_KL = 0.01  # nats a token


@dataclass(frozen=True)
class Speeds:
    """How long members sleep, in seconds a token."""

    rollout: float = 0.0
    score: float = 0.0
    learn: float = 0.0


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


class SimulatedReward(Member):
    """Rewards responses of odd length."""

    def start(self) -> None:
        """Nothing to build."""

    def reward(
        self, payload: pa.RecordBatch, rules: Sequence[Rule], fields: Mapping[str, Mapping[str, Any]]
    ) -> Rewards:
        weight, names = sum(r.weight for r in rules) or 1.0, component_names(rules, model=False)
        odd = {s.uid: float(len(s.response_ids) % 2) for s in unpack_samples(payload) if s.uid in fields}
        return Rewards(
            {uid: weight * v for uid, v in odd.items()}, {uid: dict.fromkeys(names, v) for uid, v in odd.items()}
        )


class SimulatedLearner(Member):
    """Its weights are a running sum over the trained samples, so that a lost, doubled or reordered one shows."""

    def __init__(self, speeds: Speeds, rank: int, ranks: int) -> None:
        self._speeds = speeds
        self._rank = rank
        self._weights = np.zeros(WEIGHTS, np.float32)
        self._start = self._weights
        self._model = ""
        self._lr = 0.0
        self._updates = 1
        self._held_back = False
        self._start_kl: str | None = None
        self._payloads: tuple[pa.RecordBatch, ...] = ()

    def address(self) -> tuple[str, int]:
        return "127.0.0.1", 0

    def start(self, spec: LearnerSpec, meeting: tuple[str, int]) -> None:
        self._weights = np.random.default_rng(spec.seed).standard_normal(WEIGHTS).astype(np.float32)
        self._start = self._weights
        self._model = spec.model
        self._lr = spec.config.optimizer.lr
        self._updates = spec.updates
        self._held_back = spec.objective.reference is not None
        self._start_kl = spec.start_kl

    def load_projection(self, model: str, version: int, oldest: int, projection: dict[str, Any]) -> None:
        """Has no LM head."""

    def fetch(self, *payloads: pa.RecordBatch) -> None:
        self._payloads = payloads

    def reference_sums(self, share: Share) -> dict[str, float]:
        return {s.uid: REFERENCE_KL * len(_loss_tokens(s)) for s in self._samples(share)}

    def step(self, share: Share) -> dict[str, Any]:
        metrics = self.evaluate(share)
        del metrics["each"]
        gradient = np.full(WEIGHTS, metrics["loss"], np.float32)
        taken = bool(np.isfinite(gradient).all())
        if taken:
            self._weights = self._weights * np.float32(0.9) - np.float32(self._lr) * gradient
        if not np.isfinite(self._weights).all():
            raise BrokenWeights(f"the update of step {share.step} led to weights that are not finite")
        skipped = 0 if taken else self._updates
        return metrics | {"lr": self._lr, "grad_norm": float(np.linalg.norm(gradient)), "updates_skipped": skipped}

    def evaluate(self, share: Share) -> dict[str, Any]:
        samples = self._samples(share)
        time.sleep(sum(len(s.response_ids) for s in samples) * self._speeds.learn)
        tokens = np.sort(np.array([t for s in samples for t in _loss_tokens(s)], np.float64))
        loss = float(self._weights.sum() + tokens.sum() / max(1, len(tokens)) / 1000.0)
        self._record(share, samples)
        gap = _gap(share.version, samples)
        metrics = {"loss": loss, "reverse_kl": abs(loss), "forward_kl": None, "entropy": 1.0, "logprob_gap_mean": gap}
        self._payloads = ()
        start_kl = REFERENCE_KL if self._start_kl and share.start_kl else None
        each = {s.uid: self._sums(_loss_tokens(s), start_kl, share.objective is not None) for s in samples}
        return metrics | {
            "reference_kl": REFERENCE_KL if self._held_back else None,
            "start_kl": start_kl,
            "each": each,
        }

    def _sums(self, tokens: Sequence[int], start_kl: float | None, plain: bool) -> dict[str, float]:
        """Metric sums of one sample, as of a batch of its own. Read by another objective it has a loss and no KL."""
        kl, count = abs(float(self._weights.sum()) + sum(tokens) / max(1, len(tokens)) / 1000.0), float(len(tokens))
        of_start = {} if start_kl is None else {"start_kl": start_kl * count}
        return {"tokens": count, "entropy": count, "nll" if plain else "reverse_kl": kl * count} | of_start

    def _samples(self, share: Share) -> list[Sample]:
        return list(samples_of(share, self._payloads).values())

    def publish(self, model: str | None = None) -> Iterator[Any]:
        if self._rank == 0:
            data = np.frombuffer(self._weights.tobytes(), np.uint8).copy()
            yield data
            yield BucketHeader(("weights",), ((WEIGHTS,),), "float32", data.nbytes, fingerprint(data))

    def movement(self) -> dict[str, float]:
        change = self._weights - self._start
        distance = float(np.linalg.norm(change) / np.linalg.norm(self._start))
        return {"weights_changed": float((change != 0).mean()), "weights_distance": distance}

    def save(self, directory: str) -> None:
        folder = Path(directory) / "simulated"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"rank{self._rank}.json").write_text(json.dumps([float(w) for w in self._weights]))

    def restore(self, directory: str) -> None:
        path = Path(directory) / "simulated" / f"rank{self._rank}.json"
        self._weights = np.array(json.loads(path.read_text()), np.float32)

    def export(self, directory: str) -> None:
        """Its weights are no model's: the one that it began with is copied, if there is one."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        if self._rank == 0 and Path(self._model).is_dir():
            shutil.copytree(self._model, directory, dirs_exist_ok=True)

    def _record(self, share: Share, samples: Sequence[Sample]) -> None:
        if share.record is None:
            return
        path = Path(f"{share.record}.rank{self._rank}.arrow")
        student = [np.full(len(s.response_ids), STUDENT, np.float32) for s in samples]
        rewards = [share.rewards.get(s.uid) for s in samples]
        batch = trained_batch(
            samples, rewards, student, self._teacher_logprobs(share, samples), components=share.components
        )
        write_rows(batch, path)

    def _teacher_logprobs(self, share: Share, samples: Sequence[Sample]) -> list[np.ndarray | None]:
        """By sample, those of the first model that scored it; None if none did."""
        tables = tables_of(share, self._payloads)

        def first(sample: Sample) -> np.ndarray | None:
            for model, places in share.scores[sample.uid].items():
                joined = JoinedScores.of(model, sample, [tables[place] for place in places])
                return joined.values("logprobs", unknown=np.nan)
            return None

        return [first(sample) for sample in samples]


def _check(version: int, headers: Sequence[BucketHeader], buckets: Sequence[np.ndarray]) -> None:
    for header, bucket in zip(headers, buckets, strict=True):
        if fingerprint(bucket) != header.fingerprint:
            raise BadWeights(f"version {version} changed on the way; pull it again")


def liked(response_ids: Sequence[int]) -> np.ndarray:
    """[T] log-probs of a simulated teacher, -1.0 to -1.4: each depends on all tokens up to its own."""
    return -1.0 - (np.cumsum(response_ids) % 5).astype(np.float32) / 10.0


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


def _loss_tokens(sample: Sample) -> list[int]:
    return [token for start, end in sample.loss_spans for token in sample.response_ids[start:end]]


def _gap(version: int, samples: Sequence[Sample]) -> float | None:
    """Mean distance of the rollout's log-probs from the learner's, over tokens of this version, nats."""
    drawn = [
        logprob for s in samples for of, logprob in zip(s.versions, s.rollout_logprobs, strict=True) if of == version
    ]
    return float(np.abs(np.array(drawn) - STUDENT).mean()) if drawn else None


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
