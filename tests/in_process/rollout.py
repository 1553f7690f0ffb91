"""A rollout member in plain torch, for runs in one process: its students are tiny, and vLLM starts slowly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from actors.models import weights
from actors.rollout.writer import Writer
from actors.wire.records import Request, Sample
from configs.schema import Sampling

GATHER_SECONDS = 0.01  # in which the other requests of a block come


class Asked(NamedTuple):
    """A request that waits for its response."""

    request: Request
    sampling: Sampling
    answer: asyncio.Future[Sample]


class TorchRollout(Writer):
    """Requests that wait together are sampled together; each token is drawn by its request's seed. Nothing leaves in
    segments."""

    def __init__(self, config: Any, model: str, shared: str, lora: Any = None) -> None:
        super().__init__()
        self._path = Path(model)
        self._model: Any = None
        self._version = 0
        self._waiting: list[Asked] = []

    async def start(self) -> None:
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(self._path, dtype=torch.float32).eval()

    async def write(self, request: Request, sampling: Sampling, end_token_ids: Sequence[int]) -> AsyncIterator[Sample]:
        asked = Asked(request, sampling, asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        await asyncio.sleep(GATHER_SECONDS)
        if not asked.answer.done():
            self._answer(sampling, end_token_ids)
        yield await asked.answer

    async def load(self, version: int, headers: Sequence[Any], *buckets: Any) -> int:
        tensors = weights.checked(headers, buckets, self._path)
        unknown = self._model.load_state_dict(tensors, strict=False).unexpected_keys
        assert not unknown, unknown
        self._version = version
        return version

    async def stop(self) -> None:
        self._model = None

    def _answer(self, sampling: Sampling, ends: Sequence[int]) -> None:
        """Answer all that wait and are sampled alike."""
        mine = [asked for asked in self._waiting if asked.sampling == sampling]
        self._waiting = [asked for asked in self._waiting if asked.sampling != sampling]
        mine = [asked for asked in mine if not asked.answer.cancelled()]
        drawn = sample(self._model, [asked.request for asked in mine], sampling, set(ends))
        for asked, (ids, logprobs) in zip(mine, drawn, strict=True):
            finish = "stop" if ids[-1] in ends else "length"
            asked.answer.set_result(asked.request.answered(ids, logprobs, finish, [self._version] * len(ids)))


@torch.no_grad()
def sample(
    model: Any, requests: Sequence[Request], sampling: Sampling, ends: set[int]
) -> list[tuple[list[int], list[float]]]:
    """Response ids and their log-probs, nats, at the temperature; 0 is greedy."""
    assert sampling.top_p == 1.0, "this one samples from the whole distribution"
    ids, mask = _padded([request.sampled_prompt_ids or request.prompt_ids for request in requests])
    draws = [torch.Generator().manual_seed(request.seed) for request in requests]
    found: list[tuple[list[int], list[float]]] = [([], []) for _ in requests]
    past = None
    for _ in range(sampling.max_response_tokens):
        places = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = model(input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=past, use_cache=True)
        past = out.past_key_values
        logprobs = (out.logits[:, -1].float() / (sampling.temperature or 1.0)).log_softmax(-1)
        tokens = _drawn(logprobs, draws) if sampling.temperature else logprobs.argmax(-1)
        if not _grow(found, tokens, logprobs, ends):
            break
        ids, mask = tokens[:, None], torch.cat([mask, torch.ones_like(tokens)[:, None]], 1)
    return found


def _padded(prompts: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask [prompts, longest], padded on the left."""
    longest = max(map(len, prompts))
    ids = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


def _grow(
    found: Sequence[tuple[list[int], list[float]]], tokens: torch.Tensor, logprobs: torch.Tensor, ends: set[int]
) -> bool:
    """Add a token to each response that has not ended; whether any goes on."""
    chosen = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
    for (ids, of_ids), token, logprob in zip(found, tokens.tolist(), chosen, strict=True):
        if not ids or ids[-1] not in ends:
            ids.append(token)
            of_ids.append(logprob)
    return any(ids[-1] not in ends for ids, _ in found)


def _drawn(logprobs: torch.Tensor, draws: Sequence[torch.Generator]) -> torch.Tensor:
    """A token a row, by the row's own generator: the largest of log-prob plus Gumbel noise."""
    uniform = torch.stack([torch.rand(logprobs.shape[1], generator=draw, dtype=torch.float64) for draw in draws])
    return (logprobs.double() - (-uniform.log()).log()).argmax(-1)
