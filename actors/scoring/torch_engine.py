"""Torch engine of the scorer: one packed transformers forward pass for the whole responses of a batch, the LM head in
chunks.

Each segment has a forward pass of its own, on the KV cache of the segments before it: every token goes through the
model once, if the model can continue from a cache. The last token of a segment goes through with the next segment,
because its hidden state predicts that segment's first token.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.models import causal_lm, loading
from actors.models.stored import stored
from actors.scoring.engine import Item
from actors.scoring.prefix_cache import PrefixCache
from actors.wire.records import Score, ScoreRequest
from configs.roles.scorer import Scorer as ScorerConfig
from objectives import ends
from objectives.devices import constant, moved, on_host
from objectives.distributions import Distributions
from objectives.divergence import entropy

CHUNK_TOKENS = 256  # rows of [tokens, vocabulary] in memory at a time


class TorchEngine:
    continuous = False

    def __init__(self, config: ScorerConfig, model: Path, vocabulary: int) -> None:
        torch.set_num_threads(config.resources.threads)
        self._device = torch.device("cuda" if config.resources.gpus > 0 else "cpu")
        self._directory = model
        loaded = loading.load(model, config.dtype, config.attention, "auto", self._device)
        self._model: Any = loaded.model
        self._handling = loaded.handling
        self._vocabulary = vocabulary
        self._prefixes: PrefixCache[Any] = PrefixCache(config.cache_tokens)
        self.hidden_dtype = config.dtype

    async def score(self, items: Sequence[Item], request: ScoreRequest) -> list[Score]:
        return await asyncio.to_thread(self._score, items, request)

    async def replace(self, tensors: dict[str, Tensor]) -> None:
        await asyncio.to_thread(self._replace, tensors)
        self._prefixes.clear()

    def projection(self) -> dict[str, Any]:
        return causal_lm.projection_of(self._model, self._vocabulary, self._handling)

    async def sleep(self) -> None:
        await asyncio.to_thread(self._move, torch.device("cpu"))
        self._prefixes.clear()
        torch.cuda.empty_cache()  # no effect without a GPU

    async def wake(self) -> None:
        await asyncio.to_thread(self._move, self._device)

    @torch.no_grad()
    def _replace(self, tensors: dict[str, Tensor]) -> None:
        """Copy tensors, named as in the model's files, into the model: all, or those that a version changes."""
        own = self._model.state_dict()
        for group in (group for group in stored(self._directory).groups if group.tensors.keys() <= tensors.keys()):
            for name, tensor in group.join(tensors).items():
                own[name].copy_(tensor)

    def _move(self, device: torch.device) -> None:
        self._model.to(device)

    def stop(self) -> None:
        self._model = None
        self._prefixes.clear()
        gc.collect()  # modules may refer to each other
        torch.cuda.empty_cache()

    @torch.inference_mode()
    def _score(self, items: Sequence[Item], request: ScoreRequest) -> list[Score]:
        hidden = self._hidden(items)
        new = moved(torch.tensor([token for item in items for token in item.new_ids]), self._device)
        students = _student_support(items, request, self._device).split(CHUNK_TOKENS)
        chunks = [
            self._read(h, t, own, request)
            for h, t, own in zip(hidden.split(CHUNK_TOKENS), new.split(CHUNK_TOKENS), students, strict=True)
        ]
        found = {name: torch.cat([c[name] for c in chunks]) for name in chunks[0]}
        if request.support == "full":
            found["hidden"] = hidden
        columns = dict(zip(found, on_host([*found.values()]), strict=True))
        lengths = [len(item.new_ids) for item in items]
        split = {name: column.split(lengths) for name, column in columns.items()}
        return [_score_of(item.uid, {name: rows[i] for name, rows in split.items()}) for i, item in enumerate(items)]

    def _hidden(self, items: Sequence[Item]) -> Tensor:
        """[new tokens, width]: the hidden states that predict the new tokens of all items, concatenated."""
        whole = [item for item in items if item.whole]
        packed: list[Tensor] = []
        if whole:
            rows = [(item.prompt_ids, item.response_ids) for item in whole]
            batch = causal_lm.pack(rows, self._handling.packs).to(self._device)
            hidden = causal_lm.hidden_states(self._model, batch, self._handling)
            packed += hidden.split([len(item.response_ids) for item in whole])
        states = iter(packed)
        return torch.cat([next(states) if item.whole else self._continued(item) for item in items])

    def _continued(self, item: Item) -> Tensor:
        """[new tokens, width] of a segment. Earlier tokens that no cache covers are computed again."""
        ids = [*item.prompt_ids, *item.response_ids]
        if not self._handling.continues:
            batch = causal_lm.pack([(ids[: -len(item.new_ids)], item.new_ids)]).to(self._device)
            return causal_lm.hidden_states(self._model, batch, self._handling)
        past, cache = self._prefixes.take(item.uid, ids[: -len(item.new_ids) - 1]) or (0, None)
        states, cache = causal_lm.continued_states(self._model, ids[past:-1], self._handling, cache)
        if not item.last:
            self._prefixes.keep(item.uid, ids[:-1], cache)
        return states[-len(item.new_ids) :]

    def _read(self, hidden: Tensor, token_ids: Tensor, own: Tensor, request: ScoreRequest) -> dict[str, Tensor]:
        student = causal_lm.head_distributions(self._model, hidden, self._vocabulary, self._handling)
        if request.support != "topk":
            return _sampled(student, token_ids, request.ends)
        logprobs = student.rows()
        columns = {"logprobs": logprobs.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1), "entropy": entropy(logprobs)}
        if request.ends:
            columns["logprobs"] = ends.class_logprob(logprobs, token_ids, request.ends)
        return columns | support_of(logprobs, own, request)


def _sampled(model: Distributions, token_ids: Tensor, end_ids: Sequence[int]) -> dict[str, Tensor]:
    ids = token_ids.unsqueeze(-1)
    logprobs, entropies = model.at(torch.cat([ids, *(torch.full_like(ids, end) for end in end_ids)], dim=-1))
    own, of_class = logprobs[:, 0], logprobs[:, 1:].logsumexp(-1)
    return {
        "logprobs": torch.where(ends.is_end(token_ids, end_ids), of_class, own) if end_ids else own,
        "entropy": entropies,
    }


def support_of(logprobs: Tensor, own: Tensor, request: ScoreRequest) -> dict[str, Tensor]:
    """Top k of [N, V] log-probs as the request asks, and their tail. `own` [N, k] are the student's ids. End tokens
    that are one outcome have a last column of their own and are in neither the k nor the tail."""
    others = _without(logprobs, request.ends)
    if request.topk_of == "student":
        ids = own
    else:
        best = others.topk(min(request.topk, others.shape[-1]), dim=-1)
        ids = best.indices.masked_fill(best.values == -torch.inf, -1) if request.ends else best.indices
    if request.topk_of == "union":
        ids = united(ids, own)
    used, inside = ids >= 0, ids.clamp(min=0)
    logprob = others.gather(-1, inside).masked_fill(~used, -torch.inf)
    outside = torch.ones_like(logprobs, dtype=torch.bool)
    outside.scatter_(-1, torch.where(used, inside, inside[..., :1]), False)  # the first place is always used
    tail = others.masked_fill(~outside, -torch.inf).logsumexp(-1)
    if request.ends:
        ids = torch.cat([ids, torch.full_like(ids[..., :1], min(request.ends))], dim=-1)
        logprob = torch.cat([logprob, ends.class_mass(logprobs, request.ends).unsqueeze(-1)], dim=-1)
    return {"support_ids": ids, "support_logprobs": logprob, "tail_logprob": tail}


def _without(logprobs: Tensor, ids: Sequence[int]) -> Tensor:
    """The log-probs with -inf at `ids`."""
    if not ids:
        return logprobs
    return logprobs.index_fill(-1, constant(tuple(ids), logprobs.device), -torch.inf)


def united(first: Tensor, second: Tensor) -> Tensor:
    """Union of two supports, [N, K] and [N, J] -> [N, K + J]; the place of a repeated id holds -1."""
    repeated = (second.unsqueeze(-1) == first.unsqueeze(-2)).any(-1)
    return torch.cat([first, second.masked_fill(repeated, -1)], dim=-1)


def _student_support(items: Sequence[Item], request: ScoreRequest, device: torch.device) -> Tensor:
    """[tokens, k] ids of the student's top k; [tokens, 0] if the request does not use them."""
    tokens = sum(len(item.new_ids) for item in items)
    if request.support != "topk" or request.topk_of == "teacher":
        return torch.zeros((tokens, 0), dtype=torch.long, device=device)
    ids = torch.tensor([i for item in items for i in item.support_ids], dtype=torch.long)
    return moved(ids.reshape(tokens, request.topk), device)


def _score_of(uid: str, columns: dict[str, Tensor]) -> Score:
    hidden, total = columns.pop("hidden", None), float(columns.pop("entropy").sum())
    arrays: dict[str, Any] = {name: column.numpy() for name, column in columns.items()}
    if "support_ids" in arrays:
        arrays["support_ids"] = arrays["support_ids"].astype(np.int32)
        arrays["support_logprobs"] = arrays["support_logprobs"].astype(np.float16)
    bits = None if hidden is None else causal_lm.to_bytes(hidden).tobytes()
    return Score(uid=uid, hidden=bits, entropy_sum=total, **arrays)
