"""A headless Chromium over its DevTools pipe: no port, no driver, nothing downloaded.

The protocol is JSON messages ended by NUL on file descriptors 3 and 4 of the browser
(https://chromedevtools.github.io/devtools-protocol/, `--remote-debugging-pipe`).
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM: Final = next((path for name in NAMES if (path := shutil.which(name))), None)
ABSENT: Final = "no chromium in PATH (Debian: chromium)"
_FLAGS: Final = (
    "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run",
    "--disable-features=Translate,OptimizationHints,MediaRouter,DialMediaRouteProvider", "--hide-scrollbars",
    "--force-color-profile=srgb", "about:blank",
)  # fmt: skip
_ANSWER_S: Final = 60.0


class Page:
    """One tab.

    Attributes:
        complaints: exceptions and console errors of the page's scripts, and what failed to load.
        requests: every address that the page asked for.
    """

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd, self._write_fd = read_fd, write_fd
        self._rest, self._number, self._tab = b"", 0, ""
        self._loaded = False
        self.complaints: list[str] = []
        self.requests: list[str] = []

    def attach(self) -> Self:
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._tab = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        return self

    def screen(self, width: int, height: int = 900, *, dark: bool = False) -> None:
        """The size of the window in CSS pixels, and the reader's colour scheme."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, path: Path) -> None:
        """Load a file and wait until it has been loaded."""
        self._loaded = False
        self._call("Page.navigate", url=path.resolve().as_uri())
        give_up_s = time.monotonic() + _ANSWER_S
        while not self._loaded:
            self._take(self._receive(give_up_s))

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def screenshot(self, clip: dict[str, float] | None = None, scale: float = 1.0) -> bytes:
        """The whole page, or a part of it, as PNG; `scale` below 1 makes it smaller."""
        more: dict[str, Any] = {"captureBeyondViewport": True}
        if clip is None:
            size = self._call("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"]}
        more["clip"] = {**clip, "scale": scale}
        return base64.b64decode(self._call("Page.captureScreenshot", format="png", **more)["data"])

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._tab:
            message["sessionId"] = self._tab
        rest = json.dumps(message).encode() + b"\0"
        while rest:
            rest = rest[os.write(self._write_fd, rest) :]
        give_up_s = time.monotonic() + _ANSWER_S
        while True:
            answer = self._receive(give_up_s)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer.get('error')}"
                return answer["result"]
            self._take(answer)

    def _receive(self, give_up_s: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            left_s = give_up_s - time.monotonic()
            ready = left_s > 0 and select.select([self._read_fd], [], [], left_s)[0]
            assert ready, "the browser does not answer"
            data = os.read(self._read_fd, 1 << 20)
            assert data, "the browser has ended"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _take(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.complaints.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A Chromium of its own, with its profile in `profile`, ended with the block."""
    assert CHROMIUM is not None, ABSENT
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    # the browser wants its ends as 3 and 4: a shell puts them there
    command = f'exec "$@" 3<&{to_read} 4>&{from_write}'
    process = subprocess.Popen(
        ["bash", "-c", command, "bash", CHROMIUM, *_FLAGS[:-1], f"--user-data-dir={profile}", _FLAGS[-1]],
        pass_fds=(to_read, from_write),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(to_read)
    os.close(from_write)
    try:
        yield Page(from_read, to_write).attach()
    finally:
        os.close(to_write)
        os.close(from_read)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
