"""Chromium without a window, driven over the pipe of its DevTools protocol."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-extensions", "--hide-scrollbars",
    "--remote-debugging-pipe",
)  # fmt: skip


class Browser:
    """One page.

    Attributes:
        complaints: console errors, exceptions and blocked things since the last `open`.
        requested: addresses asked for since the last `open`.
    """

    def __init__(self, binary: str, profile: Path, wait_s: float = 60) -> None:
        self.wait_s = wait_s
        self.complaints: list[str] = []
        self.requested: list[str] = []
        self._events: list[dict[str, Any]] = []
        self._buffer = b""
        self._sent = 0
        # The browser reads commands from its descriptor 3 and answers on 4.
        commands, self._out = (_out_of_the_way(fd) for fd in os.pipe())
        self._in, answers = (_out_of_the_way(fd) for fd in os.pipe())

        def wire() -> None:
            os.dup2(commands, 3)
            os.dup2(answers, 4)

        self._process = subprocess.Popen(
            [binary, *FLAGS, f"--user-data-dir={profile}", "about:blank"], preexec_fn=wire,
            close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(commands)
        os.close(answers)
        target = self._send("Target.createTarget", {"url": "about:blank"})["targetId"]
        attached = self._send("Target.attachToTarget", {"targetId": target, "flatten": True})
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._out)
        self._process.terminate()
        self._process.wait(20)
        os.close(self._in)

    def open(
        self, page: Path, *, width: int = 1280, scheme: str = "light", place: str = ""
    ) -> None:
        """Load a file; `place` comes after the `#`."""
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=844, deviceScaleFactor=2 if phone else 1, mobile=phone,
        )  # fmt: skip
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        # Not from one place to another of the same page, which loads nothing.
        self.call("Page.navigate", url="about:blank")
        self._until("Page.loadEventFired")
        self.complaints, self.requested, self._events = [], [], []
        self.call("Page.navigate", url=page.resolve().as_uri() + (f"#{place}" if place else ""))
        self._until("Page.loadEventFired")

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def point_at(self, selector: str) -> None:
        """Move the mouse onto the first element that fits."""
        quoted = json.dumps(selector)
        centre = "{block: 'center', behavior: 'instant'}"
        self.value(f"document.querySelector({quoted}).scrollIntoView({centre})")
        self.value(
            "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )
        x, y = self.value(
            f"(({{left, top, width, height}}) => [left + width / 2, top + height / 2])"
            f"(document.querySelector({quoted}).getClientRects()[0])"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def picture(self, path: Path, selector: str = "body", most: int = 20_000) -> None:
        """A PNG of an element, as tall as it is."""
        quoted = json.dumps(selector)
        box = self.value(
            "(({left, top, width, height}) =>"
            " ({x: left + scrollX, y: top + scrollY, width, height}))"
            f"(document.querySelector({quoted}).getBoundingClientRect())"
        )
        clip = box | {"height": min(box["height"], most), "scale": 1}
        made = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(made["data"]))

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._send(method, params, self._session)

    def _send(self, method: str, params: dict[str, Any], session: str = "") -> dict[str, Any]:
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": params}
        message |= {"sessionId": session} if session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._sent:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])

    def _until(self, event: str) -> None:
        while not any(e["method"] == event for e in self._events):
            self._receive()
        self._events = []

    def _receive(self) -> dict[str, Any]:
        ends = time.monotonic() + self.wait_s
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, ends - time.monotonic()))
            if not ready:
                raise TimeoutError("chromium does not answer")
            part = os.read(self._in, 1 << 20)
            if not part:
                raise EOFError("chromium ended")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if "method" in message:
            self._note(message)
        return message

    def _note(self, event: dict[str, Any]) -> None:
        self._events.append(event)
        method, params = event["method"], event["params"]
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.complaints.append(str(params["args"]))
        elif method == "Log.entryAdded":
            self.complaints.append(str(params["entry"]["text"]))
        elif method == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])


def _out_of_the_way(descriptor: int) -> int:
    """The same above 3 and 4, where the child's ends go."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved
