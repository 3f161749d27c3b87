"""Measure one run of a real pipeline: peaks and seconds of each stage, the outcome, and the environment."""

import contextlib
import gc
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cache.machine.device import dtype_used
from cache.records import Measured, StageMeasure
from cache.worker import pipelines
from cache.worker.backend import DeviceFull, Report
from cache.worker.pipelines import Source
from cache.worker.probes import CpuProbe, CudaProbe, Probe
from cache.worker.recording import Recorder
from cache.worker.rehearsal import components_brought_as_copies
from planner.request import GenerationRequest
from planner.tracing.pipeline import apply_options, call_arguments

# The warm-up is too small to raise any peak, and it makes every handle and workspace that later runs share. Both passes
# of hires fix are warmed up, the second a little larger.
WARM_UP = {"width": 64, "height": 64, "batch": 1, "images_per_prompt": 1, "steps": 1}
WARM_UP_HIRES = 1.25


def warm_up_of(request: GenerationRequest) -> GenerationRequest:
    """Give the small request that is run before this one, on the same pipeline."""
    return replace(request, **WARM_UP, hires=min(request.hires, WARM_UP_HIRES))


# Libraries that have no exception type for a full card report it in words: the CUDA runtime while it loads kernels,
# cuBLAS and cuDNN while they make handles, and cuDNN if no plan found room for its workspace.
_OUT_OF_MEMORY = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute this computation",
)


def _plain(request: GenerationRequest) -> GenerationRequest:
    """Give the request that loads the model as it was published, without adapters."""
    return GenerationRequest(safety_checker=request.safety_checker, offload=request.offload, dtype=request.dtype)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether the device had no room, by the error's type or by the libraries' own codes."""
    return isinstance(error, torch.OutOfMemoryError) or any(code in str(error) for code in _OUT_OF_MEMORY)


# torch's CPU allocator says these words if the system gives it no memory.
# Source: pytorch v2.13.0, c10/core/impl/alloc_cpu.cpp, alloc_cpu.
_HOST_OUT_OF_MEMORY = "can't allocate memory: you tried to allocate"


def is_host_out_of_memory(error: BaseException) -> bool:
    """Tell whether the memory of the host ran out, which is not that of the GPU."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _HOST_OUT_OF_MEMORY in str(error))


def _host_reason(error: BaseException) -> str:
    said = str(error)
    begin = said.find(_HOST_OUT_OF_MEMORY)
    words = (said[begin:] if begin >= 0 else said).partition("\n")[0][:300]
    return f"the host's memory ran out{f': {words}' if words else ''}"


def _first_sentence(error: Exception) -> str:
    # The rest describes the state of the card, which the row holds as numbers.
    return str(error).partition(". GPU")[0].partition("\n")[0][:500]


@contextlib.contextmanager
def _or_device_full() -> Generator[None]:
    """Raise DeviceFull if the device has no room for what runs inside."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise DeviceFull(_first_sentence(error)) from error
        raise


class _Stages:
    """Measure stages by hooks on the pipeline's components: one ends when the next begins.

    A stage that comes again, such as the ControlNets' before each UNet call or those of the second pass of hires fix,
    has the larger of its peaks and the sum of its seconds.
    """

    def __init__(self, pipeline: Any, probe: Probe, report: Report):
        self.pipeline, self.probe, self.report = pipeline, probe, report
        self.closed: dict[str, StageMeasure] = {}
        self.current: str | None = None
        self._since = 0.0
        self._reported: set[str] = set()

    def begin_pass(self) -> None:
        """Begin a call of a pipeline, in which each stage is reported once."""
        self._reported.clear()

    def begin(self, stage: str) -> None:
        if stage == self.current:
            return
        self.close()
        self.current, self._since = stage, time.perf_counter()
        self.probe.reset_peak()
        if stage not in self._reported:
            self._reported.add(stage)
            self.report(stage)

    def close(self) -> None:
        if self.current is None:
            return
        self.probe.synchronize()
        allocated, reserved = self.probe.peak()
        measure = StageMeasure(
            stage=self.current,
            peak_allocated_bytes=allocated,
            peak_reserved_bytes=reserved,
            device_bytes=self.probe.peak_device_bytes(),
            seconds=time.perf_counter() - self._since,
        )
        before = self.closed.get(self.current)
        self.closed[self.current] = _merged(before, measure) if before else measure
        self.current = None

    @contextlib.contextmanager
    def watching(self) -> Generator[None]:
        """Install the hooks, and remove them at the end."""
        pipeline = self.pipeline
        handles = [
            module.register_forward_pre_hook(lambda *_, stage=stage: self.begin(stage))
            for stage, module in pipelines.modules_of(pipeline).items()
            # The VAE is two stages, and not called as a module.
            if stage != "vae"
        ]
        encode, decode = pipeline.vae.encode, pipeline.vae.decode

        def encoding(*args, **kwargs):
            self.begin("vae_encoder")
            return encode(*args, **kwargs)

        def decoding(*args, **kwargs):
            self.begin("vae_decoder")
            decoded = decode(*args, **kwargs)
            self.report("reading back")
            return decoded

        if pipeline.safety_checker is not None:
            handles.append(pipeline.safety_checker.register_forward_hook(lambda *_: self.report("reading back")))
        pipeline.vae.encode, pipeline.vae.decode = encoding, decoding
        try:
            yield
        finally:
            del pipeline.vae.encode, pipeline.vae.decode
            for handle in handles:
                handle.remove()


def _merged(one: StageMeasure, other: StageMeasure) -> StageMeasure:
    """Merge two measures of one stage: the larger peaks, and the sum of the seconds."""

    def larger(name: str) -> int | None:
        return max((size for m in (one, other) if (size := getattr(m, name)) is not None), default=None)

    return StageMeasure(
        stage=one.stage,
        peak_allocated_bytes=larger("peak_allocated_bytes"),
        peak_reserved_bytes=larger("peak_reserved_bytes"),
        device_bytes=larger("device_bytes"),
        seconds=one.seconds + other.seconds,
    )


def _call(pipeline: Any, request: GenerationRequest, report: Report, probe: Probe) -> None:
    """Call the pipeline as its user would, and drop the picture."""

    def on_step_end(pipe: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        # The host runs ahead of the kernels: without this all steps would seem done at once.
        probe.synchronize()
        report("unet", step=min(index + 1, pipe.num_timesteps), of=pipe.num_timesteps)
        return tensors

    pipeline(**call_arguments(request), callback_on_step_end=on_step_end)


class PipelineBackend:
    """Keep one pipeline resident on one device, and measure runs of it."""

    def __init__(self, device_kind: str):
        self.device = torch.device(device_kind)
        with _or_device_full():
            self.probe: Probe = CudaProbe(self.device) if device_kind == "cuda" else CpuProbe()
        self.pipeline: Any = None
        self.load_seconds: float | None = None
        self.weights_bytes: int | None = None

    def environment(self) -> dict[str, Any]:
        """Return the facts about the device that are known only once torch is loaded."""
        if self.device.type == "cpu":
            return {}
        properties = torch.cuda.get_device_properties(self.device)
        return {
            "total_bytes": properties.total_memory,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": str(torch.backends.cudnn.version()),
        }

    def _load(self, request: GenerationRequest, source: Source, report: Report) -> None:
        began = time.perf_counter()
        dtype = getattr(torch, dtype_used(request, "cuda" if self.device.type == "cuda" else "cpu"))
        self.pipeline = pipelines.load(request, source, self.device, dtype, report)
        if isinstance(self.probe, CpuProbe):
            for name, module in self.modules().items():
                # Offload keeps the safety checker on the device, and by layers all buffers as well.
                if request.offload == "none" or name == "safety_checker":
                    self.probe.count(module)
                elif request.offload == "sequential":
                    self.probe.count_buffers(module)
        self.probe.synchronize()
        self.load_seconds = time.perf_counter() - began
        # This is read before the warm-up, whose handles and workspaces stay and are not weights.
        self.weights_bytes, _ = self.probe.now()

    def modules(self) -> dict[str, torch.nn.Module]:
        """Return the components that hold weights, by name."""
        return pipelines.modules_of(self.pipeline)

    def measure(self, job: dict[str, Any], report: Report) -> Measured:
        """Run the job's request once and return its measures.

        Out of memory is an outcome, not an error. If the job names a file in `record_to`, each allocation and each
        convolution's workspace is written there.

        Raises:
            DeviceFull: the device had no room even for a query of its memory.
        """
        request = GenerationRequest.from_dict(job["request"])
        source = Source(job["weights"], job.get("model_dir"))
        stages: _Stages | None = None
        recorder = Recorder(self.probe) if job.get("record_to") else None
        with _or_device_full():
            # The limit is set before anything is loaded, since weights count against the capacity as well.
            self.probe.limit(job.get("emulated_bytes"))
            free_before = self.probe.free_bytes()
        phase = "loading"
        try:
            if self.pipeline is None:
                self._load(request, source, report)
                if request.is_half and request.loading_form() == _plain(request):
                    report("facts", counts=pipelines.parameter_counts(self.modules()))
            apply_options(self.pipeline, request)
            phase = "warm-up"
            report("warm-up")
            with self._counting():
                for one in warm_up_of(request).passes():
                    self._call_once(one, lambda *_, **__: None)
                gc.collect()
                self.probe.start()
                phase = "running"
                stages = _Stages(self.pipeline, self.probe, report)
                with recorder.watching(self.modules()) if recorder else contextlib.nullcontext():
                    measured = self._run(request, stages, report)
        except (RuntimeError, MemoryError) as error:
            is_host = is_host_out_of_memory(error)
            if is_host and self.device.type != "cpu":
                # An outcome of out of memory would be taken for evidence of the GPU.
                raise RuntimeError(f"{_host_reason(error)}; that says nothing of the GPU") from error
            if not is_host and not (isinstance(error, RuntimeError) and is_out_of_memory(error)):
                raise
            where = stages.current if stages and stages.current else phase
            if stages:
                stages.close()
            reason = _host_reason(error) if is_host else _first_sentence(error)
            measured = self._summary(stages, "out-of-memory", reason=reason, ended_in=where)
        if recorder and recorder.recording:
            # The recording of a run that was out of memory ends with the refused allocation, so it is kept as well.
            Path(job["record_to"]).write_text(recorder.recording.to_json())
        gc.collect()
        self.probe.finish()
        return replace(
            measured, weights_bytes=self.weights_bytes, free_before_bytes=free_before, load_seconds=self.load_seconds
        )

    def _run(self, request: GenerationRequest, stages: _Stages, report: Report) -> Measured:
        began = time.perf_counter()
        finished: list[int] = []

        def counting(phase: str, **detail: Any) -> None:
            finished[-1] = max(finished[-1], detail.get("step", 0))
            report(phase, **detail)

        with stages.watching():
            for one in request.passes():
                stages.begin_pass()
                finished.append(0)
                self._call_once(one, counting)
        stages.close()
        total_seconds = time.perf_counter() - began
        step_seconds = sum(stages.closed[name].seconds for name in ("controlnet", "unet") if name in stages.closed)
        steps = sum(finished)
        seconds_per_step = step_seconds / steps if steps else None
        return self._summary(stages, "ok", total_seconds=total_seconds, seconds_per_step=seconds_per_step)

    def _call_once(self, request: GenerationRequest, report: Report) -> None:
        """Run one pipeline call on the resident components."""
        self.pipeline = pipelines.for_call(self.pipeline, request, self.device)
        _call(self.pipeline, request, report, self.probe)

    @contextlib.contextmanager
    def _counting(self) -> Generator[None]:
        if isinstance(self.probe, CpuProbe):
            with components_brought_as_copies(), self.probe.storages:
                yield
        else:
            yield

    def _summary(self, stages: _Stages | None, outcome: Any, **values: Any) -> Measured:
        closed = tuple(stages.closed.values()) if stages else ()

        def largest(name: str) -> int | None:
            found = [getattr(stage, name) for stage in closed if getattr(stage, name) is not None]
            return max(found) if found else None

        # If memory ran out before the first stage, the peak until then is still a lower bound.
        allocated, reserved = self.probe.peak()
        return Measured(
            outcome=outcome,
            peak_allocated_bytes=largest("peak_allocated_bytes") or allocated,
            peak_reserved_bytes=largest("peak_reserved_bytes") or reserved,
            peak_device_bytes=largest("device_bytes"),
            context_bytes=self.probe.context_bytes(),
            num_alloc_retries=self.probe.retries(),
            stages=closed,
            **values,
        )
