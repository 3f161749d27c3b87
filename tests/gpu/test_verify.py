"""Measure on a real card; without one, these tests are skipped with the reason."""

import json
from functools import partial

import pytest

from cache.history.store import Store
from cache.jobs.queue import Jobs
from cache.machine.attached import usable_card
from cache.machine.device import Device
from cache.predictions import predictions_for
from planner.errors import NoGpu
from planner.request import GenerationRequest
from planner.units import GIB, MIB

try:
    CARD = usable_card()
    REASON = ""
except NoGpu as error:
    CARD, REASON = None, error.reason

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(CARD is None, reason=REASON)]

REQUESTS = [
    GenerationRequest(task=task, width=side, height=side, steps=3)
    for task in ("img2img", "txt2img")
    for side in (512, 1024)
]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Run every request once in one worker, with one history."""
    store = Store(tmp_path_factory.mktemp("gpu") / "planner.db")
    jobs, device, runs = Jobs(store), Device(CARD), []
    try:
        for request in REQUESTS:
            view = jobs.wait(jobs.submit(request, device, predict=partial(predictions_for, request, device)))
            runs.append(store.measurement(view.measurement_id))
    finally:
        jobs.close()
    return runs


def test_each_request_runs_and_has_all_measures(measured):
    for run in measured:
        assert run.measured.outcome == "ok", run.measured.reason
        for name in ("weights", "peak_allocated", "peak_reserved", "peak_device", "free_before"):
            assert getattr(run.measured, f"{name}_bytes") > 0, name
        assert run.measured.num_alloc_retries == 0
        assert run.measured.seconds_per_step > 0
        environment = json.loads(json.dumps(run.to_dict()))["environment"]
        for name in ("card", "uuid_hash", "driver", "cuda", "cudnn", "compute_capability", "total_bytes"):
            assert environment[name], name


def test_the_laws_of_the_allocator(measured):
    for run in measured:
        for stage in run.measured.stages:
            assert run.measured.weights_bytes <= stage.peak_allocated_bytes <= stage.peak_reserved_bytes
            assert stage.device_bytes >= stage.peak_reserved_bytes


def test_the_context_is_of_a_plausible_size(measured):
    for run in measured:
        if run.measured.context_bytes is not None:
            assert 50 * 2**20 < run.measured.context_bytes < 3 * 2**30


def test_a_larger_image_takes_more(measured):
    small, large, small_txt, large_txt = (run.measured.peak_allocated_bytes for run in measured)
    assert small < large and small_txt < large_txt


def test_an_impossible_request_is_out_of_memory(tmp_path):
    """Run the largest request: out of memory is a result, and the next job runs."""
    jobs, device = Jobs(Store(tmp_path / "planner.db")), Device(CARD)
    huge = GenerationRequest(task="txt2img", width=8192, height=8192, batch=16, steps=1)
    try:
        assert jobs.wait(jobs.submit(huge, device)).state == "out-of-memory"
        assert jobs.worker_pid is None
        assert jobs.wait(jobs.submit(REQUESTS[0], device)).state == "ok"
    finally:
        jobs.close()


# Its workspace is larger than 1 GiB, so by the dry run it also runs with 1 GiB less, with smaller plans.
LARGE = GenerationRequest(task="txt2img", width=1024, height=1024, steps=3)
# Kernels are loaded while a stage runs, and the limit is set again only as the next stage begins.
LOADED_IN_A_STAGE = 256 * MIB


@pytest.fixture(scope="module")
def around_a_capacity(tmp_path_factory):
    """Run a request on the whole card, at a capacity of 1 GiB less than it took, and on the whole card again."""
    store = Store(tmp_path_factory.mktemp("capacity") / "planner.db")
    jobs = Jobs(store)

    def run(emulated_bytes=None):
        view = jobs.wait(jobs.submit(LARGE, Device(CARD, emulated_bytes), force=True))
        assert view.measurement_id, view.reason
        return store.measurement(view.measurement_id)

    try:
        whole = run()
        assert whole.measured.outcome == "ok", whole.measured.reason
        if whole.measured.context_bytes is None:
            pytest.skip("the driver does not say what the CUDA context takes")
        capacity = whole.measured.peak_reserved_bytes + whole.measured.context_bytes - GIB
        yield capacity, whole, run(capacity), run()
    finally:
        jobs.close()


def test_a_run_stays_within_an_emulated_capacity(around_a_capacity):
    capacity, whole, limited, _ = around_a_capacity
    measured = limited.measured
    assert measured.outcome in ("ok", "out-of-memory"), measured.reason
    assert measured.peak_reserved_bytes + measured.context_bytes <= capacity + LOADED_IN_A_STAGE
    assert measured.free_before_bytes <= capacity
    assert measured.weights_bytes == whole.measured.weights_bytes
    # The capacity is below the need on the whole card, so the allocator reached the limit.
    assert measured.num_alloc_retries > 0 or measured.outcome == "out-of-memory"
    assert limited.environment.emulated_bytes == capacity
    assert limited.environment.card_name.endswith(" emulated")


def test_a_limit_ends_with_its_worker(around_a_capacity):
    _, whole, _, again = around_a_capacity
    assert (again.measured.outcome, again.measured.num_alloc_retries) == ("ok", 0)
    assert again.environment.emulated_bytes is None
    assert again.measured.peak_reserved_bytes == pytest.approx(whole.measured.peak_reserved_bytes, rel=0.01)
