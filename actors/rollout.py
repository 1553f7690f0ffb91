"""Student rollout member: vLLM's AsyncLLM, sampling in continuous batches and streaming finished responses.

No HTTP port is opened. A weight version is loaded between decoding steps from one file in shared memory; the prefix
cache is reset with it, and every token carries the version it was sampled with.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from actors.member import Member
from actors.records import Request, Sample, pack_samples
from configs.rules import VLLM_MAX_TOPK
from configs.schema import Rollout as RolloutConfig
from configs.schema import Sampling, Stream


class Rollout(Member):
    """`shared` is the folder in shared memory where weight versions pass through; this member sweeps its own files."""

    def __init__(self, config: RolloutConfig, model: str, shared: str) -> None:
        self._config = config
        self._model = Path(model)
        self._shared = Path(shared)
        self._engine: Any = None
        self._version = 0
        self._loading = asyncio.Lock()
        self._idle = _Idle()

    async def start(self) -> None:
        """Build the engine; half a minute on a CPU."""
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        config = self._config
        on_gpu = config.resources.gpus > 0
        self._engine = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=str(self._model),
                dtype=config.dtype,
                max_model_len=config.max_context_tokens,
                max_num_seqs=config.max_concurrent,
                max_logprobs=VLLM_MAX_TOPK,
                tensor_parallel_size=config.tensor_parallel,
                gpu_memory_utilization=config.gpu_memory_fraction if on_gpu else 0.9,
                enforce_eager=config.eager,
                enable_sleep_mode=on_gpu,
                distributed_executor_backend="mp" if config.tensor_parallel > 1 else "uni",
                worker_extension_cls="actors.rollout_worker.VersionLoader",
                logprobs_mode="processed_logprobs",
                trust_remote_code=False,
                enable_log_requests=False,
                disable_log_stats=True,
            )
        )
        await self._engine.update_weight_version(str(self._version))

    async def generate(
        self, requests: Sequence[Request], sampling: Sampling, stream: Stream, end_token_ids: Sequence[int]
    ) -> AsyncIterator[Any]:
        """Sample every request; yield payload, header, payload, header, ... as responses finish."""
        done: asyncio.Queue[Sample] = asyncio.Queue()

        async def one(request: Request) -> None:
            with self._idle.busy():
                await done.put(await self._sample(request, sampling, end_token_ids))

        tasks = [asyncio.create_task(one(request)) for request in requests]
        try:
            left = len(requests)
            while left:
                block = await _coalesce(done, tasks, left, stream)
                left -= len(block)
                for part in pack_samples(block):
                    yield part
        finally:
            for task in tasks:
                task.cancel()

    async def load(self, version: int, headers: Sequence[Any], *buckets: np.ndarray) -> int:
        """Check every bucket, then swap the weights in one go. Raises BadWeights before the engine is touched."""
        from actors.weights import check_names, unpack, write_shared

        async with self._loading:
            tensors = unpack(headers, buckets)
            check_names(tensors, self._model)
            path = self._shared / f"v{version}-{os.getpid()}.safetensors"
            try:
                await asyncio.to_thread(write_shared, tensors, path)
                await self._engine.pause_generation(mode="keep", clear_cache=False)
                await self._engine.collective_rpc("load_version", args=(str(path),))
                # running responses go on, their old key-values are computed anew: no cache outlives its weights
                if not await self._engine.reset_prefix_cache(reset_running_requests=True):
                    raise RuntimeError(f"the prefix cache was not reset for version {version}")
                await self._engine.update_weight_version(str(version))
                self._version = version
                await self._engine.resume_generation()
            finally:
                path.unlink(missing_ok=True)
        return version

    async def sleep(self) -> None:
        await self._engine.sleep(level=1)

    async def wake(self) -> None:
        await self._engine.wake_up()

    async def drain(self) -> None:
        await self._idle.wait()

    async def stop(self) -> None:
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None

    async def _sample(self, request: Request, sampling: Sampling, end_token_ids: Sequence[int]) -> Sample:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        prompt_ids = request.sampled_prompt_ids or request.prompt_ids
        room = self._config.max_context_tokens - len(prompt_ids)
        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=min(sampling.max_response_tokens, room),
            seed=request.seed,
            stop_token_ids=list(end_token_ids),
            logprobs=request.topk,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt = {"prompt_token_ids": prompt_ids}
        outputs = self._engine.generate(prompt, params, request_id=f"{request.uid}#{request.attempt}")
        (output,) = [output async for output in outputs if output.finished]
        return _sample_of(request, output.outputs[0])


def _sample_of(request: Request, completion: Any) -> Sample:
    ids = list(completion.token_ids)
    versions = [0] * len(ids)
    for span in completion.weight_versions or ():
        versions[span.start : span.end] = [int(span.version)] * (span.end - span.start)
    logprobs = sampled_logprobs(completion.logprobs, len(ids))
    support = ranked_ids(completion.logprobs, len(ids), request.topk)
    return request.answered(ids, logprobs, completion.finish_reason or "abort", versions, support)


def sampled_logprobs(flat: Any, tokens: int) -> list[float]:
    """Log-prob of each sampled token: the first entry of its position. vLLM's FlatLogprobs -> [tokens]."""
    return [float(flat.logprobs[flat.start_indices[t]]) for t in range(tokens)]


def ranked_ids(flat: Any, tokens: int, k: int) -> list[int]:
    """The k most likely tokens of each position, row-major: [tokens * k]. The sampled token stands among them once."""
    found: list[int] = []
    for t in range(tokens):
        start, end = flat.start_indices[t], flat.end_indices[t]
        by_rank = dict(zip(flat.ranks[start:end], flat.token_ids[start:end], strict=True))
        found += [by_rank[rank] for rank in range(1, k + 1)]
    return found


async def _coalesce(done: asyncio.Queue[Sample], tasks: Sequence[Any], left: int, stream: Stream) -> list[Sample]:
    """The first finished response and those that follow within the window. Raises what a request raised."""
    block = [await _next_or_raise(done, tasks)]
    deadline = asyncio.get_running_loop().time() + stream.coalesce_ms / 1000
    while len(block) < min(left, stream.coalesce_samples):
        remaining = deadline - asyncio.get_running_loop().time()
        with suppress(TimeoutError):
            block.append(await asyncio.wait_for(done.get(), max(0.0, remaining)))
            continue
        break
    return block


async def _next_or_raise(done: asyncio.Queue[Sample], tasks: Sequence[asyncio.Task[None]]) -> Sample:
    getter = asyncio.ensure_future(done.get())
    while not getter.done():
        running = [task for task in tasks if not task.done()]
        await asyncio.wait([getter, *running], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done() and not task.cancelled() and task.exception():
                getter.cancel()
                raise task.exception()  # type: ignore[misc]
    return getter.result()


class _Idle:
    """Counts work in progress; `wait` returns when there is none."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    def busy(self) -> _Idle:
        return self

    def __enter__(self) -> None:
        self._count += 1
        self._none.clear()

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self._none.set()

    async def wait(self) -> None:
        await self._none.wait()


def shared_folder(run: str, root: str) -> str:
    """Where a run's weight versions pass through: shared memory where there is some. Runs of one name under two roots
    have two folders."""
    base = "/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir()
    tag = hashlib.sha256(os.path.abspath(root).encode()).hexdigest()[:8]
    return os.path.join(base, f"logratio-{os.getuid()}-{run}-{tag}")
