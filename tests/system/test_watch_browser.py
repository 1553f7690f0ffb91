"""The live page in a real browser, as a reader has it: it follows a run, shows tokens, and stays quiet and safe."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from statistics import fmean

import pytest

from tests import synthetic
from tests.chromium import Tab, tab

pytestmark = pytest.mark.system

TIP = "document.getElementById('tip')"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run at step 4 of 9, with a status of now."""
    directory = synthetic.write_run(tmp_path / "run", steps=4)
    (directory / "summary.json").unlink()
    synthetic.write_vocabulary(directory)
    write_status(directory, 4)
    return directory


def write_status(run: Path, step: int) -> None:
    (run / "status.json.new").write_text(
        json.dumps(synthetic.status_of(step, 9) | {"stage": "rl", "time": time.time()})
    )
    (run / "status.json.new").replace(run / "status.json")


def take_step(run: Path, step: int) -> None:
    """What a live run writes at a step: its line in two pieces, its samples, its status."""
    line = json.dumps(synthetic.metrics_of(step, 9) | {"reverse_kl": 0.0123}) + "\n"
    with (run / "metrics.jsonl").open("a") as file:
        file.write(line[:50])
        file.flush()
        time.sleep(0.5)
        file.write(line[50:])
    told = [synthetic.sample(f"new-{step}", "What is new?", " a ship", step)]
    likeliest = (synthetic.encode(" sea sea sea sea sea sea sea sea sea sea sea sea"), [-0.5, -2.0, -3.0, -4.0] * 3)
    synthetic.write_samples(run / f"samples/step_{step:06d}.rank0.arrow", told, [[-2.0, 0.5, 0.0]], [likeliest])
    write_status(run, step)


@contextlib.contextmanager
def served(*arguments: str | Path) -> Iterator[str]:
    """`logratio watch`, and the address that it prints. It must end by itself at Ctrl-C."""
    command = [sys.executable, "-m", "orchestrator.cli", "watch", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "80"})
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{43}", address)
        with pytest.raises(OSError):  # refused at the machine's other addresses
            socket.create_connection(("127.0.0.2", int(address.split(":")[2].split("/")[0])), timeout=5).close()
        yield address
        process.send_signal(2)
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()


@contextlib.asynccontextmanager
async def page(profile: Path, address: str, width: int = 1280, scheme: str = "light") -> AsyncIterator[Tab]:
    """The page, drawn; at the end it must have had no error and no blocked request."""
    async with tab(profile) as found:
        await found.size(width, 900, mobile=width < 500)
        await found.scheme(scheme)
        await found.open(address)
        await found.until("document.documentElement.dataset.ready === 'yes'")
        await found.until("document.querySelectorAll('.tokens > span').length")
        yield found
        assert await found.value("document.documentElement.dataset.errors") is None
        assert await found.value("typeof window.hacked") == "undefined"
        assert not found.log
        assert await found.value("document.documentElement.scrollWidth - innerWidth") <= 0


def test_the_page_follows_a_live_run(run: Path, tmp_path: Path) -> None:
    async def read(address: str) -> None:
        async with page(tmp_path / "profile", address) as seen:
            assert "token" not in await seen.value("location.href") and "token" not in await seen.value(
                "document.cookie"
            )
            assert await seen.value("document.querySelector('h1').textContent") == "pirate-opd"
            assert "stage rl" in await seen.value("document.querySelector('.title').textContent")
            assert await seen.value("document.querySelector('.count').textContent") == "step 4 of 9"
            assert await seen.value("[...document.querySelectorAll('.chart:not([hidden])')].length") >= 9
            assert await seen.value("document.querySelector('.role.bottleneck').dataset.role") == "rollout"
            assert "one more: +21 %" in await seen.value("document.querySelector('.role.bottleneck').textContent")
            assert "12 samples" in await seen.value("document.querySelector('.chips').textContent")
            await asyncio.to_thread(take_step, run, 5)
            await seen.until("document.querySelector('.count').textContent === 'step 5 of 9'")
            await seen.until("document.querySelector('.key b').textContent === '0.0123'")
            await seen.until("document.querySelector('#step-name').textContent === 'step 5'")
            await seen.until("document.querySelector('.sample').dataset.uid === 'new-5'")

    with served(run) as address:
        asyncio.run(read(address))


def test_tokens_are_read_by_mouse_and_by_keyboard(run: Path, tmp_path: Path) -> None:
    async def read(address: str) -> None:
        async with page(tmp_path / "profile", address) as seen:
            first = "document.querySelector('.tokens').children"
            for sign, more in (("neg", 0), ("pos", 2)):
                found = await seen.value(f"getComputedStyle({first}[{more // 2}]).backgroundColor")
                red, _, blue = map(float, re.findall(r"[\d.]+", found)[:3])
                assert red > blue if sign == "neg" else blue > red
            await seen.point(".tokens > .neg")
            await seen.until(f"!{TIP}.hidden")
            told = await seen.value(f"{TIP}.innerText")
            assert '" a"' in told and "−2.00" in told and "teacher's likeliest" in told and "60.7 %" in told
            await seen.value("document.querySelector('.tokens').focus()")
            for _ in range(2):
                await seen.press("ArrowRight")
            await seen.until(f"{TIP}.innerText.includes('+0.50')")
            await seen.press("Escape")
            await seen.until(f"{TIP}.hidden")
            await seen.value("document.querySelector('.chart .plot').focus()")
            await seen.press("ArrowLeft")
            await seen.press("ArrowLeft")
            values = [synthetic.metrics_of(step, 4)["reverse_kl"] for step in range(1, 5)]
            shown = "Number(document.querySelector('.key b').textContent)"
            await seen.until(f"{shown} === {values[-1]:.3g}")
            await seen.press("Escape")
            await seen.value(
                "const s = document.getElementById('smooth'); s.value = '10'; s.dispatchEvent(new Event('change'))"
            )
            await seen.until(f"{shown} === {fmean([*values, 0.0123]):.3g}")

    take_step(run, 5)
    with served(run) as address:
        asyncio.run(read(address))


@pytest.mark.parametrize("width", [1280, 375])
def test_light_and_dark(run: Path, tmp_path: Path, width: int) -> None:
    async def read(address: str) -> None:
        async with page(tmp_path / "profile", address, width, "dark") as seen:
            colour = "getComputedStyle(document.body).backgroundColor"
            dark = await seen.value(colour)
            await seen.value("document.getElementById('theme').click()")
            light = await seen.until(f"{colour} !== {json.dumps(dark)} && {colour}")
            assert await seen.value("document.documentElement.dataset.theme") == "light"
            assert (
                sum(map(float, re.findall(r"[\d.]+", light)[:3]))
                > 3 * 200
                > 3 * 60
                > sum(map(float, re.findall(r"[\d.]+", dark)[:3]))
            )
            await seen.value("document.getElementById('theme').click()")
            await seen.until(f"{colour} === {json.dumps(dark)}")

    with served(run) as address:
        asyncio.run(read(address))


def test_a_tap_shows_a_token_and_a_tap_elsewhere_hides_it(run: Path, tmp_path: Path) -> None:
    async def read(address: str) -> None:
        async with page(tmp_path / "profile", address, 375) as seen:
            await seen.tap(".tokens > .neg")
            await asyncio.sleep(0.5)
            assert "log-ratio" in await seen.value(f"!{TIP}.hidden && {TIP}.innerText")
            await seen.tap("#samples-title")
            await seen.until(f"{TIP}.hidden")

    with served(run) as address:
        asyncio.run(read(address))


def test_two_runs_side_by_side(run: Path, tmp_path: Path) -> None:
    other = synthetic.write_run(tmp_path / "other", steps=3)
    synthetic.write_vocabulary(other)

    async def read(address: str) -> None:
        async with page(tmp_path / "profile", address) as seen:
            assert await seen.value("document.querySelectorAll('h1').length") == 2
            assert await seen.value("document.querySelectorAll('.pipeline').length") == 2
            assert await seen.value("document.querySelectorAll('.chart .key.dash').length") >= 9
            assert await seen.value("document.querySelectorAll('#columns .column').length") == 2

    with served(run, other) as address:
        asyncio.run(read(address))


def test_the_demo_opens_without_a_cluster(tmp_path: Path) -> None:
    async def read(address: str) -> None:
        async with page(tmp_path / "profile", address) as seen:
            assert await seen.value("document.querySelector('.pill').textContent") == "done"
            assert await seen.value("document.querySelectorAll('.role').length") >= 5
            await seen.point(".tokens > span")
            await seen.until(f'{TIP}.innerText.includes("teacher\'s likeliest")')

    with served("--demo") as address:
        asyncio.run(read(address))
