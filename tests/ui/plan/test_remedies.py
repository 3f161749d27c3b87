"""Test remedies on Plan: useful ones, useless ones, applying one to the plan, and undoing it."""

from dataclasses import replace

import pytest
from streamlit.testing.v1 import AppTest

from pages.shared.frame import session
from pages.shared.plan import remedies as remedies_view
from planner.alternatives.remedies import remedies
from planner.cards.lookup import card_named, described_card
from planner.fit import fit
from planner.request import GenerationRequest
from planner.units import gib, signed_gib
from tests.ui.conftest import following, headroom, texts

BIG = GenerationRequest(width=2048, height=2048)


def big(open_page, *names: str) -> AppTest:
    return open_page(width="2048", height="2048", gpu=list(names))


def applied(at: AppTest) -> str:
    """Return the sentence on the remedy that was applied last; empty if there is none."""
    return "\n".join(line for line in texts(at.markdown).splitlines() if "is applied" in line)


def keys(at: AppTest) -> list[str | None]:
    return [button.key for button in at.button]


def test_remedies_show_need_cost_and_code(open_page):
    at = big(open_page, "A100-40GB", "T4")
    assert not at.exception
    # The first that does not fit.
    assert following(at.segmented_control, "detail").value == "T4"
    found = remedies(BIG, card_named("T4"))
    shown = texts(at.markdown)
    for remedy in found.useful:
        assert f"**{remedy.title}**" in shown
        assert f"Needs {gib(remedy.answer.need_bytes)} ({signed_gib(remedy.need_change_bytes)})" in shown
        assert remedy.cost.replace("%", " %") in texts(at.caption)
        assert at.button(key=f"remedy-{'-'.join(remedy.keys)}")
    assert "pipe.vae.enable_tiling()" in [code.value for code in at.code]
    assert "T4 is tight: it needs 15.87 GiB of 14.56 GiB usable. These changes make it fit" in shown
    lesser = [remedy for remedy in found.useful if remedy.effect != found.useful[0].effect]
    less = next(box for box in at.expander if box.label == f"Helps, but less ({len(lesser)})")
    assert "**No safety checker**" in texts(less.markdown)
    useless = next(box for box in at.expander if box.label.startswith("No help here"))
    assert useless.label.endswith(f"({len(found.useless)})")
    assert "VAE slicing**: Does nothing at batch 1" in texts(useless.markdown)


def test_applying_a_remedy_sets_the_controls(open_page):
    at = big(open_page, "T4")
    at.button(key="remedy-vae_tiling").click().run()
    assert not at.exception
    assert at.toggle(key="vae_tiling").value is True
    assert at.session_state["plan"]["vae_tiling"] is True
    assert at.number_input(key="width").value == 2048
    # It fits now, so only changes that save memory are left.
    assert "It fits T4" in texts(at.markdown)
    assert "remedy-vae_tiling" not in keys(at)


def test_an_applied_remedy_shows_its_verdict(open_page):
    at = big(open_page, "T4")
    assert not applied(at) and "undo-remedy" not in keys(at)
    at.button(key="remedy-vae_tiling").click().run()
    answer = fit(replace(BIG, vae_tiling=True), card_named("T4"))
    assert answer.verdict == "fits" and answer.worst_need_bytes > answer.need_bytes
    # It has the number of the box, which is that of the worst need.
    assert at.metric[0].value == headroom(answer)
    assert applied(at) == f":material/check: **VAE tiling** is applied: by the dry run, T4 fits, {headroom(answer)}."
    at = open_page(width="2048", height="2048", gpu=["RTX 4060"])
    at.button(key="remedy-card").click().run()
    assert "is applied: " in applied(at) and "undo-remedy" in keys(at)


@pytest.mark.parametrize("key", ["vae_tiling", "size", "card"])
def test_undo_restores_the_values(open_page, key):
    at = big(open_page, "T4")
    before = at.session_state["plan"].copy()
    at.button(key=f"remedy-{key}").click().run()
    assert at.session_state["plan"] != before
    at.button(key="undo-remedy").click().run()
    assert not at.exception
    assert at.session_state["plan"] == before
    assert at.number_input(key="width").value == at.number_input(key="height").value == 2048
    assert at.toggle(key="vae_tiling").value is False
    assert at.multiselect(key="gpu").value == ["T4"]
    assert not applied(at) and "undo-remedy" not in keys(at)
    assert f"remedy-{key}" in keys(at)


@pytest.mark.parametrize(
    "change",
    [
        lambda at: at.toggle(key="vae_tiling").set_value(False),
        lambda at: at.number_input(key="batch").set_value(32),
        lambda at: at.number_input(key="workers").set_value(2),
        lambda at: at.multiselect(key="gpu").set_value(["A10"]),
    ],
    ids=["the same setting", "the batch", "the workers", "the GPUs"],
)
def test_undo_is_gone_after_another_change(open_page, change):
    at = big(open_page, "T4")
    at.button(key="remedy-vae_tiling").click().run()
    assert applied(at) and "undo-remedy" in keys(at)
    change(at).run()
    assert not at.exception
    assert not applied(at) and "undo-remedy" not in keys(at)


def test_undo_stays_where_nothing_of_the_plan_changes(open_page):
    at = big(open_page, "T4", "A10")
    at.button(key="remedy-vae_tiling").click().run()
    following(at.segmented_control, "detail").set_value("A10").run()
    for tab in ("Several images", "Export", "Make it fit"):
        at.session_state["tab"] = tab
        at.run()
        assert applied(at) and "undo-remedy" in keys(at)


def test_a_remedy_can_switch_an_option_off(open_page):
    at = open_page(width="2048", height="2048", attention_slicing="true", gpu=["A100-40GB"])
    at.button(key="remedy-attention_slicing").click().run()
    assert at.toggle(key="attention_slicing").value is False
    assert "It fits A100-40GB" in texts(at.markdown)


def test_a_smaller_size_and_a_larger_gpu_can_be_applied(open_page):
    at = big(open_page, "T4")
    size = next(remedy for remedy in remedies(BIG, card_named("T4")).found if remedy.keys == ("size",))
    at.button(key="remedy-card").click().run()
    assert at.multiselect(key="gpu").value == ["T4", "L4"]
    at.button(key="remedy-size").click().run()
    assert at.number_input(key="width").value == size.request.width < 2048
    assert at.number_input(key="height").value == size.request.height


def test_fewer_workers_can_be_applied(open_page):
    at = open_page(width="1024", height="1024", batch="4", workers="3", gpu=["A10"])
    assert "**1 worker per GPU**" in texts(at.markdown)
    at.button(key="remedy-workers").click().run()
    assert not at.exception and "It fits A10" in texts(at.markdown)
    assert at.number_input(key="workers").value == 1 == at.session_state["plan"]["workers"]
    assert at.multiselect(key="gpu").value == ["A10"]


def headroom_bytes(name: str) -> int:
    answer = fit(GenerationRequest(), card_named(name), "dry-run")
    return answer.card.usable_bytes - (answer.worst_need_bytes or answer.need_bytes)


def test_changes_are_tried_for_the_gpu_in_detail_alone(open_page, monkeypatch):
    asked = []
    tried = remedies_view._tried
    monkeypatch.setattr(remedies_view, "_tried", lambda *given: asked.append(given[2:]) or tried(*given))
    at = open_page(gpu=["T4", "L4"], tab="Why")
    assert not asked
    at = open_page(gpu=["T4", "L4"])
    # It fits: changes are tried once somebody asks what would save memory.
    assert not asked and f"It fits T4 with {gib(headroom_bytes('T4'))} to spare at worst" in texts(at.markdown)
    at.session_state["remedies-open"] = True
    at.run()
    assert asked == [(GenerationRequest(), card_named("T4"))]
    assert "These changes would leave more:" in texts(at.markdown)
    assert at.button(key="remedy-offload")
    following(at.segmented_control, "detail").set_value("L4").run()
    assert asked[1:] == [(GenerationRequest(), card_named("L4"))]


def test_the_chosen_gpu_stays_chosen(open_page):
    at = big(open_page, "T4", "RTX 4060")
    following(at.segmented_control, "detail").set_value("T4").run()
    assert "T4 is tight" in texts(at.markdown)
    at.number_input(key="width").set_value(1920).run()
    assert following(at.segmented_control, "detail").value == "T4"
    at.multiselect(key="gpu").set_value(["RTX 4060"]).run()
    assert not at.exception and "RTX 4060 does not run" in texts(at.markdown)


def test_the_headline_says_if_no_remedy_is_enough():
    # So small that nothing fits, and a request that fits no larger card.
    request = GenerationRequest(width=8192, height=8192, batch=2)
    found = remedies(request, described_card("2GiB", "7.5"))
    assert {remedy.effect for remedy in found.found} == {"saves", "nothing"}
    assert remedies_view._headline(found, "saves").endswith(
        "No change that was tried is enough on its own, but these help."
    )
    assert remedies_view._headline(replace(found, found=()), None).endswith("No change that was tried helps.")


def test_without_programs_no_change_is_tried(open_page, monkeypatch):
    monkeypatch.setattr(session, "library", lambda: (None, None))
    at = big(open_page, "T4")
    assert not at.exception
    assert "Changes are tried by the dry run, whose memory programs are not there yet." in texts(at.info)
    assert not [key for key in keys(at) if key and key.startswith("remedy")]
