"""Test the largest sizes and the map: they match the dry run, and a selected cell is planned."""

import pytest
from streamlit.testing.v1 import AppTest

from pages.shared.controls.pickable import table_key
from pages.shared.frame.plan_state import BY_BATCH
from pages.shared.plan.map import _offer_batch
from pages.shared.plan.map_table import cell_text
from pages.shared.plan.sizes import offer_of as sizes_offer
from planner.alternatives.size_map import Cell, cell
from planner.alternatives.sizes import sizes
from planner.answer import SIGNS
from planner.cards.lookup import CATALOGUE, SLICES, card_named
from planner.errors import NoProgram
from planner.fit import fit
from planner.programs.files import shipped
from planner.request import GenerationRequest
from planner.units import GIB
from tests.conftest import ROOT
from tests.ui.conftest import following, texts

T4 = card_named("T4")


@pytest.fixture
def opened():
    """Open the views by a link, with the map open or closed."""

    def open_(*, with_map: bool = False, **params) -> AppTest:
        at = AppTest.from_file(str(ROOT / "tests/ui/sizes_page.py"), default_timeout=60)
        for name, value in params.items():
            at.query_params[name] = value
        at.session_state["map-open"] = with_map
        return at.run()

    return open_


def sizes_of(at: AppTest):
    """Return the table of the largest sizes, which comes first."""
    return at.dataframe[0].value


def map_of(at: AppTest):
    """Return the table of the open map."""
    return at.dataframe[1].value


def test_a_closed_map_computes_nothing(opened, monkeypatch):
    asked = []
    for name in ("by_card", "by_batch"):
        monkeypatch.setattr(f"pages.shared.plan.map.{name}", lambda *_, name=name: asked.append(name) or [])
    at = opened()
    assert not at.exception and len(at.dataframe) == 1
    assert [box.label for box in at.expander if "Map" in box.label] == ["Map of sizes, GPUs and batches"]
    assert not asked


def test_each_gpu_has_a_row_of_largest_sizes(opened):
    at = opened(gpu=["T4", "RTX 4060"], width="768")
    assert not at.exception
    table = sizes_of(at)
    assert list(table.columns) == ["GPU", "Square", "3:2", "16:9", "9:16", "Batch"]
    for row, name in zip(table.to_dict("records"), ("T4", "RTX 4060"), strict=True):
        found = sizes(GenerationRequest(width=768), card_named(name))
        assert row["GPU"] == name and row["Batch"] == str(found.batch.images)
        assert [row[shape.capitalize()] for shape in found.sizes] == [str(size) for size in found.sizes.values()]
    assert "The smallest of these GPUs for the plan, 768×512, batch 1: **RTX 4060**, 7.60 GiB." in texts(at.markdown)
    assert "one step more does not" in texts(at.caption)


def test_the_smallest_gpu_of_the_catalogue_is_named(opened):
    at = opened(gpu=["RTX 4060"], width="2048", height="2048", batch="2")
    assert "None of these GPUs fits the plan" in texts(at.markdown)
    fitting = [c for c in CATALOGUE if fit(GenerationRequest(width=2048, height=2048, batch=2), c).verdict == "fits"]
    smallest = min(fitting, key=lambda card: card.usable_bytes)
    assert f"The smallest GPU of the catalogue: **{smallest.name}**" in texts(at.markdown)
    assert sizes_of(at)["Batch"].tolist() == ["none"]


def test_the_map_matches_the_verdicts(opened):
    at = opened(with_map=True, gpu=["T4", "RTX 4060"], width="1024", height="1024")
    assert not at.exception
    table = map_of(at).set_index("GPU")
    signs = set()
    for name in table.index:
        for size in list(table.columns)[::2]:
            width, height = map(int, size.split("×"))
            answer = fit(GenerationRequest(width=width, height=height), card_named(name), "dry-run")
            assert answer.headroom_bytes is not None
            shown = f"{abs(answer.headroom_bytes) / GIB:.1f}"
            sign = "−" if answer.headroom_bytes < 0 else "+"
            assert table.loc[name, size] == f"{SIGNS[answer.verdict]} {sign}{shown}"
            signs.add(SIGNS[answer.verdict])
    assert signs == {"✓", "▲", "✕"}
    assert "fit all of these GPUs and are left out" in texts(at.caption)


def test_the_map_of_the_whole_catalogue(opened):
    at = opened(with_map=True, gpu=["RTX 4060"], map_all="true")
    assert sorted(map_of(at)["GPU"]) == sorted(card.name for card in (*CATALOGUE, *SLICES))


def test_the_map_of_batches_marks_bounds(opened):
    at = opened(with_map=True, gpu=["T4"], map=BY_BATCH, batch="5")
    table = map_of(at)
    assert "5" in table["Batch"].tolist()
    bounds = [text for row in table.to_numpy().tolist() for text in row if "≤" in text]
    assert bounds and all(text.startswith("✕ ≤ −") for text in bounds)
    assert "this or less" in texts(at.caption)


def test_the_map_of_batches_is_of_the_gpu_in_detail(opened):
    at = opened(with_map=True, gpu=["T4", "RTX 4060"], width="1024", height="1024", map=BY_BATCH)
    for name in ("T4", "RTX 4060"):
        following(at.segmented_control, "detail").set_value(name).run()
        assert f"Dry runs on {name}." in texts(at.caption)
        first = cell(GenerationRequest(width=1024, height=1024), card_named(name), shipped())
        assert map_of(at).set_index("Batch").loc["1", "1024×1024"] == cell_text(first)


def test_the_map_keeps_the_plans_shape(opened):
    at = opened(with_map=True, gpu=["T4"], width="1280", height="720", map_shape="as asked")
    sizes_shown = [name for name in map_of(at).columns if name != "GPU"]
    assert all(abs(int(w) / int(h) - 16 / 9) < 0.1 for w, h in (name.split("×") for name in sizes_shown))


def test_without_programs_the_sections_say_so(opened, monkeypatch):
    def missing(*_, **__):
        raise NoProgram("no program was compiled")

    monkeypatch.setattr("pages.shared.plan.sizes.sizes", missing)
    monkeypatch.setattr("pages.shared.plan.map.by_card", missing)
    at = opened(with_map=True)
    assert not at.exception
    assert texts(at.info).count("No program was compiled") == 2


def test_every_table_has_a_description(opened):
    at = opened(with_map=True, gpu=["T4"])
    first, second = (table.proto.alt for table in at.dataframe)
    assert "largest batch" in first and "T4: fits up to" in second


def pick(at: AppTest, name: str, row: int, column: str) -> AppTest:
    """Select a cell of a table, as the browser would report it, and run the page."""
    frame = sizes_of(at) if name == "sizes-table" else map_of(at)
    # The table of sizes counts its first column as one of those that can be selected.
    columns = [str(title) for title in frame.columns[name != "sizes-table" :]]
    key = table_key(name, frame[frame.columns[0]].tolist(), columns)
    at.session_state[key] = {"selection": {"rows": [], "columns": [], "cells": [(row, column)]}}
    return at.run()


def test_a_selected_size_or_batch_goes_into_the_plan(opened):
    at = opened(gpu=["T4"])
    assert at.button(key="sizes-table-take").disabled
    square = sizes(GenerationRequest(), T4).sizes["square"]
    pick(at, "sizes-table", 0, "Square")
    assert at.button(key="sizes-table-take").label == f"Plan {square}"
    assert at.number_input(key="width").value == 512
    at.button(key="sizes-table-take").click().run()
    assert not at.exception
    assert (at.number_input(key="width").value, at.number_input(key="height").value) == (square.width, square.height)
    assert at.toast[0].value == f"The plan is now: {square}."


def test_a_selected_map_cell_goes_into_the_plan(opened):
    at = opened(with_map=True, gpu=["T4"], map_all="true")
    names = map_of(at)["GPU"].tolist()
    pick(at, "map-cards", names.index("L4"), "2048×2048")
    at.button(key="map-cards-take").click().run()
    assert not at.exception
    assert at.number_input(key="width").value == at.number_input(key="height").value == 2048
    assert at.multiselect(key="gpu").value == ["T4", "L4"]


def test_offers_of_cells():
    found = sizes(GenerationRequest(), T4)
    assert sizes_offer(found, "Batch") == ({"batch": found.batch.images}, f"batch {found.batch.images}")
    assert sizes_offer(found, "GPU") is None
    one = cell(GenerationRequest(width=1024, height=768, batch=4), T4, shipped())
    assert _offer_batch(one) == ({"width": 1024, "height": 768, "batch": 4}, "1024×768, batch 4")


@pytest.mark.parametrize(
    ("headroom", "is_bound", "text"), [(3 * GIB, False, "✓ +3.0"), (-1, False, "✓ −0.0"), (-2 * GIB, True, "✓ ≤ −2.0")]
)
def test_a_cell_keeps_the_sign_of_its_headroom(headroom, is_bound, text):
    one = Cell(request=GenerationRequest(), card=T4, verdict="fits", headroom_bytes=headroom, is_bound=is_bound)
    assert cell_text(one) == text
