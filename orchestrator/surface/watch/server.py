"""The server of the live page: a few fixed answers, to whom the guard lets in."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web

from actors.address import LOOPBACK
from actors.metrics import STEP_METRICS
from configs.refusal import RecipeError
from orchestrator.surface.outcome import console
from orchestrator.surface.report.recorded import CHARTS, CLIP, COMPONENTS, FREE, NEUTRAL
from orchestrator.surface.watch.guard import Guard
from orchestrator.surface.watch.run_files import RunFiles

T = TypeVar("T")

STATIC = Path(__file__).parent / "static"
DEMO = Path(__file__).parent / "demo"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

# uPlot 1.6.31 as its authors published it, from the installed package that carries it. That package is not imported.
LIBRARY = "youplot"
LIBRARY_FILES = {
    "uplot.js": ("vendor/uplot.iife.min.js", "2d27e8ad3d228164525ce213f9dc716f39b4e3aee0cc773fb3491c96cf4921a2"),
    "uplot.css": ("vendor/uplot.min.css", "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04"),
}
MORE_CHARTS = (
    ("Components of the reward", "mean of a step, unweighted", (COMPONENTS,)),
    ("Log-ratio of sampled tokens", "nats; 1st, 50th, 99th percentile", (
        "log_ratio_p1", "log_ratio_p50", "log_ratio_p99",
    )),
    ("Where the seconds went", "busy seconds; roles overlap", (
        "seconds_rollout", "seconds_score", "seconds_reward", "seconds_learn", "seconds_publish", "seconds_wait",
        "seconds_step",
    )),
    ("Tokens", "of a step", ("tokens_generated", "tokens_scored", "tokens_trained")),
)  # fmt: skip


class Page:
    """The answers. Files are read in a thread, one read of a run at a time."""

    def __init__(self, runs: Sequence[Path]) -> None:
        self._runs = [RunFiles(directory) for directory in runs]
        self._locks = [asyncio.Lock() for _ in runs]
        self._files = static_files() | library_files()

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/", self.index),
            web.get("/static/{name}", self.file),
            web.get("/api/page", self.words),
            web.get("/api/runs", self.overviews),
            web.get(r"/api/runs/{run:\d{1,2}}/curves", self.curves),
            web.get(r"/api/runs/{run:\d{1,2}}/samples", self.recorded),
            web.get(r"/api/runs/{run:\d{1,2}}/samples/{step:\d{1,9}}", self.samples),
        ]

    async def index(self, request: web.Request) -> web.Response:
        return self._send("index.html")

    async def file(self, request: web.Request) -> web.Response:
        """One of the page's own files, by name. There is no path to wander from."""
        return self._send(request.match_info["name"])

    async def words(self, request: web.Request) -> web.Response:
        """What does not change: the charts, what metrics mean, and how colours are to be read."""
        charts = [
            {"title": title, "unit": unit, "metrics": names, "free": title in FREE}
            for title, unit, names in (*CHARTS, *MORE_CHARTS)
        ]
        return web.json_response({"charts": charts, "meanings": STEP_METRICS, "clip": CLIP, "neutral": NEUTRAL})

    async def overviews(self, request: web.Request) -> web.Response:
        return _json([await self._of(i, RunFiles.overview) for i in range(len(self._runs))])

    async def curves(self, request: web.Request) -> web.Response:
        """Rows of metrics from ?start of ?generation on."""
        start, generation = _query(request, "start"), _query(request, "generation")
        return _json(await self._of(self._index(request), lambda run: run.tail.part(generation, start)))

    async def recorded(self, request: web.Request) -> web.Response:
        return _json(await self._of(self._index(request), lambda run: run.samples.steps()))

    async def samples(self, request: web.Request) -> web.Response:
        """Samples of a step from ?start on."""
        step, start = int(request.match_info["step"]), _query(request, "start")
        found = await self._of(self._index(request), lambda run: run.samples.page(step, start))
        if found is None:
            raise web.HTTPNotFound(text=f"step {step} was not recorded\n")
        return _json(found)

    async def _of(self, index: int, ask: Callable[[RunFiles], T]) -> T:
        async with self._locks[index]:
            return await asyncio.to_thread(ask, self._runs[index])

    def _index(self, request: web.Request) -> int:
        index = int(request.match_info["run"])
        if index >= len(self._runs):
            raise web.HTTPNotFound(text=f"there are {len(self._runs)} runs here\n")
        return index

    def _send(self, name: str) -> web.Response:
        if name not in self._files:
            raise web.HTTPNotFound(text="no such file\n")
        return web.Response(body=self._files[name], content_type=TYPES[Path(name).suffix], charset="utf-8")


def application(runs: Sequence[Path], guard: Guard) -> web.Application:
    app = web.Application(middlewares=[guard.check])
    app.add_routes(Page(runs).routes())
    return app


def serve(runs: Sequence[Path], port: int) -> None:
    """Serve the page on loopback until Ctrl-C. Raises RecipeError where the port is taken."""
    try:
        asyncio.run(_serve(runs, port))
    except KeyboardInterrupt:
        console.print()
    except OSError as error:
        raise RecipeError(f"--port {port}: {error.strerror or error}; take another, or 0 for a free one") from None


async def _serve(runs: Sequence[Path], port: int) -> None:
    guard = Guard()
    runner = web.AppRunner(application(runs, guard), access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, LOOPBACK, port)
        await site.start()
        address = f"http://{LOOPBACK}:{runner.addresses[0][1]}/?token={guard.token}"
        console.print(address, markup=False, soft_wrap=True)
        console.print(
            "for browsers on this machine; whoever has the address can read the run. Ctrl-C ends it", soft_wrap=True
        )
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def static_files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in STATIC.iterdir() if path.suffix in TYPES}


def library_files() -> dict[str, bytes]:
    """The chart library. Raises RuntimeError where the installed package does not hold what its authors published."""
    found, installed = {}, metadata.distribution(LIBRARY)
    for name, (path, digest) in LIBRARY_FILES.items():
        found[name] = Path(str(installed.locate_file(f"{LIBRARY}/{path}"))).read_bytes()
        if hashlib.sha256(found[name]).hexdigest() != digest:
            raise RuntimeError(f"package {LIBRARY}: {path} is not uPlot as published; install the pinned version")
    return found


def _query(request: web.Request, name: str) -> int:
    """A count in the query, 0 without it."""
    text = request.query.get(name, "0")
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise web.HTTPBadRequest(text=f"{name}={text[:40]!r}: write a whole number\n")
    return int(text)


def _json(value: Any) -> web.Response:
    response = web.json_response(value)
    response.enable_compression()
    return response
