"""``make bench``: measure times and sizes on this machine and print them as a table, without limits."""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from playwright.sync_api import Browser, Locator, Page

from planner.report.text import text_table
from tests.bench.dry_run import dry_runs
from tests.bench.many_runs import many_runs
from tests.bench.planning import planning
from tests.bench.repaint import repaint
from tests.browser import CHROMIUM, chromium, server, settle
from tests.conftest import ROOT

COLD_RUNS = 7
PAINTS = 3
PAGES = {
    "Plan": ("/", "Headroom"),
    "Verify": ("/Verify", "No run yet"),
    "History": ("/History", "No run was"),
    "Accuracy": ("/Accuracy", "Worst runs"),
}
MANY = {"History, 10,000 runs": ("/History", "of 10,000 runs"), "Accuracy, 10,000 runs": ("/Accuracy", "Worst runs")}

Row = tuple[str, str, str]


def cold(*argv: str) -> float:
    """Return the median seconds of a new process."""
    seconds = []
    for _ in range(COLD_RUNS):
        began = time.perf_counter()
        subprocess.run([sys.executable, *argv], cwd=ROOT, check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def command_line() -> list[Row]:
    """Measure commands that scripts wait for."""
    numpy = cold("-c", "import numpy")
    rows = [("python -c 'import numpy', cold", f"{numpy * 1000:.0f} ms", "")]
    for argv in (["fit"], ["fit", "--json"]):
        taken = cold("-m", "planner", *argv)
        name = f"python -m planner {' '.join(argv)}, cold"
        rows.append((name, f"{taken * 1000:.0f} ms", f"{taken / numpy:.2f} times import numpy"))
    return rows


def painted(page: Page, address: str, text: str) -> tuple[float, float]:
    """Measure the seconds from opening an address to its title and to its content."""
    began = time.perf_counter()
    page.goto(address, wait_until="commit")
    page.wait_for_selector("h1")
    title = time.perf_counter() - began
    page.get_by_text(text).first.wait_for(timeout=120_000)
    return title, time.perf_counter() - began


def first_paints(browser: Browser, history: Path, pages: dict[str, tuple[str, str]]) -> list[Row]:
    """Measure each page as the first one of a new server, in a browser without a cache."""
    rows = []
    for name, (path, text) in pages.items():
        titles, contents = [], []
        for _ in range(PAINTS):
            with server(history) as address:
                context = browser.new_context()
                title, content = painted(context.new_page(), address + path, text)
                titles.append(title)
                contents.append(content)
                context.close()
        values = (statistics.median(titles), statistics.median(contents))
        rows.append(
            (f"{name}: first paint, fresh server and browser", f"{values[0]:.2f} s", f"content after {values[1]:.2f} s")
        )
    return rows


def server_process() -> psutil.Process:
    """Return the process of the app's server, the only child of this process."""
    return next(child for child in psutil.Process().children() if "pages.shared.server" in child.cmdline())


def rss(process: psutil.Process) -> str:
    return f"{process.memory_info().rss / 2**20:.0f} MiB"


def timed(act: Callable[[], None], wait: Callable[[], None]) -> float:
    began = time.perf_counter()
    act()
    wait()
    return time.perf_counter() - began


def in_use(browser: Browser, folder: Path) -> list[Row]:
    """Measure a server that several people use."""
    rows = []
    with server(folder / "use.db") as address:
        process = server_process()
        rows.append(("Server memory, before the first visitor", rss(process), ""))
        page = browser.new_context().new_page()
        painted(page, address, "Headroom")
        page.wait_for_selector("[data-testid=stVegaLiteChart] canvas, [data-testid=stVegaLiteChart] svg")
        width = page.get_by_role("spinbutton", name="Width, px")
        changes = []
        for value in range(640, 640 + 8 * 7, 8):
            width.fill(str(value))
            seen = page.locator("p", has_text=f"img2img {value}×512")

            def shown(seen: Locator = seen) -> None:
                seen.wait_for()
                settle(page)

            changes.append(timed(lambda: width.press("Enter"), shown))
        rows.append(
            ("Plan: a change until all of it is seen", f"{statistics.median(changes) * 1000:.0f} ms", "median of 7")
        )
        page.goto(f"{address}/Verify?width=64&height=64&steps=1")
        button = page.get_by_role("button", name="Verify")
        button.wait_for()
        progress = page.get_by_test_id("stProgress")
        pressed = timed(button.click, progress.wait_for)
        rows.append(("Verify: pressed until the first progress", f"{pressed * 1000:.0f} ms", "a cold worker"))
        cancel = page.get_by_role("button", name="Cancel")
        cancelled = timed(cancel.click, page.get_by_text("Cancelled").wait_for)
        rows.append(("Verify: cancel until the result", f"{cancelled * 1000:.0f} ms", ""))
        page.goto(f"{address}/History")
        page.get_by_text("1 of 1 run").wait_for()
        rows.append(("Server memory, after a visit to every page", rss(process), "no torch in it"))
    return rows


def main() -> int:
    """Measure everything and print the table."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # The history of the user must not change the figures.
        os.environ["PLANNER_DB"] = str(folder / "empty.db")
        rows = command_line() + dry_runs() + planning() + repaint()
        os.environ["PLANNER_DB"] = str(folder / "many.db")
        rows += many_runs(folder)
        if CHROMIUM:
            with chromium() as browser:
                rows += first_paints(browser, folder / "paint.db", PAGES)
                rows += first_paints(browser, folder / "many.db", MANY)
                rows += in_use(browser, folder)
        else:
            print("no chromium on this machine: the pages were not measured", file=sys.stderr)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print(text_table(("figure", "value", "note"), rows, right=(1,)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
