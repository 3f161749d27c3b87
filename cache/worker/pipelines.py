"""Stable Diffusion v1.5 pipelines, loaded with accelerate and kept resident in the worker.

Synthetic weights have the real architecture, shapes and bytes, so they take the real memory. The picture is noise. A
LoRA's and an IP-Adapter's layers have synthetic weights beside real ones too; their image encoder does not.
"""

import contextlib
import threading
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel

from cache.worker.backend import Report
from cache.worker.rehearsal import bring_layers_as_copies
from planner.components import LOAD_ORDER, MODEL_ID, MODEL_REVISION
from planner.programs.names import in_rows
from planner.request import GenerationRequest
from planner.tracing.pipeline import adapt, assemble, component_modules, pipeline_class

# So many random values repeat through all weights. That is enough to differ from zeros, and costs little to make.
PATTERN_NUMEL = 1 << 20


@dataclass(frozen=True)
class Source:
    """Name the source of weights: synthetic, the Hub at the pinned revision, or a local folder."""

    kind: str
    model_dir: str | None = None


def modules_of(pipeline: Any) -> dict[str, torch.nn.Module]:
    """Return the components of the pipeline that hold weights, by name, in `LOAD_ORDER`."""
    loaded = {name: getattr(pipeline, name, None) for name in LOAD_ORDER}
    return {name: module for name, module in loaded.items() if module is not None}


def parameter_counts(modules: Mapping[str, torch.nn.Module]) -> dict[str, tuple[int, int]]:
    """Count the parameters of each component, and the bytes of its parameters and buffers."""
    counts = {}
    for name, module in modules.items():
        tensors = [*module.parameters(), *module.buffers()]
        counts[name] = (sum(p.numel() for p in module.parameters()), sum(t.numel() * t.element_size() for t in tensors))
    return counts


def _fill(module: torch.nn.Module, pattern: torch.Tensor) -> None:
    """Fill parameters with repeating noise, scaled so that activations stay finite in float16."""
    for name, parameter in module.named_parameters():
        flat = parameter.data
        if flat.dim() < 2:
            # Norms get their values at the start of training. The safety checker's thresholds become 1, which no
            # cosine exceeds.
            flat.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        # Weights may be laid out channels_last. The order of the values does not matter, so the storage is filled.
        flat = flat.as_strided((flat.numel(),), (1,))
        scale = (parameter[0].numel()) ** -0.5
        for start in range(0, flat.numel(), pattern.numel()):
            part = flat[start : start + pattern.numel()]
            torch.mul(pattern[: part.numel()], scale, out=part)


def _materialise(module: torch.nn.Module, device: torch.device, dtype: torch.dtype, channels_last: bool) -> None:
    module.to(dtype)
    if channels_last and any(parameter.dim() == 4 for parameter in module.parameters()):
        module.to(memory_format=torch.channels_last)  # ty: ignore[no-matching-overload] (torch leaves it out of the stubs)
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    # This keeps the order of `.to(device)`, so the allocator serves the weights in the order of real ones.
    module.to_empty(device=device)
    for name, buffer in module.named_buffers():
        buffer.copy_(buffers[name])
    generator = torch.Generator().manual_seed(0)
    pattern = torch.randn(PATTERN_NUMEL, generator=generator).to(device=device, dtype=dtype)
    _fill(module, pattern)


def synthetic(request: GenerationRequest, device: torch.device, dtype: torch.dtype, report: Report) -> Any:
    """Make a pipeline with synthetic weights, on the device unless the request offloads."""
    modules = component_modules(request)
    home = device if request.offload == "none" else torch.device("cpu")
    for index, (name, module) in enumerate(modules.items()):
        report("loading", step=index, of=len(modules), detail=name)
        _materialise(module, home, dtype, name in in_rows(request))
    return assemble(modules, request)


@contextlib.contextmanager
def _readable_errors(source: Source) -> Generator[None]:
    try:
        yield
    except OSError as error:
        where = source.model_dir or f"{MODEL_ID} on the Hub"
        cause = str(error).strip().partition("\n")[0][:300]
        advice = "synthetic weights need no files, --model-dir reads a local folder"
        raise RuntimeError(f"the safetensors of {where} cannot be read - {advice} ({cause})") from error


@contextlib.contextmanager
def _still_there(tell: Callable[[], None]) -> Generator[None]:
    """Call `tell` every few seconds, so that a long download does not look like a hang."""
    done = threading.Event()

    def keep_telling() -> None:
        while not done.wait(10):
            tell()

    thread = threading.Thread(target=keep_telling, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _half_variant(model_dir: str | None) -> str | None:
    """Choose ``fp16`` files, half the bytes to read, if a local folder has them; the Hub does."""
    if model_dir is None or any(Path(model_dir).glob("unet/*.fp16.safetensors")):
        return "fp16"
    return None


def pretrained(
    request: GenerationRequest, source: Source, device: torch.device, dtype: torch.dtype, report: Report
) -> Any:
    """Load a pipeline with real weights from safetensors.

    No pickle and no remote code ever runs.
    """
    report("loading", step=0, of=len(LOAD_ORDER) + 1, detail="reading weights")
    # The library's advice about a repository that it cannot reach names options that this planner does not have.
    with (
        _readable_errors(source),
        _still_there(lambda: report("loading", step=0, of=len(LOAD_ORDER) + 1, detail="reading weights")),
    ):
        pipeline = pipeline_class(request).from_pretrained(
            source.model_dir or MODEL_ID,
            use_safetensors=True,
            variant=_half_variant(source.model_dir) if request.is_half else None,
            local_files_only=source.model_dir is not None,
            **_options(request, source, dtype),
        )
    modules = modules_of(pipeline)
    adapt(modules, request)
    if request.attention_slicing:
        pipeline.enable_attention_slicing()
    for index, (name, module) in enumerate(modules.items()):
        report("loading", step=index + 1, of=len(LOAD_ORDER) + 1, detail=name)
        # The layers of adapters are made in float32.
        module.to(dtype)
        if name in in_rows(request):
            module.to(memory_format=torch.channels_last)  # ty: ignore[no-matching-overload] (torch leaves it out of the stubs)
        if request.offload == "none":
            module.to(device)
    return pipeline


def _options(request: GenerationRequest, source: Source, dtype: torch.dtype) -> dict[str, Any]:
    """Give the options of ``from_pretrained``: which components are read, and in which data type."""
    options: dict[str, Any] = {"dtype": dtype, "low_cpu_mem_usage": True}
    if not request.safety_checker:
        options |= {"safety_checker": None, "requires_safety_checker": False}
    if source.model_dir is None:
        options["revision"] = MODEL_REVISION
    elif request.ip_adapter == "none":
        options["image_encoder"] = None
    if request.controlnets:
        # `save_pretrained` writes several as controlnet, controlnet_1 and so on.
        names = ["controlnet", *(f"controlnet_{index}" for index in range(1, request.controlnets))]
        given = {"use_safetensors": True, "local_files_only": True, "dtype": dtype}
        nets = [ControlNetModel.from_pretrained(source.model_dir, subfolder=name, **given) for name in names]
        options["controlnet"] = nets[0] if len(nets) == 1 else nets
    return options


def load(request: GenerationRequest, source: Source, device: torch.device, dtype: torch.dtype, report: Report) -> Any:
    """Make a pipeline ready to run this request: weights in place, its own progress bar off."""
    if source.kind == "synthetic":
        pipeline = synthetic(request, device, dtype, report)
    else:
        pipeline = pretrained(request, source, device, dtype, report)
    if request.offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
        if device.type == "cpu":
            bring_layers_as_copies(modules_of(pipeline))
    pipeline.set_progress_bar_config(disable=True)
    return for_call(pipeline, request, device)


def for_call(pipeline: Any, request: GenerationRequest, device: torch.device) -> Any:
    """Make the pipeline of this call from the resident components, without a copy or a cast.

    The hooks of model offload belong to one pipeline, and those of sequential offload to the modules.
    """
    wanted = pipeline_class(request)
    if type(pipeline) is not wanted:
        if request.offload == "model":
            pipeline.remove_all_hooks()
        # `from_pipe` would cast to float32 by default.
        pipeline = wanted(**pipeline.components, requires_safety_checker=pipeline.safety_checker is not None)
        pipeline.set_progress_bar_config(disable=True)
    if request.offload == "model" and not getattr(pipeline, "_all_hooks", None):
        pipeline.enable_model_cpu_offload(device=device)
    return pipeline
