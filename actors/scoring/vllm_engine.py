"""vLLM engine of the scorer: prompt log-probs of prompt + response, always at temperature 1.

It keeps nothing between segments: prompt log-probs need every position computed, so each segment costs the whole
response so far. Use engine: torch for responses in many segments.

vLLM forms a new batch, of up to `tokens_per_batch` tokens, for every forward pass.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors.engine_metrics import ray_stat_loggers
from actors.scoring.engine import Item
from actors.scoring.prompt_logprobs import score_of
from actors.wire.records import Score, ScoreRequest
from configs.roles.scorer import Scorer as ScorerConfig
from configs.rules import VLLM_MAX_TOPK


class VllmEngine:
    hidden_dtype = "none"
    continuous = True

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._numbers = itertools.count()

    @classmethod
    async def start(cls, config: ScorerConfig, model: Path) -> VllmEngine:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        loggers = ray_stat_loggers()
        arguments = AsyncEngineArgs(
            model=str(model),
            dtype=config.dtype,
            max_model_len=config.max_context_tokens + 1,  # one more token is decoded after a full context
            max_num_batched_tokens=max(config.tokens_per_batch, config.max_context_tokens + 1),
            tensor_parallel_size=config.tensor_parallel,
            gpu_memory_utilization=config.gpu_memory_fraction,
            enforce_eager=True,
            enable_sleep_mode=config.resources.gpus > 0,
            max_logprobs=VLLM_MAX_TOPK,
            distributed_executor_backend="mp" if config.tensor_parallel > 1 else "uni",
            worker_extension_cls="actors.rollout.engine_worker.EndsWithActor",
            trust_remote_code=False,
            enable_log_requests=False,
            disable_log_stats=not loggers,
        )
        engine = AsyncLLM.from_engine_args(arguments, stat_loggers=loggers)
        await engine.collective_rpc("end_with", args=(os.getpid(),))
        return cls(engine)

    async def score(self, items: Sequence[Item], request: ScoreRequest) -> list[Score]:
        """Raises ValueError for a support that prompt log-probs cannot give."""
        if request.support == "full":
            raise ValueError("the vllm scorer gives sampled and topk supports; use engine: torch")
        if request.ends:
            raise ValueError("the vllm scorer gives no mass of all end tokens; use engine: torch")
        return list(await asyncio.gather(*(self._one(item, request) for item in items)))

    async def replace(self, tensors: dict[str, Any]) -> None:
        raise NotImplementedError("a vllm scorer keeps its weights; use engine: torch for a moving teacher")

    def projection(self) -> dict[str, Any]:
        raise NotImplementedError("a vllm scorer has no hidden states; use engine: torch")

    async def sleep(self) -> None:
        await self._engine.sleep(level=1, mode="wait")

    async def wake(self) -> None:
        await self._engine.wake_up()

    def stop(self) -> None:
        self._engine.shutdown()

    async def _one(self, item: Item, request: ScoreRequest) -> Score:
        from vllm import SamplingParams

        k = request.topk if request.support == "topk" else 0
        params = SamplingParams(max_tokens=1, prompt_logprobs=k, detokenize=False, flat_logprobs=True)
        prompt = {"prompt_token_ids": [*item.prompt_ids, *item.response_ids]}
        outputs = self._engine.generate(prompt, params, request_id=f"{item.uid}-{next(self._numbers)}")
        (output,) = [output async for output in outputs if output.finished]
        return await asyncio.to_thread(_score_of, item, output.prompt_logprobs, k)


def _score_of(item: Item, flat: Any, k: int) -> Score:
    """vLLM lists the actual token first, then the rest of the top k by rank."""
    positions = range(item.tokens - len(item.new_ids), item.tokens)
    sampled = np.array([flat.logprobs[flat.start_indices[p]] for p in positions], dtype=np.float32)
    ids = np.zeros((len(sampled), k), dtype=np.int32)
    logprobs = np.zeros((len(sampled), k), dtype=np.float32)
    for row, p in enumerate(positions if k else ()):
        start, end = flat.start_indices[p], flat.end_indices[p]
        by_rank = dict(zip(flat.ranks[start:end], range(start, end), strict=True))
        top = [by_rank[rank] for rank in range(1, k + 1)]
        ids[row], logprobs[row] = [flat.token_ids[i] for i in top], [flat.logprobs[i] for i in top]
    return score_of(item.uid, sampled, ids, logprobs)
