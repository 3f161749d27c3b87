"""Test that large files reach each uploader, and that the page shows the result."""

import json
import re
import uuid
from dataclasses import replace
from io import BytesIO

import pytest
from PIL import Image
from playwright.sync_api import expect

from cache.records import Prediction
from pages.shared.history.files import json_lines_of
from planner.cards.lookup import card_named
from planner.fit import fit
from planner.programs.files import shipped
from planner.request import GenerationRequest
from tests.browser import settle
from tests.conftest import make_environment, make_measured

MB = 2**20
# As a phone takes it: held upright, the sensor's rows lie.
PHOTO = (4032, 3024)
# More than this did not upload while Streamlit's limit was 5 MB and the uploaders promised 20 and 100.
LARGE_BYTES = 6 * MB
RUNS = 2600


def photo() -> bytes:
    out, held = BytesIO(), Image.Exif()
    held[0x0112] = 6
    Image.effect_noise(PHOTO, 90).save(out, "JPEG", quality=85, exif=held)
    return out.getvalue()


def fold(page, name: str):
    found = page.locator("details", has=page.locator("summary", has_text=name))
    found.locator("summary").click()
    return found


def file_of(folder, name: str, content: bytes):
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def taken(tmp_path_factory):
    content = photo()
    assert LARGE_BYTES < len(content) < 20 * MB
    return file_of(tmp_path_factory.mktemp("photo"), "photo.jpg", content)


def test_a_phones_photo_becomes_the_plan(open_page, taken):
    page = open_page()
    settle(page)
    fold(page, "Size from an image").locator("input[type=file]").set_input_files(taken)
    expect(page.get_by_text("photo.jpg is 3024×4032.")).to_be_visible()
    expect(page.get_by_role("spinbutton", name="Height, px")).to_have_value("4032")


def test_a_phones_photo_becomes_one_of_the_list(open_page, taken):
    page = open_page("/?gpu=T4&tab=Several+images")
    settle(page)
    page.get_by_role("tabpanel").locator("input[type=file]").set_input_files([taken])
    expect(page.get_by_text("One image listed under Several images")).to_be_visible()
    expect(page).to_have_url(re.compile("images=3024x4032"))


def test_a_history_of_thousands_of_runs_is_imported(open_page, history, tmp_path):
    request = GenerationRequest()
    dry_run, formula = (
        Prediction.of(fit(request, card_named("T4"), basis, library=shipped())) for basis in ("dry-run", "formula")
    )
    told = replace(dry_run, basis="calibrated"), dry_run, formula
    history.save_measurement(request, make_environment(), make_measured(), predictions=told)
    [line] = json_lines_of(history.measurements()).decode().splitlines()
    run = json.loads(line)
    lines = [json.dumps(run | {"id": str(uuid.UUID(int=number))}) for number in range(RUNS)]
    content = "".join(f"{line}\n" for line in lines).encode()
    assert len(content) > LARGE_BYTES
    page = open_page("/History")
    page.get_by_role("button", name="Import").click()
    uploader = page.get_by_test_id("stFileUploader")
    uploader.locator("input").set_input_files(file_of(tmp_path, "runs.jsonl", content))
    expect(page.get_by_text(f"Imported {RUNS:,} runs, 0 were already known.")).to_be_visible(timeout=120_000)


def test_refused_uploads_are_announced(open_page, tmp_path):
    page = open_page()
    settle(page)
    found = fold(page, "Size from an image")
    found.locator("input[type=file]").set_input_files(file_of(tmp_path, "photo.png", b"\0" * (101 * MB)))
    uploader = found.get_by_test_id("stFileUploader")
    expect(uploader.get_by_role("alert")).to_contain_text("100.0MB or smaller")
    # Streamlit's own words are for screen readers alone.
    expect(
        found.get_by_text("PNG, JPEG or WebP of up to 100 MB. Other files turn red and are not used.")
    ).to_be_visible()
