"""What a reader can make out of a page, measured in a browser: contrast by WCAG 2.2, and what a narrow screen cuts off.

Each measurement returns what fails, a line each: who it is, and the two colours and their ratio.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tests.chromium import Tab

SCRIPT = Path(__file__).with_suffix(".js").read_text()


async def unreadable(seen: Tab) -> list[str]:
    """Texts with too little contrast: 4.5, and 3 for large ones."""
    return await _measured(seen, "unreadable()")


async def faint(seen: Tab, graphics: Mapping[str, str]) -> list[str]:
    """Graphics with a contrast below 3 to what is behind them. `graphics`: selector -> property that is the colour."""
    return await _measured(seen, f"faint({json.dumps(graphics)})")


async def undrawn(seen: Tab) -> list[str]:
    """Charts that do not have the colours of their legend, or of the theme."""
    return await _measured(seen, "undrawn()")


async def cut_off(seen: Tab) -> list[str]:
    """Texts beyond the screen's sides, or beyond an element that cuts them off; not what a box can be scrolled to.

    The screen's width is clientWidth: a phone zooms out of a page that is too wide, and innerWidth grows with it."""
    return await _measured(seen, "cutOff()")


async def unfocused(seen: Tab) -> list[str]:
    """How the focused element fails to show that it is, in light or in dark: no outline, a pale one, or out of view."""
    return await _measured(seen, "[...unfocused('light'), ...unfocused('dark')]")


async def _measured(seen: Tab, call: str) -> list[str]:
    return sorted(set(await seen.value(f"(() => {{ {SCRIPT}\nreturn {call}; }})()")))
