"""Test that ``/api/fit`` answers as the command line does."""

import json
import shlex
from urllib.parse import urlencode

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient
from streamlit.runtime.state.query_params import QueryParams as AddressState

from pages.shared.frame.plan_state import API_PATH, VIEW_KEYS
from pages.shared.server.api import ROUTES
from planner.cli import main as cli
from planner.plan import PLAN_KEYS, default_of
from planner.units import signed_gib
from tests.ui.accuracy.test_accuracy import keep
from tests.unit.measured import REQUESTS

CLIENT = TestClient(Starlette(routes=ROUTES), raise_server_exceptions=False)


def get(query: str):
    """Return the server's answer to this query: status, headers and body."""
    response = CLIENT.get(f"{API_PATH}?{query}")
    return response.status_code, response.headers, response.json()


@pytest.mark.parametrize(
    ("query", "command"),
    [
        ("", ""),
        ("width=2048&height=2048&gpu=T4&gpu=RTX+4060", "--width 2048 --height 2048 --gpu T4 --gpu 'RTX 4060'"),
        (
            "task=txt2img&batch=4&guidance_scale=1&steps=20&safety_checker=false",
            "--task txt2img --batch 4 --guidance-scale 1 --steps 20 --no-safety-checker",
        ),
        ("vae_tiling=true&offload=model&gpu=A100", "--vae-tiling --offload model --gpu A100"),
        ("gpu_memory=6GiB&compute_capability=8.6", "--gpu-memory 6GiB --compute-capability 8.6"),
        ("gpu=&gpu_memory=6GiB&compute_capability=8.6", "--gpu-memory 6GiB --compute-capability 8.6"),
        ("gpu=A100-40GB+3g.20gb&workers=2", "--gpu 'A100-40GB 3g.20gb' --workers 2"),
        ("basis=formula&gpu=T4", "--basis formula --gpu T4"),
        ("basis=measured&gpu=T4", "--basis measured --gpu T4"),
        ("basis=calibrated&gpu=RTX+4090&published=false", "--basis calibrated --gpu 'RTX 4090' --no-reference"),
    ],
)
def test_answers_match_the_command_line(query, command, capsys):
    code = cli.main(["fit", *shlex.split(command), "--json"])
    status, headers, body = get(query)
    assert status == 200
    assert body == json.loads(capsys.readouterr().out)
    assert headers["planner-exit-code"] == str(code)
    assert headers["planner-verdict"] in {row["verdict"] for row in body["gpus"]}


def test_measured_runs_answer(store):
    for number in range(3):
        keep(store, REQUESTS[number])
    _, _, body = get("width=1216&height=1216&gpu=T4")
    assert body["gpus"][0]["basis"] == "calibrated"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("widht=512", "query has an unknown name, got 'widht' (did you mean width?)"),
        ("width=wide", "width must be a whole number, got 'wide'"),
        ("task=txt2img&width=500", "width must be a multiple of 8, got 500 (nearest: 496 or 504)"),
        ("gpu=T5", "unknown GPU 'T5' - nearest: 'T4'; 'python -m planner gpus' lists them all"),
        ("vae_tiling=perhaps", "vae_tiling must be true or false, got 'perhaps'"),
        ("workers=0", "workers must be between 1 and 64, got 0 (nearest: 1)"),
        ("images=512", "images must be sizes such as 1024x768"),
        ("images=64x64,512x32", "images has 512x32, whose height must be between 64 and 8192, got 32 (nearest: 64)"),
        ("task=txt2img&images=500x512", "width must be a multiple of 8, got 500 (nearest: 496 or 504)"),
        ("width=512&width=1024", "width must be given once, got ['512', '1024']"),
        ("gpu=T4&basis=dry-run&basis=formula", "basis must be given once, got ['dry-run', 'formula']"),
        ("gpu=", "gpu must name a GPU where none is described or attached, got '' (left out, it is T4, A10, A100)"),
        ("gpu=&attached=false", "gpu must name a GPU"),
        ("basis=guess", "basis must be one of best, measured, calibrated, dry-run, formula, got 'guess'"),
        ("gpu_memory=16GiB", "compute_capability must be given with gpu_memory, got None"),
        ("gpu_memory=16GB&compute_capability=7.5", "gpu_memory must be a number with B, KiB, MiB or GiB, got '16GB'"),
    ],
)
def test_a_bad_query_is_one_line(query, message):
    status, _, body = get(query)
    assert status == 400 and set(body) == {"schema", "error"}
    assert body["error"].startswith(message) and "\n" not in body["error"]


def test_the_worst_of_the_listed_images_decides():
    status, headers, body = get("gpu=T4&gpu=A100&images=4096x4096,512x512*2")
    plain = get("gpu=T4&gpu=A100")[2]
    assert status == 200 and plain == {key: value for key, value in body.items() if key != "images"}
    assert [row["verdict"] for row in body["gpus"]] == ["fits", "fits"]
    assert (headers["planner-verdict"], headers["planner-exit-code"]) == ("no", "10")
    worst = body["images"]["worst"]
    assert [row["image"] for row in worst] == [{"width": 4096, "height": 4096, "batch": 1}] * 2
    [own] = get("gpu=A100&width=4096&height=4096")[2]["gpus"]
    assert worst[1] == {"image": worst[1]["image"], **own}
    # The plan's own size decides where that is the worst.
    assert get("gpu=T4&images=512x512&width=4096&height=4096")[1]["planner-verdict"] == "no"


def headroom_in(row) -> str:
    """Return the headroom of a row of the JSON as Plan shows it, at the upper end of the need."""
    worst = row["worst_need_bytes"]
    return signed_gib(row["usable_bytes"] - (row["need_bytes"] if worst is None else worst))


def test_plans_check_covers_what_plan_shows(open_page, nvml):
    """Include the default GPUs beside a described one or the machine's own."""
    for query in ({}, {"gpu_memory": "6GiB", "compute_capability": "8.6"}, {"attached": "true", "gpu": ["", "L4"]}):
        for more in ({}, {"gpu": "", "gpu_memory": "6GiB", "compute_capability": "8.6", "vae_tiling": "true"}):
            page = open_page(**query | more, tab="Export")
            [command] = [block.value for block in page.code if block.value.startswith("curl")]
            address, _, asked = shlex.split(command)[-1].partition("?")
            status, _, body = get(asked)
            assert (address, status) == ("http://127.0.0.1:8501/api/fit", 200)
            shown = sorted(metric.value for metric in page.metric)
            assert sorted(headroom_in(row) for row in body["gpus"]) == shown, asked


def test_every_name_in_a_plans_address_is_accepted(open_page, monkeypatch):
    put: set[str] = set()
    bind = AddressState.bind_widget

    def spy(self, *more, param_key, **named):
        put.add(param_key)
        bind(self, *more, param_key=param_key, **named)

    monkeypatch.setattr(AddressState, "bind_widget", spy)
    at = open_page(width="768", gpu=["T4"], tab="Sizes and map")
    at.session_state["map-open"] = True
    at.run()
    assert not at.exception
    # The table of images writes its own, since a table cannot be bound.
    assert put > set(PLAN_KEYS) - {"images"}
    address = {name: "x" if name in VIEW_KEYS else f"{default_of(name)}" for name in put}
    address |= {
        "gpu": "T4",
        "images": "512x512",
        "gpu_memory": "6GiB",
        "compute_capability": "8.6",
        "attached": "false",
    }
    status, _, body = get(urlencode(address))
    assert status == 200, body
    assert [row["name"] for row in body["gpus"]] == ["T4", "6.00 GiB GPU, compute capability 8.6"]
    # Nor is any of them said to be unknown where it leads to the page, which also looks at what its views are called.
    of_plan = {name: value for name, value in address.items() if name not in VIEW_KEYS}
    assert not open_page(**of_plan).warning


def test_no_attached_gpu_is_an_error(no_driver):
    status, _, body = get("gpu=attached")
    assert status == 400 and "no NVIDIA driver is on this machine" in body["error"]
