"""A real browser for the tests, driven over Chromium's own protocol."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from conftest import eventually
from websockets.sync.client import ClientConnection, connect

from darkroom_cli.servers import ChildProcess

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ANSWER_S = 60


class BrowserError(Exception):
    """The browser is missing, or something in the page went wrong."""


@dataclass
class Page:
    """One open page."""

    connection: ClientConnection
    errors: list[str] = field(default_factory=list)
    """Exceptions and console errors of the page's own scripts, and what its security policy has blocked."""
    _calls: int = 0

    def call(self, method: str, **parameters: Any) -> Any:
        """The result of a method of the protocol; raises BrowserError."""
        self._calls += 1
        self.connection.send(json.dumps({"id": self._calls, "method": method, "params": parameters}))
        deadline = time.monotonic() + ANSWER_S
        while True:
            message = json.loads(self.connection.recv(timeout=max(0.1, deadline - time.monotonic())))
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(message["params"]["exceptionDetails"]))
            elif message.get("method") == "Log.entryAdded":
                entry = message["params"]["entry"]
                if entry["level"] == "error" and entry["source"] != "network":  # a problem is an answer, too
                    self.errors.append(entry["text"])
            if message.get("id") == self._calls:
                if "error" in message:
                    raise BrowserError(f"{method}: {message['error']}")
                return message["result"]

    def open(self, url: str) -> None:
        """Goes to an address; returns when what it loads is there, scripts not necessarily done."""
        self.call("Page.navigate", url=url)
        self.wait_for(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")

    def read(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page; raises BrowserError when it throws."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise BrowserError(result["exceptionDetails"]["exception"]["description"])
        return result["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """The first true value of an expression."""
        return eventually(lambda: self.read(expression), within_s=ANSWER_S)

    def press(self, key: str) -> None:
        """Presses and releases a key by its name, such as `ArrowDown`."""
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def resize(self, width: int, height: int = 900) -> None:
        """Gives the page another size in pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def prefer(self, scheme: str) -> None:
        """Makes the user prefer `light` or `dark`."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])


@contextmanager
def browsing(folder: Path) -> Iterator[Page]:
    """An empty page of a browser that keeps its files in `folder`; raises BrowserError when none is installed."""
    executable = next((found for name in NAMES if (found := shutil.which(name))), None)
    if executable is None:
        raise BrowserError("Chromium is not installed: run `sh tests/install-chromium.sh`")
    argv = [executable, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    argv += ["--remote-debugging-port=0", f"--user-data-dir={folder / 'profile'}", "about:blank"]
    browser = ChildProcess(argv, log=folder / "chromium.log")
    browser.start()
    try:
        said = folder / "profile/DevToolsActivePort"
        port = eventually(lambda: said.exists() and said.read_text().partition("\n")[0], within_s=ANSWER_S)

        def address() -> str | None:
            """The page's socket."""
            targets = httpx.get(f"http://127.0.0.1:{port}/json", timeout=ANSWER_S, trust_env=False).json()
            return next((each["webSocketDebuggerUrl"] for each in targets if each["type"] == "page"), None)

        with connect(eventually(address), open_timeout=ANSWER_S, max_size=None, proxy=None) as connection:
            page = Page(connection)
            for domain in ("Page", "Runtime", "Log"):
                page.call(f"{domain}.enable")
            page.call("Emulation.setFocusEmulationEnabled", enabled=True)  # as if its window were the front one
            yield page
    finally:
        browser.stop()
