"""Torch engine of the scorer: one packed transformers forward a batch, the head applied in chunks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors import causal_lm
from actors.records import Score, ScoreRequest
from configs.schema import Scorer as ScorerConfig
from objectives.divergence import entropy

CHUNK_TOKENS = 256  # rows of [tokens, vocabulary] alive at a time


class TorchEngine:
    def __init__(self, config: ScorerConfig, model: Path, vocabulary: int) -> None:
        torch.set_num_threads(config.resources.threads)
        self._device = torch.device("cuda" if config.resources.gpus > 0 else "cpu")
        self._model = causal_lm.load_model(model, config.dtype).eval().to(self._device)
        self._vocabulary = vocabulary
        self.hidden_dtype = config.dtype

    async def score(self, items: Sequence[Any], request: ScoreRequest) -> list[Score]:
        return await asyncio.to_thread(self._score, items, request)

    async def replace(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                parameter.copy_(tensors[name])

    def projection(self) -> dict[str, Any]:
        return causal_lm.projection_of(self._model, self._vocabulary)

    def stop(self) -> None:
        del self._model

    @torch.inference_mode()
    def _score(self, items: Sequence[Any], request: ScoreRequest) -> list[Score]:
        batch = causal_lm.pack([(item.prompt_ids, item.response_ids) for item in items]).to(self._device)
        hidden = causal_lm.hidden_states(self._model, batch)
        students = _student_support(items, request, self._device).split(CHUNK_TOKENS)
        chunks = [
            self._read(h, t, own, request)
            for h, t, own in zip(hidden.split(CHUNK_TOKENS), batch.token_ids.split(CHUNK_TOKENS), students, strict=True)
        ]
        columns = {name: torch.cat([c[name] for c in chunks]).cpu() for name in chunks[0]}
        if request.support == "full":
            columns["hidden"] = hidden.cpu()
        lengths = [len(item.response_ids) for item in items]
        split = {name: column.split(lengths) for name, column in columns.items()}
        return [_score_of(item.uid, {name: rows[i] for name, rows in split.items()}) for i, item in enumerate(items)]

    def _read(self, hidden: Tensor, token_ids: Tensor, own: Tensor, request: ScoreRequest) -> dict[str, Tensor]:
        logprobs = causal_lm.head_logprobs(self._model, hidden, self._vocabulary)
        columns = {"logprobs": logprobs.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1), "entropy": entropy(logprobs)}
        if request.support == "topk":
            ids = own if request.topk_of == "student" else logprobs.topk(request.topk, dim=-1).indices
            if request.topk_of == "union":
                ids = united(ids, own)
            used, inside = ids >= 0, ids.clamp(min=0)
            columns["support_ids"] = ids
            columns["support_logprobs"] = logprobs.gather(-1, inside).masked_fill(~used, -torch.inf)
            outside = torch.ones_like(logprobs, dtype=torch.bool)
            outside.scatter_(-1, torch.where(used, inside, inside[..., :1]), False)  # the first place is always used
            columns["tail_logprob"] = logprobs.masked_fill(~outside, -torch.inf).logsumexp(-1)
        return columns


def united(first: Tensor, second: Tensor) -> Tensor:
    """Ids of both supports, each once: [N, K], [N, J] -> [N, K + J]; a repeated one leaves its place unused, -1."""
    repeated = (second.unsqueeze(-1) == first.unsqueeze(-2)).any(-1)
    return torch.cat([first, second.masked_fill(repeated, -1)], dim=-1)


def _student_support(items: Sequence[Any], request: ScoreRequest, device: torch.device) -> Tensor:
    """[tokens, k] ids that the student ranked highest where it sampled; [tokens, 0] where nobody asks for them."""
    tokens = sum(len(item.response_ids) for item in items)
    if request.support != "topk" or request.topk_of == "teacher":
        return torch.zeros((tokens, 0), dtype=torch.long, device=device)
    ids = torch.tensor([i for item in items for i in item.support_ids], dtype=torch.long, device=device)
    return ids.reshape(tokens, request.topk)


def _score_of(uid: str, columns: dict[str, Tensor]) -> Score:
    hidden, total = columns.pop("hidden", None), float(columns.pop("entropy").sum())
    arrays: dict[str, Any] = {name: column.numpy() for name, column in columns.items()}
    if "support_ids" in arrays:
        arrays["support_ids"] = arrays["support_ids"].astype(np.int32)
        arrays["support_logprobs"] = arrays["support_logprobs"].astype(np.float16)
    bits = None if hidden is None else causal_lm.to_bytes(hidden).tobytes()
    return Score(uid=uid, hidden=bits, entropy_sum=total, **arrays)
