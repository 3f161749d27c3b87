"""Test the charts that the Plan page and a report's picture share."""

from dataclasses import replace
from itertools import pairwise

import pytest

from pages.shared.frame.charts import PAGE, PART_COLORS, PICTURE, RED, spec_of
from pages.shared.plan.memory import need_parts
from pages.shared.plan.memory_chart import memory_bars
from pages.shared.plan.timeline_chart import FAR, curve_rows, memory_over_time, stage_name
from planner.cards.lookup import card_named
from planner.fit import fit
from planner.programs.files import shipped
from planner.replay.timeline import timeline_of
from planner.request import GenerationRequest
from planner.units import gib, gib_value

BIG = GenerationRequest(width=2048, height=2048)
T4 = card_named("T4")


def luminance(color: str) -> float:
    """Return the relative luminance of a colour such as ``#4c6ef5``. Source: WCAG 2.2, "relative luminance"."""
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("color", sorted({*PART_COLORS.values(), RED}))
def test_white_marks_have_contrast(color):
    assert 1.05 / (luminance(color) + 0.05) >= 3


def bars(names, request=BIG, look=PAGE) -> dict:
    """Return the layers of the memory chart by their marks' types; the room of a GPU is `room`."""
    answers = [fit(request, card_named(name), "dry-run") for name in names]
    spec = spec_of(memory_bars([(answer, need_parts(answer, request, shipped())) for answer in answers], look))
    layers = {}
    for layer in spec["layer"]:
        is_room = layer["mark"]["type"] == "bar" and "color" not in layer["encoding"]
        shape = layer["mark"].get("shape", "")
        layers["room" if is_room else "strokes" if shape.startswith("M") else layer["mark"]["type"]] = layer
    return layers


def test_the_parts_of_a_bar_add_up_to_the_need():
    answer = fit(BIG, T4, "dry-run")
    layer = bars(["T4"])["bar"]
    pieces = layer["data"]["values"]
    assert pieces[0]["GiB"] == 0 and pieces[-1]["end"] == pytest.approx(gib_value(answer.need_bytes))
    assert all(one["end"] == other["GiB"] for one, other in pairwise(pieces))
    # The page shows between them, in its own colour.
    assert layer["mark"]["x2Offset"] == -1


def test_missing_memory_is_hatched():
    layers, need = bars(["RTX 4060", "A100-40GB"]), fit(BIG, card_named("RTX 4060"), "dry-run").need_bytes
    strokes, usable = layers["strokes"]["data"]["values"], card_named("RTX 4060").usable_bytes
    assert {one["GPU"] for one in strokes} == {"RTX 4060"} and len(strokes) > 2
    assert all(gib_value(usable) < one["GiB"] < gib_value(need) for one in strokes)
    assert {one["label"] for one in strokes} == {gib(need - usable)}
    assert [one["GPU"] for one in layers["room"]["data"]["values"]] == ["A100-40GB"]
    assert [one["beyond"] for one in layers["tick"]["data"]["values"]] == [True, False]
    assert "strokes" not in bars(["A100-40GB"])


def test_page_and_picture_show_the_same_numbers():
    page, picture = (bars(["T4", "RTX 4060", "A100-40GB"], look=look) for look in (PAGE, PICTURE))
    assert {"bar", "room", "rule", "tick", "strokes", "point"} == page.keys() == picture.keys()
    assert all(page[name]["data"] == picture[name]["data"] for name in page)
    assert page["tick"]["mark"]["size"] > picture["tick"]["mark"]["size"]


def test_a_far_capacity_is_left_out_of_the_timeline():
    timeline = timeline_of(GenerationRequest(width=1024, height=1024), T4, shipped())
    peak = timeline.run.peak_reserved_bytes
    rows = curve_rows(timeline)
    for times, is_drawn in ((FAR - 0.1, True), (FAR + 0.1, False)):
        capacity = int(times * peak)
        spec = spec_of(memory_over_time(timeline, capacity), rows)
        words = [value.get("text") for layer in spec["layer"] for value in layer["data"]["values"]]
        assert (f"available: {gib(capacity)}" in words) == is_drawn
        top = max(layer["encoding"]["y"]["scale"]["domain"][1] for layer in spec["layer"] if "y" in layer["encoding"])
        assert top == pytest.approx(1.14 * gib_value(capacity if is_drawn else peak))


def test_each_stage_is_named_and_calls_that_alternate_have_no_names_upon_each_other():
    request = GenerationRequest(task="inpaint", controlnets=2)
    timeline = timeline_of(request, T4, shipped())
    spec = spec_of(memory_over_time(timeline, timeline.run.peak_reserved_bytes), curve_rows(timeline))
    axes = [layer["encoding"]["x"]["axis"] for layer in spec["layer"] if layer["encoding"].get("x", {}).get("axis")]
    places = axes[0]["values"]
    assert len(timeline.bands) > 15 > len(places), "the ControlNets and the UNet alternate"
    assert all(stage_name(band.stage) in axes[0]["labelExpr"] for band in timeline.bands)
    # Names stand in two rows, so every second one is the neighbour.
    assert all(after - before > timeline.events / 50 for before, after in zip(places, places[2:], strict=False))


def test_a_curve_reaches_the_last_event_with_its_last_step():
    timeline = timeline_of(GenerationRequest(), T4, shipped())
    curve = curve_rows(timeline)["curve"]
    last = timeline.points[-1]
    assert (curve[0]["event"], curve[-1]["event"]) == (timeline.points[0].event, timeline.events)
    assert curve[-1]["reserved"] == curve[-2]["reserved"] == gib_value(last.reserved_bytes)


def test_a_run_out_of_memory_has_its_capacity_in_red():
    timeline = timeline_of(GenerationRequest(), T4, shipped())
    failed = replace(timeline, run=replace(timeline.run, outcome="out-of-memory"))
    for one, words, is_red in ((timeline, "available:", False), (failed, "out of memory at", True)):
        marks = spec_of(memory_over_time(one, timeline.run.peak_reserved_bytes), curve_rows(one))["layer"]
        [text] = [layer for layer in marks if layer["mark"]["type"] == "text"]
        assert text["data"]["values"][0]["text"].startswith(words)
        assert (text["mark"]["color"] == RED) == is_red
