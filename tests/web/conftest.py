"""A real Chromium, driven through chromedriver's own HTTP interface."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
_PATIENCE_S = 30.0
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the name that the WebDriver standard gives it


class Browser:
    """One window."""

    def __init__(self, driver: str, profile: Path) -> None:
        self._driver = driver
        arguments = [*_FLAGS, f"--user-data-dir={profile}"]
        capabilities = {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": arguments, "binary": shutil.which("chromium")},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        opened = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        self._session = f"/session/{opened['sessionId']}"

    def close(self) -> None:
        self._ask("DELETE", self._session)

    def open(self, url: str) -> None:
        self._post("/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a piece of JavaScript returns."""
        return self._post("/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, script: str, *arguments: Any) -> Any:
        """The first value of an expression that is true; one that fails is not true yet."""
        deadline = time.monotonic() + _PATIENCE_S
        while not (value := self.run(f"try {{ return {script}; }} catch {{}}", *arguments)):
            if time.monotonic() > deadline:
                said = self.run("return document.body.innerText")
                raise AssertionError(f"never true: {script}\n{said}\n{self.complaints()}")
            time.sleep(0.1)
        return value

    def press(self, *keys: str) -> None:
        """Type keys, one after the other, at what has the focus."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._post("/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def drag(self, selector: str, start: float, stop: float) -> None:
        """Press, move and let go, along an element; places are shares of its width."""
        found = self._post("/element", {"using": "css selector", "value": selector})
        width = self.run("return arguments[0].getBoundingClientRect().width", found)
        places = [round((share - 0.5) * width) for share in (start, stop)]
        moves = [
            {"type": "pointerMove", "origin": {_ELEMENT: found[_ELEMENT]}, "x": place, "y": 0, "duration": 50}
            for place in places
        ]
        down, up = {"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}
        actions = [moves[0], down, moves[1], up]
        self._post("/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": actions}]})

    def resize(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.tell("Emulation.setDeviceMetricsOverride", metrics)

    def tell(self, command: str, parameters: dict[str, Any]) -> Any:
        """A command of the browser's own protocol."""
        return self._post("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def picture(self, path: Path) -> None:
        """The whole page, as a PNG file."""
        shot = self.tell("Page.captureScreenshot", {"captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """What the console said since it was asked last, advice left out."""
        entries = self._post("/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def _post(self, path: str, document: dict[str, Any]) -> Any:
        return self._ask("POST", self._session + path, document)

    def _ask(self, method: str, path: str, document: dict[str, Any] | None = None) -> Any:
        data = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(self._driver + path, data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{path}: {error.read().decode()[:2000]}") from None


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a chromedriver; where it is absent the tests are skipped, but not where it is expected."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if missing:
        say = pytest.fail if os.environ.get("UNIVIP_EXPECT_CHROMIUM") else pytest.skip
        say(f"{' and '.join(missing)} are absent (Debian packages: chromium chromium-driver)")
    process = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = next(
        found[1] for line in process.stdout if (found := re.search(r"successfully on port (\d+)", line))
    )
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(timeout=30)
    process.stdout.close()


@pytest.fixture
def browser(driver: str, tmp_path: Path) -> Iterator[Browser]:
    opened = Browser(driver, tmp_path / "profile")
    opened.resize(1360, 900)
    yield opened
    opened.close()
