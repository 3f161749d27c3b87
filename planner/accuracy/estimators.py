"""Estimate Stable Diffusion v1.5 for any request as other tools do, by their published formulas.

The first part has each formula by itself, under the symbols that its source uses: ``height`` and ``width`` in pixels,
``batch`` images, ``element`` bytes a number (2 in float16). The second part has one `Estimator` for each tool.

A tool that has a formula for the UNet or for the VAE, and none for a pipeline, gets "weights + the larger phase".
**That the weights are added is ours**: no such tool claims the sum for a diffusers pipeline.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from planner.components import FLOAT16_BYTES, SD_V15, Scope
from planner.request import GenerationRequest
from planner.units import GIB, MIB

# InvokeAI and gguf-parser count one tile of so many pixels a side where the VAE is tiled.
TILE_SIDE = 512


def weights_bytes(request: GenerationRequest) -> int:
    """Sum the float16 weights that the request loads.

    The safety checker's are among them where it has one.
    """
    loaded = ("unet", "vae", "text_encoder", *(("safety_checker",) if request.safety_checker else ()))
    return sum(SD_V15.weights_bytes(component) for component in loaded)


def invokeai_vae_decode(height: int, width: int, element: int = FLOAT16_BYTES) -> int:
    """Estimate InvokeAI's working memory of VAE decode, in bytes. It has no batch.

    Source: invokeai/backend/util/vae_working_memory.py at 09dadda4.
    """
    return height * width * element * 2200 + (250 * MIB if element == 4 else 0)


def invokeai_vae_encode(height: int, width: int, element: int = FLOAT16_BYTES) -> int:
    """Estimate InvokeAI's working memory of VAE encode, in bytes. It has no batch.

    Source: invokeai/backend/util/vae_working_memory.py at 09dadda4.
    """
    return height * width * element * 1100 + (250 * MIB if element == 4 else 0)


def invokeai_vae_tiled(constant: int, tile: int = TILE_SIDE, element: int = FLOAT16_BYTES) -> int:
    """Estimate InvokeAI's working memory of a tiled half of the VAE, in bytes.

    `constant` is 2200 for decode and 1100 for encode. Source: invokeai/backend/util/vae_working_memory.py at 09dadda4.
    """
    return tile * tile * element * constant * 5 // 4


def comfyui_unet(
    latent_height: int, latent_width: int, unet_batch: int, element: int = FLOAT16_BYTES, *, is_fused: bool = True
) -> float:
    """Estimate ComfyUI's memory of one UNet call, in bytes.

    `is_fused` says that attention keeps no score matrix.

    Source: comfy/model_base.py, BaseModel.memory_required, at 003617c4; SD v1.5's memory_usage_factor is 1.0.
    """
    area = unet_batch * latent_height * latent_width
    return area * element * 0.01 * MIB if is_fused else area * 0.15 * MIB


def comfyui_vae_decode(latent_height: int, latent_width: int, element: int = FLOAT16_BYTES) -> int:
    """Estimate ComfyUI's memory of decoding one image, in bytes.

    It decodes as many at once as free memory holds.

    Source: comfy/sd.py at 003617c4. On AMD it is 2.73 times as much.
    """
    return 2178 * latent_height * latent_width * 64 * element


def comfyui_vae_encode(height: int, width: int, element: int = FLOAT16_BYTES) -> int:
    """Estimate ComfyUI's memory of encoding one image, in bytes.

    Source: comfy/sd.py at 003617c4.
    """
    return 1767 * height * width * element


def forge_unet(
    latent_height: int, latent_width: int, unet_batch: int, element: int = FLOAT16_BYTES, *, is_fused: bool = True
) -> float:
    """Estimate Forge's memory of one UNet call, in bytes.

    Source: backend/modules/k_model.py at 08637651.
    """
    return (1.28 if is_fused else 1.65) * unet_batch * latent_height * latent_width * element * 16384


def gguf_parser_unet(height: int, width: int) -> float:
    """Estimate gguf-parser's memory of the UNet, in bytes: a regression over pixels.

    Source: gguf-parser-go, zz_generated.diffusion_model_memory_usage.regression.go, at 92f69a02.
    """
    pixels = height * width
    return 7876368.5671743 + 161.42301986333496 * pixels + 0.007812489338703485 * pixels * pixels


def gguf_parser_vae_decode(height: int, width: int) -> int:
    """Estimate gguf-parser's memory of VAE decode, in bytes. It has no batch.

    Source: gguf-parser-go, file_estimate__stablediffusioncpp.go, at 229f32df.
    """
    return height * width * (3 * 4 + 1) * 512


def unsloth_activation(height: int, width: int, batch: int, multiplier: float = 1.0) -> int:
    """Estimate Unsloth Studio's memory of activations, in bytes.

    `multiplier` is 1.35 for edits and 0.85 for turbo.

    Source: studio/backend/core/inference/diffusion_memory.py, July 2026.
    """
    return max(1024, int(8192 * max(0.25, width * height * batch / 1024**2) * multiplier)) * MIB


# Source: as `unsloth_activation`. What it also keeps free of the GPU, 2048 MiB or a tenth, is no need and not counted.
UNSLOTH_OVERHEAD_BYTES = 2048 * MIB


def systemrequirements_total(height: int, width: int, batch: int) -> int:
    """Estimate the whole memory as the web calculator of systemrequirements.net does, in bytes."""
    return round((4 * (width / 512) * (height / 512) * batch + 2) * GIB)


def memtracker_vae_decode(height: int, width: int, batch: int) -> int:
    """Compute what torch's MemTracker finds for VAE decode, in bytes.

    Source: torch.distributed._tools.MemTracker run under FakeTensorMode.
    """
    return 3 * 256 * height * width * FLOAT16_BYTES * batch


Bytes = Callable[[GenerationRequest], "int | None"]


def _nothing(_: GenerationRequest) -> None:
    """Answer that there is no such formula."""


@dataclass(frozen=True)
class Estimator:
    """One tool's estimate. Each function takes a request and gives bytes, None where the tool has no formula for it.

    `pipeline` is of the whole pipeline; `vae_encode` and `vae_decode` are of that half alone, without weights.
    `key` is its name in JSON, `source` the file and commit that were read, `claims` what the tool says it counts.
    """

    key: str
    name: str
    source: str
    claims: str
    pipeline: Bytes
    vae_encode: Bytes = _nothing
    vae_decode: Bytes = _nothing

    def bytes_of(self, scope: Scope, request: GenerationRequest) -> int | None:
        """Estimate what this scope of the request takes, in bytes.

        The value is None where the tool has no formula for it.
        """
        of = {"pipeline": self.pipeline, "vae.encode": self.vae_encode, "vae.decode": self.vae_decode}
        return of[scope](request)


def _size(request: GenerationRequest) -> tuple[int, int]:
    return request.effective_height, request.effective_width


def _latent(request: GenerationRequest) -> tuple[int, int, int]:
    return request.latent_height, request.latent_width, request.unet_batch


def _with_weights(request: GenerationRequest, *phases: Bytes | None) -> int | None:
    """Add the weights to the largest phase; None where a phase has no formula for this request."""
    sizes = [phase(request) for phase in phases if phase is not None]
    known = [size for size in sizes if size is not None]
    return weights_bytes(request) + max(known) if len(known) == len(sizes) else None


def _encode(request: GenerationRequest, phase: Bytes) -> Bytes | None:
    """Give the phase back where the pipeline has it: only img2img encodes an image."""
    return phase if request.task == "img2img" else None


def _accelerate(request: GenerationRequest) -> int:
    # In integers, as the published formula is: a float 1.2 would lose exactness.
    return weights_bytes(request) * 12 // 10


def _invokeai_decode(request: GenerationRequest) -> int:
    return invokeai_vae_tiled(2200) if request.vae_tiling else invokeai_vae_decode(*_size(request))


def _invokeai_encode(request: GenerationRequest) -> int:
    return invokeai_vae_tiled(1100) if request.vae_tiling else invokeai_vae_encode(*_size(request))


def _invokeai(request: GenerationRequest) -> int | None:
    return _with_weights(request, _encode(request, _invokeai_encode), _invokeai_decode)


def _comfyui_decode(request: GenerationRequest) -> int | None:
    # Among the formulas that were read, neither tool has one for tiles.
    return None if request.vae_tiling else comfyui_vae_decode(request.latent_height, request.latent_width)


def _comfyui_encode(request: GenerationRequest) -> int | None:
    return None if request.vae_tiling else comfyui_vae_encode(*_size(request))


def _by_unet(unet: Callable[..., float], request: GenerationRequest) -> int | None:
    """Add the weights to the largest of the UNet, by this formula, and of the VAE's halves, by ComfyUI's."""

    def unet_bytes(request: GenerationRequest) -> int:
        # Sliced attention keeps the scores, of a slice at a time, for which both tools have their other factor.
        return round(unet(*_latent(request), is_fused=not request.attention_slicing))

    return _with_weights(request, _encode(request, _comfyui_encode), unet_bytes, _comfyui_decode)


def _gguf_parser_decode(request: GenerationRequest) -> int:
    return gguf_parser_vae_decode(*((TILE_SIDE, TILE_SIDE) if request.vae_tiling else _size(request)))


def _gguf_parser(request: GenerationRequest) -> int | None:
    return _with_weights(request, lambda request: round(gguf_parser_unet(*_size(request))), _gguf_parser_decode)


def _memtracker_decode(request: GenerationRequest) -> int | None:
    if request.vae_tiling:
        # It can follow any call; this figure was read off whole images.
        return None
    return memtracker_vae_decode(*_size(request), 1 if request.vae_slicing else request.batch)


def _memtracker(request: GenerationRequest) -> int | None:
    return _with_weights(request, _memtracker_decode)


def _unsloth(request: GenerationRequest) -> int:
    return weights_bytes(request) + UNSLOTH_OVERHEAD_BYTES + unsloth_activation(*_size(request), request.batch)


def _systemrequirements(request: GenerationRequest) -> int:
    return systemrequirements_total(*_size(request), request.batch)


ESTIMATORS = (
    Estimator(
        "accelerate",
        "accelerate, weights × 1.2",
        "accelerate estimate-memory, and the 20 % that its guide adds for inference",
        "float16 weights, and 20 % for all that inference takes",
        _accelerate,
    ),
    Estimator(
        "invokeai",
        "InvokeAI",
        "invokeai/backend/util/vae_working_memory.py @09dadda4",
        "working memory of the VAE for one image; every other node has a setting, 3 GB by default, not counted here",
        _invokeai,
        _invokeai_encode,
        _invokeai_decode,
    ),
    Estimator(
        "comfyui",
        "ComfyUI",
        "comfy/model_base.py, comfy/sd.py, comfy/model_management.py @003617c4",
        "memory of one UNet call, and of one image in the VAE",
        partial(_by_unet, comfyui_unet),
        _comfyui_encode,
        _comfyui_decode,
    ),
    Estimator(
        "forge",
        "Forge",
        "backend/modules/k_model.py, backend/patcher/vae.py, backend/memory_management.py @08637651",
        "memory of one UNet call, and ComfyUI's of one image in the VAE",
        partial(_by_unet, forge_unet),
        _comfyui_encode,
        _comfyui_decode,
    ),
    Estimator(
        "gguf-parser",
        "gguf-parser",
        "gguf-parser-go zz_generated.diffusion_model_memory_usage.regression.go @92f69a02, "
        "file_estimate__stablediffusioncpp.go @229f32df",
        "memory of the UNet and of VAE decode in stable-diffusion.cpp, for one image",
        _gguf_parser,
        vae_decode=_gguf_parser_decode,
    ),
    Estimator(
        "memtracker",
        "torch MemTracker",
        "torch.distributed._tools.MemTracker under FakeTensorMode",
        "live tensors of VAE decode, without workspace",
        _memtracker,
        vae_decode=_memtracker_decode,
    ),
    Estimator(
        "unsloth",
        "Unsloth Studio",
        "studio/backend/core/inference/diffusion_memory.py, July 2026",
        "weights, 2048 MiB, and activations by pixels and batch",
        _unsloth,
    ),
    Estimator(
        "systemrequirements",
        "systemrequirements.net",
        "the web calculator systemrequirements.net",
        "the whole memory by pixels and batch, weights included",
        _systemrequirements,
    ),
)

CAVEATS = (
    "the adding of weights to the larger phase is ours: InvokeAI, ComfyUI, Forge, gguf-parser and MemTracker have "
    "formulas for the UNet or the VAE, and claim no such number for a diffusers pipeline",
    "ComfyUI chooses how many images its VAE takes at once from the memory that is free: the formula is for one image",
    "InvokeAI decodes by code of its own; its nodes other than the VAE's have a setting, 3 GB by default, which is no "
    "formula and is not counted",
    "the formulas of gguf-parser are for stable-diffusion.cpp, not for torch; its UNet grows with the square of the "
    "pixels",
    "MemTracker counts live tensors, and neither cuDNN's workspace nor what the allocator rounds up",
    "the formulas of InvokeAI, ComfyUI, Forge and gguf-parser for the VAE have no batch",
    "whole pipelines are compared by the peak allocated where it was measured, else by the peak reserved",
)
