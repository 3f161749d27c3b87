"""Allocation by allocation on a real card, against the program. Skipped, with the reason, where there is none."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cache.attached import usable_card
from planner.dryrun import KernelPolicy, dry_run
from planner.errors import NoGpu
from planner.flatten import events_of
from planner.program import shipped
from planner.request import GenerationRequest
from tests.gpu.allocations import difference, predicted, recorded

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
def pipelines():
    """Both tasks around the same weights, warm: handles are made and plans are known to be looked for."""
    import torch

    from cache.pipelines import Source, for_task, load

    device = torch.device("cuda")
    made = load(REQUESTS[0], Source("synthetic"), device, torch.float16, lambda *_, **__: None)
    return {task: for_task(made, task) for task in ("img2img", "txt2img")}


def run(pipeline, request: GenerationRequest) -> tuple[list[int], int]:
    """(allocations above 1 MiB in order, allocated peak) of one call."""
    import torch

    from planner.modules import apply_options, call_arguments

    apply_options(pipeline, request)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.memory._record_memory_history(context=None, max_entries=1_000_000)
    try:
        pipeline(**call_arguments(request))
        torch.cuda.synchronize()
        trace = torch.cuda.memory._snapshot()["device_traces"][torch.cuda.current_device()]
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
    return recorded(trace), torch.cuda.max_memory_allocated()


@pytest.mark.parametrize("request_", REQUESTS, ids=GenerationRequest.describe)
def test_allocations_are_those_of_the_program(pipelines, request_):
    policy = KernelPolicy.of(CARD.compute_capability)
    run(pipelines[request_.task], replace(request_, width=64, height=64, batch=1, steps=1))
    real, peak = run(pipelines[request_.task], request_)
    events = events_of(shipped(), request_, "all")
    # The warm-up made cuBLAS's handle.
    expected = [size for size in predicted(events, policy) if size != policy.cublas_bytes]
    found = difference(real, expected)
    if folder := os.environ.get("PLANNER_GPU_RESULTS"):
        name = request_.describe().replace(" ", "_").replace("×", "x")
        result = asdict(found) | {"peak_bytes": peak, "predicted_bytes": dry_run(events, policy).peak_allocated_bytes}
        Path(folder, f"{name}.json").write_text(json.dumps(result))
    assert found.share > 0.99, found
    assert dry_run(events, policy).peak_allocated_bytes == pytest.approx(peak, rel=0.005)
