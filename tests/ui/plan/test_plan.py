"""Test the Plan page: verdicts by each basis, memory over time, and formula beside dry run."""

import json

import pytest

from cache.programs import Found
from pages.shared.frame import session
from planner.cards.lookup import card_named
from planner.errors import NoProgram
from planner.fit import fit
from planner.programs.files import shipped
from planner.replay.timeline import timeline_of
from planner.request import GenerationRequest
from planner.units import gib, signed_gib
from tests.ui.conftest import PAGES, texts

DEFAULTS = ("T4", "A10", "A100-40GB")
BIG = GenerationRequest(width=2048, height=2048)
BIG_LINK = {"width": "2048", "height": "2048", "gpu": ["T4", "RTX 4060", "A100-40GB"]}


def badges(at) -> list[str]:
    return [element.value for element in at.markdown if "badge" in element.value]


def alts(at) -> list[str]:
    return [chart.proto.alt for chart in at.get("vega_lite_chart")]


@pytest.mark.parametrize("basis", ["best", "dry-run", "formula"])
def test_verdicts_use_the_chosen_basis_and_name_the_other(open_page, basis):
    at = open_page(basis=basis)
    method, other = ("formula", "dry-run") if basis == "formula" else ("dry-run", "formula")
    request = GenerationRequest()
    for name, metric in zip(DEFAULTS, at.metric, strict=True):
        assert metric.value == signed_gib(fit(request, card_named(name), method).headroom_bytes)
        theirs = fit(request, card_named(name), other)
        assert f"{other}: {theirs.verdict}, needs {gib(theirs.need_bytes)}" in texts(at.caption)
    assert texts(at.caption).count(f"basis: {method}") == 3
    assert texts(at.caption).count("likely too low") == (3 if method == "formula" else 0)
    assert len([badge for badge in badges(at) if "fits" in badge]) == 3


def test_verdicts_give_the_minimum(open_page):
    at = open_page(**BIG_LINK)
    tight, none = (fit(BIG, card_named(name)) for name in ("T4", "RTX 4060"))
    assert [tight.verdict, none.verdict] == ["tight", "no"]
    shown = texts(at.caption)
    assert f"runs more slowly: minimum {gib(tight.minimum_bytes)}" in shown
    short = none.minimum_bytes - none.card.usable_bytes
    assert f"cannot run: minimum {gib(none.minimum_bytes)}, {gib(short)} short" in shown
    assert "▲ is the minimum with which the request still runs" in shown


def test_assumptions_are_listed_once_with_each_range(open_page):
    at = open_page(batch="8", gpu=["RTX 5090", "H100-80GB"])
    shown = texts(at.markdown)
    assert texts(at.caption).count("uncertain: see Assumptions below") == 2
    assert shown.count("Batch 8:") == 1
    assert "Compute capability 9.0:" in shown and ":gray[(H100-80GB)]" in shown
    low, high = fit(GenerationRequest(batch=8), card_named("RTX 5090")).interval_bytes
    assert f"RTX 5090: between {gib(low)} and {gib(high)} allocated" in shown
    assert "Assumptions" not in texts(open_page().caption)


def test_memory_over_time_shows_the_first_failure_by_default(open_page):
    at = open_page(**BIG_LINK)
    assert at.segmented_control(key="over-time").value == "RTX 4060"
    assert "Out of memory in the VAE encoder" in texts(at.error)
    at.segmented_control(key="over-time").set_value("A100-40GB").run()
    assert not at.error
    at.number_input(key="batch").set_value(2).run()
    assert at.segmented_control(key="over-time").value == "A100-40GB"
    at.multiselect(key="gpu").set_value(["T4"]).run()
    assert not at.exception
    assert at.segmented_control(key="over-time").value == "T4"


def test_memory_over_time_ignores_the_basis(open_page):
    assert open_page(**BIG_LINK, basis="formula").segmented_control(key="over-time").value == "RTX 4060"


def test_memory_over_time_says_where_the_peak_comes_from(open_page):
    at = open_page(width="1024", height="1024")
    timeline = timeline_of(GenerationRequest(width=1024, height=1024), card_named("T4"), shipped())
    shown = texts(at.markdown)
    assert f"The peak of {gib(timeline.run.peak_allocated_bytes)} allocated comes in the VAE decoder" in shown
    assert f"at a convolution of `{timeline.module}`" in shown
    assert "counts allocations and releases, not time" in texts(at.caption)
    parts = at.dataframe[0].value
    assert parts["GiB"].sum() == pytest.approx(sum(part.size_bytes for part in timeline.parts) / 2**30)
    assert parts["Share"].sum() == pytest.approx(100)
    assert set(parts["Kind"]) == {"Weights", "Tensors", "Workspace", "Allocator", "Context"}


def test_every_chart_has_a_description(open_page):
    bars, over_time, peak = alts(open_page(**BIG_LINK))
    need = fit(BIG, card_named("T4")).need_bytes
    assert f"T4: needs {gib(need)} of 14.56 GiB, tight" in bars
    assert "RTX 4060" in over_time and "out of memory" in over_time
    assert "Weights" in peak and "Context" in peak


def test_the_formula_is_compared_with_the_dry_run(open_page):
    at = open_page(task="txt2img", width="1024", height="1024", safety_checker="false")
    beside = at.dataframe[1].value.set_index("Term")
    assert list(beside.index) == ["Weights", "Text encoder", "UNet", "VAE decoder", "Total"]
    request = GenerationRequest(task="txt2img", width=1024, height=1024, safety_checker=False)
    need, total = (fit(request, card_named("T4"), basis).need_bytes for basis in ("dry-run", "formula"))
    assert beside.loc["Total", "Ratio"] == pytest.approx(need / total)
    assert f"In total the dry run needs **{gib(need)}** and the formula **{gib(total)}**" in texts(at.markdown)


def test_without_programs_the_formula_answers_and_says_so(open_page, monkeypatch):
    def missing():
        raise NoProgram("the shipped memory programs cannot be read")

    monkeypatch.setattr("planner.programs.files.shipped", missing)
    monkeypatch.setattr("cache.programs.find", lambda: Found(None, "no programs are here"))
    monkeypatch.setattr("cache.programs.repair_in_background", lambda: False)
    at = open_page()
    assert not at.exception
    assert texts(at.warning).count("cannot be read; the formula answers instead") == 1
    assert texts(at.caption).count("basis: formula") == 3
    assert "dry-run: unknown" in texts(at.caption)
    at = open_page(basis="dry-run")
    assert not at.exception and not at.metric
    assert len([badge for badge in badges(at) if "unknown" in badge]) == 3


@pytest.mark.parametrize("page", PAGES[:2])
def test_outdated_programs_are_compiled_once_and_used(open_page, no_driver, monkeypatch, page):
    notices, repairs = ["the shipped programs are not for torch 9.9"] * 3 + [None], []
    monkeypatch.setattr("cache.programs.find", lambda: Found(shipped(), notices.pop(0) if len(notices) > 1 else None))
    monkeypatch.setattr("cache.programs.repair_in_background", lambda: repairs.append(1) or True)
    at = open_page(page)
    assert "The shipped programs are not for torch 9.9. They are being compiled" in texts(at.warning)
    at.run()
    # Asked for again too soon: the answer is kept for a few seconds.
    assert len(notices) == 3
    monkeypatch.setattr(session, "LOOK_AGAIN_S", 0)
    for _ in range(3):
        at.run()
    assert not at.exception and not at.warning
    assert len(repairs) == 1


def test_a_failed_compile_warns(open_page, monkeypatch):
    monkeypatch.setattr("cache.programs.find", lambda: Found(shipped(), "they are for others"))
    monkeypatch.setattr("cache.programs.repair_in_background", lambda: False)
    at = open_page()
    assert not at.exception and at.metric
    assert "Compiling them in the background has failed" in texts(at.warning)
    # Somebody else compiles them.
    monkeypatch.setattr("cache.programs.is_compiling", lambda: True)
    at.run()
    assert "They are being compiled in the background" in texts(at.warning)


def test_matching_programs_are_looked_up_once(monkeypatch):
    library = shipped()
    looked = []
    monkeypatch.setattr("cache.programs.find", lambda: looked.append(1) or Found(library, None))
    monkeypatch.setattr(session, "LOOK_AGAIN_S", 0)
    assert [session.library() for _ in range(3)] == [(library, None)] * 3
    assert session.library()[0] is library
    assert len(looked) == 1
    assert not session.is_compiling()


@pytest.mark.parametrize(
    ("page", "link", "message"),
    [
        (PAGES[0], {"widht": "768"}, "unknown parameter 'widht' (did you mean width?)."),
        (
            PAGES[0],
            {"foo": "3", "GPUs": "T4"},
            "unknown parameters 'foo', 'GPUs' (did you mean gpu?).",
        ),
        (PAGES[0], {"width": ["512", "1024"]}, "width is given 2 times; the last one counts."),
        ("pages/1_Verify.py", {"widht": "768"}, "unknown parameter 'widht' (did you mean width?)."),
    ],
)
def test_an_unknown_name_in_a_link_warns(open_page, page, link, message):
    at = open_page(page, **link)
    assert not at.exception
    assert f"Part of this link was ignored: {message}" in texts(at.warning)


@pytest.mark.parametrize(("page", "link"), [(PAGES[0], {"job": "x"}), ("pages/1_Verify.py", {"map_all": "true"})])
def test_names_of_other_pages_are_no_warning(open_page, page, link):
    assert "link was ignored" not in texts(open_page(page, **link).warning)


def test_a_long_gpu_name_is_not_cut(open_page):
    at = open_page(gpu=["A100-40GB 3g.20gb"], workers="3")
    [spec] = [json.loads(chart.proto.spec) for chart in at.get("vega_lite_chart") if "capacity" in chart.proto.alt]
    for layer in spec["layer"]:
        axis = layer["encoding"]["y"]["axis"]
        # No limit, and it begins where the bars do, above them.
        assert (axis["labelLimit"], axis["labelAlign"], axis["labelPadding"]) == (0, "left", 0)
        assert axis["labelOffset"] < -spec["layer"][0]["mark"]["size"] / 2
