"""Test the Plan page: the answer, verdicts by each basis, tabs, memory over time, and formula beside dry run."""

import importlib
import json
import re

import pytest

from cache.programs import Found
from pages.shared.frame import session
from planner.cards.lookup import card_named
from planner.errors import NoProgram
from planner.fit import fit
from planner.programs.files import shipped
from planner.replay.timeline import timeline_of
from planner.report.summary import summary
from planner.request import GenerationRequest
from planner.units import GIB, gib
from tests.ui.conftest import PAGES, answered, following, headroom, texts

DEFAULTS = ("T4", "A10", "A100-40GB")
BIG = GenerationRequest(width=2048, height=2048)
BIG_LINK = {"width": "2048", "height": "2048", "gpu": ["T4", "RTX 4060", "A100-40GB"]}


def verdicts(at) -> list[str]:
    """Return the verdict of each box, whose heading has its sign and its colour too."""
    found = [re.fullmatch(r":small\[.+\] :\w+\[:material/\w+: (\w+)\]", header.value) for header in at.header]
    return [match[1] for match in found if match]


def alts(at) -> list[str]:
    return [chart.proto.alt for chart in at.get("vega_lite_chart")]


@pytest.mark.parametrize("basis", ["best", "dry-run", "formula"])
def test_verdicts_use_the_chosen_basis_and_name_the_other(open_page, basis):
    at = open_page(basis=basis)
    method, other = ("formula", "dry-run") if basis == "formula" else ("dry-run", "formula")
    request = GenerationRequest()
    for name, metric in zip(DEFAULTS, at.metric, strict=True):
        assert metric.value == headroom(fit(request, card_named(name), method))
        theirs = fit(request, card_named(name), other)
        assert f"{other}: {theirs.verdict}, needs {gib(theirs.need_bytes)}" in texts(at.caption)
    assert texts(at.caption).count(f"basis: {method}") == 3
    assert texts(at.caption).count("likely too low") == (3 if method == "formula" else 0)
    assert verdicts(at) == ["fits"] * 3


@pytest.mark.parametrize(
    ("gpus", "box"),
    [
        (["RTX 4060"], "error"),
        (["T4", "RTX 4060"], "warning"),
        (["T4", "RTX 4060", "A100-40GB"], "success"),
        (["A100-40GB"], "success"),
    ],
)
def test_the_answer_stands_on_top(open_page, gpus, box):
    at = open_page(**BIG_LINK | {"gpu": gpus})
    said = answered(at)
    first, _, rest = summary([fit(BIG, card_named(name)) for name in gpus]).partition(". ")
    assert said == f"**{first.removesuffix('.')}.**{f' {rest}' if rest else ''}  \n{BIG.describe()}."
    assert said in texts(at.get(box))


def test_no_answer_is_said_on_top(open_page):
    at = open_page(basis="measured", published="false", gpu=["T4"])
    assert answered(at).startswith("**There is no answer for T4.**")
    assert verdicts(at) == ["unknown"] and not at.metric


def test_the_headroom_is_that_of_the_worst_need(open_page):
    at = open_page(**BIG_LINK)
    tight = fit(BIG, card_named("T4"))
    assert tight.worst_need_bytes > tight.need_bytes
    assert [metric.label for metric in at.metric] == ["Headroom at worst", "Headroom", "Headroom"]
    short = gib(tight.worst_need_bytes - tight.card.usable_bytes)
    assert at.metric[0].value == headroom(tight) == f"−{short}"
    upper = f"needs {gib(tight.need_bytes)}, up to {gib(tight.worst_need_bytes)} of 14.56 GiB usable"
    assert upper in texts(at.caption)
    assert verdicts(at) == ["tight", "no", "fits"]


SIX = ["T4", "L4", "A10", "A100-40GB", "RTX 4060", "RTX 5090"]


def test_more_than_six_gpus_are_a_table_by_verdict(open_page):
    assert len(open_page(**BIG_LINK | {"gpu": SIX}).metric) == 6
    names = ["RTX 4060", "T4", *SIX[1:4], "RTX 5090", "H100-80GB"]
    at = open_page(**BIG_LINK | {"gpu": names}, tab="Export")
    assert not at.exception and not at.metric and not verdicts(at)
    [table] = [frame.value for frame in at.dataframe]
    answers = {name: fit(BIG, card_named(name)) for name in names}
    assert sorted(table["GPU"]) == sorted(names)
    assert list(table["Verdict"]) == ["✓ fits"] * 5 + ["▲ tight", "✕ no"]
    for row in table.to_dict("records"):
        answer = answers[row["GPU"]]
        need = answer.worst_need_bytes or answer.need_bytes
        assert row["Need"] == pytest.approx(need / GIB, abs=0.01)
        assert row["Headroom"] == pytest.approx((answer.card.usable_bytes - need) / GIB, abs=0.01)
    left = list(table["Headroom"])[:5]
    assert left == sorted(left, reverse=True)


# What each tab works out, which takes long or replays the request again.
WORK = {
    "Make it fit": {"remedies.remedies"},
    "Sizes and map": {"sizes.sizes"},
    "Why": {"timeline.timeline_of"},
    "Several images": {"images._table"},
    "Export": {"report.snippet"},
}


@pytest.mark.parametrize("tab", WORK)
def test_only_the_open_tab_is_worked_out(open_page, monkeypatch, tab):
    asked = set()

    def spy(name: str) -> None:
        module, _, function = name.partition(".")
        of = importlib.import_module(f"pages.shared.plan.{module}")
        real = getattr(of, function)
        monkeypatch.setattr(of, function, lambda *given, **named: asked.add(name) or real(*given, **named))

    for name in set().union(*WORK.values()):
        spy(name)
    at = open_page(tab=tab, gpu=["T4"], width="2048", height="2048")
    assert not at.exception
    assert [one.label for one in at.tabs] == list(WORK)
    assert asked == WORK[tab]


def test_another_tab_is_worked_out_once_it_is_opened(open_page):
    at = open_page(**BIG_LINK)
    # The first tab is open.
    assert at.button(key="remedy-vae_tiling") and not at.download_button
    at.session_state["tab"] = "Export"
    at.run()
    assert not at.exception
    assert [button.label for button in at.download_button] == ["JSON", "Markdown", "Picture"]
    assert "remedy-vae_tiling" not in [button.key for button in at.button]


def test_steps_basis_and_reference_runs_stand_under_advanced(open_page):
    def advanced(at):
        return next(box for box in at.expander if box.label == "Advanced")

    at = open_page()
    assert not advanced(at).proto.expanded
    inside = advanced(at)
    assert {one.key for one in (*inside.number_input, *inside.toggle)} >= {"steps", "prompt_tokens", "published"}
    assert "width" not in {one.key for one in inside.number_input}
    for link in ({"steps": "20"}, {"basis": "formula"}, {"published": "false"}):
        assert advanced(open_page(**link)).proto.expanded


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
    at = open_page(tab="Why", batch="8", gpu=["RTX 5090", "H100-80GB"])
    shown = texts(at.markdown)
    assert texts(at.caption).count("uncertain: see Assumptions under Why") == 2
    assert shown.count("Batch 8:") == 1
    assert "Compute capability 9.0:" in shown and ":gray[(H100-80GB)]" in shown
    low, high = fit(GenerationRequest(batch=8), card_named("RTX 5090")).interval_bytes
    assert f"RTX 5090: between {gib(low)} and {gib(high)} allocated" in shown
    at = open_page(tab="Why")
    assert "Assumptions" not in texts(at.caption) and "**Assumptions**" not in texts(at.markdown)


def test_the_gpu_in_detail_is_the_first_that_fails(open_page):
    at = open_page(**BIG_LINK, tab="Why")
    assert following(at.segmented_control, "detail").value == "RTX 4060"
    assert "Out of memory in the VAE encoder" in texts(at.error)
    following(at.segmented_control, "detail").set_value("A100-40GB").run()
    assert not at.error
    assert "Memory over time on A100-40GB" in texts(at.header)
    at.number_input(key="batch").set_value(2).run()
    assert following(at.segmented_control, "detail").value == "A100-40GB"
    at.multiselect(key="gpu").set_value(["T4"]).run()
    assert not at.exception
    # A single GPU leaves nothing to choose.
    assert "GPU in detail" not in [control.label for control in at.segmented_control]
    assert "Memory over time on T4" in texts(at.header)


def test_many_gpus_are_chosen_from_a_list(open_page):
    at = open_page(**BIG_LINK | {"gpu": [*SIX, "H100-80GB", "A40", "L40S"]}, tab="Why")
    assert not at.exception
    assert following(at.selectbox, "detail").value == "RTX 4060"
    following(at.selectbox, "detail").select("L40S").run()
    assert "Memory over time on L40S" in texts(at.header)


def test_the_gpu_in_detail_ignores_the_basis(open_page):
    assert following(open_page(**BIG_LINK, basis="formula").segmented_control, "detail").value == "RTX 4060"


def test_memory_over_time_says_where_the_peak_comes_from(open_page):
    at = open_page(tab="Why", width="1024", height="1024")
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
    bars, over_time, peak = alts(open_page(**BIG_LINK, tab="Why"))
    need = fit(BIG, card_named("T4")).need_bytes
    assert f"T4: needs {gib(need)} of 14.56 GiB, tight" in bars
    assert "RTX 4060" in over_time and "out of memory" in over_time
    assert "Weights" in peak and "Context" in peak


def test_the_formula_is_compared_with_the_dry_run(open_page):
    at = open_page(tab="Why", task="txt2img", width="1024", height="1024", safety_checker="false")
    [beside] = [table.value.set_index("Term") for table in at.dataframe if "Term" in table.value]
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
    assert verdicts(at) == ["unknown"] * 3
    for tab in WORK:
        at = open_page(tab=tab)
        assert not at.exception and len(at.metric) == 3


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
    ("page", "link", "messages"),
    [
        (PAGES[0], {"widht": "768"}, ["unknown parameter 'widht' (did you mean width?)."]),
        (PAGES[0], {"foo": "3", "GPUs": "T4"}, ["unknown parameters 'foo', 'GPUs' (did you mean gpu?)."]),
        (PAGES[0], {"width": ["512", "1024"]}, ["width is given 2 times; the last one counts."]),
        (
            PAGES[0],
            {"widht": "768", "steps": "many"},
            [
                "steps must be a whole number, got 'many'; 50 is shown instead.",
                "unknown parameter 'widht' (did you mean width?).",
            ],
        ),
        ("pages/1_Verify.py", {"widht": "768"}, ["unknown parameter 'widht' (did you mean width?)."]),
    ],
)
def test_what_a_link_says_in_vain_stands_in_one_box(open_page, page, link, messages):
    at = open_page(page, **link)
    assert not at.exception
    [box] = [texts([warning]) for warning in at.warning if "link" in warning.value]
    assert box.splitlines() == ["Parts of this link were not used:", *(f"- {message}" for message in messages)]


@pytest.mark.parametrize(("page", "link"), [(PAGES[0], {"job": "x"}), ("pages/1_Verify.py", {"map_all": "true"})])
def test_names_of_other_pages_are_no_warning(open_page, page, link):
    assert "link were not used" not in texts(open_page(page, **link).warning)


def test_a_long_gpu_name_is_not_cut(open_page):
    at = open_page(gpu=["A100-40GB 3g.20gb"], workers="3")
    [spec] = [json.loads(chart.proto.spec) for chart in at.get("vega_lite_chart") if "capacity" in chart.proto.alt]
    for layer in spec["layer"]:
        axis = layer["encoding"]["y"]["axis"]
        # No limit, and it begins where the bars do, above them.
        assert (axis["labelLimit"], axis["labelAlign"], axis["labelPadding"]) == (0, "left", 0)
        assert axis["labelOffset"] < -spec["layer"][0]["mark"]["size"] / 2
