"""Server engine of the scorer: prompt log-probs from a vLLM server that runs elsewhere, at temperature 1.

The server batches what its callers ask, so members only wait for it: one or two of them keep it busy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from actors.scoring.engine import Item
from actors.scoring.prompt_logprobs import score_of
from actors.scoring.server_client import ServerClient, ServerRefused
from actors.wire.records import Score, ScoreRequest
from configs.roles.scorer import Scorer as ScorerConfig

PATIENCE = 300.0  # seconds for a server that was restarted; the deadline of a request may end it before
NOTHING = -9999.0  # what a server says for the log-prob -inf, which JSON does not have
ROUNDING = 1e-3  # of a sum of probabilities


class ServerEngine:
    hidden_dtype = "none"
    continuous = True

    def __init__(self, client: ServerClient) -> None:
        self._client = client
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, config: ScorerConfig) -> ServerEngine:
        """Raises ServerRefused, ServerAway."""
        assert config.server is not None, "the rules of recipes see to it"
        client = ServerClient(config.server, PATIENCE)
        await client.open()
        await client.find(config.max_context_tokens)
        return cls(client)

    async def score(self, items: Sequence[Item], request: ScoreRequest) -> list[Score]:
        """Raises ValueError for a support that prompt log-probs cannot give; ServerRefused, ServerAway."""
        if request.support == "full" or request.ends:
            raise ValueError("a server gives sampled and topk supports, and no mass of all end tokens; use torch")
        return list(await asyncio.gather(*(self._one(item, request) for item in items)))

    async def replace(self, tensors: dict[str, Any]) -> None:
        raise NotImplementedError("a server keeps its weights; use engine: torch for a moving teacher")

    def projection(self) -> dict[str, Any]:
        raise NotImplementedError("a server gives no hidden states; use engine: torch")

    async def sleep(self) -> None:
        """It holds no memory of this machine's accelerators."""

    async def wake(self) -> None: ...

    def stop(self) -> None:
        self._closing = asyncio.get_running_loop().create_task(self._client.close())

    async def _one(self, item: Item, request: ScoreRequest) -> Score:
        k = request.topk if request.support == "topk" else 0
        token_ids = [*item.prompt_ids, *item.response_ids]
        found = await self._client.prompt_logprobs(token_ids, k)
        start = item.tokens - len(item.new_ids)
        return await asyncio.to_thread(_score_of, item, token_ids[start:], found[start:], k)


def _score_of(item: Item, token_ids: Sequence[int], found: Sequence[Mapping[str, Any] | None], k: int) -> Score:
    try:
        sampled = [_finite(at[str(token)]["logprob"]) for token, at in zip(token_ids, found, strict=True)]  # type: ignore[index]
        ranked = [_ranked(at, k) for at in found if at is not None and k]
    except (KeyError, TypeError, ValueError) as error:
        raise ServerRefused(f"the server's log-probs are not those of {k} ranks and the token ({error!r})") from error
    ids = np.array([[token for token, _ in row] for row in ranked], dtype=np.int32).reshape(len(found), k)
    logprobs = np.array([[value for _, value in row] for row in ranked], dtype=np.float32).reshape(len(found), k)
    if k and (most := float(np.exp(logprobs.astype(np.float64)).sum(-1).max())) > 1.0 + ROUNDING:
        raise ServerRefused(f"the server's probabilities sum to {most:.4f}; start it with --logprobs-mode raw_logprobs")
    return score_of(item.uid, np.array(sampled, dtype=np.float32), ids, logprobs)


def _ranked(at: Mapping[str, Any], k: int) -> list[tuple[int, float]]:
    by_rank = {one["rank"]: (int(token), _finite(one["logprob"])) for token, one in at.items()}
    return [by_rank[rank] for rank in range(1, k + 1)]


def _finite(logprob: float) -> float:
    return float("-inf") if logprob <= NOTHING else float(logprob)
