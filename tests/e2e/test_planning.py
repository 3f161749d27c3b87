"""Test planning in a real browser: remedies, largest sizes, the map, and exports."""

import json
import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import expect

from planner.alternatives.sizes import sizes
from planner.cards.lookup import card_named
from planner.fit import fit
from planner.programs.files import shipped
from planner.request import GenerationRequest
from planner.units import gib
from tests.browser import settle

BIG = GenerationRequest(width=2048, height=2048)
T4 = card_named("T4")
LINK = "/?width=2048&height=2048&gpu=T4"


@pytest.fixture
def big(open_page):
    page = open_page(LINK)
    page.get_by_role("tab", name="Export").wait_for(timeout=30_000)
    settle(page)
    return page


def show(page, tab: str) -> None:
    """Open a tab as a visitor does, and wait for what it works out."""
    page.get_by_role("tab", name=tab).click()
    expect(page).to_have_url(re.compile(f"tab={tab.replace(' ', '.')}"))
    settle(page)


def test_a_remedy_can_be_applied_and_undone(big):
    tiled = fit(GenerationRequest(width=2048, height=2048, vae_tiling=True), T4, "dry-run")
    expect(big.get_by_text("T4 is tight: it needs 15.87 GiB of 14.56 GiB")).to_be_visible()
    expect(big.get_by_text(f"Needs {gib(tiled.need_bytes)}").first).to_be_visible()
    expect(big.get_by_text("pipe.vae.enable_tiling()").first).to_be_visible()
    big.get_by_role("button", name="Apply").first.click()
    expect(big).to_have_url(re.compile("vae_tiling=[Tt]rue"))
    # Above 512×512 the need on a T4 is a range.
    reach = f"needs {gib(tiled.need_bytes)}, up to {gib(tiled.worst_need_bytes)} of 14.56 GiB usable"
    expect(big.get_by_text(reach)).to_be_visible()
    big.go_back()
    expect(big.get_by_text("T4 is tight: it needs 15.87 GiB of 14.56 GiB")).to_be_visible(timeout=20_000)


def test_largest_sizes_and_map_open(big):
    show(big, "Sizes and map")
    expect(big.get_by_text("one step more does not")).to_be_visible(timeout=60_000)
    found = sizes(BIG, T4, shipped())
    square = found.sizes["square"]
    assert square is not None
    at_most = GenerationRequest(width=square.width, height=square.height)
    assert fit(at_most, T4, "dry-run").verdict == "fits"
    # The table is drawn on a canvas, and said to those who cannot see it.
    tables = big.get_by_test_id("stDataFrame")
    before = tables.count()
    big.get_by_text("Map of sizes, GPUs and batches").click()
    expect(big.get_by_text("dry runs at batch 1")).to_be_visible(timeout=60_000)
    expect(tables).to_have_count(before + 1)


@pytest.mark.parametrize(("label", "ending"), [("JSON", ".json"), ("Markdown", ".md"), ("Picture", ".png")])
def test_a_plan_can_be_downloaded(big, label, ending):
    show(big, "Export")
    with big.expect_download(timeout=60_000) as waiting:
        big.get_by_role("button", name=label, exact=True).click()
    download = waiting.value
    assert download.suggested_filename.endswith(ending)
    content = Path(download.path()).read_bytes()
    if ending == ".json":
        [row] = json.loads(content)["gpus"]
        assert (row["name"], row["verdict"]) == ("T4", "tight")
    elif ending == ".md":
        assert "15.87 GiB" in content.decode()
    else:
        assert content.startswith(b"\x89PNG") and len(content) > 20_000


def test_the_planned_call_can_be_copied(big):
    show(big, "Export")
    big.locator("summary").filter(has_text="The planned call in Python").click()
    expect(big.locator("code").filter(has_text="StableDiffusionImg2ImgPipeline").last).to_be_visible()


def test_runs_can_be_grouped(open_page):
    page = open_page("/Accuracy")
    expect(page.get_by_text("Inside interval").first).to_be_visible(timeout=30_000)
    # Three of whole pipelines, three of halves of the VAE, and one of other estimators.
    expect(page.get_by_test_id("stVegaLiteChart")).to_have_count(7)
    page.get_by_test_id("stButtonGroup").get_by_text("Stage", exact=True).click()
    expect(page).to_have_url(re.compile("by=Stage"))
    page.get_by_text("Count reference runs").click()
    expect(page.get_by_text("The history has no run on a GPU yet")).to_be_visible()


def test_a_verdict_links_to_its_accuracy(open_page):
    page = open_page("/?width=1024&gpu=T4&gpu=L4&tab=Why")
    page.get_by_text("Formula beside dry run", exact=True).wait_for(timeout=30_000)
    settle(page)
    page.get_by_role("link", name="How wrong on a T4?").click()
    answer = page.get_by_role("heading", name=re.compile("T4: 5 runs of whole pipelines, median 0.04"))
    expect(answer).to_be_visible(timeout=30_000)
    expect(answer).to_contain_text("img2img 1800×1200")
    expect(page.get_by_role("heading", name=re.compile("L4: not measured"))).to_have_count(0)
    assert parse_qs(urlsplit(page.url).query)["gpu"] == ["T4"]
    settle(page)
    page.get_by_role("combobox", name="How wrong on which GPU?").click()
    page.keyboard.type("A10G")
    page.get_by_role("option", name="A10G", exact=True).click()
    # While the list is open, the rest of the page is hidden from those who hear it.
    page.keyboard.press("Escape")
    expect(page.get_by_role("heading", name=re.compile("A10G: not measured; nearest evidence: A10"))).to_be_visible()
    expect(page).to_have_url(re.compile("gpu=T4&gpu=A10G"))
    page.get_by_role("link", name="Plan").click()
    page.get_by_role("tab", name="Why").click()
    expect(page.get_by_role("link", name="How wrong on an L4?")).to_be_visible(timeout=30_000)
    expect(page.get_by_role("link", name="How wrong on an A10G?")).to_have_count(0)
    expect(page.get_by_role("spinbutton", name="Width, px")).to_have_value("1024")


@pytest.mark.parametrize("width", [1280, 390])
def test_charts_log_no_warnings(open_page, width):
    page = open_page(f"{LINK}&gpu=RTX+4060&tab=Why", width=width)
    logged = []
    page.on("console", lambda message: logged.append(message.text))
    page.reload()
    page.get_by_text("Formula beside dry run", exact=True).wait_for(timeout=30_000)
    settle(page)
    drawn = page.locator("[data-testid=stVegaLiteChart] :is(canvas, svg.marks)")
    expect(drawn).to_have_count(3)
    assert [text for text in logged if text.startswith("WARN")] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("path", "last"),
    [
        ("/Accuracy", "Worst runs"),
        (LINK, "No help here"),
        (f"{LINK}&tab=Sizes+and+map", "Map of sizes, GPUs and batches"),
        (f"{LINK}&tab=Why", "What the formula assumes"),
        (f"{LINK}&tab=Several+images&images=2048x2048,512x512", "Each image is replayed alone"),
        (f"{LINK}&tab=Export", "The same check over HTTP"),
    ],
)
def test_nothing_is_cut_off_on_a_phone(open_page, path, last, scheme):
    page = open_page(path, width=390, scheme=scheme)
    page.get_by_text(last).first.wait_for(timeout=60_000)
    settle(page)
    page.wait_for_timeout(1000)
    inside = page.evaluate(
        """[...document.querySelectorAll('[data-testid=stMain] :is(h1, h2, h3, p, label, button, code, canvas, input)')]
           .filter(e => e.getClientRects().length && !e.closest('[data-testid=stDataFrame]'))
           .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 120))"""
    )
    assert inside == []
