"""The live page to those who read it in the dark, on a phone, or by keyboard."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.surface.report.recorded import CLIP
from tests import readable, synthetic
from tests.chromium import Tab
from tests.system.watched import (
    PHONE,
    TIP,
    assert_readable,
    drawn,
    page,
    served,
    take_step,
    write_live_run,
    write_status,
)

pytestmark = pytest.mark.system

# What is drawn without words, and the property that is its colour.
GRAPHICS = {
    ".key i": "borderTopColor", ".way": "stroke", ".way.back": "stroke", ".tip-of-arrow": "fill",
    ".member.serving": "backgroundColor", ".member.loading": "backgroundColor", ".member.starting": "borderTopColor",
    ".member.leaving": "backgroundColor", ".meter .busy": "backgroundColor", ".bottleneck .busy": "backgroundColor",
    ".meter .waiting": "backgroundImage", ".role.bottleneck": "borderTopColor", ".u-cursor-x": "borderRightColor",
    ".pulse::before": "backgroundColor", "progress": "color",
}  # fmt: skip

STOPS = """[...document.querySelectorAll("a[href], button, select, input, summary, [tabindex]")]
  .filter((one) => !one.disabled && one.checkVisibility())"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_live_run(tmp_path / "run")


def write_shades(run: Path, step: int) -> None:
    """Tokens of every shade, with loss and without: text, a line's end, a special token."""
    ids, ratios = synthetic.encode(" sea\n<|im_end|>"), (-9.0, -CLIP, -CLIP / 2, 0.0, CLIP / 2, CLIP, 9.0)
    each = [ratio for ratio in ratios for _ in ids] * 2
    told = replace(
        synthetic.sample("shades", "Which?", ""), response_ids=ids * len(ratios) * 2, versions=[1] * len(each),
        rollout_logprobs=[-1.0] * len(each), loss_spans=[(0, len(each) // 2)],
    )  # fmt: skip
    synthetic.write_samples(run / f"samples/step_{step:06d}.rank0.arrow", [told], [each])


@pytest.mark.parametrize("width", [1280, PHONE])
def test_all_is_readable_in_light_and_in_dark(run: Path, tmp_path: Path, width: int) -> None:
    async def read(address: str) -> None:
        async with page(tmp_path / "profile", address, width, "dark") as seen:
            await seen.value("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
            assert await seen.value("document.querySelectorAll('.tokens > .off.neg, .tokens > .off.pos').length") > 9
            await seen.point(".tokens > .neg")
            colour = "getComputedStyle(document.body).backgroundColor"
            dark = await seen.value(colour)
            await assert_seen(seen)
            await seen.value("document.getElementById('theme').click()")
            light = await seen.until(f"{colour} !== {json.dumps(dark)} && {colour}")
            assert await seen.value("document.documentElement.dataset.theme") == "light"
            assert bright(light) > 3 * 200 > 3 * 60 > bright(dark)
            await assert_seen(seen)
            await seen.value("document.getElementById('theme').click()")
            await seen.until(f"{colour} === {json.dumps(dark)}")

    write_shades(run, 5)
    write_status(run, 5, {"rollout-1": "starting", "rollout-3": "leaving"})
    with served(run) as address:
        asyncio.run(read(address))


def bright(colour: str) -> float:
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3]))


async def assert_seen(seen: Tab) -> None:
    """All that the page shows in its theme of now, and what it says of runs that are in another state."""
    await seen.until(f"!{TIP}.hidden")
    assert not await readable.faint(seen, GRAPHICS)
    assert not await readable.undrawn(seen)
    await assert_readable(seen)
    for kind in ("good", "bad", "quiet"):
        await seen.value(f"document.querySelector('.pill').className = 'pill {kind}'")
        await seen.value("document.getElementById('pulse').className = 'pulse lost'")
        assert not await readable.unreadable(seen)


def test_every_control_is_reached_by_tab_and_does_its_work_by_key(run: Path, tmp_path: Path) -> None:
    async def read(address: str) -> None:
        async with page(tmp_path / "profile", address, scheme="dark") as seen:
            await use_the_bar(seen)
            await use_the_picker(seen)
            await use_the_samples(seen)
            await seen.value("window.isLeft = true; location.reload()")
            await seen.until("!window.isLeft && document.documentElement.dataset.ready")
            await drawn(seen)
            assert await seen.value("document.documentElement.dataset.theme") == "dark"  # as it was left
            await seen.value("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
            await walk(seen)

    take_step(run, 5, count=9)
    with served(run) as address:
        asyncio.run(read(address))


async def walk(seen: Tab) -> None:
    """By Tab, from the first control to the last. One more would lead out of the page."""
    await seen.value("document.querySelector('.skip').focus()")
    for index in range(await seen.value(f"{STOPS}.length")):
        if index:
            await seen.press("Tab")
        stop = f"[{STOPS}.indexOf(document.activeElement), document.activeElement.outerHTML.slice(0, 200)]"
        place, here = await seen.value(stop)
        assert place == index, f"{here} comes before its turn, or after it"
        assert await seen.focused_name(), f"it has no name: {here}"
        assert not await readable.unfocused(seen)


async def go_to(seen: Tab, selector: str) -> None:
    """By Tab alone."""
    for _ in range(60):
        if await seen.value(f"document.activeElement.matches({json.dumps(selector)})"):
            return
        await seen.press("Tab")
    raise AssertionError(f"Tab does not lead to {selector}")


async def use_the_bar(seen: Tab) -> None:
    await go_to(seen, "#theme")
    for key, theme in (("Enter", "light"), (" ", "dark")):
        await seen.press(key)
        await seen.until(f"document.documentElement.dataset.theme === '{theme}'")
    await seen.value("document.activeElement.blur()")
    await go_to(seen, ".skip")
    await seen.press("Enter")
    await seen.press("Tab")
    assert await seen.value("document.querySelector('main').contains(document.activeElement)")
    await seen.value("document.querySelector('.brand').scrollIntoView(); document.querySelector('.skip').focus()")
    await go_to(seen, "nav a[href='#curves']")
    await seen.press("Enter")
    await seen.until("Math.abs(document.getElementById('curves').getBoundingClientRect().top) < 100")
    await seen.press("Tab")
    assert await seen.value("document.activeElement.id") == "smooth"
    await seen.press("ArrowDown")
    await seen.until("document.getElementById('smooth').value === '1'")


async def use_the_picker(seen: Tab) -> None:
    step, uid = "document.getElementById('step-name').textContent", "document.querySelector('.sample').dataset.uid"
    await go_to(seen, "#first")
    await seen.press(" ")
    await seen.until(f"{step} === 'step 1' && document.activeElement.id === 'step'")  # the button is off now
    await seen.press("ArrowRight")
    await seen.until(f"{step} === 'step 2'")
    await go_to(seen, "#next")
    await seen.press("Enter")
    await seen.until(f"{step} === 'step 3' && {uid}.startsWith('s003')")
    await go_to(seen, "#follow")
    assert not await seen.value("document.activeElement.checked")
    await seen.press(" ")
    await seen.until(f"{step} === 'step 5' && {uid} === 'new-5-0'")


async def use_the_samples(seen: Tab) -> None:
    await go_to(seen, ".question > summary")
    await seen.press("Enter")
    await seen.until("document.activeElement.parentElement.open")
    await go_to(seen, ".tokens")
    for key in ("Enter", " "):
        await seen.press(key)
        await seen.until(f'!{TIP}.hidden && {TIP}.innerText.includes("teacher\'s likeliest")')
        await seen.press("Escape")
        await seen.until(f"{TIP}.hidden")
    await go_to(seen, ".more")
    await seen.press("Enter")
    await seen.until("document.querySelectorAll('.sample').length === 9")
    assert await seen.value("document.activeElement.closest('.sample')?.dataset.uid") == "new-5-8"
