"""Test the other controls: common sizes, prompt, image, list of images, and options in a link."""

import json
from functools import partial
from io import BytesIO

import pytest
from PIL import Image

from pages.shared.controls.presets import PRESETS
from planner.cards.lookup import card_named
from planner.fields import GROUPS
from planner.fit import fit
from planner.request import FIELDS, GenerationRequest
from planner.units import gib
from tests.ui.conftest import PAGES, answered, following, headroom, texts


def png(width: int, height: int) -> bytes:
    out = BytesIO()
    Image.new("L", (width, height)).save(out, "PNG")
    return out.getvalue()


def size_of(at) -> tuple[int, int]:
    return at.number_input(key="width").value, at.number_input(key="height").value


def expanded(at, label: str) -> bool:
    (found,) = (one for one in at.expander if one.label == label)
    return found.proto.expanded


@pytest.mark.parametrize("size", PRESETS)
def test_both_tasks_accept_every_common_size(size):
    for task in ("img2img", "txt2img"):
        request = GenerationRequest(task=task, width=size[0], height=size[1])
        assert (request.effective_width, request.effective_height) == size


@pytest.mark.parametrize("page", PAGES[:2])
def test_a_common_size_sets_and_follows_width_and_height(open_page, no_driver, page):
    at = open_page(page)
    assert following(at.selectbox, "preset").value == (512, 512)
    following(at.selectbox, "preset").set_value((1920, 1080)).run()
    assert not at.exception
    assert size_of(at) == (1920, 1080)
    at.number_input(key="width").set_value(1000).run()
    assert following(at.selectbox, "preset").value is None
    at.number_input(key="width").set_value(1280).run()
    at.number_input(key="height").set_value(720).run()
    assert following(at.selectbox, "preset").value == (1280, 720)


def test_a_common_size_reaches_the_verdicts(open_page):
    at = open_page(gpu=["T4"])
    following(at.selectbox, "preset").set_value((1920, 1080)).run()
    assert at.metric[0].value == headroom(fit(GenerationRequest(width=1920, height=1080), card_named("T4")))


def test_swap_exchanges_width_and_height(open_page):
    at = open_page(width="768", height="512")
    at.button(key="swap").click().run()
    assert size_of(at) == (512, 768)
    assert following(at.selectbox, "preset").value == (512, 768)
    at.button(key="swap").click().run()
    assert size_of(at) == (768, 512)


@pytest.mark.parametrize(
    ("prompt", "tokens", "shown"),
    [("a photo of a cat", 7, "7 tokens. "), ("cat " * 100, 77, "102 tokens, cut at 77. ")],
)
def test_a_prompt_sets_the_prompt_tokens(open_page, prompt, tokens, shown):
    at = open_page(tab="Why")
    before = at.metric[0].value
    at.text_area(key="prompt").set_value(prompt).run()
    assert not at.exception
    assert at.number_input(key="prompt_tokens").value == tokens
    assert f"{shown}The pipeline pads every prompt to 77" in texts(at.caption)
    assert at.metric[0].value == before
    assert f"64*64*{tokens}*2" in texts(at.markdown)


@pytest.mark.parametrize("page", PAGES[:2])
@pytest.mark.parametrize(
    ("params", "is_open"),
    [({}, False), ({"width": "768"}, False), ({"vae_tiling": "true"}, True), ({"safety_checker": "false"}, True)],
)
def test_options_of_a_link_are_in_sight(open_page, no_driver, page, params, is_open):
    assert expanded(open_page(page, **params), "Options") is is_open


def test_options_stand_in_their_groups_and_images_beside_the_batch(open_page):
    at = open_page()
    shown = texts(at.markdown)
    places = [shown.index(f"**{group}**") for group in GROUPS]
    assert places == sorted(places)
    assert {field.name for field in FIELDS} <= {one.key for one in (*at.number_input, *at.toggle, *at.button_group)}
    keys = [one.key for one in at.number_input]
    assert keys.index("images_per_prompt") == keys.index("batch") + 1


def test_an_option_that_cannot_apply_is_disabled_and_says_why(open_page):
    at = open_page()
    layers, hires = at.toggle(key="lora_text_encoder"), at.number_input(key="hires")
    assert layers.disabled and "needs a LoRA rank of 1 or more" in layers.help
    assert hires.disabled and "must be 1 but for txt2img" in hires.help
    at = open_page(lora_rank="8", task="txt2img")
    assert not at.toggle(key="lora_text_encoder").disabled and not at.number_input(key="hires").disabled
    assert "Not now" not in at.number_input(key="hires").help


def test_a_link_with_an_option_that_cannot_apply_gets_its_message_and_a_way_out(open_page):
    at = open_page(hires="2")
    assert "hires must be 1 but for txt2img, which the first pass is" in texts(at.error).replace("Hires", "hires")
    hires = at.number_input(key="hires")
    assert not hires.disabled
    hires.set_value(1.0).run()
    assert not at.error


def test_options_stay_open_at_their_defaults(open_page):
    at = open_page(vae_tiling="true")
    at.toggle(key="vae_tiling").set_value(False).run()
    assert expanded(at, "Options")


def test_an_image_sets_the_size(open_page):
    at = open_page()
    at.file_uploader(key="image").set_value(("cat.png", png(1030, 600), "image/png")).run()
    assert not at.exception
    assert size_of(at) == (1024, 600)
    assert "cat.png is 1030×600, planned as 1024×600: each side is rounded down to a multiple of 8." in texts(
        at.caption
    )
    at.number_input(key="width").set_value(640).run()
    assert size_of(at) == (640, 600)


def test_a_file_that_is_no_image_changes_nothing(open_page):
    at = open_page(width="768")
    at.file_uploader(key="image").set_value(("[x](y).png", b"<html>", "image/png")).run()
    assert not at.exception
    assert texts(at.error) == "Image must be a PNG, JPEG or WebP image, got '[x](y).png'."
    assert r"\[x\]\(y\)" in at.error[0].value
    assert size_of(at) == (768, 512)
    assert at.metric


@pytest.fixture
def open_list(open_page):
    return partial(open_page, tab="Several images")


def test_the_worst_listed_image_decides(open_list):
    at = open_list(images="512x512,2048x2048,1024x1024*2", gpu=["T4", "A100-40GB"])
    assert not at.exception
    t4 = card_named("T4")
    answers = [
        fit(GenerationRequest(width=side, height=side, batch=n), t4) for side, n in ((512, 1), (2048, 1), (1024, 2))
    ]
    table = at.dataframe[-1].value.set_index("Image")
    assert list(table.index) == ["512×512", "2048×2048", "1024×1024, 2 at once"]
    signs = {"fits": "✓", "tight": "▲"}
    assert list(table["T4"]) == [f"{signs[a.verdict]} {a.verdict}, {gib(a.need_bytes)}" for a in answers]
    shown = texts(at.markdown)
    assert "the largest need counts, not the sum" in shown
    worst = max(answer.need_bytes for answer in answers)
    assert f"**T4** ▲ tight: 2048×2048 needs {gib(worst)} of {gib(t4.usable_bytes)}" in shown
    assert "**A100-40GB** ✓ fits: 2048×2048 needs" in shown
    assert sum(answer.need_bytes for answer in answers) > worst
    assert at.query_params["images"] in ("512x512,2048x2048,1024x1024*2", ["512x512,2048x2048,1024x1024*2"])


def test_an_empty_list_has_no_answers(open_list):
    at = open_list()
    assert not at.exception
    # The table for typing is there, and no other.
    assert [list(frame.value.columns) for frame in at.dataframe] == [["Width", "Height", "At once"]]
    assert "The worst image decides" not in texts(at.markdown)
    assert "images" not in at.query_params


def test_a_list_counts_while_its_tab_is_closed(open_page, open_list):
    params = {"images": "4096x4096,512x512", "gpu": ["T4"]}
    shut, drawn = open_page(**params), open_list(**params)
    assert not shut.exception and not drawn.exception
    assert not shut.dataframe and len(drawn.dataframe) == 2
    assert texts(shut.error) == texts(drawn.error)
    assert "2 images listed under Several images" in texts(shut.error)
    assert shut.query_params["images"] in (params["images"], [params["images"]])


def test_several_uploads_become_the_list(open_list):
    at = open_list(images="64x64")
    files = [
        ("a.png", png(512, 768), "image/png"),
        ("b.png", png(1030, 1030), "image/png"),
        ("c.png", b"no", "image/png"),
    ]
    at.file_uploader(key="images-uploads").set_value(files).run()
    assert not at.exception
    assert list(at.dataframe[-1].value["Image"]) == ["512×768", "1024×1024"]
    shown = texts(at.caption)
    assert "b.png is 1030×1030, planned as 1024×1024" in shown
    assert "Image must be a PNG, JPEG or WebP image, got 'c.png'." in shown
    at.run()
    assert list(at.dataframe[-1].value["Image"]) == ["512×768", "1024×1024"]
    assert at.query_params["images"] in ("512x768,1024x1024", ["512x768,1024x1024"])


def test_an_image_that_the_task_refuses_stays_listed(open_list):
    at = open_list(images="500x512,512x512", task="txt2img", gpu=["T4"])
    assert not at.exception
    assert texts(at.error) == "500×512: Width must be a multiple of 8, got 500 (nearest: 496 or 504)."
    assert list(at.dataframe[-1].value["Image"]) == ["512×512"]
    at.segmented_control(key="task").set_value("img2img").run()
    assert list(at.dataframe[-1].value["Image"]) == ["500×512", "512×512"]


@pytest.mark.parametrize(
    ("images", "told"),
    [
        ("nonsense", "images must be sizes such as"),
        ("512x512*0", "images has 512x512*0, whose batch must be between 1 and 128, got 0 (nearest: 1)"),
        ("512x512,99999x1", "images has 99999x1, whose width must be between 64 and 8192, got 99999 (nearest: 8192)"),
    ],
)
def test_a_wrong_list_in_a_link_warns(open_list, images, told):
    at = open_list(images=images)
    assert not at.exception
    [warning] = at.warning
    assert texts([warning]).startswith(f"Parts of this link were not used:\n- {told}")
    assert texts([warning]).endswith("; none is shown instead.")
    assert at.query_params.get("images") in (None, [])


def test_the_lists_verdict_is_on_top_and_in_every_report(open_page, monkeypatch):
    reports = []
    monkeypatch.setattr("streamlit.download_button", lambda label, make, name, *_, **__: reports.append((make, name)))
    at = open_page(gpu=["T4", "A100-40GB"], images="4096x4096,512x512", tab="Export")
    assert not at.exception
    [notice] = at.error
    need = gib(fit(GenerationRequest(width=4096, height=4096), card_named("T4")).need_bytes)
    assert f"- **T4** ✕ no: 4096×4096 needs {need} of" in texts([notice])
    assert "- **A100-40GB** ▲ tight: 4096×4096 needs" in texts([notice])
    assert "**2 images listed under Several images**" in notice.value
    assert "All other verdicts on this page are for 512×512, batch 1 alone." in texts([notice])
    drawn = [element.type for element in at.main]
    assert drawn.index("error") < drawn.index("metric")
    # What its verdict means is said with the others'.
    assert "no: runs out of memory" in texts(at.caption).replace("**", "")
    name = "will-it-fit-img2img-512x512-batch-1-and-2-listed"
    assert [told for _, told in reports] == [f"{name}.{ending}" for ending in ("json", "md", "png")]
    json_, markdown, _ = (make for make, _ in reports)
    assert "| T4 | 4096×4096 | ✕ no |" in markdown().decode()
    assert [row["image"]["width"] for row in json.loads(json_())["images"]["worst"]] == [4096, 4096]


def test_without_images_the_list_is_not_mentioned(open_page):
    at = open_page(gpu=["T4"])
    assert not at.exception and not at.error and not at.warning
    assert len(at.success) == 1 and "listed" not in answered(at)


def test_a_link_with_an_unknown_view_says_so(open_page):
    at = open_page(tab="Nonsense", map="by weight", images="4096xwide")
    said = texts(at.warning)
    assert "tab must be one of Make it fit, Sizes and map, Why, Several images, Export, got 'Nonsense'" in said
    assert "map must be one of size by GPU, size by batch, got 'by weight'; size by GPU is shown instead" in said
    assert "images" in said
    assert "images" not in at.query_params
    assert not open_page(tab="Why", map="size by batch", images="512x512").warning
