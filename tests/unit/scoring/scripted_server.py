"""A server that answers as vLLM's does, with log-probs that a test chose, or with what a test scripted before."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.Response]]


class Scripted:
    """`models` are served. `at(place, token, k)` is the entry of a token of a prompt. `first` answers come before."""

    def __init__(self, at: Callable[[int, int, int], dict[str, Any]] | None = None) -> None:
        self.models: list[dict[str, Any]] = [{"id": "big", "max_model_len": 64}]
        self.first: list[Answer] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.address = ""
        self._at = at or logprobs_at

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Scripted]:
        app = web.Application()
        app.router.add_get("/v1/models", self._answer(self._models))
        app.router.add_post("/v1/completions", self._answer(self._completions))
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    def _answer(self, usual: Answer) -> Answer:
        async def answer(request: web.Request) -> web.Response:
            self.keys.append(request.headers.get("Authorization"))
            return await (self.first.pop(0) if self.first else usual)(request)

        return answer

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": self.models})

    async def _completions(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.asked.append(body)
        prompt, k = body["prompt"], body["prompt_logprobs"]
        entries = [None, *(self._at(place, token, k) for place, token in enumerate(prompt) if place)]
        return web.json_response({"choices": [{"index": 0, "text": "x", "prompt_logprobs": entries}]})


def logprobs_at(place: int, token: int, k: int) -> dict[str, Any]:
    """The token has rank 2 and the log-prob -1.1 less a hundredth of its place; 900 is likelier, 901 and on are not."""
    known = {str(token): {"logprob": -1.1 - place / 100, "rank": 2, "decoded_token": "t"}}
    others = {str(899 + rank): {"logprob": -0.5 - rank, "rank": rank, "decoded_token": "o"} for rank in range(1, k + 1)}
    return known | {name: one for name, one in others.items() if one["rank"] != 2}


def says(status: int, text: str, **headers: str) -> Answer:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, text=text, headers=headers)

    return answer
