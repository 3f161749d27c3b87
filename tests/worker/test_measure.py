"""The worker's measures of a run: stages, out of memory in any phase, and CUDA's numbers from a stand-in."""

from types import SimpleNamespace

import pynvml
import pytest
import torch
from diffusers import PNDMScheduler, StableDiffusionImg2ImgPipeline

from cache.allocations import Recording
from cache.jobs.estimate import unet_calls
from cache.worker import pipelines
from cache.worker.measure import PipelineBackend, is_host_out_of_memory, is_out_of_memory
from cache.worker.probes import CudaProbe, _LiveStorages
from cache.worker.recording import Recorder
from planner.request import TASKS, GenerationRequest
from planner.tracing.pipeline import SCHEDULER_CONFIG, call_arguments

REQUEST = GenerationRequest(width=64, height=64, steps=2, safety_checker=False)
JOB = {"request": REQUEST.to_dict(), "weights": "synthetic"}
GIB = 2**30


@pytest.fixture
def backend(small_pipeline, monkeypatch):
    """Make a backend on the CPU that loads the small pipeline."""
    monkeypatch.setattr("cache.worker.pipelines.load", lambda *_: small_pipeline.to(torch.bfloat16))
    small_pipeline.set_progress_bar_config(disable=True)
    return PipelineBackend("cpu")


def reports():
    seen = []
    return seen, lambda phase, **detail: seen.append((phase, detail))


def test_stages_and_steps_are_reported_in_order(backend):
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


def test_hooks_are_removed_after_a_run(backend):
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

    monkeypatch.setattr("cache.worker.pipelines.load", full)
    _, report = reports()
    measured = PipelineBackend("cpu").measure(JOB, report)
    assert (measured.outcome, measured.ended_in, measured.stages) == ("out-of-memory", "loading", ())


HOST_OUT_OF_MEMORY = [
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 64000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
]


@pytest.mark.parametrize("error", HOST_OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_a_host_without_memory_is_a_result_of_a_rehearsal_and_an_error_of_a_gpus(monkeypatch, error):
    def full(*_):
        raise error

    monkeypatch.setattr("cache.worker.pipelines.load", full)
    _, report = reports()
    backend = PipelineBackend("cpu")
    measured = backend.measure(JOB, report)
    assert (measured.outcome, measured.ended_in) == ("out-of-memory", "loading")
    assert measured.reason.startswith("the host's memory ran out") and "enforce fail" not in measured.reason
    # Only the kind of the device decides, so that a GPU's evidence holds no run that met the end of the host's memory.
    backend.device = torch.device("cuda")
    with pytest.raises(RuntimeError, match=r"the host's memory ran out.*that says nothing of the GPU"):
        backend.measure(JOB, report)


def test_torchs_own_words_for_a_host_without_memory_are_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_host_out_of_memory(caught.value) and not is_out_of_memory(caught.value)


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


class Traced(_LiveStorages):
    """Write the history of the CUDA allocator: each result, and a workspace at each convolution."""

    WORKSPACE = 3 << 20

    def __init__(self):
        super().__init__()
        self.history = []
        self.convolutions = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if func is torch.ops.aten.convolution.default:
            self.convolutions += 1
            self.made += 1
            for action in ("alloc", "free_requested", "free_completed"):
                self.history.append({"action": action, "addr": -self.made, "size": self.WORKSPACE})
        return out


def test_the_history_gives_each_convolution_its_workspace(cuda, small_pipeline, monkeypatch):
    """Use the real pipeline and hooks; operations on the CPU write torch.cuda's history."""
    traced = Traced()
    asked = []
    monkeypatch.setattr(
        torch.cuda, "memory_stats_as_nested_dict", lambda device: {"allocation": {"all": {"allocated": traced.made}}}
    )
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda *_, **options: asked.append(options))
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda: {"device_traces": [traced.history]})
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    small_pipeline.set_progress_bar_config(disable=True)
    recorder = Recorder(CudaProbe(torch.device("cuda")))
    monkeypatch.setattr(torch, "zeros", torch._C._VariableFunctions.zeros)
    small_pipeline.to(torch.float32)
    with traced:
        # What was allocated before the recording is in the history as well.
        before = torch.ones(1000)
        components = {name: getattr(small_pipeline, name) for name in ("unet", "vae")}
        with recorder.watching(components):
            small_pipeline("", width=64, height=64, num_inference_steps=1, output_type="pt")
    assert before.numel() == 1000
    found = recorder.recording
    assert found.of == "cuda" and {one.workspaces for one in found.convolutions} == {(Traced.WORKSPACE,)}
    assert sum(one.calls for one in found.convolutions) == traced.convolutions > 20
    assert all(one.module.startswith(("unet.", "vae.")) for one in found.convolutions)
    assert [options.get("enabled", "on") for options in asked] == ["on", None]


def test_only_a_job_that_names_a_file_is_recorded(backend, tmp_path):
    _, report = reports()
    path = tmp_path / "recording.json"
    backend.measure(JOB, report)
    assert not path.exists()
    plain = backend.measure(JOB, report)
    recorded = backend.measure(JOB | {"record_to": str(path)}, report)
    assert [stage.peak_allocated_bytes for stage in recorded.stages] == [
        stage.peak_allocated_bytes for stage in plain.stages
    ]
    found = Recording.read(path)
    assert found.of == "storages" and len(found.convolutions) > 20
    assert not backend.pipeline.unet.conv_in._forward_hooks


def test_a_run_out_of_memory_is_recorded_until_then(backend, monkeypatch, tmp_path):
    _, report = reports()
    backend.measure(JOB, report)
    path = tmp_path / "recording.json"
    forward = backend.pipeline.vae.decoder.forward

    def fails_after_the_warm_up(*args, **kwargs):
        if "decode" in vars(backend.pipeline.vae):
            raise OUT_OF_MEMORY[0]
        return forward(*args, **kwargs)

    monkeypatch.setattr(backend.pipeline.vae.decoder, "forward", fails_after_the_warm_up)
    assert backend.measure(JOB | {"record_to": str(path)}, report).outcome == "out-of-memory"
    modules = {one.module.partition(".")[0] for one in Recording.read(path).convolutions}
    assert modules == {"unet", "vae"}


class FakeCuda:
    """Stand in for a card of 16 GiB that others share, as torch.cuda and NVML report it."""

    def __init__(self, monkeypatch):
        self.others, self.context = 2 * GIB, 0
        self.allocated = self.reserved = self.peak_allocated = self.peak_reserved = self.retries = 0
        self.allowed: int | None = None
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
            "set_per_process_memory_fraction": self.limit,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch, "zeros", self.first)
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

    def first(self, *_, **__):
        self.peak_allocated = 512

    def limit(self, fraction, device=None):
        # As torch has it, which also refuses a device without an index.
        assert type(fraction) is float and 0 <= fraction <= 1
        assert device is None
        self.allowed = int(fraction * 16 * GIB)

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


def test_the_context_excludes_torch_and_other_processes(cuda):
    probe = CudaProbe(torch.device("cuda"))
    cuda.take(3 * GIB, 4 * GIB)
    assert probe.context_bytes() == GIB // 2
    assert probe.free_bytes() == 16 * GIB - 2 * GIB - GIB // 2
    # Others leave between two jobs of the same worker.
    cuda.others = 0
    assert probe.free_bytes() == 16 * GIB - GIB // 2
    assert probe.context_bytes() == GIB // 2


def test_without_a_uuid_the_context_is_unknown(cuda, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert CudaProbe(torch.device("cuda")).context_bytes() is None


def test_the_devices_peak_outlives_a_flush(cuda):
    probe = CudaProbe(torch.device("cuda"))
    probe.start()
    cuda.take(3 * GIB, 6 * GIB)
    cuda.take(1 * GIB, 2 * GIB)
    assert probe.peak() == (3 * GIB, 6 * GIB)
    assert probe.peak_device_bytes() == 2 * GIB + GIB // 2 + 6 * GIB


def test_no_size_is_above_the_cards_memory(cuda):
    """Keep sizes below the total: no history would import such a run."""
    cuda.others = 0
    probe = CudaProbe(torch.device("cuda"))
    cuda.others = 10 * GIB
    # Taken for context, since they came as kernels were loaded.
    assert probe.context_bytes() == 10 * GIB + GIB // 2
    cuda.others = 0
    probe.free_bytes()
    cuda.others = 15 * GIB
    assert probe.context_bytes() <= 16 * GIB
    probe.start()
    cuda.others = 8 * GIB
    cuda.take(3 * GIB, 6 * GIB)
    cuda.take(1 * GIB, 2 * GIB)
    cuda.others = 12 * GIB
    assert probe.peak_device_bytes() == 16 * GIB


def test_a_torch_without_statistics_is_refused(cuda, monkeypatch):
    """Refuse PYTORCH_NO_CUDA_MEMORY_CACHING, which goes round the allocator and its statistics."""
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
    with pytest.raises(RuntimeError, match="PYTORCH_NO_CUDA_MEMORY_CACHING") as caught:
        CudaProbe(torch.device("cuda"))
    assert not is_out_of_memory(caught.value)


def test_retries_count_from_the_start_of_the_run(cuda):
    probe = CudaProbe(torch.device("cuda"))
    cuda.retries = 2
    probe.start()
    cuda.retries = 5
    assert probe.retries() == 3


def test_cached_memory_is_freed_after_a_job(cuda):
    probe = CudaProbe(torch.device("cuda"))
    cuda.take(1 * GIB, 6 * GIB)
    probe.finish()
    assert probe.now() == (1 * GIB, 1 * GIB)


@pytest.mark.parametrize("capacity", [8 * GIB, 8 * GIB + 1, 15_634_661_376, 16 * GIB - 1])
def test_a_capacity_less_the_context_is_torchs_limit(cuda, capacity):
    probe = CudaProbe(torch.device("cuda"))
    assert cuda.allowed is None
    probe.limit(capacity)
    # What others hold of the real card is no part of it.
    assert cuda.allowed == capacity - GIB // 2


def test_free_memory_at_a_capacity_is_at_most_the_limit(cuda):
    probe = CudaProbe(torch.device("cuda"))
    assert probe.free_bytes() == 16 * GIB - 2 * GIB - GIB // 2
    probe.limit(8 * GIB)
    cuda.take(3 * GIB, 4 * GIB)
    assert probe.free_bytes() == 8 * GIB - GIB // 2
    cuda.others = 12 * GIB
    assert probe.free_bytes() == 16 * GIB - 12 * GIB - GIB // 2


def test_a_growing_context_lowers_the_limit(cuda):
    """Load kernels at their first use, in the warm-up and in a stage."""
    probe = CudaProbe(torch.device("cuda"))
    probe.limit(8 * GIB)
    cuda.take(3 * GIB, 4 * GIB)
    cuda.context += 100 * 2**20
    probe.start()
    assert cuda.allowed == 8 * GIB - GIB // 2 - 100 * 2**20
    cuda.context += 2**20
    probe.reset_peak()
    assert cuda.allowed == 8 * GIB - GIB // 2 - 101 * 2**20
    assert probe.context_bytes() + cuda.allowed == 8 * GIB


def test_processes_that_start_between_jobs_are_not_context(cuda):
    probe = CudaProbe(torch.device("cuda"))
    probe.limit(8 * GIB)
    cuda.others += 3 * GIB
    probe.limit(8 * GIB)
    assert cuda.allowed == 8 * GIB - GIB // 2


def test_a_capacity_below_the_context_leaves_nothing(cuda):
    probe = CudaProbe(torch.device("cuda"))
    probe.limit(GIB // 4)
    assert cuda.allowed == 0


def test_a_limit_is_lifted_and_never_set_without_need(cuda):
    probe = CudaProbe(torch.device("cuda"))
    for step in (lambda: probe.limit(None), probe.start, probe.reset_peak):
        step()
        assert cuda.allowed is None
    probe.limit(8 * GIB)
    probe.limit(None)
    assert cuda.allowed == 16 * GIB
    assert probe.free_bytes() == 16 * GIB - 2 * GIB - GIB // 2
    probe.start()
    assert cuda.allowed == 16 * GIB


def test_an_unknown_context_refuses_a_capacity(cuda, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    probe = CudaProbe(torch.device("cuda"))
    probe.limit(None)
    with pytest.raises(RuntimeError, match="the driver does not say what the CUDA context takes") as caught:
        probe.limit(8 * GIB)
    assert not is_out_of_memory(caught.value)
    assert cuda.allowed is None


def test_the_limit_is_set_before_the_weights_load(backend, monkeypatch):
    seen, order = reports()[1], []
    load = pipelines.load
    monkeypatch.setattr("cache.worker.pipelines.load", lambda *arguments: order.append("load") or load(*arguments))
    monkeypatch.setattr(backend.probe, "limit", order.append)
    backend.measure(JOB | {"emulated_bytes": 8 * GIB}, seen)
    backend.measure(JOB | {"emulated_bytes": None}, seen)
    backend.measure(JOB, seen)
    assert order == [8 * GIB, "load", None, None]


def test_the_cpu_refuses_a_limit(backend):
    _, report = reports()
    with pytest.raises(RuntimeError, match="the CPU has no CUDA allocator to limit"):
        backend.measure(JOB | {"emulated_bytes": 8 * GIB}, report)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7, 8, 20, 50])
def test_the_estimate_counts_the_calls_of_the_scheduler(task, steps):
    request = GenerationRequest(task=task, steps=steps)
    scheduler = PNDMScheduler(**SCHEDULER_CONFIG)
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps
    if task == "img2img":
        strength = call_arguments(request)["strength"]
        timesteps, _ = StableDiffusionImg2ImgPipeline.get_timesteps(
            SimpleNamespace(scheduler=scheduler), steps, strength, "cpu"
        )
    assert unet_calls(request) == len(timesteps)
