"""The live page in a real browser: it follows a run, shows its pipeline and its tokens, and stays quiet and safe."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import pytest

from orchestrator.surface.report.recorded import rows_of
from tests import synthetic
from tests.chromium import Tab
from tests.system.watched import (
    PHONE,
    TIP,
    assert_readable,
    held_run,
    page,
    resized,
    served,
    take_step,
    write_live_run,
)

pytestmark = pytest.mark.system

STEPS, EACH = 4, 8  # of the run that is followed: steps, and samples of a step

# Of each role: its name, its squares and those that are filled, and how much of its bar is busy, and waiting.
CARDS = """[...document.querySelectorAll("[data-role]")].map((card) => {
  const count = (kind) => card.querySelectorAll(kind).length, wide = (part) => card.querySelector(part).offsetWidth;
  const shares = [".busy", ".waiting"].map((part) => wide(part) / wide(".meter"));
  return [card.dataset.role, count(".member"), count(".member.serving"), ...shares];
})"""

# Of each sample: its uid, and its tokens' text.
SAMPLES = """[...document.querySelectorAll(".sample")]
  .map((sample) => [sample.dataset.uid, sample.querySelector(".tokens").textContent])"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_live_run(tmp_path / "run")


def test_the_page_shows_a_run_as_the_pipeline_that_it_is(run: Path, tmp_path: Path) -> None:
    async def read(address: str) -> None:
        async with page(tmp_path / "profile", address) as seen:
            assert "token" not in await seen.value("location.href + document.cookie")
            assert await seen.value("document.querySelector('h1').textContent") == "pirate-opd"
            assert "stage rl" in await seen.value("document.querySelector('.title').textContent")
            assert await seen.value("document.querySelector('.count').textContent") == "step 4 of 9"
            assert await seen.value("[...document.querySelectorAll('.chart:not([hidden])')].length") >= 9
            await assert_pipeline(seen)
            assert await seen.value("document.querySelectorAll('.sample').length") == 4
            late = synthetic.sample("late", "Where is the ship?", " the sea")
            synthetic.write_samples(run / "samples/step_000004.rank2.arrow", [late], [[0.0, 1.0, 2.0]])
            await seen.until("document.querySelectorAll('.sample').length === 5")  # a rank that took longer

    with served(run) as address:
        asyncio.run(read(address))


async def assert_pipeline(seen: Tab) -> None:
    """Actors, queues and busy shares are those of synthetic.status_of."""
    cards = await seen.value(CARDS)
    assert [card[:3] for card in cards] == [
        ["rollout", 4, 3], ["scorer.teacher", 2, 2], ["reward", 1, 1], ["learner", 1, 1],
    ]  # fmt: skip
    shares = [[0.93, 0.02], [0.41, 0.5], [0.03, 0.9], [0.55, 0.4]]
    assert [card[3:] for card in cards] == [pytest.approx(share, abs=0.02) for share in shares]
    assert await seen.value("document.querySelector('.role.bottleneck').dataset.role") == "rollout"
    assert "one more: +21 %" in await seen.value("document.querySelector('.role.bottleneck').textContent")
    chips = await seen.value("document.querySelector('.chips').textContent")
    assert "12 samples" in chips and "640 tokens" in chips and "weights, version 4" in chips
    assert "38 of 40" in await seen.value("document.querySelector('[data-stage=buffer]').textContent")


def test_the_page_follows_a_run_while_it_is_written(tmp_path: Path) -> None:
    """The run's own process writes it; the page is not loaded again."""

    async def read(address: str, directory: Path, allow: Callable[[int], None]) -> None:
        async with page(tmp_path / "profile", address) as seen:
            await seen.value("window.isStillTheFirst = true; document.querySelector('.tokens').focus()")
            await assert_follows(seen, directory, STEPS - 2)
            await seen.until(f"document.querySelector('.chips').textContent.includes('{EACH} samples')")
            await seen.until(
                "document.querySelector('.pipeline').textContent.includes('Shares are of the last minute')"
            )
            assert await seen.value("document.querySelectorAll('[data-role] .meter').length") == 4
            assert await seen.value("document.querySelector('.pill').textContent") == "running"
            for step in (STEPS - 1, STEPS):
                allow(step)
                await assert_follows(seen, directory, step)
            await seen.until("document.querySelector('.pill').textContent === 'done'")
            await seen.until("document.querySelectorAll('.key.ring').length")  # held-out values, once it has ended
            assert await seen.value("window.isStillTheFirst && document.activeElement.className") == "tokens"

    with held_run(tmp_path, STEPS) as (directory, allow):
        allow(STEPS - 2)
        with served(directory) as address:
            asyncio.run(read(address, directory, allow))


async def assert_follows(seen: Tab, directory: Path, step: int) -> None:
    """The page shows what the run has written of a step: its curve, its pipeline, its samples."""
    await seen.until(f"document.querySelector('.count').textContent === 'step {step} of {STEPS}'")
    await seen.until(f"document.querySelector('#step-name').textContent === 'step {step}'")
    if step < STEPS:  # the last status of a run may be older than its last step
        await seen.until(f"document.querySelector('.chips').textContent.includes('weights, version {step}')")
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    first, last = (f"{json.loads(lines[at - 1])['reverse_kl']:.3g}" for at in (1, step))
    await seen.until(f"document.querySelector('.key b').textContent === '{last}'")
    assert f"reverse KL from {first} to {last}" in await seen.value("document.querySelector('.plot').ariaLabel")
    rows = rows_of(directory, f"step_{step:06d}")
    assert len(rows) == EACH
    ids = {row["uid"]: "".join(f"⟨{token}⟩" for token in row["response_ids"]) for row in rows}
    await seen.until(f"document.querySelector('.sample')?.dataset.uid === '{min(ids)}'")
    assert dict(await seen.value(SAMPLES)) == ids


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


def test_a_tap_shows_a_token_and_a_tap_elsewhere_hides_it(run: Path, tmp_path: Path) -> None:
    async def read(address: str) -> None:
        async with page(tmp_path / "profile", address, PHONE) as seen:
            await seen.tap(".tokens > .neg")
            await asyncio.sleep(0.5)
            assert "log-ratio" in await seen.value(f"!{TIP}.hidden && {TIP}.innerText")
            await assert_readable(seen)
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
            for kind in (".head", "#columns .column"):
                boxes = f"[...document.querySelectorAll('{kind}')].map((one) => one.getBoundingClientRect())"
                assert await seen.value(f"(([a, b]) => a.top === b.top && a.right < b.left)({boxes})")
            await assert_readable(seen)
            await resized(seen, PHONE)

    with served(run, other) as address:
        asyncio.run(read(address))


def test_the_demo_opens_without_a_cluster(tmp_path: Path) -> None:
    async def read(address: str) -> None:
        async with page(tmp_path / "profile", address) as seen:
            assert await seen.value("document.querySelector('.pill').textContent") == "done"
            assert await seen.value("document.querySelectorAll('.role').length") >= 5
            await seen.point(".tokens > span")
            await seen.until(f'{TIP}.innerText.includes("teacher\'s likeliest")')
            await assert_readable(seen)
            await resized(seen, PHONE)

    with served("--demo") as address:
        asyncio.run(read(address))
