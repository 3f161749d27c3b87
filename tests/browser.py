"""Run the app on a server of its own on this machine, and open it in Debian's chromium."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from tests.conftest import ROOT

CHROMIUM = shutil.which("chromium")
# The last five options keep Chromium from contacting its maker's servers.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# A page only looks for a phone in the user agent, so the engine can stay the same.
PHONE = (
    "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Mobile Safari/537.36"
)
SETTLED = '[data-testid="stApp"][data-test-script-state="notRunning"]'


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# Two ways to start the app: ``make run``, and the usual command of Streamlit.
MAKE_RUN = ("pages.shared.server",)
STREAMLIT_RUN = ("streamlit", "run", "streamlit_app.py", "--server.address", "127.0.0.1")


@contextlib.contextmanager
def server(history: Path, module: Sequence[str] = MAKE_RUN) -> Generator[str]:
    """Start the app as ``python -m`` this module on a free port, and give its address."""
    port = free_port()
    command = [sys.executable, "-m", *module, "--server.headless", "true", "--server.port", str(port)]
    environment = os.environ | {"PLANNER_DB": str(history)}
    log = history.with_name("server.log")
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(address, process, log)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=20)


def wait_until_healthy(address: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{address}/_stcore/health", timeout=5).close()
            return
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)


@contextlib.contextmanager
def chromium() -> Generator[Browser]:
    """Start a headless chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def device(width: int) -> dict[str, Any]:
    """Return the options of a browser context of this width in pixels; narrow ones are phones."""
    viewport = {"width": width, "height": 900}
    return {"viewport": viewport, "user_agent": PHONE, "has_touch": True} if width < 600 else {"viewport": viewport}


def settle(page: Page) -> None:
    """Wait until the page's script has ended and the browser has loaded every control."""
    page.wait_for_selector(SETTLED)
    page.wait_for_function("!document.querySelector('[data-testid=stMain] [data-testid=stSkeleton]')")


def whole_page(page: Page, path: Path) -> None:
    """Save a screenshot of the whole page, not only of the window."""
    size = page.viewport_size
    assert size is not None
    page.wait_for_timeout(800)
    height = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
    page.set_viewport_size({"width": size["width"], "height": int(height) + 16})
    page.wait_for_timeout(800)
    page.screenshot(path=path)
    page.set_viewport_size(size)
