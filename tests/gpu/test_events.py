"""Compare each allocation on a real card with the program; without a card, these tests are skipped."""

import json
import os
from pathlib import Path

import pytest

from cache.allocations import CUDA, Recording, compared
from cache.history.store import Store
from cache.jobs.queue import Jobs
from cache.machine.attached import usable_card
from cache.machine.device import Device
from planner.errors import NoGpu
from planner.programs.files import shipped
from planner.replay.kernels import KernelPolicy
from planner.request import GenerationRequest

try:
    CARD = usable_card()
    REASON = ""
except NoGpu as error:
    CARD, REASON = None, error.reason

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(CARD is None, reason=REASON)]

SIZES = ((256, 256), (512, 512), (1000, 712), (1024, 1024))
REQUESTS = [
    GenerationRequest(task=task, width=width, height=height, batch=batch, steps=2)
    for task in ("img2img", "txt2img")
    for width, height in SIZES
    for batch in (1, 2, 4)
]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """Run all requests in one worker."""
    jobs = Jobs(Store(tmp_path_factory.mktemp("events") / "planner.db"))
    yield jobs
    jobs.close()


@pytest.mark.parametrize("request_", REQUESTS, ids=GenerationRequest.describe)
def test_allocations_equal_the_programs(jobs, tmp_path, request_):
    path = tmp_path / "recording.json"
    view = jobs.wait(jobs.submit(request_, Device(CARD), record_to=path))
    assert view.state == "ok", view.reason
    recording = Recording.read(path)
    found = compared(recording, shipped(), request_, KernelPolicy.of(CARD.compute_capability))
    if folder := os.environ.get("PLANNER_GPU_RESULTS"):
        name = request_.describe().replace(" ", "_").replace("×", "x")
        result = found | {"peak_bytes": view.measured.peak_allocated_bytes}
        Path(folder, f"{name}.json").write_text(json.dumps(result))
    assert recording.of == CUDA
    assert found["share"] > 0.99, found
    assert found["predicted_allocated_bytes"] == pytest.approx(view.measured.peak_allocated_bytes, rel=0.005)
    # Each convolution stands in the program, in whatever layout.
    assert sum(one["calls"] for one in found["convolutions"]) > 200
