"""The live page as its reader has it: a run that it is opened on, its server, and a browser that has drawn it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests import readable, synthetic
from tests.chromium import Tab, tab

TIP = "document.getElementById('tip')"
PHONE = 360  # px


def write_live_run(directory: Path) -> Path:
    """A made-up run at step 4 of 9, with a status of now."""
    synthetic.write_run(directory, steps=4)
    (directory / "summary.json").unlink()
    with (directory / "recipe.yaml").open("a") as recipe:
        recipe.write("batch: {prompts_per_step: 10, samples_per_prompt: 4}\nreward: {rules: [{}]}\nmax_staleness: 1\n")
    synthetic.write_vocabulary(directory)
    write_status(directory, 4)
    return directory


def write_status(run: Path, step: int, states: Mapping[str, str] | None = None) -> None:
    """`states`: of members by name, where they are not what synthetic.status_of says."""
    status = synthetic.status_of(step, 9) | {"stage": "rl", "time": time.time()}
    for member in status["members"]:
        member["state"] = (states or {}).get(member["name"], member["state"])
    (run / "status.json.new").write_text(json.dumps(status))
    (run / "status.json.new").replace(run / "status.json")


def take_step(run: Path, step: int, count: int = 1) -> None:
    """A step of the made-up run: its line, `count` samples with the teacher's alternatives, its status."""
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(synthetic.metrics_of(step, 9) | {"reverse_kl": 0.0123}) + "\n")
    told = [synthetic.sample(f"new-{step}-{i}", "What is new?", " a ship", step) for i in range(count)]
    likeliest = (synthetic.encode(" sea sea sea sea sea sea sea sea sea sea sea sea"), [-0.5, -2.0, -3.0, -4.0] * 3)
    ratios = [[-2.0, 0.5, 0.0]] * count
    synthetic.write_samples(run / f"samples/step_{step:06d}.rank0.arrow", told, ratios, [likeliest] * count)
    write_status(run, step)


@contextlib.contextmanager
def held_run(folder: Path, steps: int) -> Iterator[tuple[Path, Callable[[int], None]]]:
    """A run of the product's own on simulated members: its directory, and what lets it go on up to a step."""

    def allow(step: int) -> None:
        (folder / "allowed.new").write_text(str(step))
        (folder / "allowed.new").replace(folder / "allowed")

    allow(0)
    command = [sys.executable, "-m", "tests.unit.surface.held", str(folder), str(steps)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for(folder / "sim/recipe.yaml")  # from then on a page can be opened
        yield folder / "sim", allow
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()


def wait_for(path: Path, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"there is no {path}"
        time.sleep(0.05)


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
    """The page, drawn. At the end it must have had no error and no blocked request, and be readable as it was
    and then is."""
    async with tab(profile) as found:
        await resized(found, width)
        await found.scheme(scheme)
        await found.open(address)
        await drawn(found)
        await assert_readable(found)
        yield found
        assert await found.value("document.documentElement.dataset.errors") is None
        assert await found.value("typeof window.hacked") == "undefined"
        assert not found.log
        await assert_readable(found)


async def drawn(seen: Tab) -> None:
    await seen.until("document.documentElement.dataset.ready === 'yes'")
    await seen.until("document.querySelectorAll('.tokens > span').length", seconds=60.0)


async def resized(seen: Tab, width: int) -> None:
    await seen.size(width, 900, mobile=width < 500)
    await seen.value("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")  # as observed


async def assert_readable(seen: Tab) -> None:
    found = [*await readable.unreadable(seen), *await readable.cut_off(seen)]
    assert not found, "\n".join(found)
