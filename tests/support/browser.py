"""A real Chromium for tests, and a server for a folder of files.

Chromium and its driver are those of the system (``apt-get install chromium chromium-driver``): pip has none. Where they
are missing, the fixture fails, since these tests run only where someone has asked for them (``tox -e full``).
"""

from __future__ import annotations

import functools
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SECONDS = 30
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
_DRIVER = ("chromedriver",)


class BrowserMissing(Exception):
    """There is no Chromium, or no driver for it."""


class Browser:
    """One tab. ``driver``: Selenium's driver, for everything that this class has no method for."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def show(self, url: str, width: int = 1440, height: int = 900, dark: bool = False) -> None:
        """Open a page in a window of a size, on a light or a dark system; returns when it is loaded."""
        self.look(width, height, dark)
        self.errors()  # drop the errors of earlier pages
        self.driver.get(url)

    def look(self, width: int, height: int = 900, dark: bool = False) -> None:
        """Change the size and the light or dark system of the open page."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def run(self, script: str, *arguments: object) -> Any:
        """The value that a script in the page returns."""
        return self.driver.execute_script(script, *arguments)

    def wait_for(self, script: str, *arguments: object) -> Any:
        """Wait until a script in the page returns a true value, and return it; raises ``TimeoutException``."""
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.driver, SECONDS, 0.05).until(lambda driver: driver.execute_script(script, *arguments))

    def errors(self) -> list[str]:
        """The errors on the console since the page was opened, or since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


def _installed(names: tuple[str, ...]) -> str:
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise BrowserMissing(f"no {names[0]} on PATH; install it: apt-get install chromium chromium-driver")
    return found


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start and end Chromium. Raises ``BrowserMissing`` with what to install."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = _installed(_CHROMIUM)
    options.add_argument("--headless=new")
    options.add_argument("--disable-dev-shm-usage")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium refuses to run as root with a sandbox
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(_installed(_DRIVER)))
    try:
        driver.set_page_load_timeout(SECONDS)
        driver.set_script_timeout(SECONDS)
        yield Browser(driver)
    finally:
        driver.quit()


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve the files of a folder within the block; the URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_QuietHandler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join(SECONDS)
