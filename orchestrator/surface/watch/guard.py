"""Who may read the page: the browser, or the program, that has the token, and asks this machine by its own name."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

HOSTS = ("127.0.0.1", "localhost", "[::1]")  # any port: an SSH tunnel may end at another one

# Scripts and styles come from here alone, and no script may turn text into markup: a sample stays text.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the first address holds the token
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Checks every request, and marks every answer. `token` is new with each start."""

    def __init__(self, token: str | None = None) -> None:
        self.token = token or secrets.token_urlsafe(32)
        self._cookie = "logratio_watch_" + secrets.token_hex(4)  # cookies know no port: two pages keep two

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """403 for another host name than this machine's, 401 without the token; else the handler's answer."""
        try:
            response = await self._answer(request, handler)
        except web.HTTPException as error:
            response = web.Response(status=error.status, text=error.text, headers=_of_error(error))
        response.headers.update(HEADERS)
        return response

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not _is_own_name(request.host):
            raise web.HTTPForbidden(text="this page answers to localhost only\n")
        if self._matches(request.query.get("token")):
            return self._welcome(request)
        if not (self._matches(request.cookies.get(self._cookie)) or self._matches(_bearer(request))):
            raise web.HTTPUnauthorized(text="open the address that `logratio watch` printed: it holds the token\n")
        return await handler(request)

    def _welcome(self, request: web.Request) -> web.StreamResponse:
        """Move the token from the address into a cookie that no script and no other site can use."""
        response = web.Response(status=303, headers={"Location": request.path})
        response.set_cookie(self._cookie, self.token, httponly=True, samesite="Strict", path="/")
        return response

    def _matches(self, given: str | None) -> bool:
        return given is not None and hmac.compare_digest(given.encode(errors="replace"), self.token.encode())


def _is_own_name(host: str) -> bool:
    """Whether a Host header names this machine. A page of another site that points its own name here is told apart."""
    name, colon, port = host.rpartition(":")
    if not colon or "]" in port:  # no port
        name, port = host, "0"
    return name.lower() in HOSTS and port.isdigit()


def _bearer(request: web.Request) -> str | None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token if scheme == "Bearer" else None


def _of_error(error: web.HTTPException) -> dict[str, str]:
    """The headers of a refusal that a client needs."""
    return {name: error.headers[name] for name in ("Location", "Allow") if name in error.headers}
