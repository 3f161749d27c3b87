"""A GPU without room for the worker itself: the real worker process, as the queue starts it."""

import json
import os
from dataclasses import replace

import pytest
import torch

from cache.exchange.lines import line_of, measurement_of
from cache.history.observations import observation_of
from cache.history.store import Store
from cache.machine.attached import cards
from cache.machine.device import Device
from cache.worker.backend import DeviceFull
from cache.worker.measure import PipelineBackend
from planner.cli.main import main
from planner.request import GenerationRequest
from planner.units import GIB
from tests.conftest import ROOT

SMALL = ("verify", "--device", "cpu", "--width", "64", "--height", "64", "--steps", "1")
FULL = RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported")
REQUEST = GenerationRequest(width=64, height=64, steps=1)

# Python runs a module of this name in every process that can find it, before anything else.
FULL_FROM_THE_START = """
import cache.worker.probes

class Full:
    def __init__(self):
        raise RuntimeError("CUDA error: out of memory")

cache.worker.probes.CpuProbe = Full
"""


@pytest.fixture
def full_device(tmp_path, monkeypatch):
    """Let every new worker find no room for itself; the rest of it is real."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(FULL_FROM_THE_START)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))


def test_a_full_device_is_out_of_memory(full_device, capsys, own_history):
    code = main([*SMALL, "--json"])
    out, err = capsys.readouterr()
    assert code == 10, err
    measured = json.loads(out)["measurement"]
    assert (measured["outcome"], measured["ended_in"]) == ("out-of-memory", "loading")
    assert measured["reason"] == "CUDA error: out of memory"
    (run,) = Store(own_history).measurements()
    assert run.measured.outcome == "out-of-memory"
    # It reached nothing, so it has no peak that could be taken for what the request needs at least.
    assert (run.measured.peak_allocated_bytes, observation_of(run)) == (None, None)


def test_the_free_memory_bounds_a_run_on_a_full_gpu(jobs_with, store, nvml):
    nvml.free[0] = GIB // 4
    card = cards()[0]
    jobs = jobs_with("device-full")
    view = jobs.wait(jobs.submit(REQUEST, Device(card)))
    assert (view.state, view.measured.free_before_bytes) == ("out-of-memory", GIB // 4)
    (run,) = store.measurements()
    assert run.measured == view.measured
    assert measurement_of(line_of(run), 1).measured == run.measured
    # As long as the GPU is so full, that is the answer; once there is room again, it is measured again.
    assert store.already_measured(REQUEST, run.environment, GIB // 4) == run
    assert store.already_measured(REQUEST, run.environment, 14 * GIB) is None


def test_the_workers_own_free_memory_is_kept(jobs_with, store, nvml):
    jobs = jobs_with("out-of-memory")
    view = jobs.wait(jobs.submit(REQUEST, Device(cards()[0])))
    assert (view.state, view.measured.free_before_bytes) == ("out-of-memory", nvml.free[0])
    jobs = jobs_with("good")
    view = jobs.wait(jobs.submit(replace(REQUEST, steps=2), Device(cards()[0])))
    assert (view.state, view.measured.free_before_bytes) == ("ok", None)


@pytest.mark.parametrize("question", ["limit", "free_bytes"])
def test_a_failed_memory_query_means_a_full_device(monkeypatch, question):
    backend = PipelineBackend("cpu")

    def full(*_):
        raise FULL

    monkeypatch.setattr(backend.probe, question, full)
    job = {"request": REQUEST.to_dict(), "weights": "synthetic", "emulated_bytes": None}
    with pytest.raises(DeviceFull, match=r"^CUDA error: out of memory$"):
        backend.measure(job, lambda *_, **__: None)


def test_another_failure_is_not_a_full_device(monkeypatch):
    def broken():
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("cache.worker.measure.CpuProbe", broken)
    with pytest.raises(torch.AcceleratorError):
        PipelineBackend("cpu")
