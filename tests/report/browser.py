"""A headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

AXE = Path(__file__).with_name("axe") / "axe.min.js"
"""axe-core 4.14.1 (MPL 2.0), which looks for barriers to access."""
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


class Page:
    """One page. `complaints` are what its console and its policy said."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection, self._number, self.complaints = connection, 0, list[str]()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a DevTools command."""
        self._number += 1
        self._connection.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(60))
            if message.get("id") == self._number:
                assert "error" not in message, message
                return dict(message["result"])
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(json.dumps(message["params"]))

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def open(self, path: Path | str) -> None:
        """Loads a file or an address and waits until its script is through."""
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=path if isinstance(path, str) else path.as_uri())
        while not self.run("document.documentElement && document.documentElement.dataset.ready"):
            time.sleep(0.02)


@contextlib.contextmanager
def browser(folder: Path, width: int = 1400) -> Iterator[Page]:
    """A page in a fresh Chromium, which ends with the block."""
    assert CHROMIUM
    words = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--remote-debugging-port=0",
        f"--user-data-dir={folder}",
    ]
    process = subprocess.Popen(
        [CHROMIUM, *words, f"--window-size={width},1000", "about:blank"], stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        address = next(line.split()[-1] for line in process.stderr if "DevTools listening on" in line)
        port = address.split(":")[2].split("/")[0]
        target = next(one for one in httpx.get(f"http://127.0.0.1:{port}/json").json() if one["type"] == "page")
        with connect(target["webSocketDebuggerUrl"], max_size=None) as connection:
            yield Page(connection)
    finally:
        process.terminate()
        process.communicate(timeout=30)


def emulate(page: Page, width: int, scheme: str = "light") -> None:
    """The page in a window of that width, light or dark."""
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    page.call("Emulation.setFocusEmulationEnabled", enabled=True)
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])


def barriers(page: Page) -> list[str]:
    """What axe finds that keeps people out, one line each; the page's own policy keeps no script of DevTools out."""
    if not page.run("typeof axe === 'object'"):
        page.call("Runtime.evaluate", expression=AXE.read_text(encoding="utf-8"))
    script = """axe.run({ resultTypes: ["violations"] }).then(({ violations }) =>
      violations.map((one) => `${one.id}: ${one.nodes.map((node) => node.html.slice(0, 160)).join(" | ")}`))"""
    return list(page.run(script))
