"""``make pictures``: draw the README's pictures from the app with an empty history."""

import sys
import tempfile
from pathlib import Path

from tests.browser import chromium, server, settle
from tests.conftest import ROOT

DOCS = ROOT / "docs"
PLAN = "/?width=2048&height=2048&gpu=T4&gpu=RTX+4060&gpu=A100-40GB"


def main() -> int:
    """Write docs/plan.png, docs/timeline.png and docs/accuracy.png."""
    with (
        tempfile.TemporaryDirectory() as temporary,
        server(Path(temporary) / "planner.db") as address,
        chromium() as browser,
    ):
        page = browser.new_context(viewport={"width": 1280, "height": 1000}, device_scale_factor=1).new_page()
        page.goto(address + PLAN)
        page.get_by_role("tab", name="Export").wait_for()
        settle(page)
        page.wait_for_timeout(1500)
        page.screenshot(path=DOCS / "plan.png")
        page.goto(f"{address}/?width=1024&height=1024&gpu=A10&tab=Why")
        page.get_by_text("Memory over time").wait_for()
        settle(page)
        chart = page.get_by_test_id("stVegaLiteChart").nth(1)
        chart.scroll_into_view_if_needed()
        page.wait_for_timeout(1500)
        chart.screenshot(path=DOCS / "timeline.png")
        page.goto(f"{address}/Accuracy")
        page.get_by_text("Worst runs").wait_for()
        settle(page)
        page.wait_for_timeout(1500)
        page.set_viewport_size({"width": 1280, "height": 1300})
        page.wait_for_timeout(1500)
        page.screenshot(path=DOCS / "accuracy.png")
    print(f"three pictures in {DOCS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
