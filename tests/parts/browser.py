"""Headless Chromium, driven over the W3C WebDriver protocol by plain HTTP, with what DevTools adds to it."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.parts.procs import Process, free_port

PATIENCE = 20_000
"""Milliseconds for which a condition of the page may take to become true."""

ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--force-color-profile=srgb",
)  # fmt: skip

_UNTIL = """
const done = arguments[arguments.length - 1], look = new Function("return (" + arguments[0] + ")");
const check = () => {
  let value;
  try { value = look(); } catch (error) { return false; }
  if (value) done(value);
  return Boolean(value);
};
if (!check()) {
  const watch = new MutationObserver(() => { if (check()) watch.disconnect(); });
  watch.observe(document, { subtree: true, childList: true, attributes: true, characterData: true });
}
"""


class BrowserError(Exception):
    """The driver refused, or a condition did not come true. The message says which."""


class Browser:
    """One browser with one window."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._http = http
        self._url = url

    async def _ask(self, path: str, body: dict[str, Any]) -> Any:
        async with self._http.post(f"{self._url}/{path}", json=body) as answer:
            value = (await answer.json())["value"]
        if answer.status != 200:
            raise BrowserError(f"{path}: {value['error']}: {value['message'].splitlines()[0]} ({str(body)[:300]})")
        return value

    async def open(self, url: str) -> None:
        """Load *url*."""
        await self._ask("url", {"url": url})

    async def run(self, script: str, *arguments: Any) -> Any:
        """What the body of a function *script* returns."""
        return await self._ask("execute/sync", {"script": script, "args": list(arguments)})

    async def until(self, expression: str) -> Any:
        """The first true value of *expression*, looked at whenever the document changes. Raises BrowserError."""
        try:
            return await self._ask("execute/async", {"script": _UNTIL, "args": [expression]})
        except BrowserError as error:
            text = await self.run("return document.body.innerText")
            raise BrowserError(f"never true: {expression}\n{error}\nThe page says:\n{text[:3000]}") from None

    async def click(self, selector: str) -> None:
        """Click the middle of the first element of CSS *selector*."""
        found = await self._ask("element", {"using": "css selector", "value": selector})
        await self._ask(f"element/{next(iter(found.values()))}/click", {})

    async def keys(self, *keys: str) -> None:
        """Press keys one after another, as WebDriver spells them: U+E004 is Tab."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        await self._ask("actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    async def devtools(self, command: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        return await self._ask("goog/cdp/execute", {"cmd": command, "params": parameters})

    async def size(self, width: int, height: int) -> None:
        """The window's inside, in CSS pixels."""
        await self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        await self.devtools("Emulation.setScrollbarsHidden", hidden=True)

    async def scheme(self, name: str) -> None:
        """What the person prefers: "dark" or "light"."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        await self.devtools("Emulation.setEmulatedMedia", features=features)

    async def picture(self, path: Path, *, whole: bool = True) -> None:
        """A PNG of the page, or of what is to be seen of it."""
        shot = await self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    async def log(self, kind: str) -> list[dict[str, Any]]:
        """New entries of a log: "browser" (console) or "performance" (DevTools events)."""
        entries: list[dict[str, Any]] = await self._ask("se/log", {"type": kind})
        return entries

    async def requests(self) -> list[str]:
        """The URLs that were asked for since this was last called."""
        events = [json.loads(entry["message"])["message"] for entry in await self.log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


@asynccontextmanager
async def browser(directory: Path) -> AsyncIterator[Browser]:
    """A browser with a profile of its own below *directory*."""
    port = free_port()
    driver = Process(["chromedriver", f"--port={port}"], name="chromedriver", log=directory / "chromedriver.log")
    driver.start()
    try:
        await driver.says("started successfully")
        root = f"http://127.0.0.1:{port}/session"
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": [*ARGUMENTS, f"--user-data-dir={directory / 'profile'}"]},
            "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"},
            "timeouts": {"script": PATIENCE, "pageLoad": PATIENCE},
        }
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http:
            async with http.post(root, json={"capabilities": {"alwaysMatch": wanted}}) as answer:
                value = (await answer.json())["value"]
                if answer.status != 200:
                    raise BrowserError(value["message"])
            url = f"{root}/{value['sessionId']}"
            yield Browser(http, url)
            async with http.delete(url):
                pass
    finally:
        await driver.stop()
