"""What the live page's server answers, and to whom."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from configs.refusal import RecipeError
from orchestrator import cli
from orchestrator.surface.watch import server
from orchestrator.surface.watch.guard import Guard
from orchestrator.surface.watch.server import application
from tests import synthetic

TOKEN = {"Authorization": "Bearer secret"}
PATHS = (
    "/",
    "/static/app.js",
    "/static/uplot.js",
    "/api/page",
    "/api/runs",
    "/api/runs/0/curves",
    "/api/runs/0/samples",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_run(tmp_path_factory.mktemp("runs") / "run", steps=3)


def asked(runs: Path | list[Path], ask: Callable[[TestClient[Any, Any]], Awaitable[Any]]) -> Any:
    """What `ask` returns of a client of the page."""

    async def talk() -> Any:
        app = application(runs if isinstance(runs, list) else [runs], Guard("secret"))
        async with TestClient(TestServer(app), cookie_jar=aiohttp.DummyCookieJar()) as client:
            return await ask(client)

    return asyncio.run(talk())


def got(runs: Path | list[Path], path: str, headers: dict[str, str] = TOKEN) -> tuple[int, str]:
    async def ask(client: TestClient[Any, Any]) -> tuple[int, str]:
        async with client.get(URL(path, encoded=True), headers=headers, allow_redirects=False) as answer:
            return answer.status, await answer.text()

    return asked(runs, ask)


def answer(runs: Path | list[Path], path: str) -> Any:
    status, text = got(runs, path)
    assert status == 200, text
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON that a browser reads"))


@pytest.mark.parametrize("path", [*PATHS, "/nothing"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "secret"},
        {"Cookie": "logratio_watch=secret; token=secret"},
    ],
    ids=["none", "wrong", "no scheme", "a cookie of another name"],
)
def test_without_the_token_nothing_is_answered(run: Path, path: str, headers: dict[str, str]) -> None:
    status, text = got(run, path, headers)
    assert status == 401 and "secret" not in text and "script" not in text


@pytest.mark.parametrize("path", ["/?token=wrong", "/?token=", "/?token=secre", "/?token=%ff", "/?token=secr%c3%a9t"])
def test_a_wrong_token_in_the_address_opens_nothing(run: Path, path: str) -> None:
    assert got(run, path, {})[0] == 401


def test_the_token_leaves_the_address_for_a_cookie_that_no_script_can_read(run: Path) -> None:
    async def ask(client: TestClient[Any, Any]) -> None:
        async with client.get("/?token=secret", allow_redirects=False) as welcome:
            assert (welcome.status, welcome.headers["Location"]) == (303, "/")
            (cookie,) = SimpleCookie(welcome.headers["Set-Cookie"]).values()
            assert cookie["httponly"] and cookie["samesite"] == "Strict" and cookie["path"] == "/"
        async with client.get("/", headers={"Cookie": f"{cookie.key}={cookie.value}"}) as page:
            assert page.status == 200 and "<!doctype html>" in await page.text()

    asked(run, ask)


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost", "LOCALHOST:1", "[::1]:99"])
def test_this_machines_own_names_are_answered(run: Path, host: str) -> None:
    assert got(run, "/api/page", TOKEN | {"Host": host})[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example:80", "127.0.0.1:80@evil",
        "127.0.0.1:", "::1",
    ],
)  # fmt: skip
def test_a_page_that_points_its_own_name_here_is_refused_even_with_the_token(run: Path, host: str) -> None:
    for path in ("/api/runs", "/?token=secret"):
        status, text = got(run, path, TOKEN | {"Host": host})
        assert status == 403 and "token" not in text


@pytest.mark.parametrize("path", [*PATHS, "/nothing", "/?token=secret"])
def test_every_answer_carries_the_policy(run: Path, path: str) -> None:
    async def ask(client: TestClient[Any, Any]) -> None:
        for headers in (TOKEN, {}):
            async with client.get(path, headers=headers, allow_redirects=False) as found:
                policy = found.headers["Content-Security-Policy"]
                assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
                assert found.headers["Cache-Control"] == "no-store"
                assert found.headers["X-Content-Type-Options"] == "nosniff"

    asked(run, ask)


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py", "/static/%2e%2e/server.py", "/static/..%2fserver.py", "/static/%2e%2e%2fguard.py",
        "/static//etc/passwd", "/static/%2fetc%2fpasswd", "/static/", "/static", "/static/app.js%00", "/recipe.yaml",
        "/api/runs/0/samples/..%2f..%2frecipe.yaml", "/api/runs/1/curves", "/api/runs/99/samples/1",
        "/api/runs/-1/curves", "/api/runs/0/samples/7", "/api/runs/0/samples/-1", "/api/runs/0/samples/1e3",
        "/api/runs/0/samples/99999999999",
    ],
)  # fmt: skip
def test_what_is_not_there_is_not_found(run: Path, path: str) -> None:
    assert got(run, path)[0] == 404


@pytest.mark.parametrize(
    "query", ["start=-1", "start=x", "start=1.5", "start=", "generation=nan", "start=%d9%a3", "start=9999999999999"]
)
def test_a_range_that_is_no_number_is_refused(run: Path, query: str) -> None:
    status, text = got(run, f"/api/runs/0/curves?{query}")
    assert status == 400 and "whole number" in text


@pytest.mark.parametrize("method", ["post", "put", "delete"])
def test_nothing_can_be_changed(run: Path, method: str) -> None:
    async def ask(client: TestClient[Any, Any]) -> int:
        async with getattr(client, method)("/api/runs", headers=TOKEN) as found:
            return found.status

    assert asked(run, ask) == 405


def test_rows_come_from_where_the_page_has_them(run: Path) -> None:
    async def ask(client: TestClient[Any, Any]) -> list[Any]:
        found = []
        for path in (
            "/api/runs",
            *(f"/api/runs/0/curves?generation={g}&start={s}" for g, s in ((0, 2), (1, 2), (1, 3), (1, 9))),
        ):
            async with client.get(path, headers=TOKEN) as part:
                found.append(await part.json())
        return found

    overviews, other, rest, nothing, beyond = asked(run, ask)
    assert (overviews[0]["generation"], overviews[0]["rows"]) == (1, 3)
    assert [part["columns"].get("step") for part in (other, rest, nothing, beyond)] == [[1, 2, 3], [3], None, [1, 2, 3]]
    assert other["columns"]["reverse_kl"][0] == pytest.approx(synthetic.metrics_of(1, 3)["reverse_kl"], rel=1e-5)


def test_samples_come_a_page_at_a_time_with_their_tokens(tmp_path: Path) -> None:
    many = [synthetic.sample(f"s{i:02d}", "Where?", " the") for i in range(11)]
    synthetic.write_samples(tmp_path / "samples/step_000004.rank0.arrow", many, [[-1.5, 0.25]] * 11)
    synthetic.write_vocabulary(tmp_path)
    assert answer(tmp_path, "/api/runs/0/samples") == [4]
    first, last = (answer(tmp_path, f"/api/runs/0/samples/4?start={start}") for start in (0, 8))
    assert [s["uid"] for s in first["samples"]] == [f"s{i:02d}" for i in range(8)]
    assert [s["uid"] for s in last["samples"]] == ["s08", "s09", "s10"] and last["total"] == 11
    assert first["samples"][0]["question"] == "Where?"
    assert first["samples"][0]["tokens"] == [
        [" the", -1.5, -2.0, -3.5, True, []],
        ["<|im_end|>", 0.25, -2.0, -1.75, True, []],
    ]


def test_the_teachers_likeliest_tokens_are_told_where_they_are_recorded(tmp_path: Path) -> None:
    told = synthetic.sample("s0", "Where?", " the")
    sea, ship = synthetic.encode(" sea")[0], synthetic.encode(" ship")[0]
    likeliest = ([[sea, ship, sea, -1], [ship, -1, -1, -1]], [[-0.5, -1.5, float("-inf"), -9], [-0.25, -9, -9, -9]])
    synthetic.write_samples(tmp_path / "samples/step_000001.rank0.arrow", [told], [[-1.0, 0.0]], [likeliest])
    synthetic.write_vocabulary(tmp_path)
    (sample,) = answer(tmp_path, "/api/runs/0/samples/1")["samples"]
    assert [token[5] for token in sample["tokens"]] == [[[" sea", -0.5], [" ship", -1.5]], [[" ship", -0.25]]]


def test_without_a_tokenizer_ids_are_shown_and_it_is_found_once_it_is_there(tmp_path: Path) -> None:
    synthetic.write_samples(tmp_path / "samples/step_000001.rank0.arrow", [synthetic.sample("s", "q", "A")], [None])

    async def ask(client: TestClient[Any, Any]) -> list[Any]:
        found = []
        for _ in range(2):
            async with client.get("/api/runs/0/samples/1", headers=TOKEN) as page:
                found.append(await page.json())
            synthetic.write_vocabulary(tmp_path)
        return found

    before, after = asked(tmp_path, ask)
    assert (before["readable"], before["samples"][0]["tokens"][0][0]) == (False, "⟨65⟩")
    assert (after["readable"], after["samples"][0]["tokens"][0][0]) == (True, "A")


def test_no_samples_yet(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    assert answer(tmp_path, "/api/runs/0/samples") == []
    assert answer(tmp_path, "/api/runs")[0]["recorded"] is None
    (tmp_path / "samples/step_000001.rank0.arrow").write_bytes(b"ARROW1 cut short")
    assert got(tmp_path, "/api/runs/0/samples/1")[0] == 404


def test_a_run_directory_that_vanishes_is_said_to_be_gone(tmp_path: Path) -> None:
    directory = synthetic.write_run(tmp_path / "run", steps=2)

    async def ask(client: TestClient[Any, Any]) -> list[Any]:
        found = []
        for _ in range(2):
            for path in ("/api/runs", "/api/runs/0/curves", "/api/runs/0/samples", "/api/runs/0/samples/1"):
                async with client.get(path, headers=TOKEN) as part:
                    found.append(await part.json() if part.status == 200 else part.status)
            shutil.rmtree(directory, ignore_errors=True)
        return found

    before, _, _, _, after, curves, steps, samples = asked(directory, ask)
    assert (before[0]["state"]["text"], before[0]["rows"]) == ("done", 2)
    assert (after[0]["state"], after[0]["rows"]) == (
        {"kind": "bad", "text": "the run directory is gone", "age": None},
        0,
    )
    assert (curves["total"], steps, samples) == (0, [], 404)


def test_two_runs_are_told_apart(run: Path, tmp_path: Path) -> None:
    other = synthetic.write_run(tmp_path / "other", steps=1)
    assert [found["rows"] for found in answer([run, other], "/api/runs")] == [3, 1]
    assert answer([run, other], "/api/runs/1/samples") == [1]


def test_a_hostile_sample_is_a_string_in_json(run: Path) -> None:
    synthetic.write_vocabulary(run)
    texts = ["".join(token[0] for token in s["tokens"]) for s in answer(run, "/api/runs/0/samples/1")["samples"]]
    assert sum(text.startswith(synthetic.HOSTILE) for text in texts) == 2


def test_a_chart_library_that_is_not_as_published_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    (name, (path, _)), *_ = server.LIBRARY_FILES.items()
    monkeypatch.setitem(server.LIBRARY_FILES, name, (path, "0" * 64))
    with pytest.raises(RuntimeError, match="not uPlot as published"):
        server.library_files()


def test_the_pages_own_files_name_nothing_beyond_this_server() -> None:
    for name, content in server.static_files().items():
        found = content.decode().replace("http://www.w3.org/2000/svg", "")
        assert not any(
            word in found
            for word in ("http:", "https:", "//cdn", "innerHTML", "outerHTML", "insertAdjacentHTML", "eval(")
        )
        assert "style=" not in found or name.endswith(".svg"), name


def test_the_page_needs_neither_ray_nor_torch() -> None:
    code = (
        "import sys; import orchestrator.cli; from orchestrator.surface.watch import server; "
        "from orchestrator.surface.watch.samples import tokenizer; import tokenizers; "
        "print([m for m in ('ray', 'torch', 'transformers', 'vllm', 'plotly', 'youplot') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@pytest.mark.parametrize(
    ("runs", "demo", "message"),
    [
        (None, False, "one run or two"),
        (["a", "b", "c"], False, "one run or two"),
        (["a"], True, "one run or two"),
        (["nowhere"], False, "no such run"),
    ],
)
def test_the_command_says_what_it_wants(runs: list[str] | None, demo: bool, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        cli.watch(runs, demo)


def test_a_taken_port_is_refused_in_a_line(run: Path) -> None:
    with socket.create_server((server.LOOPBACK, 0)) as taken, pytest.raises(RecipeError, match="take another"):
        server.serve([run], taken.getsockname()[1])
