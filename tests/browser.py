"""A headless Chromium that tests drive through a pipe, in the DevTools protocol: no other package is needed."""

import base64
import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
PATIENCE = 60.0  # seconds; only what never comes takes as long


class Page:
    """A page in a browser.

    Attributes:
        complaints: What the page wrote to the console as a warning or an error, and exceptions that nobody caught.
        addresses: What it asked for on the network.
    """

    def __init__(self, answers: BufferedReader, orders: BinaryIO, width: int, height: int) -> None:
        self._read, self._write = answers, orders
        self._number, self._session, self._rest = 0, None, b""
        self.complaints: list[str] = []
        self.addresses: list[str] = []
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._send(f"{domain}.enable")
        self._send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def open(self, address: str) -> None:
        """Go to an address."""
        self._send("Page.navigate", url=address)

    def run(self, script: str) -> Any:
        """Value of an expression of JavaScript; promises are awaited."""
        found = self._send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition: str) -> Any:
        """Wait until an expression is true, and return its value."""
        end = time.monotonic() + PATIENCE
        while not (found := self.run(f"(found => found instanceof Node || found)({condition})")):
            if time.monotonic() > end:
                raise TimeoutError(f"{condition} is not true; the page shows {self.run('document.body.innerText')!r}")
            time.sleep(0.05)
        return found

    def drag(self, *places: tuple[float, float], modifiers: int = 0) -> None:
        """Press the mouse at the first place, release it at the last one; with one place, click there."""
        options = {"button": "left", "clickCount": 1, "modifiers": modifiers}
        for kind, (x, y) in (
            ("mousePressed", places[0]),
            *(("mouseMoved", place) for place in places),
            ("mouseReleased", places[-1]),
        ):
            self._send("Input.dispatchMouseEvent", type=kind, x=x, y=y, buttons=1, **options)

    def touch(self, kind: str, *places: tuple[float, float]) -> None:
        """Touch the page with a finger at every place; `kind` is Start, Move or End."""
        points = [{"x": x, "y": y, "id": finger} for finger, (x, y) in enumerate(places)]
        self._send("Input.dispatchTouchEvent", type=f"touch{kind}", touchPoints=points)

    def resize(self, width: int, height: int) -> None:
        """Give the page another size, as on a screen that is touched."""
        self._send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._send("Emulation.setTouchEmulationEnabled", enabled=True, maxTouchPoints=2)

    def screenshot(self, path: Path) -> None:
        """Save what is seen as PNG."""
        path.write_bytes(base64.b64decode(self._send("Page.captureScreenshot", format="png")["data"]))

    def _send(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        self._write.flush()
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            self._note(answer)

    def _receive(self) -> Any:
        while b"\0" not in self._rest:
            part = self._read.read1(2**20)
            assert part, "the browser ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event: Any) -> None:
        told = event.get("params", {})
        if event["method"] == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(x.get("value", x.get("description"))) for x in told["args"]))
        elif event["method"] == "Runtime.exceptionThrown":
            self.complaints.append(str(told["exceptionDetails"]))
        elif event["method"] == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        elif event["method"] == "Network.requestWillBeSent":
            self.addresses.append(told["request"]["url"])


@contextmanager
def open_browser(folder: Path, *, width: int = 1280, height: int = 1000) -> Iterator[Page]:
    """A page of a browser whose profile is in a folder."""
    assert BROWSER is not None
    (browser_reads, write), (read, browser_writes) = os.pipe(), os.pipe()
    given = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (browser_reads, browser_writes)]
    actions: list[Any] = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)]
    actions += [(os.POSIX_SPAWN_DUP2, end, number) for number, end in enumerate(given, start=3)]  # as it expects them
    command = [BROWSER, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={folder}"]
    process = os.posix_spawn(BROWSER, command, os.environ, file_actions=actions)
    for end in (browser_reads, browser_writes, *given):
        os.close(end)
    try:
        with os.fdopen(read, "rb") as answers, os.fdopen(write, "wb") as orders:
            yield Page(answers, orders, width, height)
    finally:
        os.kill(process, signal.SIGTERM)
        os.waitpid(process, 0)
