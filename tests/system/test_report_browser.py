"""The report page in a real browser: the charts are drawn, nothing fails, nothing is asked of a network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator.surface.report.page import write_report
from tests import synthetic

pytestmark = pytest.mark.system

# Runs after the page: points at a token of each sign and writes down what a reader would see.
PROBE = """<script>addEventListener("load", () => {
  const seen = document.documentElement.dataset;
  seen.hacked = typeof window.hacked;
  seen.overflow = document.documentElement.scrollWidth - innerWidth;
  for (const sign of ["neg", "pos"]) {
    const token = document.querySelector(`.tokens .${sign}`);
    token.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
    seen[sign] = getComputedStyle(token).backgroundColor;
  }
});</script></body>"""


def dump(page: Path, profile: Path, *flags: str) -> tuple[str, str]:
    """(DOM after the scripts ran, what chromium logged) of a local page."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.fail("no chromium on this machine; `make test-system` installs it")
    command = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={profile}",
        "--virtual-time-budget=10000",
        "--enable-logging=stderr",
        *flags,
        "--dump-dom",
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


@pytest.mark.parametrize(("scheme", "width"), [(1, 1200), (0, 500)], ids=["light-wide", "dark-narrow"])
def test_page_in_chromium(tmp_path: Path, scheme: int, width: int) -> None:
    run = synthetic.write_run(tmp_path / "run", steps=4)
    skipped = {"skipped": {"00000002.000": synthetic.HOSTILE}, "skipped_prompts": {"00000002": synthetic.HOSTILE * 9}}
    summary = json.loads((run / "summary.json").read_text()) | skipped | {"restarts": {"rollout": 1}}
    (run / "summary.json").write_text(json.dumps(summary))
    page = write_report(run, synthetic.decode)
    page.write_text(page.read_text().replace("</body>\n</html>", PROBE + "\n</html>"))
    flags = (f"--blink-settings=preferredColorScheme={scheme}", f"--window-size={width},900")
    dom, log = dump(page, tmp_path / "profile", *flags)
    root = re.search(r"<html[^>]*>", dom)
    assert root is not None
    seen = dict(re.findall(r'data-(\w+)="([^"]*)"', root[0]))

    assert "errors" not in seen, seen
    assert "CONSOLE" not in log or not re.search(r"CONSOLE.*(error|refused|violat)", log, re.IGNORECASE), log
    drawn = re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL)
    assert drawn.count('class="js-line"') >= 14 and drawn.count('class="trace bars"') == 5
    charts = re.findall(r'<div id="chart-\d+" class="plotly-graph-div js-plotly-plot"', drawn)
    assert len(charts) == drawn.count('class="cartesianlayer"') == 10
    assert not re.search(r"""(src|href|action)\s*=\s*["']?\s*(https?:)?//""", drawn)

    assert seen["hacked"] == "undefined"
    assert int(seen["overflow"]) <= 0  # no sideways scrolling
    red, _, blue, _ = map(float, re.findall(r"[\d.]+", seen["neg"]))
    assert red > 2 * blue
    red, _, blue, _ = map(float, re.findall(r"[\d.]+", seen["pos"]))
    assert blue > 2 * red
    assert re.search(r'id="tip"[^>]*display: block[^>]*>"[^<]*l \+[\d.]+ +log q -2.00', drawn)
