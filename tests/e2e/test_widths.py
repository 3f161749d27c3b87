"""Test that every page fits windows of every usual width."""

import pytest

from tests.browser import device, settle
from tests.e2e.visits import PAGES, fill

WIDTHS = (360, 390, 480, 640, 700, 768, 820, 900, 960, 1024, 1100, 1280, 1440, 1600)
PHONES = WIDTHS[:3]
# The pages that are drawn otherwise for a phone's browser than for a narrow window.
OF_PHONES = ("plan", "bad link", "verify", "history", "history compared", "accuracy")

# A page that failed is small enough for every window. Metrics, headings, badges and buttons must show all of their
# words. A table scrolls inside itself where the window is narrower than a laptop's.
_CUT_OFF = """() => {
  const found = [];
  for (const box of document.querySelectorAll('[data-testid=stException]')) found.push(`failed: ${box.innerText}`);
  for (const box of [document.documentElement, document.querySelector('[data-testid=stMain]')])
    if (box.scrollWidth > box.clientWidth) found.push(`scrolls sideways: ${box.scrollWidth} in ${box.clientWidth}`);
  const links = [...document.querySelectorAll(".st-key-pages a")];
  const rows = new Set(links.map((link) => Math.round(link.getBoundingClientRect().y)));
  if (rows.size > 1) found.push(`the navigation takes ${rows.size} rows`);
  const words = '[data-testid=stMetric] *, h1, h1 *, h2, h2 *, h3, h3 *, [data-testid=stBadge] *, button *';
  for (const part of document.querySelectorAll(`[data-testid=stMain] :is(${words})`)) {
    if (!part.getClientRects().length || part.clientWidth < 2 || part.closest('[data-testid=stDataFrame]')) continue;
    const hides = getComputedStyle(part).overflowX !== 'visible';
    if (hides && part.scrollWidth > part.clientWidth + 1) found.push(`cut off: ${part.innerText}`);
  }
  if (innerWidth >= 1024)
    for (const table of document.querySelectorAll('[data-testid=stDataFrame]')) {
      const inside = table.querySelector('.dvn-scroller');
      const name = table.querySelector('[role=grid]')?.getAttribute('aria-label') ?? table.innerText.slice(0, 60);
      if (inside && inside.scrollWidth > inside.clientWidth + 1)
        found.push(`table scrolls: ${inside.scrollWidth} in ${inside.clientWidth}: ${name}`);
    }
  return found;
}"""


# A chart and a table are drawn after their page's script has ended, and again when the width changes.
_DRAWN = """() => [...document.querySelectorAll('[data-testid=stVegaLiteChart], [data-testid=stDataFrame]')].every(
  (part) => !part.getClientRects().length || part.querySelector('canvas, svg.marks'))"""
_NEXT_FRAMES = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


@pytest.fixture(scope="module")
def runs(history):
    return fill(history)


@pytest.fixture(scope="module")
def open_in(browser, app, runs):
    """Open a page in the one tab of a kind of browser, whose cache then has the app's scripts."""
    tabs = {}

    def open_(name: str, width: int):
        is_phone = width < 600
        if is_phone not in tabs:
            tabs[is_phone] = browser.new_context(**device(width)).new_page()
            tabs[is_phone].set_default_timeout(30_000)
        page = tabs[is_phone]
        page.goto(f"{app}{PAGES[name].format(**runs._asdict())}")
        page.wait_for_selector("h1, h2")
        settle(page)
        page.wait_for_function(_DRAWN)
        return page

    yield open_
    for page in tabs.values():
        page.context.close()


def _cut_off_at(page, widths) -> dict[int, list[str]]:
    """Return what is cut off in a page, by the width of the window in pixels.

    The widths are given from wide to narrow: what adapts late then is too wide for a moment, and never too narrow.
    """
    found = {}
    for width in widths:
        page.set_viewport_size({"width": width, "height": 900})
        page.evaluate(_NEXT_FRAMES)
        lines = page.evaluate(_CUT_OFF)
        if lines:
            # A table and a chart follow a new width a moment later.
            page.wait_for_timeout(600)
            lines = page.evaluate(_CUT_OFF)
        if lines:
            found[width] = lines
    return found


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_cut_off(open_in, name):
    assert _cut_off_at(open_in(name, WIDTHS[-1]), reversed(WIDTHS)) == {}


@pytest.mark.parametrize("name", OF_PHONES)
def test_nothing_is_cut_off_on_a_phone(open_in, name):
    assert _cut_off_at(open_in(name, PHONES[-1]), reversed(PHONES)) == {}
