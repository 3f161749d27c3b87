"""Test that every page fits windows of every usual width."""

import pytest

from tests.browser import device, settle
from tests.e2e.visits import PAGES, fill

PHONES, OTHERS = (360, 390, 480), (640, 700, 768, 820, 900, 960, 1024, 1100, 1280, 1440, 1600)

# Metrics, headings, badges and buttons must show all of their words. A table scrolls inside itself where the window is
# narrower than a laptop's.
_CUT_OFF = """() => {
  const found = [];
  for (const box of [document.documentElement, document.querySelector('[data-testid=stMain]')])
    if (box.scrollWidth > box.clientWidth) found.push(`scrolls sideways: ${box.scrollWidth} in ${box.clientWidth}`);
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


@pytest.fixture(scope="module")
def runs(history):
    return fill(history)


@pytest.mark.parametrize("widths", [PHONES, OTHERS], ids=["phones", "others"])
@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_cut_off(browser, app, runs, name, widths):
    with browser.new_context(**device(widths[0])) as context:
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.goto(f"{app}{PAGES[name].format(**runs._asdict())}")
        page.wait_for_selector("h1, h2")
        settle(page)
        page.wait_for_timeout(1000)
        found = {}
        for width in widths:
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(400)
            found[width] = page.evaluate(_CUT_OFF)
        assert {width: lines for width, lines in found.items() if lines} == {}
