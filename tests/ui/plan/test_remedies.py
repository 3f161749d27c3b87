"""Test remedies on a page: useful ones, useless ones, and applying one to the plan."""

from dataclasses import replace

import pytest
from streamlit.testing.v1 import AppTest

from pages.shared.frame import session
from pages.shared.plan import remedies as remedies_view
from planner.alternatives.remedies import remedies
from planner.cards.lookup import card_named, described_card
from planner.request import GenerationRequest
from planner.units import gib, signed_gib
from tests.ui.conftest import texts

BIG = GenerationRequest(width=2048, height=2048)


def page() -> None:
    import streamlit as st

    from pages.shared.controls.cards import card_controls
    from pages.shared.controls.request import request_controls
    from pages.shared.frame import session
    from pages.shared.frame.plan_state import enter_page
    from pages.shared.plan.remedies import remedies_view
    from pages.shared.plan.verdicts import beside
    from planner.fit import fit

    enter_page("Plan")
    request, cards = request_controls(), card_controls()
    library = None if st.session_state.get("no-library") else session.library()[0]
    if request is not None:
        remedies_view(
            request,
            [beside(fit(request, card, "dry-run", library=library), request, library) for card in cards],
            library,
        )


@pytest.fixture
def opened():
    def open_(**params) -> AppTest:
        at = AppTest.from_function(page, default_timeout=60)
        for name, value in params.items():
            at.query_params[name] = value
        return at.run()

    return open_


def big(opened, *names: str) -> AppTest:
    return opened(width="2048", height="2048", gpu=list(names))


def test_remedies_show_need_cost_and_code(opened):
    at = big(opened, "A100-40GB", "T4")
    assert not at.exception
    # The first that does not fit.
    assert at.segmented_control(key="remedies-card").value == "T4"
    found = remedies(BIG, card_named("T4"))
    shown = texts(at.markdown)
    for remedy in found.useful:
        assert f"**{remedy.title}**" in shown
        assert f"Needs {gib(remedy.answer.need_bytes)} ({signed_gib(remedy.need_change_bytes)})" in shown
        assert remedy.cost in texts(at.caption)
        assert at.button(key=f"remedy-{'-'.join(remedy.keys)}")
    assert next(code.value for code in at.code) == "pipe.vae.enable_tiling()"
    assert "T4 is tight: it needs 15.87 GiB of 14.56 GiB usable. These changes make it fit" in shown
    less = next(box for box in at.expander if box.label == "Helps, but less (2)")
    assert "**No safety checker**" in texts(less.markdown)
    useless = next(box for box in at.expander if box.label.startswith("No help here"))
    assert useless.label.endswith(f"({len(found.useless)})")
    assert "VAE slicing**: Does nothing at batch 1" in texts(useless.markdown)


def test_applying_a_remedy_sets_the_controls(opened):
    at = big(opened, "T4")
    at.button(key="remedy-vae_tiling").click().run()
    assert not at.exception
    assert at.toggle(key="vae_tiling").value is True
    assert at.session_state["plan"]["vae_tiling"] is True
    assert at.number_input(key="width").value == 2048
    # It fits now, so only changes that save memory are left.
    assert not at.subheader
    at.session_state["remedies-open"] = True
    at.run()
    assert "It fits T4" in texts(at.markdown)
    assert not [button for button in at.button if button.key == "remedy-vae_tiling"]


def test_a_remedy_can_switch_an_option_off(opened):
    at = opened(width="2048", height="2048", attention_slicing="true", gpu=["A100-40GB"])
    at.button(key="remedy-attention_slicing").click().run()
    assert at.toggle(key="attention_slicing").value is False
    assert not at.subheader


def test_a_smaller_size_and_a_larger_gpu_can_be_applied(opened):
    at = big(opened, "T4")
    size = next(remedy for remedy in remedies(BIG, card_named("T4")).found if remedy.keys == ("size",))
    at.button(key="remedy-card").click().run()
    assert at.multiselect(key="gpu").value == ["T4", "L4"]
    at.button(key="remedy-size").click().run()
    assert at.number_input(key="width").value == size.request.width < 2048
    assert at.number_input(key="height").value == size.request.height


def test_fewer_workers_can_be_applied(opened):
    at = opened(width="1024", height="1024", batch="4", workers="3", gpu=["A10"])
    assert "**1 worker per GPU**" in texts(at.markdown)
    at.button(key="remedy-workers").click().run()
    assert not at.exception and not at.subheader
    assert at.number_input(key="workers").value == 1 == at.session_state["plan"]["workers"]
    assert at.multiselect(key="gpu").value == ["A10"]


def test_savings_are_tried_only_once_opened(opened, monkeypatch):
    asked = []
    tried = remedies_view._tried
    monkeypatch.setattr(remedies_view, "_tried", lambda *given: asked.append(given[2:]) or tried(*given))
    at = opened(gpu=["T4", "L4"])
    assert [box.label for box in at.expander if "save memory" in box.label] == ["What would save memory"]
    assert not asked
    at.session_state["remedies-open"] = True
    at.run()
    assert asked == [(GenerationRequest(), card_named("T4"))]
    assert "These changes would leave more:" in texts(at.markdown)
    assert at.button(key="remedy-offload")


def test_the_chosen_gpu_stays_chosen(opened):
    at = big(opened, "T4", "RTX 4060")
    at.segmented_control(key="remedies-card").set_value("RTX 4060").run()
    assert "RTX 4060 does not run" in texts(at.markdown)
    at.number_input(key="width").set_value(1920).run()
    assert at.segmented_control(key="remedies-card").value == "RTX 4060"
    at.multiselect(key="gpu").set_value(["T4"]).run()
    assert not at.exception and "T4" in texts(at.markdown)


def test_the_headline_says_if_no_remedy_is_enough():
    # So small that nothing fits, and a request that fits no larger card.
    request = GenerationRequest(width=8192, height=8192, batch=2)
    found = remedies(request, described_card("2GiB", "7.5"))
    assert {remedy.effect for remedy in found.found} == {"saves", "nothing"}
    assert remedies_view._headline(found, "saves").endswith(
        "No change that was tried is enough on its own, but these help."
    )
    assert remedies_view._headline(replace(found, found=()), None).endswith("No change that was tried helps.")


def test_without_programs_there_is_no_section(opened):
    at = AppTest.from_function(page, default_timeout=60)
    at.session_state["no-library"] = True
    at.query_params["width"] = "2048"
    at.run()
    assert not at.exception and not at.subheader
    assert session.library()[0] is not None
