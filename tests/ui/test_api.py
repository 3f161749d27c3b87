"""``/api/fit``: the same answers as the command line's, without Python."""

import json
import shlex

import pytest
from starlette.datastructures import QueryParams
from starlette.requests import Request

from pages.shared.api import ROUTES, answer_to
from planner import cli
from tests.ui.test_accuracy import keep
from tests.unit.measured import REQUESTS


def get(query: str):
    """The answer to this query, as the server would send it: status, headers and body."""
    [route] = ROUTES
    scope = {"type": "http", "method": "GET", "path": route.path, "query_string": query.encode(), "headers": []}
    response = route.endpoint(Request(scope))
    return response.status_code, response.headers, json.loads(response.body)


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
        ("gpu=A100-40GB+3g.20gb&workers=2", "--gpu 'A100-40GB 3g.20gb' --workers 2"),
        ("basis=formula&gpu=T4", "--basis formula --gpu T4"),
        ("basis=measured&gpu=T4", "--basis measured --gpu T4"),
        ("basis=calibrated&gpu=RTX+4090&published=false", "--basis calibrated --gpu 'RTX 4090' --no-reference"),
    ],
)
def test_it_answers_as_the_command_line_does(query, command, capsys):
    code = cli.main(["fit", *shlex.split(command), "--json"])
    status, headers, body = get(query)
    assert status == 200
    assert body == json.loads(capsys.readouterr().out)
    assert headers["planner-exit-code"] == str(code)
    assert headers["planner-verdict"] in {row["verdict"] for row in body["gpus"]}


def test_what_was_measured_answers_here_too(store):
    for number in range(3):
        keep(store, REQUESTS[number])
    query = QueryParams("width=1216&height=1216&gpu=T4")
    assert answer_to(query, ["T4"])[0]["gpus"][0]["basis"] == "calibrated"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("widht=512", "query has an unknown name, got 'widht' (did you mean width?)"),
        ("width=wide", "width must be a whole number, got 'wide'"),
        ("task=txt2img&width=500", "width must be a multiple of 8, got 500 (nearest: 496 or 504)"),
        ("gpu=T5", "unknown card 'T5' - nearest: 'T4'; 'python -m planner gpus' lists them all"),
        ("vae_tiling=perhaps", "vae_tiling must be true or false, got 'perhaps'"),
        ("workers=0", "workers must be between 1 and 64, got 0 (nearest: 1)"),
        ("images=512x512", "query has an unknown name, got 'images'"),
        ("basis=guess", "basis must be one of best, formula, dry-run, calibrated, measured, got 'guess'"),
        ("gpu_memory=16GiB", "compute_capability must be given with the other, got None"),
        ("gpu_memory=16GB&compute_capability=7.5", "gpu_memory must be a number with B, KiB, MiB or GiB, got '16GB'"),
    ],
)
def test_a_bad_query_is_one_line(query, message):
    status, _, body = get(query)
    assert status == 400 and set(body) == {"schema", "error"}
    assert body["error"].startswith(message) and "\n" not in body["error"]


def test_no_gpu_attached_is_said(no_driver):
    status, _, body = get("gpu=attached")
    assert status == 400 and "no NVIDIA driver is on this machine" in body["error"]
