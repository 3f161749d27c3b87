"""Test controls in a real browser: what is picked, typed and uploaded reaches the address."""

import re
from io import BytesIO

import pytest
from PIL import Image
from playwright.sync_api import expect

from planner.cards.lookup import card_named, described_card, shared_card
from planner.fit import fit
from planner.request import GenerationRequest
from planner.units import gib
from tests.browser import device, settle
from tests.ui.conftest import headroom


def png(width: int, height: int) -> bytes:
    out = BytesIO()
    Image.new("L", (width, height)).save(out, "PNG")
    return out.getvalue()


def number(page, name: str):
    return page.get_by_role("spinbutton", name=name)


def section(page, name: str):
    return page.locator("details", has=page.locator("summary", has_text=name))


def test_common_size_and_swap_reach_the_address(open_page):
    page = open_page("/?gpu=T4")
    page.get_by_role("combobox", name="Size").click()
    page.get_by_role("option", name="1920×1080, 1080p").click()
    expect(number(page, "Width, px")).to_have_value("1920")
    expect(page).to_have_url(re.compile("width=1920.*height=1080|height=1080.*width=1920"))
    page.get_by_role("button", name="Swap").click()
    expect(page).to_have_url(re.compile("width=1080.*height=1920|height=1920.*width=1080"))
    left = headroom(fit(GenerationRequest(width=1080, height=1920), card_named("T4")))
    expect(page.get_by_text(left)).to_be_visible()
    page.reload()
    expect(number(page, "Height, px")).to_have_value("1920")
    expect(page.get_by_text(left)).to_be_visible()


def test_what_is_typed_survives_a_slow_answer(browser, app):
    held, holds = [], False

    def delay(socket):
        server = socket.connect_to_server()
        socket.on_message(server.send)
        server.on_message(lambda message: held.append((socket, message)) if holds else socket.send(message))

    with browser.new_context(**device(1280)) as context:
        page = context.new_page()
        page.route_web_socket(re.compile("_stcore/stream"), delay)
        page.goto(f"{app}/Verify")
        number(page, "Width, px").wait_for()
        settle(page)
        # The browser sends the height before it hears what came of the width, with all else as it was.
        holds = True
        for name, text in (("Width, px", "256"), ("Height, px", "320")):
            number(page, name).fill(text)
            number(page, name).press("Enter")
            page.wait_for_timeout(1500)
        holds = False
        assert held
        for socket, message in held:
            socket.send(message)
        expect(page).to_have_url(re.compile("height=320"))
        expect(page.get_by_text("--width 256 --height 320").first).to_be_visible()
        expect(number(page, "Width, px")).to_have_value("256")
        expect(number(page, "Height, px")).to_have_value("320")


def test_image_and_prompt_set_the_request(open_page):
    page = open_page()
    settle(page)
    fold = section(page, "Size from an image")
    fold.locator("summary").click()
    fold.locator("input[type=file]").set_input_files(
        {"name": "a.png", "mimeType": "image/png", "buffer": png(770, 512)}
    )
    expect(page.get_by_text("a.png is 770×512, planned as 768×512")).to_be_visible()
    expect(page).to_have_url(re.compile("width=768"))
    fold = section(page, "Advanced")
    fold.locator("summary").click()
    fold.get_by_role("textbox", name="Prompt").fill("a photo of a cat")
    fold.get_by_role("textbox", name="Prompt").press("Control+Enter")
    expect(page.get_by_text("7 tokens. The pipeline pads every prompt to 77")).to_be_visible()
    expect(number(page, "Prompt tokens")).to_have_value("7")
    expect(page).to_have_url(re.compile("prompt_tokens=7"))
    assert "cat" not in page.url


def test_options_of_a_link_stay_open(open_page):
    page = open_page("/?vae_tiling=true")
    options = section(page, "Options")
    tiling = options.get_by_text("VAE tiling")
    expect(tiling).to_be_visible()
    tiling.click()
    expect(page).not_to_have_url(re.compile("vae_tiling"))
    settle(page)
    expect(tiling).to_be_visible()


def test_a_link_keeps_described_gpu_and_workers(open_page):
    page = open_page("/?gpu=T4")
    settle(page)
    fold = section(page, "Other GPUs and sharing")
    fold.locator("summary").click()
    for name, text in (("GPU memory", "12GiB"), ("Compute capability", "8.6")):
        fold.get_by_role("textbox", name=name).fill(text)
        fold.get_by_role("textbox", name=name).press("Enter")
        settle(page)
    number(page, "Workers per GPU").fill("2")
    number(page, "Workers per GPU").press("Enter")
    expect(page).to_have_url(re.compile("workers=2"))
    address = page.url.partition("://")[2].partition("/")[2]
    cold = open_page(f"/{address}")
    for card in (card_named("T4"), described_card("12GiB", "8.6")):
        share = shared_card(card, 2)
        expect(cold.get_by_text(share.name, exact=True).first).to_be_visible()
        expect(cold.get_by_text(headroom(fit(GenerationRequest(), share))).first).to_be_visible()


def test_a_link_keeps_the_order_of_gpus(open_page):
    page = open_page("/?gpu=RTX+4060&gpu=A100&gpu=T4")
    expect(page.get_by_test_id("stMetric")).to_have_count(3)
    for heading, name in zip(page.locator("h2").all(), ("RTX 4060", "A100-40GB", "T4"), strict=False):
        expect(heading).to_contain_text(name)
    expect(page).to_have_url(re.compile("gpu=RTX.4060&gpu=A100-40GB&gpu=T4"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_control_is_cut_off_on_a_phone(open_page, scheme):
    page = open_page("/?workers=2&gpu_memory=16GiB&compute_capability=7.5&vae_tiling=true", width=390, scheme=scheme)
    settle(page)
    controls = section(page, "Request and GPUs")
    controls.locator("summary").first.click()
    expect(page.get_by_text("Workers per GPU")).to_be_visible()
    section(page, "Advanced").last.locator("summary").click()
    expect(page.get_by_role("textbox", name="Prompt")).to_be_visible()
    page.wait_for_timeout(800)
    outside = page.evaluate(
        """[...document.querySelector('[data-testid=stExpander]')
           .querySelectorAll(':is(p, label, button, input, textarea, summary)')]
           .filter(e => e.getClientRects().length && e.getBoundingClientRect().right > innerWidth + 1)
           .map(e => e.outerHTML.slice(0, 120))"""
    )
    assert outside == []
    assert controls.get_by_text("Workers per GPU").is_visible()


def test_a_phone_shows_the_answer_first(open_page):
    page = open_page("/?width=2048&height=2048&gpu=T4", width=390)
    answer = page.get_by_test_id("stAlert").filter(has_text="T4")
    expect(answer).to_be_in_viewport()
    expect(answer).to_contain_text("img2img 2048×2048, batch 1")
    metric = page.get_by_test_id("stMetric")
    expect(metric).to_be_in_viewport()
    width = page.get_by_role("spinbutton", name="Width, px")
    expect(width).not_to_be_visible()
    page.get_by_text("Request and GPUs").click()
    width.fill("512")
    width.press("Enter")
    expect(page).not_to_have_url(re.compile("width=2048"))
    # Still open: a change does not fold the controls away.
    expect(width).to_be_visible()
    page.get_by_text("Request and GPUs").click()
    expect(width).not_to_be_visible()
    expect(metric).to_be_in_viewport()


def test_a_phone_shows_verifys_device_first(open_page):
    device = open_page("/Verify", width=390).get_by_text("CPU rehearsal", exact=True)
    expect(device).to_be_in_viewport()
    width = device.page.get_by_role("spinbutton", name="Width, px")
    expect(width).not_to_be_visible()
    device.page.locator("summary", has_text="Request").click()
    expect(width).to_be_visible()
    expect(open_page("/Verify").get_by_role("spinbutton", name="Width, px")).to_be_in_viewport()


def test_a_phone_shows_errors_of_a_link_at_once(open_page):
    page = open_page("/?width=99999", width=390)
    expect(page.get_by_text("width must be between 64 and 8192, got 99999")).to_be_in_viewport()


def test_a_phone_shows_the_lists_verdict_first(open_page):
    page = open_page("/?gpu=T4&images=4096x4096,512x512", width=390)
    need = gib(fit(GenerationRequest(width=4096, height=4096), card_named("T4")).need_bytes)
    expect(page.get_by_test_id("stAlert").get_by_text(f"✕ no: 4096×4096 needs {need}")).to_be_in_viewport()
    page.get_by_role("tab", name="Several images").click()
    expect(page.get_by_text("The worst image decides")).to_be_visible()
    expect(page).to_have_url(re.compile("tab=Several.images"))
    expect(page).to_have_url(re.compile("images=4096x4096"))
