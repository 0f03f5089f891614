"""Speaks to headless Chromium by the DevTools protocol, over tornado's WebSocket (it comes with dask)."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from tornado.websocket import WebSocketClientConnection, websocket_connect

from quicferry.process import DEVNULL, Popen, spawn, stop

PATIENCE_S = 120.0  # a busy machine is no fault of the page
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run")


class Browser:
    """A browser with one page. ``errors``: what its console complained of; ``requests``: its URLs."""

    def __init__(self, process: Popen[bytes], socket: WebSocketClientConnection) -> None:
        self._process = process
        self._socket = socket
        self._number = 0
        self._session: str | None = None
        self.errors: list[str] = []
        self.requests: list[str] = []

    @classmethod
    async def start(cls, profile: Path) -> Browser:
        """Start Chromium with a profile of its own. Raises ``Unsupported`` when there is none."""
        process = spawn(["chromium", *FLAGS, f"--user-data-dir={profile}"], stdout=DEVNULL, stderr=DEVNULL)
        port_file = profile / "DevToolsActivePort"
        deadline = time.monotonic() + 60
        while not port_file.exists() or port_file.read_text().count("\n") < 1:
            assert time.monotonic() < deadline, "Chromium does not come up"
            await asyncio.sleep(0.05)
        port, path = port_file.read_text().splitlines()
        socket = await websocket_connect(f"ws://127.0.0.1:{port}{path}", max_message_size=1 << 28)
        browser = cls(process, socket)
        target = (await browser.call("Target.createTarget", url="about:blank"))["targetId"]
        attached = await browser.call("Target.attachToTarget", targetId=target, flatten=True)
        browser._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            await browser.call(f"{domain}.enable")
        return browser

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its answer; what the browser tells meanwhile is noted."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        await self._socket.write_message(json.dumps(message))
        while True:
            answer = await asyncio.wait_for(self._socket.read_message(), 60)
            assert answer is not None, "Chromium has gone"
            told = json.loads(answer)
            if told.get("id") == self._number:
                assert "error" not in told, told["error"]
                return dict(told["result"])
            self._note(told)

    def _note(self, told: dict[str, Any]) -> None:
        method, details = told.get("method"), told.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(details["exceptionDetails"])[:500])
        elif method == "Runtime.consoleAPICalled" and details["type"] in ("error", "warning", "assert"):
            self.errors.append(json.dumps(details["args"])[:500])
        elif method == "Log.entryAdded" and details["entry"]["level"] in ("error", "warning"):
            self.errors.append(details["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"][:200])

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page; a promise is waited for."""
        answer = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def open(self, url: str) -> None:
        """Go to a page and wait until it is loaded."""
        await self.call("Page.navigate", url=url)
        await self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def wait_for(self, expression: str) -> None:
        """Wait until an expression is true. Fails after ``PATIENCE_S``."""
        deadline = time.monotonic() + PATIENCE_S
        while not await self.evaluate(expression):
            assert time.monotonic() < deadline, expression
            await asyncio.sleep(0.05)

    async def size(self, width: int, height: int) -> None:
        """Give the page another size."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    async def press(self, key: str) -> None:
        """A key goes down and up."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": key} if kind == "keyDown" and len(key) == 1 else {}
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, **text)

    async def close(self) -> None:
        """End the browser."""
        self._socket.close()
        while await self._socket.read_message() is not None:
            pass  # until the other side has closed, too
        stop(self._process)
