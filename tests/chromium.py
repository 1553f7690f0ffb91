"""A headless Chromium that a test drives: it opens pages, moves the mouse, presses keys and takes pictures."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--remote-debugging-port=0",
)  # fmt: skip

# What a key does of its own accord, as to move the focus or to press a button, follows from its code and its text.
KEYS = {
    "Tab": (9, ""), "Enter": (13, "\r"), " ": (32, " "),
    "ArrowLeft": (37, ""), "ArrowRight": (39, ""), "ArrowDown": (40, ""),
}  # fmt: skip


class Tab:
    """One page, over the protocol of the browser's developer tools. `log`: what the page wrote to its console."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._count = 0
        self.log: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        await self._socket.send_json({"id": self._count, "method": method, "params": parameters})
        while True:
            message = json.loads(await self._socket.receive_str(timeout=30))
            if message.get("method") in ("Runtime.consoleAPICalled", "Log.entryAdded", "Runtime.exceptionThrown"):
                self.log.append(json.dumps(message["params"]))
            if message.get("id") == self._count:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]

    async def open(self, address: str) -> None:
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.call("Emulation.setFocusEmulationEnabled", enabled=True)  # as of a window in front
        await self.call("Page.navigate", url=address)

    async def value(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['exceptionDetails']}")
        return found["result"].get("value")

    async def until(self, script: str, seconds: float = 20.0) -> Any:
        """The expression's value as soon as it is true. Raises TimeoutError if it never is."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    with contextlib.suppress(RuntimeError):  # the page is being left
                        if value := await self.value(script):
                            return value
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise TimeoutError(f"not true in {seconds:.0f} s: {script}") from None

    async def size(self, width: int, height: int, mobile: bool = False) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile
        )

    async def scheme(self, name: str) -> None:
        """What the page takes for the system's choice of light or dark."""
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    async def point(self, selector: str) -> None:
        """Scroll to an element and move the mouse over its middle."""
        x, y = await self._middle(selector)
        await self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    async def tap(self, selector: str) -> None:
        """Touch the middle of an element that is in view, and let go."""
        await self.call("Emulation.setTouchEmulationEnabled", enabled=True)
        x, y = await self._middle(selector)
        await self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        await self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    async def press(self, key: str) -> None:
        number, text = KEYS.get(key, (0, ""))
        what = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": number}
        await self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **what)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **what)

    async def focused_name(self) -> str:
        """What a screen reader calls the focused element; empty if nothing names it."""
        found = await self.call("Runtime.evaluate", expression="document.activeElement")
        node = {"objectId": found["result"]["objectId"], "fetchRelatives": False}
        (told,) = (await self.call("Accessibility.getPartialAXTree", **node))["nodes"]
        return told.get("name", {}).get("value", "").strip()

    async def _middle(self, selector: str) -> list[float]:
        """Where the middle of an element's first line is, once it is in view."""
        await self.value(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        await asyncio.sleep(0.2)
        return await self.value(
            f"(() => {{ const r = document.querySelector({json.dumps(selector)}).getClientRects()[0];"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )

    async def picture(self, path: Path, whole: bool = False) -> None:
        shot = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.asynccontextmanager
async def tab(profile: Path) -> AsyncIterator[Tab]:
    """A tab of a fresh browser, which is ended at the end."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.fail("no chromium on this machine; `make test-system` installs it")
    process = subprocess.Popen(
        [chromium, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(120):
            address = f"http://127.0.0.1:{await _port(profile)}/json/list"
            pages = await (await session.get(address)).json()
            where = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
            async with session.ws_connect(where, max_msg_size=0) as socket:
                yield Tab(socket)
    finally:
        process.terminate()
        process.wait(timeout=20)


async def _port(profile: Path) -> int:
    """The port that the browser chose, as soon as it has written it down."""
    while True:
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int((profile / "DevToolsActivePort").read_text().splitlines()[0])
        await asyncio.sleep(0.1)
