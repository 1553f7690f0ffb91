"""Scoring service member: log-probs of given responses under one teacher or reference.

One interface, three engines. `torch` gives everything (sampled tokens, any top-k with its exact tail, entropy, or the
last hidden state for full-vocabulary targets); `vllm` gives sampled tokens and the teacher's top-k through prompt
log-probs; `server` asks a vLLM server that runs elsewhere for the same. Requests of all callers are batched together by
token budget, or handed at once to an engine that forms its own batches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from actors.member import Member
from actors.micro_batches import take_by_budget
from actors.scoring.beginnings import Beginnings
from actors.scoring.canary import suspicion_of, ways_to_batch
from actors.scoring.engine import Engine, Item
from actors.scoring.score_cache import ScoreCache, key_of
from actors.scoring.score_files import ScoreFiles
from actors.weights_lock import Idle, WeightsLock
from actors.wire.records import (
    Sample,
    Score,
    ScoreHeader,
    ScoreRequest,
    SwapRefused,
    log_ratio_of,
    pack_scores,
    unpack_samples,
)
from configs.roles.lora import Lora
from configs.roles.scorer import Scorer as ScorerConfig


class Scorer(Member):
    """`vocabulary` is the models' common logit width; columns beyond it never enter a softmax. `version` is the version
    of the weights in the directory `model`. With `lora` later versions are adapters on them, or adapted weights."""

    def __init__(
        self, config: ScorerConfig, model: str, vocabulary: int, version: int = 0, lora: Lora | None = None
    ) -> None:
        self._lora = lora
        self._config = config
        self._model = Path(model)
        self._vocabulary = vocabulary
        self._version = version
        self._from_directory = True  # no version was loaded since
        self._engine: Engine | None = None
        self._cache = ScoreCache(config.score_cache_mib * 2**20)
        self._files: ScoreFiles | None = None
        self._beginnings = Beginnings()
        self._queue: list[tuple[Item, ScoreRequest, asyncio.Future[Score]]] = []
        self._arrived = asyncio.Event()
        self._idle = Idle()
        self._weights_lock = WeightsLock()  # a batch is scored with one version
        self._server: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the model and begin to serve."""
        self._engine = await _build(self._config, self._model, self._vocabulary)
        self._files = await self._open_files()
        self._server = asyncio.create_task(self._serve())

    async def score(
        self, payload: pa.RecordBatch, request: ScoreRequest, *earlier: pa.RecordBatch
    ) -> tuple[pa.RecordBatch, ScoreHeader]:
        """Score the new tokens of the requested samples, in row order. A sample that cannot be scored is rejected by
        uid. A segment whose beginning is not remembered is `unknown` in the header: ask again with the `earlier`
        payloads that hold the beginning."""
        assert self._engine is not None, "start() comes first"
        samples = {s.uid: s for s in unpack_samples(payload) if not request.prompts or s.uid in request.prompts}
        so_far, unknown = self._beginnings.complete(request.channel, samples.values(), earlier)
        items = [
            _item(samples[uid], request.prompts.get(uid, samples[uid].prompt_ids), ids) for uid, ids in so_far.items()
        ]
        rejected = {item.uid: reason for item in items if (reason := self._unfit(item))}
        scores = await asyncio.gather(*(self._scored(item, request) for item in items if item.uid not in rejected))
        rejected |= {
            s.uid: "the scorer's log-probs are not finite" for s in scores if not np.isfinite(s.logprobs).all()
        }
        good = [
            replace(s, start=samples[s.uid].start, log_ratio=log_ratio_of(s.logprobs, samples[s.uid]))
            for s in scores
            if s.uid not in rejected
        ]
        payload, header = await asyncio.to_thread(pack_scores, good, rejected, self._engine.hidden_dtype, unknown)
        tokens = [token for s in good for token in samples[s.uid].response_ids[samples[s.uid].new]]
        suspicion = suspicion_of(good, tokens, self._vocabulary)
        if not suspicion:
            await self._keep(items, good, request)
        return payload, header._replace(suspicion=suspicion)

    async def canary(self, texts: Sequence[Sequence[int]], repeats: bool) -> list[list[float]]:
        """Log-probs (nats) of all tokens of the texts but the first of each; with `repeats` one list for each way to
        batch the texts. No other request is scored meanwhile."""
        assert self._engine is not None
        items = [Item(f"canary.{i}", list(ids[:1]), list(ids[1:]), 0, True, []) for i, ids in enumerate(texts)]
        ways = ways_to_batch(len(items))
        async with self._weights_lock.exclusive():
            return [await self._reading(items, way) for way in (ways if repeats else ways[:1])]

    async def _reading(self, items: Sequence[Item], batches: Iterable[Sequence[int]]) -> list[float]:
        assert self._engine is not None
        found: dict[int, list[float]] = {}
        for batch in batches:
            scores = await self._engine.score([items[i] for i in batch], ScoreRequest("sampled"))
            found |= {i: score.logprobs.tolist() for i, score in zip(batch, scores, strict=True)}
        return [value for i in range(len(items)) for value in found[i]]

    async def projection(self) -> tuple[dict[str, Any], int]:
        """The LM head as a causal_lm.Projection, and its version."""
        assert self._engine is not None
        async with self._weights_lock.shared():
            return await asyncio.to_thread(self._engine.projection), self._version

    async def load(self, version: int, headers: Sequence[Any], *buckets: np.ndarray) -> int:
        """Score with a new version from the next batch on."""
        from actors.lora.wire import moved_tensors

        assert self._engine is not None
        tensors = await asyncio.to_thread(moved_tensors, headers, buckets, self._model, self._lora)
        async with self._weights_lock.exclusive():
            await self._engine.replace(tensors)
            self._version, self._from_directory = version, False
            self._cache.clear()
            self._files = None  # the weights are no longer the directory's
        return version

    async def swap(self, version: int, model: str) -> int:
        """Score with the weights of another directory, of any size, from the next batch on. Raises SwapRefused if they
        cannot be loaded; then the old directory's weights serve."""
        assert self._engine is not None
        async with self._weights_lock.exclusive():
            if not (self._from_directory and (version, Path(model)) == (self._version, self._model)):
                self._engine.stop()  # memory may not hold two models
                self._engine = await self._build_or_go_back(Path(model))
                self._model, self._version, self._from_directory = Path(model), version, True
                self._cache.clear()
                self._files = await self._open_files()
        return version

    async def sleep(self) -> None:
        """Give accelerator memory back. Requests wait until `wake`, since the weights lock is held until then."""
        assert self._engine is not None
        await self._weights_lock.acquire_exclusive()
        await self._engine.sleep()

    async def wake(self) -> None:
        assert self._engine is not None
        await self._engine.wake()
        self._weights_lock.release()

    async def drain(self) -> None:
        await self._idle.wait()

    async def renew(self) -> None:
        """A run's cost must not depend on what another one had scored."""
        self._cache.clear()
        self._beginnings = Beginnings()

    async def stop(self) -> None:
        if self._server:
            self._server.cancel()
        if self._engine:
            self._engine.stop()

    async def _build_or_go_back(self, model: Path) -> Engine:
        try:
            return await _build(self._config, model, self._vocabulary)
        except Exception as error:
            self._engine = await _build(self._config, self._model, self._vocabulary)
            raise SwapRefused(f"{model} cannot be served: {error}") from error

    def _unfit(self, item: Item) -> str:
        """Why an item cannot be scored; empty if it can."""
        if not item.new_ids:
            return "empty response"
        if max(item.response_ids) >= self._vocabulary:
            return f"token {max(item.response_ids)} is beyond the common vocabulary of {self._vocabulary}"
        if max(item.support_ids, default=0) >= self._vocabulary:
            return f"the student ranks a token beyond the common vocabulary of {self._vocabulary} among its first"
        if item.tokens > self._config.max_context_tokens:
            return f"{item.tokens} tokens exceed scorer max_context_tokens {self._config.max_context_tokens}"
        return ""

    async def _scored(self, item: Item, request: ScoreRequest) -> Score:
        """The scores of an item; of one that comes again, from the cache or a file if they are of these weights."""
        if not _comes_again(item, request):
            return await self._computed(item, request)
        key = key_of(_kind(request), item.prompt_ids, item.response_ids, item.support_ids)
        kept = self._cache.get(key, item.uid)
        if kept is not None and kept.version == self._version:
            return kept
        score = await self._from_file(item, request) or await self._computed(item, request)
        self._cache.put(key, replace(score, from_file=False))
        return score

    async def _from_file(self, item: Item, request: ScoreRequest) -> Score | None:
        async with self._weights_lock.shared():
            files, version = self._files, self._version
            found = await asyncio.to_thread(files.get, _kind(request), item) if files else None
        return replace(found, version=version) if found else None

    async def _keep(self, items: Sequence[Item], scores: Sequence[Score], request: ScoreRequest) -> None:
        """Write the scores of responses that come again, of the weights that serve."""
        by_uid = {item.uid: item for item in items if _comes_again(item, request)}
        new = [(by_uid[s.uid], s) for s in scores if s.uid in by_uid and s.version == self._version]
        if self._files and new and request.support != "full":
            kind = _kind(request)
            await asyncio.to_thread(lambda files: [files.put(kind, item, s) for item, s in new], self._files)

    async def _open_files(self) -> ScoreFiles | None:
        return await asyncio.to_thread(ScoreFiles.of, self._config, self._model, self._vocabulary)

    async def _computed(self, item: Item, request: ScoreRequest) -> Score:
        """The scores of an item from the engine: at once if it is continuous, else with others off the queue."""
        assert self._engine is not None
        with self._idle.busy():
            if self._engine.continuous:
                async with self._weights_lock.shared():
                    (score,) = await self._engine.score([item], request)
                    return replace(score, version=self._version)
            future: asyncio.Future[Score] = asyncio.get_running_loop().create_future()
            self._queue.append((item, request, future))
            self._arrived.set()
            return await future

    async def _serve(self) -> None:
        while True:
            await self._arrived.wait()
            await asyncio.sleep(0)  # let all callers of this loop iteration enqueue first
            async with self._weights_lock.shared():
                await self._score_batch(self._next_batch())
            if not self._queue:
                self._arrived.clear()

    def _next_batch(self) -> list[tuple[Item, ScoreRequest, asyncio.Future[Score]]]:
        """Take requests of the first one's kind off the queue, up to `tokens_per_batch`."""
        first = self._queue[0][1]
        alike = [e for e in self._queue if _kind(e[1]) == _kind(first)]
        batch = alike[: take_by_budget([e[0].cost for e in alike], self._config.tokens_per_batch)]
        taken = {id(e) for e in batch}
        self._queue = [e for e in self._queue if id(e) not in taken]
        return batch

    async def _score_batch(self, batch: Sequence[tuple[Item, ScoreRequest, asyncio.Future[Score]]]) -> None:
        assert self._engine is not None
        try:
            scores = await self._engine.score([item for item, _, _ in batch], batch[0][1])
        except Exception as error:  # the callers decide
            for _, _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, _, future), score in zip(batch, scores, strict=True):
            if not future.done():
                future.set_result(replace(score, version=self._version))


def _item(sample: Sample, prompt_ids: list[int], response_ids: list[int]) -> Item:
    k = len(sample.support_ids) // max(1, len(sample.response_ids))
    return Item(
        uid=sample.uid,
        prompt_ids=prompt_ids,
        response_ids=response_ids,
        start=sample.start,
        last=sample.finish != "",
        support_ids=sample.support_ids[k * sample.new.start :],
    )


def _comes_again(item: Item, request: ScoreRequest) -> bool:
    return request.reusable and item.whole


def _kind(request: ScoreRequest) -> tuple[str, int, str, tuple[int, ...]]:
    return request.support, request.topk, request.topk_of, request.ends


async def _build(config: ScorerConfig, model: Path, vocabulary: int) -> Engine:
    if config.engine == "vllm":
        from actors.scoring.vllm_engine import VllmEngine

        return await VllmEngine.start(config, model)
    if config.engine == "server":
        from actors.scoring.server_engine import ServerEngine

        return await ServerEngine.start(config)
    from actors.scoring.torch_engine import TorchEngine

    return await asyncio.to_thread(TorchEngine, config, model, vocabulary)
