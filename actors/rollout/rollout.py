"""Student rollout member: vLLM's AsyncLLM, sampling in continuous batches and streaming responses or their segments.

No HTTP port is opened. A weight version is loaded between two decoding steps, from one file in shared memory. Running
responses go on or end there, as `on_update` says. Every token carries the version it was sampled with.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors.engine_metrics import ray_stat_loggers
from actors.rollout.delivery import delivery
from actors.rollout.response import Response
from actors.rollout.writer import Writer
from actors.shared_memory import MemberFolder
from actors.transfer.layout import Layout
from actors.transfer.nccl import joining
from actors.weights_lock import Idle
from actors.wire.records import Request, Sample
from configs.roles.lora import Lora
from configs.roles.rollout import Rollout as RolloutConfig
from configs.rules import VLLM_MAX_TOPK
from configs.schema import Sampling


class Rollout(Writer):
    """`shared` is the run's folder in shared memory, through which weight versions pass. At start a member removes the
    files that dead members of the run left there on its node. With `lora` versions are adapters."""

    def __init__(self, config: RolloutConfig, model: str, shared: str, lora: Lora | None = None) -> None:
        super().__init__()
        self._delivery = delivery(Path(model), lora, config.resources.gpus)
        self._config = config
        self._model = Path(model)
        self._shared = Path(shared)
        self._folder: MemberFolder | None = None
        self._engine: Any = None
        self._version = 0
        self._loading = asyncio.Lock()
        self._running: dict[str, Response] = {}  # by uid
        self._cut: set[str] = set()  # uids of running responses that `cut` ended
        self._idle = Idle()
        self._half: str | None = None  # why the engine holds half a version

    async def start(self) -> None:
        """Build the engine: a quarter of a minute on a CPU."""
        from vllm import AsyncEngineArgs

        self._folder = await asyncio.to_thread(MemberFolder, self._shared)
        config = self._config
        on_gpu, loggers = config.resources.gpus > 0, ray_stat_loggers()
        self._engine = _build(
            AsyncEngineArgs(
                model=str(self._model),
                dtype=config.dtype,
                max_model_len=config.max_context_tokens,
                max_num_seqs=config.max_concurrent,
                # else vLLM rewinds the generator of a prompt that it computes in parts, and a CPU's has no rewind
                enable_chunked_prefill=None if on_gpu else False,
                max_logprobs=VLLM_MAX_TOPK,
                tensor_parallel_size=config.tensor_parallel,
                gpu_memory_utilization=config.gpu_memory_fraction if on_gpu else 0.9,
                enforce_eager=config.eager,
                enable_sleep_mode=on_gpu,
                distributed_executor_backend="mp" if config.tensor_parallel > 1 else "uni",
                worker_extension_cls="actors.rollout.transfer_in_engine.Receiver",
                logprobs_mode="processed_logprobs",
                trust_remote_code=False,
                enable_log_requests=False,
                disable_log_stats=not loggers,
                **self._delivery.engine_options,
                **self._transfer_options(),
            ),
            loggers,
        )
        await self._engine.collective_rpc("end_with", args=(os.getpid(),))
        await self._engine.update_weight_version(str(self._version))

    async def write(self, request: Request, sampling: Sampling, end_token_ids: Sequence[int]) -> AsyncIterator[Sample]:
        with self._idle.busy():
            async for row in self._sample(request, sampling, end_token_ids):
                yield row

    async def cut(self, uids: Sequence[str]) -> None:
        """End those of these responses that leave in segments and have a token. The last row of each holds the tokens
        sampled so far and finish "cut"."""
        begun = [response.request for uid in uids if (response := self._running.get(uid)) is not None and len(response)]
        self._cut.update(request.uid for request in begun)
        await self._engine.abort([_request_id(request) for request in begun])

    async def load(self, version: int, headers: Sequence[Any], *buckets: np.ndarray) -> int:
        """Check every bucket, then load all weights at once. Raises BadWeights before it touches the engine."""
        async with self._loading:
            path = self._own_folder.path / f"v{version}"
            try:
                await asyncio.to_thread(self._delivery.write, headers, buckets, path)
                await self._change_to(version, lambda: self._delivery.read(self._engine, path))
            finally:
                await asyncio.to_thread(self._delivery.remove, path)
        return version

    async def join_group(self, token: str, first_rank: int, size: int, seconds: float) -> None:
        """Meet the learner in the group that `token` names; this engine's workers have the ranks from `first_rank` on.
        Raises TransferBroken if its `size` processes do not all come in time."""
        async with self._loading:
            self._check_whole()
            info = joining(token, first_rank, size)
            await self._engine.collective_rpc("join_transfer", args=(info, seconds))

    async def receive(self, version: int, layout: Layout, seconds: float) -> int:
        """Load what the learner sends to the group. Raises BadWeights before it touches the engine, and TransferBroken:
        the engine is of no use then."""
        return await self._take(version, layout, "receive_version", seconds)

    async def load_shared(self, version: int, layout: Layout, handle: dict[str, Any]) -> int:
        """Load the copy that lies on the learner's GPU, on this machine. Raises BadWeights before it touches the
        engine."""
        return await self._take(version, layout, "read_shared", handle)

    async def _take(self, version: int, layout: Layout, method: str, *rest: Any) -> int:
        from actors.models.weights import check_shapes

        async with self._loading:
            self._check_whole()
            await asyncio.to_thread(check_shapes, layout.by_name, self._model)
            try:
                call = (layout.plain, *rest)
                await self._change_to(version, lambda: self._engine.collective_rpc(method, args=call))
            except BaseException as error:
                self._half = f"{type(error).__name__}: {error}"
                raise
        return version

    def _check_whole(self) -> None:
        if self._half is not None:
            raise RuntimeError(f"the engine holds half a version ({self._half})")

    async def _change_to(self, version: int, read: Callable[[], Awaitable[Any]]) -> None:
        """Serve another version, which `read` loads into the engine between two decoding steps."""
        await self._engine.pause_generation(mode=self._config.on_update, clear_cache=False)
        await read()
        if not self._config.keep_key_values:
            await self._reset_key_values()
        await self._engine.update_weight_version(str(version))
        self._version = version
        await self._engine.resume_generation()

    def _transfer_options(self) -> dict[str, Any]:
        """For vLLM's engine arguments: its own transfer engine, where it carries versions."""
        return {"weight_transfer_config": {"backend": self._config.carrier}} if self._config.direct else {}

    async def _reset_key_values(self) -> None:
        """Drop the KV cache of the old weights; running responses recompute theirs."""
        if not await self._engine.reset_prefix_cache(reset_running_requests=True):
            raise RuntimeError(f"the prefix cache of version {self._version} was not reset")

    async def sleep(self) -> None:
        """Move weights to the host and drop the KV cache. On a CPU vLLM only stops scheduling."""
        await self._engine.sleep(level=1, mode="wait")

    async def wake(self) -> None:
        await self._engine.wake_up()

    async def drain(self) -> None:
        await self._idle.wait()

    async def renew(self) -> None:
        """Versions count from the start again, and the salts of the KV cache with them."""
        await self._reset_key_values()

    async def stop(self) -> None:
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None
        if self._folder is not None:
            self._folder.remove()
            self._folder = None

    @property
    def _own_folder(self) -> MemberFolder:
        if self._folder is None:
            raise RuntimeError("the rollout is not built; start() comes first")
        return self._folder

    async def _sample(
        self, request: Request, sampling: Sampling, end_token_ids: Sequence[int]
    ) -> AsyncIterator[Sample]:
        """The rows of one response. One that is aborted before its first token is sampled again from the start."""
        response = self._running[request.uid] = Response(request)
        try:
            unbegun = True
            while unbegun:
                async for output in self._outputs(request, sampling, end_token_ids):
                    completion = output.outputs[0]
                    response.grow(completion, self._version)
                    unbegun = completion.finish_reason == "abort" and not len(response)
                    ended = output.finished and not unbegun
                    finish = self._finish(request.uid, completion) if ended else ""
                    for row in response.rows(request.segment_tokens, finish):
                        yield row
        finally:
            self._running.pop(request.uid, None)
            self._cut.discard(request.uid)

    def _outputs(self, request: Request, sampling: Sampling, end_token_ids: Sequence[int]) -> AsyncIterator[Any]:
        """vLLM's outputs: with segments, all tokens so far after each step; else one output at the end."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        prompt_ids = request.sampled_prompt_ids or request.prompt_ids
        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=self._longest(request, sampling),
            seed=request.seed,
            stop_token_ids=list(end_token_ids),
            logprobs=request.topk + len(request.ends),
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.CUMULATIVE if request.segment_tokens else RequestOutputKind.FINAL_ONLY,
        )
        # the salt keeps later requests from the KV cache of older weights, which `keep_key_values` retains
        prompt = {"prompt_token_ids": prompt_ids, "cache_salt": str(self._version)}
        return self._engine.generate(prompt, params, _request_id(request), **self._delivery.request_options)

    def _longest(self, request: Request, sampling: Sampling) -> int:
        """The most tokens that a response may have: the cap, or what is left of the context."""
        prompt_ids = request.sampled_prompt_ids or request.prompt_ids
        return min(sampling.max_response_tokens, self._config.max_context_tokens - len(prompt_ids))

    def _finish(self, uid: str, completion: Any) -> str:
        """Why a response has ended: "cut" if `cut` ended it, else vLLM's reason."""
        reason = completion.finish_reason or "abort"
        return "cut" if reason == "abort" and uid in self._cut else reason


def _build(arguments: Any, loggers: list[Any]) -> Any:
    """vLLM's engine, in a process of its own unless the member's environment says otherwise (pools/layout.py)."""
    if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0":
        from actors.rollout.in_process import build

        return build(arguments, loggers)
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_engine_args(arguments, stat_loggers=loggers)


def _request_id(request: Request) -> str:
    return f"{request.uid}#{request.attempt}"
