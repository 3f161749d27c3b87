"""Stable Diffusion v1.5 pipelines in half precision, loaded with accelerate and kept resident in the worker.

Synthetic weights have the real architecture, shapes and bytes, so they take the real memory; only the picture is noise.
"""

import contextlib
import threading
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import (
    AutoencoderKL,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from planner.components import MODEL_ID, MODEL_REVISION
from planner.request import MAX_PROMPT_TOKENS, GenerationRequest

# The configuration files of the SD v1.5 repository at the pinned revision, less what equals the library's defaults.
UNET_CONFIG: dict[str, Any] = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
VAE_CONFIG: dict[str, Any] = {
    "sample_size": 512,
    "latent_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
TEXT_ENCODER_CONFIG: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": MAX_PROMPT_TOKENS,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
SAFETY_CHECKER_CONFIG: dict[str, Any] = {
    "projection_dim": 768,
    "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768},
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
    },
}
SCHEDULER_CONFIG: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "steps_offset": 1,
}

# CLIP's ids for start and end of text; end is above every other id, and the text model looks for the largest.
START_OF_TEXT, END_OF_TEXT = 49406, 49407
# Float16 values that repeat through all weights: enough to be unlike zeros, small enough to cost nothing.
PATTERN_NUMEL = 1 << 20

# The components that hold weights, in the order in which ``pipeline.to(device)`` moves them.
LOADED_COMPONENTS = ("vae", "text_encoder", "unet", "safety_checker")

# Any: diffusers puts stand-ins for missing libraries into the types of its lazy imports.
PIPELINES: dict[str, Any] = {"img2img": StableDiffusionImg2ImgPipeline, "txt2img": StableDiffusionPipeline}

Report = Callable[..., None]


@dataclass(frozen=True)
class Source:
    """Where weights come from: synthetic, the Hub at the pinned revision, or a local folder."""

    kind: str
    model_dir: str | None = None


def component_modules(*, safety_checker: bool = True) -> dict[str, Any]:
    """The real SD v1.5 modules without weights: parameters on the meta device, buffers real, in `LOADED_COMPONENTS`."""
    with init_empty_weights(include_buffers=False):
        modules: dict[str, Any] = {
            "vae": AutoencoderKL(**VAE_CONFIG),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER_CONFIG)),
            "unet": UNet2DConditionModel(**UNET_CONFIG),
        }
        if safety_checker:
            modules["safety_checker"] = StableDiffusionSafetyChecker(CLIPConfig(**SAFETY_CHECKER_CONFIG))
    return {name: module.eval() for name, module in modules.items()}


def parameter_counts(modules: Mapping[str, torch.nn.Module]) -> dict[str, tuple[int, int]]:
    """(parameters, bytes of parameters and buffers as they stand) by component."""
    counts = {}
    for name, module in modules.items():
        tensors = [*module.parameters(), *module.buffers()]
        counts[name] = (sum(p.numel() for p in module.parameters()), sum(t.numel() * t.element_size() for t in tensors))
    return counts


def _fill(module: torch.nn.Module, pattern: torch.Tensor) -> None:
    """Give every parameter small repeating noise, scaled so that activations stay finite in half precision."""
    for name, parameter in module.named_parameters():
        flat = parameter.data
        if flat.dim() < 2:
            # Norms as they start in training. The safety checker's thresholds become 1, which no cosine exceeds.
            flat.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        # Weights may be laid out channels_last; the values do not care, so fill storage order.
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
    # The order of `_apply`, and so of `.to(device)`: the allocator meets the weights as it would with real ones.
    module.to_empty(device=device)
    for name, buffer in module.named_buffers():
        buffer.copy_(buffers[name])
    generator = torch.Generator().manual_seed(0)
    pattern = torch.randn(PATTERN_NUMEL, generator=generator).to(device=device, dtype=dtype)
    _fill(module, pattern)


def byte_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer over bytes: CLIP's special ids and padding, no downloaded vocabulary."""
    letters = sorted(ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    vocabulary |= {f"{letter}</w>": len(letters) + index for index, letter in enumerate(letters)}
    vocabulary |= {"<|startoftext|>": START_OF_TEXT, "<|endoftext|>": END_OF_TEXT}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=MAX_PROMPT_TOKENS)


def prompt_of(tokens: int) -> str:
    """A prompt that `byte_tokenizer` reads as this many tokens, start and end included."""
    return " ".join(["a"] * max(0, tokens - 2))


def synthetic(request: GenerationRequest, device: torch.device, dtype: torch.dtype, report: Report) -> Any:
    """A pipeline of the real architecture with synthetic weights, on the device unless the request offloads."""
    modules = component_modules(safety_checker=request.safety_checker)
    home = torch.device("cpu") if request.offload == "model" else device
    for index, (name, module) in enumerate(modules.items()):
        report("loading", step=index, of=len(modules), detail=name)
        _materialise(module, home, dtype, request.channels_last and name in ("unet", "vae"))
    return PIPELINES[request.task](
        vae=modules["vae"],
        text_encoder=modules["text_encoder"],
        tokenizer=byte_tokenizer(),
        unet=modules["unet"],
        scheduler=PNDMScheduler(**SCHEDULER_CONFIG),
        safety_checker=modules.get("safety_checker"),
        feature_extractor=CLIPImageProcessor(),
        requires_safety_checker=request.safety_checker,
    )


@contextlib.contextmanager
def _readable_errors(source: Source) -> Generator[None]:
    try:
        yield
    except OSError as error:
        where = source.model_dir or f"{MODEL_ID} on the Hub"
        cause = str(error).strip().partition("\n")[0][:300]
        advice = "synthetic weights need none, --model-dir reads a local folder"
        raise RuntimeError(f"the safetensors of {where} cannot be read - {advice} ({cause})") from error


@contextlib.contextmanager
def _still_there(tell: Callable[[], None]) -> Generator[None]:
    """Tell every few seconds: a download of gigabytes is silent for longer than a parent waits for a hung worker."""
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
    """``fp16`` where such files are there: half the bytes to read. The Hub's repository has them."""
    if model_dir is None or any(Path(model_dir).glob("unet/*.fp16.safetensors")):
        return "fp16"
    return None


def pretrained(
    request: GenerationRequest, source: Source, device: torch.device, dtype: torch.dtype, report: Report
) -> Any:
    """A pipeline with real weights, from safetensors only: no pickle and no remote code is ever run."""
    report("loading", step=0, of=len(LOADED_COMPONENTS) + 1, detail="reading weights")
    options: dict[str, Any] = (
        {} if request.safety_checker else {"safety_checker": None, "requires_safety_checker": False}
    )
    if source.model_dir is None:
        options["revision"] = MODEL_REVISION
    # What the library says of a repository it cannot reach is about its own options, of which there are none here.
    with (
        _readable_errors(source),
        _still_there(lambda: report("loading", step=0, of=len(LOADED_COMPONENTS) + 1, detail="reading weights")),
    ):
        pipeline = PIPELINES[request.task].from_pretrained(
            source.model_dir or MODEL_ID,
            dtype=dtype,
            use_safetensors=True,
            variant=_half_variant(source.model_dir),
            low_cpu_mem_usage=True,
            local_files_only=source.model_dir is not None,
            **options,
        )
    for index, name in enumerate(LOADED_COMPONENTS):
        module = getattr(pipeline, name)
        if module is None:
            continue
        report("loading", step=index + 1, of=len(LOADED_COMPONENTS) + 1, detail=name)
        if request.channels_last and name in ("unet", "vae"):
            module.to(memory_format=torch.channels_last)
        if request.offload == "none":
            module.to(device)
    return pipeline


def load(request: GenerationRequest, source: Source, device: torch.device, dtype: torch.dtype, report: Report) -> Any:
    """A pipeline ready to run this request: weights where they belong, its own progress bar off."""
    if source.kind == "synthetic":
        pipeline = synthetic(request, device, dtype, report)
    else:
        pipeline = pretrained(request, source, device, dtype, report)
    if request.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def for_task(pipeline: Any, task: str) -> Any:
    """The same resident components as the pipeline of this task: nothing is copied or cast."""
    wanted = PIPELINES[task]
    if type(pipeline) is wanted:
        return pipeline
    # Not `from_pipe`: it casts to float32 unless told otherwise.
    other = wanted(**pipeline.components, requires_safety_checker=pipeline.safety_checker is not None)
    other.set_progress_bar_config(disable=True)
    return other


def apply_options(pipeline: Any, request: GenerationRequest) -> None:
    """Switch on or off what can change between runs of a resident pipeline."""
    (pipeline.vae.enable_tiling if request.vae_tiling else pipeline.vae.disable_tiling)()
    (pipeline.vae.enable_slicing if request.vae_slicing else pipeline.vae.disable_slicing)()
    (pipeline.enable_attention_slicing if request.attention_slicing else pipeline.disable_attention_slicing)()
