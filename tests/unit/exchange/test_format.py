"""docs/history-format.md has every field of a line, and no others."""

import json
import re
from dataclasses import asdict, fields, replace

from cache.exchange.fields import FORMAT, VERSION
from cache.exchange.lines import line_of, measurement_of
from cache.jobs.sweep import grid
from cache.records import Environment, Measured, Prediction, StageMeasure
from planner.components import STAGES
from planner.request import FIELDS, GenerationRequest
from tests.conftest import ROOT
from tests.unit.exchange.test_lines import RUN

TEXT = (ROOT / "docs/history-format.md").read_text()


def documented(begin: str) -> list[str]:
    """The fields in the first table after these words, in order."""
    table = TEXT.partition(begin)[2].partition("|---|---|---|\n")[2].partition("\n\n")[0]
    return [name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])]


def names(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


def test_each_field_has_its_row():
    assert documented("## Lines") == list(json.loads(line_of(RUN)))
    # Later fields stand together in the table, and beside those like them in the request.
    assert sorted(documented("### `request`")) == sorted(names(GenerationRequest))
    assert documented("### `environment`") == names(Environment)
    assert documented("### `measured`") == names(Measured)
    assert documented("Each of `stages`") == names(StageMeasure)
    assert documented("Each of `predictions`") == names(Prediction)


def test_the_example_is_a_line():
    example = json.loads(re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)[0])
    assert example == json.loads(line_of(RUN)) | {
        name: type(value)() for name, value in json.loads(line_of(RUN)).items() if isinstance(value, (dict, list))
    }
    assert (example["format"], example["version"]) == (FORMAT, VERSION)


def test_numbers_in_the_text_are_the_programs():
    assert f"measures {len(grid(GenerationRequest()))} requests" in TEXT
    for stage in STAGES:
        assert f"`{stage}`" in TEXT
    assert set(asdict(RUN)["holders"][0]) == {"pid", "name", "used_bytes"}


def test_a_line_has_later_fields_only_where_they_are_not_at_their_defaults():
    changed = {
        "images_per_prompt": 2,
        "dtype": "bfloat16",
        "controlnets": 3,
        "lora_rank": 16,
        "lora_text_encoder": True,
        "ip_adapter": "plus",
        "attention": "eager",
        "allocator": "expandable",
        "channels_last_unet": True,
        "hires": 1.5,
    }
    assert changed.keys() == {field.name for field in FIELDS if field.is_later}
    request = GenerationRequest(task="txt2img", offload="sequential", **changed)
    line = line_of(replace(RUN, request=request))
    assert json.loads(line)["request"].items() >= changed.items()
    assert measurement_of(line, 1).request == request
    plain = json.loads(line_of(replace(RUN, request=GenerationRequest())))["request"]
    assert not plain.keys() & changed.keys()
