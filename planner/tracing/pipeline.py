"""Build the real Stable Diffusion v1.5 modules from its configuration, without its weights.

The worker gives them weights and runs them on a GPU; the tracer runs them on the meta device. Both call the same
pipeline in the same way, so the planner predicts the very call that the worker measures.
"""

from collections.abc import Mapping
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
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from planner.request import MAX_PROMPT_TOKENS, GenerationRequest

# The configuration files of the SD v1.5 repository at the pinned revision, without values equal to the defaults.
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

# CLIP's ids for start and end of text. The end has the largest id of all, and the text model looks for the largest.
START_OF_TEXT, END_OF_TEXT = 49406, 49407

# The type is Any, for diffusers puts stand-ins for missing libraries into the types of its lazy imports.
PIPELINES: dict[str, Any] = {"img2img": StableDiffusionImg2ImgPipeline, "txt2img": StableDiffusionPipeline}


def component_modules(*, safety_checker: bool = True) -> dict[str, Any]:
    """Build the SD v1.5 modules without weights, in `LOAD_ORDER`.

    Parameters are on the meta device, buffers are real.
    """
    with init_empty_weights(include_buffers=False):
        modules: dict[str, Any] = {
            "vae": AutoencoderKL(**VAE_CONFIG),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER_CONFIG)),
            "unet": UNet2DConditionModel(**UNET_CONFIG),
        }
        if safety_checker:
            modules["safety_checker"] = StableDiffusionSafetyChecker(CLIPConfig(**SAFETY_CHECKER_CONFIG))
    return {name: module.eval() for name, module in modules.items()}


def byte_tokenizer() -> CLIPTokenizer:
    """Build a CLIP tokenizer over bytes, which needs no downloaded vocabulary.

    It has CLIP's special ids and padding.
    """
    letters = sorted(ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    vocabulary |= {f"{letter}</w>": len(letters) + index for index, letter in enumerate(letters)}
    vocabulary |= {"<|startoftext|>": START_OF_TEXT, "<|endoftext|>": END_OF_TEXT}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=MAX_PROMPT_TOKENS)


def prompt_of(tokens: int) -> str:
    """Write a prompt that `byte_tokenizer` reads as this many tokens, start and end included."""
    return " ".join(["a"] * max(0, tokens - 2))


def assemble(modules: Mapping[str, Any], task: str) -> Any:
    """Build the pipeline of this task around these components, without a progress bar."""
    safety_checker = modules.get("safety_checker")
    pipeline = PIPELINES[task](
        vae=modules["vae"],
        text_encoder=modules["text_encoder"],
        tokenizer=byte_tokenizer(),
        unet=modules["unet"],
        scheduler=PNDMScheduler(**SCHEDULER_CONFIG),
        safety_checker=safety_checker,
        feature_extractor=CLIPImageProcessor(),
        requires_safety_checker=safety_checker is not None,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def apply_options(pipeline: Any, request: GenerationRequest) -> None:
    """Set the options that can change between runs of a resident pipeline."""
    (pipeline.vae.enable_tiling if request.vae_tiling else pipeline.vae.disable_tiling)()
    (pipeline.vae.enable_slicing if request.vae_slicing else pipeline.vae.disable_slicing)()
    (pipeline.enable_attention_slicing if request.attention_slicing else pipeline.disable_attention_slicing)()


def call_arguments(request: GenerationRequest, image: Image.Image | None = None) -> dict[str, Any]:
    """Give the arguments of this request's pipeline call, as its user would write them.

    Without an `image`, img2img gets noise of the request's size.
    """
    arguments: dict[str, Any] = {
        "prompt": [prompt_of(request.prompt_tokens)] * request.batch,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "generator": torch.Generator().manual_seed(0),
    }
    if request.task == "img2img":
        if image is None:
            image = Image.effect_noise((request.width, request.height), 64).convert("RGB")
        # With the default strength of 0.8 one step would round to none.
        arguments |= {"image": [image] * request.batch, "strength": max(0.8, 1 / request.steps)}
    else:
        arguments |= {"width": request.width, "height": request.height}
    return arguments
