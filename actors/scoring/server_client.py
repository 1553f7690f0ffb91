"""HTTP to a vLLM server that somebody else runs: which models it serves, and the log-probs of given tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import aiohttp

from configs.refusal import reason
from configs.roles.scorer import Server

FIRST_WAIT, LONGEST_WAIT = 0.25, 8.0  # seconds between two attempts
AGAIN = {408, 425, 429}  # of a server that is busy; other codes from 300 to 499 are refusals
SHOWN = 300  # characters of a server's message


class ServerAway(ConnectionError):
    """The server does not answer, or is not able to."""


class ServerRefused(Exception):
    """The server refuses the request, or answers with something else than was asked for."""


class ServerClient:
    """Used as a context manager. A request is repeated for `patience` seconds while the server is away. Nothing is
    redirected and no proxy of the environment is used: the token goes to `address` alone."""

    def __init__(self, server: Server, patience: float) -> None:
        self._server = server
        self._patience = patience
        self._session: aiohttp.ClientSession | None = None
        self._model: str | None = None

    async def open(self) -> None:
        """Read the token. Raises ServerRefused if its file cannot be read."""
        token = await asyncio.to_thread(_token, self._server.token_file)
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {token}"} if token else {},
            connector=aiohttp.TCPConnector(limit=self._server.max_concurrent),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10.0),
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def __aenter__(self) -> ServerClient:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def find(self, context: int) -> None:
        """Find the model among those that are served. Raises ServerRefused if it is not there, or if it takes fewer
        than `context` tokens and the one that is decoded behind them; ServerAway."""
        served = (await self._ask("GET", "/v1/models", None)).get("data")
        known = {m["id"]: m for m in served} if isinstance(served, list) else {}
        name = self._server.model or (next(iter(known)) if len(known) == 1 else None)
        if name not in known:
            named = f"model: {name} is not served" if name else "several models are served; name one as model"
            raise ServerRefused(f"{self._server.address}: {named}; it serves: {', '.join(known) or 'none'}")
        longest = known[name].get("max_model_len")
        if isinstance(longest, int) and longest < context + 1:
            raise ServerRefused(
                f"{self._server.address}: serves {name} with {longest} tokens, and max_context_tokens: {context} and "
                f"one more are asked for; lower it, or start the server with --max-model-len {context + 1}"
            )
        self._model = name

    async def prompt_logprobs(self, token_ids: Sequence[int], k: int) -> list[Mapping[str, Any] | None]:
        """For each token: None for the first, else {token id: {"logprob", "rank"}} of it and of the `k` likeliest.
        Raises ServerRefused, ServerAway."""
        body = {"model": self._model, "prompt": list(token_ids), "max_tokens": 1, "prompt_logprobs": k}
        answer = await self._ask("POST", "/v1/completions", body)
        choices = answer.get("choices")
        found = choices[0].get("prompt_logprobs") if isinstance(choices, list) and choices else None
        if not isinstance(found, list) or len(found) != len(token_ids):
            raise ServerRefused(f"{self._server.address}: gives no log-probs of a prompt; is it a vLLM server?")
        return found

    async def _ask(self, verb: Literal["GET", "POST"], path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        wait, end = FIRST_WAIT, asyncio.get_running_loop().time() + self._patience
        while True:
            try:
                return await self._once(verb, path, body)
            except ServerAway as error:
                if asyncio.get_running_loop().time() + wait > end:
                    raise ServerAway(f"{error}; it was asked for {self._patience:g} s; start it") from None
            await asyncio.sleep(wait)
            wait = min(2.0 * wait, LONGEST_WAIT)

    async def _once(self, verb: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        assert self._session is not None, "open() comes first"
        address = self._server.address.rstrip("/")
        try:
            async with self._session.request(verb, f"{address}{path}", json=body, allow_redirects=False) as answer:
                if answer.status >= 500 or answer.status in AGAIN:
                    raise ServerAway(f"{address}: answers {answer.status} {await _message(answer)}")
                if answer.status >= 300:
                    raise ServerRefused(f"{address}: answers {answer.status} {await _message(answer)}")
                found = await answer.json(content_type=None)
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as error:
            raise ServerAway(f"{address}: does not answer ({type(error).__name__}: {reason(error)})") from None
        except ValueError as error:
            raise ServerRefused(f"{address}: answers no JSON ({reason(error)}); is it a vLLM server?") from None
        if not isinstance(found, dict):
            raise ServerRefused(f"{address}: answers no JSON object; is it a vLLM server?")
        return found


async def _message(answer: aiohttp.ClientResponse) -> str:
    """What a server says of an error, in one line."""
    text = " ".join((await answer.text(errors="replace")).split())
    return text[:SHOWN] + ("..." if len(text) > SHOWN else "")


def _token(file: str | None) -> str | None:
    if file is None:
        return None
    try:
        token = Path(file).read_text().strip()
    except (OSError, ValueError) as error:
        raise ServerRefused(f"token_file: {file} cannot be read ({reason(error)}); give a file with the key") from None
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ServerRefused(f"token_file: {file} holds no key; write the key into it, and nothing else")
    return token
