"""The options of a request, run for real on the CPU at full size: peaks of living storages are the dry run's."""

import gc

import pytest
import torch

from cache.worker.measure import PipelineBackend, warm_up_of
from planner.components import STAGES
from planner.programs.files import shipped
from planner.replay.dry_run import live_peaks
from planner.request import GenerationRequest
from tests.trace.small import small_modules

# Weights of full size take most of the time, so that each run has several options that are independent.
TOGETHER = [
    {
        "task": "inpaint",
        "images_per_prompt": 2,
        "ip_adapter": "plus",
        "lora_rank": 8,
        "lora_text_encoder": True,
        "attention": "eager",
    },
    {"controlnets": 2, "channels_last_unet": True, "ip_adapter": "base", "offload": "model"},
    {"task": "txt2img", "controlnets": 1, "hires": 1.25, "lora_rank": 16, "offload": "sequential"},
]


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()


def rehearsed(request: GenerationRequest):
    seen = []
    job = {"request": request.to_dict(), "weights": "synthetic"}
    backend = PipelineBackend("cpu")
    measured = backend.measure(job, lambda phase, **_: seen.append(phase))
    assert measured.outcome == "ok"
    return backend, measured, list(dict.fromkeys(seen))


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:You have passed:FutureWarning")
@pytest.mark.parametrize("options", TOGETHER, ids=" ".join)
def test_a_rehearsal_takes_what_the_dry_run_says(options):
    request = GenerationRequest.from_dict({"width": 64, "height": 72, "steps": 1} | options)
    _, measured, _ = rehearsed(request)
    gc.collect()
    found = {stage.stage: stage.peak_allocated_bytes for stage in measured.stages}
    predicted = live_peaks(shipped(), request)
    assert set(found) == set(predicted)
    assert measured.peak_allocated_bytes == pytest.approx(max(predicted.values()), rel=0.001)


@pytest.fixture
def small(monkeypatch):
    """Load modules of a few channels, with all options."""
    monkeypatch.setattr("cache.worker.pipelines.component_modules", small_modules)


def test_single_precision_takes_twice_the_weights(small):
    plain = GenerationRequest(width=64, height=64, steps=1, safety_checker=False)
    _, half, _ = rehearsed(plain)
    backend, single, _ = rehearsed(GenerationRequest.from_dict(plain.to_dict() | {"dtype": "float32"}))
    assert {p.dtype for p in backend.pipeline.unet.parameters()} == {torch.float32}
    # Position ids keep their eight bytes.
    ids = sum(b.numel() * 8 for m in backend.modules().values() for b in m.buffers() if not b.is_floating_point())
    assert single.weights_bytes - ids == 2 * (half.weights_bytes - ids)


def test_stages_that_come_again_are_kept_once(small):
    request = GenerationRequest(task="txt2img", width=64, height=64, steps=3, hires=1.5, controlnets=2)
    _, measured, seen = rehearsed(request)
    stages = [stage.stage for stage in measured.stages]
    assert sorted(stages, key=STAGES.index) == [name for name in STAGES if name != "image_encoder"]
    assert len(set(stages)) == len(stages)
    assert measured.peak_allocated_bytes == max(stage.peak_allocated_bytes for stage in measured.stages)
    of_steps = sum(stage.seconds for stage in measured.stages if stage.stage in ("controlnet", "unet"))
    # Three steps are four calls of the UNet, and img2img leaves the first out.
    assert measured.seconds_per_step == pytest.approx(of_steps / (4 + 3))
    assert "vae_encoder" in seen


def test_one_pipeline_serves_requests_with_and_without_hires(small):
    backend = PipelineBackend("cpu")
    plain = {"task": "txt2img", "width": 64, "height": 64, "steps": 1, "offload": "model"}
    peaks = []
    for changes in ({"hires": 1.25}, {}, {"hires": 1.25}, {}):
        job = {"request": GenerationRequest.from_dict(plain | changes).to_dict(), "weights": "synthetic"}
        peaks.append(backend.measure(job, lambda *_, **__: None).peak_allocated_bytes)
    assert peaks[0] == peaks[2] > peaks[1] == peaks[3]


def test_offload_leaves_the_weights_on_the_host(small):
    weights = {}
    for offload in ("none", "model", "sequential"):
        request = GenerationRequest(width=64, height=64, steps=1, offload=offload)
        backend, measured, _ = rehearsed(request)
        weights[offload] = measured.weights_bytes
        checker = sum(t.numel() * t.element_size() for t in backend.pipeline.safety_checker.state_dict().values())
        assert measured.weights_bytes >= checker
        assert measured.peak_allocated_bytes > measured.weights_bytes
    assert weights["model"] < weights["sequential"] < weights["none"]


@pytest.mark.parametrize(
    "values",
    [
        {"task": "txt2img", "hires": 4.0, "width": 1024},
        {"task": "inpaint", "images_per_prompt": 64, "batch": 2},
        {"ip_adapter": "plus", "controlnets": 4, "lora_rank": 512, "offload": "sequential"},
        {},
    ],
)
def test_a_warm_up_is_a_small_request_of_the_same_pipeline(values):
    request = GenerationRequest.from_dict(values)
    small = warm_up_of(request)
    assert small.loading_form() == request.loading_form()
    assert (small.images, small.steps, small.width, small.height) == (1, 1, 64, 64)
    assert [one.task for one in small.passes()] == [one.task for one in request.passes()]
    assert max(one.width for one in small.passes()) <= 80
