"""Test the largest sizes and the map: they match the dry run, and a selected cell is planned."""

import pytest
from streamlit.testing.v1 import AppTest

from pages.shared.controls.pickable import table_key
from pages.shared.plan.map import BY_BATCH, _offer_batch
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
from tests.ui.conftest import texts

T4 = card_named("T4")


@pytest.fixture
def opened():
    """Open the views by a link, with these boxes open."""

    def open_(*boxes: str, **params) -> AppTest:
        at = AppTest.from_file(str(ROOT / "tests/ui/sizes_page.py"), default_timeout=60)
        for name, value in params.items():
            at.query_params[name] = value
        for box in boxes:
            at.session_state[box] = True
        return at.run()

    return open_


def test_closed_sections_compute_nothing(opened, monkeypatch):
    monkeypatch.setattr("planner.alternatives.sizes.sizes", None)
    monkeypatch.setattr("planner.alternatives.size_map.by_card", None)
    at = opened()
    assert not at.exception and not at.dataframe


def test_each_gpu_has_a_row_of_largest_sizes(opened):
    at = opened("sizes-open", gpu=["T4", "RTX 4060"], width="768")
    assert not at.exception
    table = at.dataframe[0].value
    assert list(table.columns) == ["GPU", "Square", "3:2", "16:9", "9:16", "Batch"]
    for row, name in zip(table.to_dict("records"), ("T4", "RTX 4060"), strict=True):
        found = sizes(GenerationRequest(width=768), card_named(name))
        assert row["GPU"] == name and row["Batch"] == str(found.batch.images)
        assert [row[shape.capitalize()] for shape in found.sizes] == [str(size) for size in found.sizes.values()]
    assert "The smallest of these GPUs for the plan, 768×512, batch 1: **RTX 4060**, 7.60 GiB." in texts(at.markdown)
    assert "one step more does not" in texts(at.caption)


def test_the_smallest_gpu_of_the_catalogue_is_named(opened):
    at = opened("sizes-open", gpu=["RTX 4060"], width="2048", height="2048", batch="2")
    assert "None of these GPUs fits the plan" in texts(at.markdown)
    fitting = [c for c in CATALOGUE if fit(GenerationRequest(width=2048, height=2048, batch=2), c).verdict == "fits"]
    smallest = min(fitting, key=lambda card: card.usable_bytes)
    assert f"The smallest GPU of the catalogue: **{smallest.name}**" in texts(at.markdown)
    assert at.dataframe[0].value["Batch"].tolist() == ["none"]


def test_the_map_matches_the_verdicts(opened):
    at = opened("map-open", gpu=["T4", "RTX 4060"], width="1024", height="1024")
    assert not at.exception
    table = at.dataframe[0].value.set_index("GPU")
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
    at = opened("map-open", gpu=["RTX 4060"], map_all="true")
    assert sorted(at.dataframe[0].value["GPU"]) == sorted(card.name for card in (*CATALOGUE, *SLICES))


def test_the_map_of_batches_marks_bounds(opened):
    at = opened("map-open", gpu=["T4"], map=BY_BATCH, batch="5")
    table = at.dataframe[0].value
    assert "5" in table["Batch"].tolist()
    bounds = [text for row in table.to_numpy().tolist() for text in row if "≤" in text]
    assert bounds and all(text.startswith("✕ ≤ −") for text in bounds)
    assert "this or less" in texts(at.caption)


def test_the_map_keeps_the_plans_shape(opened):
    at = opened("map-open", gpu=["T4"], width="1280", height="720", map_shape="as asked")
    sizes_shown = [name for name in at.dataframe[0].value.columns if name != "GPU"]
    assert all(abs(int(w) / int(h) - 16 / 9) < 0.1 for w, h in (name.split("×") for name in sizes_shown))


def test_without_programs_the_sections_say_so(opened, monkeypatch):
    def missing(*_, **__):
        raise NoProgram("no program was compiled")

    monkeypatch.setattr("pages.shared.plan.sizes.sizes", missing)
    monkeypatch.setattr("pages.shared.plan.map.by_card", missing)
    at = opened("sizes-open", "map-open")
    assert not at.exception
    assert texts(at.info).count("No program was compiled") == 2


def test_every_table_has_a_description(opened):
    at = opened("sizes-open", "map-open", gpu=["T4"])
    first, second = (table.proto.alt for table in at.dataframe)
    assert "largest batch" in first and "T4: fits up to" in second


def pick(at: AppTest, table: int, row: int, column: str) -> AppTest:
    """Select a cell of a table, as the browser would report it, and run the page."""
    [name] = [name for name in ("sizes-table", "map-cards", "map-batches") if f"{name}-take" in keys(at)][table:][:1]
    frame = at.dataframe[table].value
    key = table_key(name, frame[frame.columns[0]].tolist(), [str(c) for c in frame.columns[name != "sizes-table" :]])
    at.session_state[key] = {"selection": {"rows": [], "columns": [], "cells": [(row, column)]}}
    return at.run()


def keys(at: AppTest) -> list[str | None]:
    return [button.key for button in at.button]


def test_a_selected_size_or_batch_goes_into_the_plan(opened):
    at = opened("sizes-open", gpu=["T4"])
    assert at.button(key="sizes-table-take").disabled
    square = sizes(GenerationRequest(), T4).sizes["square"]
    pick(at, 0, 0, "Square")
    assert at.button(key="sizes-table-take").label == f"Plan {square}"
    assert at.number_input(key="width").value == 512
    at.button(key="sizes-table-take").click().run()
    assert not at.exception
    assert (at.number_input(key="width").value, at.number_input(key="height").value) == (square.width, square.height)
    assert at.toast[0].value == f"The plan is now: {square}."


def test_a_selected_map_cell_goes_into_the_plan(opened):
    at = opened("map-open", gpu=["T4"], map_all="true")
    names = at.dataframe[0].value["GPU"].tolist()
    pick(at, 0, names.index("L4"), "2048×2048")
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
