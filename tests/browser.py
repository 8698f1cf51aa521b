"""A real browser without a window: Chromium, told what to do through a pipe in its own protocol."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROGRAM = next(filter(None, map(shutil.which, _NAMES)), None)
SECONDS = 30.0
_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
)  # fmt: skip


@dataclass
class Browser:
    """One page, and all that it asked for and complained of."""

    to: int
    of: int
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    _session: str = ""
    _number: int = 0
    _rest: bytes = b""

    def start(self) -> None:
        """Open a page and listen."""
        target = self.tell("Target.createTarget", url="about:blank")["targetId"]
        attached = self.tell("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.tell(f"{domain}.enable")

    def show(self, page: Path, width: int, *, dark: bool = False) -> None:
        """Load a page from a file on a screen so many pixels wide."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.tell("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.tell("Emulation.setEmulatedMedia", features=[scheme])
        self.tell("Page.navigate", url=page.resolve().as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def value(self, expression: str) -> Any:
        """Evaluate JavaScript in the page."""
        result = self.tell("Runtime.evaluate", expression=expression, returnByValue=True)
        return result["result"]["value"]

    def screenshot(self, to: Path, height: int | None = None) -> None:
        """Keep what the page looks like, whole or down to a height."""
        width, whole = self.value("[innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": height or whole, "scale": 1}
        shot = self.tell("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        to.write_bytes(base64.b64decode(shot["data"]))

    def tell(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self.of], [], [], SECONDS)[0]:
                raise RuntimeError(f"the browser says nothing for {SECONDS} s")
            if not (more := os.read(self.of, 65536)):
                raise RuntimeError("the browser is gone")
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        params = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        if message.get("method") in {"Log.entryAdded", "Runtime.exceptionThrown"}:
            self.complaints.append(json.dumps(params))
        if message.get("method") == "Runtime.consoleAPICalled":
            self.complaints.append(json.dumps(params))
        return message


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Run Chromium while the context is open, with its profile in a folder."""
    assert PROGRAM is not None
    to_read, to = os.pipe()
    of, of_write = os.pipe()

    def as_three_and_four() -> None:
        reading, writing = os.dup(to_read), os.dup(of_write)
        os.dup2(reading, 3)
        os.dup2(writing, 4)

    with subprocess.Popen(
        [PROGRAM, *_OPTIONS, f"--user-data-dir={profile}"],
        pass_fds=(3, 4, to_read, of_write),
        preexec_fn=as_three_and_four,  # noqa: PLW1509
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(to_read)
        os.close(of_write)
        try:
            page = Browser(to, of)
            page.start()
            yield page
        finally:
            process.kill()
            os.close(to)
            os.close(of)
