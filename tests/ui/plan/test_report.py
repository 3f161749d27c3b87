"""Test the export of a plan: the files match the command line, and no browser draws the picture."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from io import BytesIO
from types import SimpleNamespace
from urllib.parse import parse_qsl, urlsplit

import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from cache.machine.versions import installed
from pages.shared.plan.picture import picture_spec
from pages.shared.plan.report import Report, file_name
from pages.shared.plan.share import link_of
from pages.shared.plan.verdicts import beside
from planner.alternatives.images import answer_images, parse_images
from planner.answer import SIGNS
from planner.cards.lookup import CATALOGUE, card_named
from planner.cli.main import main
from planner.fit import fit
from planner.plan import DEFAULT_GPUS, Plan, answer_plan
from planner.programs.files import shipped
from planner.replay.timeline import timeline_of
from planner.report.script import snippet
from planner.request import GenerationRequest
from planner.units import gib, signed_gib
from tests.conftest import ROOT
from tests.ui.conftest import texts

BIG = GenerationRequest(width=2048, height=2048)
NAMES = ("T4", "A100-40GB", "RTX 4060")
FLAGS = [flag for name in NAMES for flag in ("--gpu", name)]


def report(request: GenerationRequest = BIG, names=NAMES, basis: str = "dry-run", library=None) -> Report:
    library = library or shipped()
    plan = Plan(request=request, gpus=names, basis=basis, published=False)
    found = answer_plan(plan, plan.cards(list), library=library)
    return Report(found, [beside(answer, request, library) for answer in found.answers], library)


@pytest.mark.parametrize(("kind", "method"), [("json", Report.json), ("md", Report.markdown)])
@pytest.mark.parametrize("basis", ["best", "dry-run", "formula", "measured"])
def test_files_are_what_the_command_line_prints(capsys, kind, method, basis):
    request = ["--width", "2048", "--height", "2048", *FLAGS, "--basis", basis, "--no-reference"]
    main(["fit", *request, "--format", kind])
    assert method(report(basis=basis)).decode() == capsys.readouterr().out


def drawn_texts(spec) -> list[str]:
    """Return every text in the picture."""
    if isinstance(spec, dict):
        is_text = isinstance(spec.get("mark"), dict) and spec["mark"]["type"] == "text"
        field = spec["encoding"]["text"]["field"] if is_text else ""
        own = [str(value[field]) for value in spec["data"]["values"]] if is_text else []
        return own + [text for value in spec.values() for text in drawn_texts(value)]
    return [text for value in spec for text in drawn_texts(value)] if isinstance(spec, list) else []


def test_the_picture_matches_the_page(monkeypatch):
    specs = []
    monkeypatch.setattr("pages.shared.plan.report.picture_png", lambda spec: specs.append(spec) or b"png")
    assert report().png() == b"png"
    told = drawn_texts(specs[0])
    assert BIG.describe() in told
    for name in NAMES:
        answer = fit(BIG, card_named(name), "dry-run")
        for text in (name, answer.verdict, gib(answer.need_bytes), signed_gib(answer.headroom_bytes), "dry-run"):
            assert text in told
    assert "RTX 4060: even the minimum, 9.13 GiB, is 1.53 GiB too much" in told
    assert "out of memory at 7.13 GiB" in told
    assert any("Missing memory is hatched" in text for text in told)
    assert any(text.startswith("Memory over the dry run on RTX 4060") for text in told)
    assert f"torch {installed()['torch']}" in " ".join(told)
    # A sign for each verdict, not its colour alone.
    shapes = {piece["mark"].get("shape") for piece in specs[0]["vconcat"][1]["layer"]}
    assert len(shapes - {None}) == 3


def test_every_file_has_the_worst_listed_image(monkeypatch):
    request, rows = GenerationRequest(), parse_images("512x512,4096x4096,1024x1024*2")
    given = report(request)
    cards = [one.answer.card for one in given.shown]
    images = answer_images(rows, request, cards, "dry-run", library=given.library)
    given = given._replace(found=given.found._replace(images=images))
    specs = []
    monkeypatch.setattr("pages.shared.plan.report.picture_png", lambda spec: specs.append(spec) or b"png")
    assert given.png() == b"png"
    told, text, found = drawn_texts(specs[0]), given.markdown().decode(), json.loads(given.json())
    assert found.keys() - json.loads(report(request).json()).keys() == {"images"}
    assert [image["batch"] for image in found["images"]["list"]] == [1, 1, 2]
    for card, row in zip(cards, found["images"]["worst"], strict=True):
        answer = fit(GenerationRequest(width=4096, height=4096), card, "dry-run")
        assert row["image"] == {"width": 4096, "height": 4096, "batch": 1}
        assert (row["name"], row["verdict"], row["need_bytes"]) == (card.name, answer.verdict, answer.need_bytes)
        assert (
            f"| {card.name} | 4096×4096 | {SIGNS[answer.verdict]} {answer.verdict} | {gib(answer.need_bytes)} " in text
        )
        assert {"4096×4096", answer.verdict, gib(answer.need_bytes), signed_gib(answer.headroom_bytes)} <= set(told)
    listed = "The list: 512×512; 4096×4096; 1024×1024, 2 at once."
    assert listed in text and listed in told
    # The command line takes one request: that of the plan, and that of the image that decides.
    commands = [line for line in text.splitlines() if line.startswith("$ ")]
    assert len(commands) == 2 and "--width 4096 --height 4096" in commands[1]


@pytest.mark.parametrize(
    ("request_", "names", "basis"),
    [
        (BIG, NAMES, "dry-run"),
        (GenerationRequest(task="txt2img", batch=4, offload="model"), [card.name for card in CATALOGUE], "best"),
        (GenerationRequest(), ("A100-40GB 3g.20gb",), "measured"),
        (GenerationRequest(), ("T4",), "formula"),
    ],
)
def test_the_picture_cuts_nothing_off(request_, names, basis):
    with Image.open(BytesIO(report(request_, names, basis).png())) as image:
        assert image.format == "PNG"
        # Nothing reaches the edge: all of it is within the padding.
        grey = image.convert("L")
        width, height = grey.size
        left, top, right, bottom = grey.point(lambda shade: 255 * (shade < 250)).getbbox()
        # The whole catalogue is a long page, each card a few lines of it.
        assert 1760 <= width <= 2400 and height <= max(3400, 1700 + 110 * len(names))
    assert min(left, top, width - right, height - bottom) >= 20


def test_the_picture_without_programs():
    given = report(basis="formula")._replace(library=None)
    assert given.png().startswith(b"\x89PNG")
    told = drawn_texts(picture_spec(BIG, [], None, [], "caption"))
    assert "caption" in told and not any("dry run" in text for text in told)


def test_the_caption_has_date_versions_and_basis():
    now = datetime(2026, 11, 24, 9, 31, tzinfo=UTC)
    text = report().caption(now)
    assert text.startswith("Planned 2026-11-24 09:31 UTC")
    assert all(version in text for version in installed().values())
    assert "Basis: dry-run; values that are not measured are predicted." in text
    assert "No basis has an answer." in report(basis="measured").caption(now)


def test_the_timeline_is_the_dry_runs():
    name, drawn, capacity_bytes = report()._timeline()
    card = card_named("RTX 4060")
    assert (name, capacity_bytes) == (card.name, card.usable_bytes - card.context_bytes)
    assert drawn.run.outcome == timeline_of(BIG, card, shipped()).run.outcome == "out-of-memory"


def test_the_picture_needs_neither_a_browser_nor_torch():
    code = (
        "import sys; from pages.shared.plan.report import Report; from pages.shared.plan.verdicts import beside; "
        "from planner.plan import Plan, answer_plan; from planner.programs.files import shipped; "
        "plan, library = Plan(gpus=('T4',), basis='dry-run'), shipped(); "
        "found = answer_plan(plan, plan.cards(list), library=library); "
        "shown = [beside(found.answers[0], plan.request, library)]; assert 'vl_convert' not in sys.modules; "
        "assert Report(found, shown, library).png()[:4] == b'\\x89PNG'; "
        "print(sorted({'torch', 'playwright'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "[]"


def page() -> None:
    from pages.shared.controls.cards import card_controls
    from pages.shared.controls.request import request_controls
    from pages.shared.frame import session
    from pages.shared.frame.plan_state import planned
    from pages.shared.plan.report import report_view
    from pages.shared.plan.verdicts import beside
    from planner.plan import answer_plan

    request, cards = request_controls(), card_controls()
    library, _ = session.library()
    found = answer_plan(planned(request), cards, library=library)
    report_view(found, [beside(answer, request, library) for answer in found.answers], library)


def test_files_are_made_on_demand(monkeypatch):
    made = []
    for name in ("json", "markdown", "png"):
        monkeypatch.setattr(Report, name, lambda self, name=name: made.append(name) or b"")
    at = AppTest.from_function(page, default_timeout=60)
    at.query_params["width"] = "768"
    at.run()
    assert not at.exception
    assert [button.label for button in at.download_button] == ["JSON", "Markdown", "Picture"]
    assert all(button.help for button in at.download_button)
    assert not made
    assert at.code[0].value == snippet(GenerationRequest(width=768)).rstrip()
    assert [one.label for one in at.expander][-2:] == ["The planned call in Python", "The same check over HTTP"]
    assert "/api/fit?width=768&gpu=T4" in at.code[1].value
    assert "the memory that torch reserved" in texts(at.caption)


def shared_link(at: AppTest) -> str:
    """Return the link in the box that the Share button opens."""
    [box] = [one for one in at.get("popover") if one.proto.popover.label == "Share"]
    [link] = box.code
    return link.value


SHARED = {
    "task": "txt2img",
    "width": "1024",
    "height": "768",
    "vae_tiling": "true",
    "offload": "model",
    "guidance_scale": "1.0",
    "steps": "20",
    "basis": "dry-run",
    "published": "false",
    "workers": "2",
    "images": "512x512,1024x1024*2",
    "gpu": ["RTX 4060", "A100-40GB 3g.20gb"],
}


@pytest.mark.parametrize("tab", ["Make it fit", "Several images"])
@pytest.mark.parametrize("given", [{}, {"width": "768"}, SHARED])
def test_the_shared_link_is_the_plan(open_page, given, tab):
    at = open_page(**given, tab=tab)
    assert not at.exception
    pairs = parse_qsl(urlsplit(shared_link(at)).query, keep_blank_values=True)
    expected = [(name, one) for name, value in given.items() for one in (value if isinstance(value, list) else [value])]
    gpus = () if "gpu" in given else [("gpu", name) for name in DEFAULT_GPUS]
    assert Plan.from_query(pairs) == Plan.from_query([*expected, *gpus])
    # Whoever opens the link has the same plan to share.
    again: dict[str, list[str]] = {}
    for name, value in pairs:
        again.setdefault(name, []).append(value)
    assert shared_link(open_page(**again)) == shared_link(at)


def test_the_shared_link_follows_the_controls(open_page):
    at = open_page()
    at.number_input(key="batch").set_value(4).run()
    plan = Plan.from_query(parse_qsl(urlsplit(shared_link(at)).query))
    assert plan == Plan(request=GenerationRequest(batch=4), gpus=DEFAULT_GPUS)


def test_a_link_leads_to_the_address_of_the_visitor(open_page, monkeypatch):
    assert "This address works on this machine only." in texts(open_page().caption)
    here = SimpleNamespace(context=SimpleNamespace(url="https://planner.example.org/app/Verify"))
    monkeypatch.setattr("pages.shared.plan.share.st", here)
    assert link_of(Plan(gpus=("T4",))) == "https://planner.example.org/app/?gpu=T4"


def test_a_file_is_named_by_its_plan():
    request = GenerationRequest(width=500, batch=2)
    assert file_name(request, "md") == "will-it-fit-img2img-496x512-batch-2.md"
    assert file_name(request, "md", images=3) == "will-it-fit-img2img-496x512-batch-2-and-3-listed.md"


def test_json_is_whole_bytes():
    found = json.loads(report().json())
    assert [row["name"] for row in found["gpus"]] == list(NAMES)
    assert type(found["gpus"][0]["need_bytes"]) is int
