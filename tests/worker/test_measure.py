"""What the worker makes of a run: stages, out of memory wherever it strikes, and CUDA's numbers from a stand-in."""

from types import SimpleNamespace

import pynvml
import pytest
import torch

from cache.measure import PipelineBackend, is_out_of_memory
from cache.probes import CudaProbe
from planner.request import GenerationRequest

REQUEST = GenerationRequest(width=64, height=64, steps=2, safety_checker=False)
JOB = {"request": REQUEST.to_dict(), "weights": "synthetic"}
GIB = 2**30


@pytest.fixture
def backend(small_pipeline, monkeypatch):
    """A backend on the CPU that loads the small pipeline."""
    monkeypatch.setattr("cache.pipelines.load", lambda *_: small_pipeline.to(torch.bfloat16))
    small_pipeline.set_progress_bar_config(disable=True)
    return PipelineBackend("cpu")


def reports():
    seen = []
    return seen, lambda phase, **detail: seen.append((phase, detail))


def test_stages_and_steps_are_reported_as_they_come(backend):
    seen, report = reports()
    measured = backend.measure(JOB, report)
    assert measured.outcome == "ok"
    assert [phase for phase, detail in seen if not detail] == [
        "warm-up",
        "text_encoder",
        "vae_encoder",
        "unet",
        "vae_decoder",
        "reading back",
    ]
    steps = [(detail["step"], detail["of"]) for phase, detail in seen if phase == "unet" and detail]
    assert steps == [(index + 1, len(steps)) for index in range(len(steps))]
    assert measured.weights_bytes == sum(size for _, size in dict(seen)["facts"]["counts"].values())


def test_hooks_are_gone_after_a_run(backend):
    _, report = reports()
    backend.measure(JOB, report)
    pipeline = backend.pipeline
    assert "encode" not in vars(pipeline.vae) and "decode" not in vars(pipeline.vae)
    assert not pipeline.unet._forward_pre_hooks and not pipeline.text_encoder._forward_pre_hooks


def test_the_same_run_twice_takes_the_same(backend):
    _, report = reports()
    first, second = (backend.measure(JOB, report) for _ in range(2))
    peaks = [[stage.peak_allocated_bytes for stage in run.stages] for run in (first, second)]
    assert peaks[0] == peaks[1]


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.56 GiB"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:30])
@pytest.mark.parametrize(
    ("component", "stage", "before"),
    [
        ("text_encoder", "text_encoder", []),
        ("unet", "unet", ["text_encoder", "vae_encoder"]),
        ("vae.decoder", "vae_decoder", ["text_encoder", "vae_encoder", "unet"]),
    ],
)
def test_out_of_memory_in_a_stage_is_a_result(backend, monkeypatch, error, component, stage, before):
    _, report = reports()
    backend.measure(JOB, report)
    module = backend.pipeline
    for name in component.split("."):
        module = getattr(module, name)
    forward = module.forward

    def fails_after_the_warm_up(*args, **kwargs):
        # Stages are watched in the run that is measured, and not in the warm-up before it.
        if "decode" in vars(backend.pipeline.vae):
            raise error
        return forward(*args, **kwargs)

    monkeypatch.setattr(module, "forward", fails_after_the_warm_up)
    measured = backend.measure(JOB, report)
    assert (measured.outcome, measured.ended_in) == ("out-of-memory", stage)
    assert [closed.stage for closed in measured.stages] == [*before, stage]
    assert measured.reason == str(error).partition(". GPU")[0].partition("\n")[0]
    assert measured.peak_allocated_bytes >= measured.weights_bytes


def test_out_of_memory_while_loading_is_a_result(monkeypatch):
    def full(*_):
        raise OUT_OF_MEMORY[0]

    monkeypatch.setattr("cache.pipelines.load", full)
    _, report = reports()
    measured = PipelineBackend("cpu").measure(JOB, report)
    assert (measured.outcome, measured.ended_in, measured.stages) == ("out-of-memory", "loading", ())


def test_another_error_is_not_taken_for_out_of_memory(backend, monkeypatch):
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))

    def broken(*_, **__):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    _, report = reports()
    backend.measure(JOB, report)
    monkeypatch.setattr(backend.pipeline.unet, "forward", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        backend.measure(JOB, report)
    assert "decode" not in vars(backend.pipeline.vae)


class FakeCuda:
    """A card of 16 GiB that others share, as torch.cuda and NVML tell of it."""

    def __init__(self, monkeypatch):
        self.others, self.context = 2 * GIB, 0
        self.allocated = self.reserved = self.peak_allocated = self.peak_reserved = self.retries = 0
        fakes = {
            "init": self.init,
            "synchronize": lambda device: None,
            "empty_cache": self.empty_cache,
            "memory_stats": lambda device: {"num_alloc_retries": self.retries},
            "reset_peak_memory_stats": self.reset,
            "max_memory_allocated": lambda device: self.peak_allocated,
            "max_memory_reserved": lambda device: self.peak_reserved,
            "memory_allocated": lambda device: self.allocated,
            "memory_reserved": lambda device: self.reserved,
            "mem_get_info": lambda device: (16 * GIB - self.used, 16 * GIB),
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1")
        monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: uuid)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", self.memory)

    @property
    def used(self):
        return self.others + self.context + self.reserved

    def memory(self, handle, version):
        return SimpleNamespace(used=self.used)

    def init(self):
        self.context = GIB // 2

    def empty_cache(self):
        self.reserved = self.allocated

    def reset(self, device):
        self.peak_allocated, self.peak_reserved = self.allocated, self.reserved

    def take(self, allocated, reserved):
        self.allocated, self.reserved = allocated, reserved
        self.peak_allocated = max(self.peak_allocated, allocated)
        self.peak_reserved = max(self.peak_reserved, reserved)


@pytest.fixture
def cuda(monkeypatch):
    return FakeCuda(monkeypatch)


def test_the_context_is_what_neither_torch_nor_others_hold(cuda):
    probe = CudaProbe(torch.device("cuda"))
    cuda.take(3 * GIB, 4 * GIB)
    assert probe.context_bytes() == GIB // 2
    assert probe.free_bytes() == 16 * GIB - 2 * GIB - GIB // 2
    # Others leave between two jobs of the same worker.
    cuda.others = 0
    assert probe.free_bytes() == 16 * GIB - GIB // 2
    assert probe.context_bytes() == GIB // 2


def test_a_card_that_was_not_named_has_no_known_context(cuda, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert CudaProbe(torch.device("cuda")).context_bytes() is None


def test_the_devices_peak_outlives_a_flush(cuda):
    probe = CudaProbe(torch.device("cuda"))
    probe.start()
    cuda.take(3 * GIB, 6 * GIB)
    cuda.take(1 * GIB, 2 * GIB)
    assert probe.peak() == (3 * GIB, 6 * GIB)
    assert probe.peak_device_bytes() == 2 * GIB + GIB // 2 + 6 * GIB


def test_retries_count_from_the_start_of_the_run(cuda):
    probe = CudaProbe(torch.device("cuda"))
    cuda.retries = 2
    probe.start()
    cuda.retries = 5
    assert probe.retries() == 3


def test_what_is_only_cached_goes_back_after_a_job(cuda):
    probe = CudaProbe(torch.device("cuda"))
    cuda.take(1 * GIB, 6 * GIB)
    probe.finish()
    assert probe.now() == (1 * GIB, 1 * GIB)
