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
    ControlNetModel,
    MultiControlNetModel,
    PNDMScheduler,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import (
    AttnProcessor,
    IPAdapterAttnProcessor2_0,
    IPAdapterXFormersAttnProcessor,
    XFormersAttnProcessor,
)
from diffusers.models.embeddings import ImageProjection, IPAdapterPlusImageProjection, MultiIPAdapterImageProjection
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from planner.components import CONTROLNET_CLASSES, LOAD_ORDER, PIPELINE_CLASSES
from planner.request import DEFAULT, MAX_PROMPT_TOKENS, GenerationRequest

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
# OpenCLIP's ViT-H, the image encoder of both IP-Adapters for SD v1.5.
IMAGE_ENCODER_CONFIG: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 16,
    "num_hidden_layers": 32,
    "patch_size": 14,
    "projection_dim": 1024,
}
# The ControlNets for SD v1.5 have the UNet's own down and middle blocks.
CONTROLNET_CONFIG: dict[str, Any] = {
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
}
# The configuration of each component.
CONFIGS: dict[str, dict[str, Any]] = {
    "unet": UNET_CONFIG,
    "vae": VAE_CONFIG,
    "text_encoder": TEXT_ENCODER_CONFIG,
    "safety_checker": SAFETY_CHECKER_CONFIG,
    "image_encoder": IMAGE_ENCODER_CONFIG,
    "controlnet": CONTROLNET_CONFIG,
}
# The layers that a LoRA adapts.
# Source: diffusers 0.42.1, examples/text_to_image/train_text_to_image_lora.py for the UNet, and
# examples/dreambooth/train_dreambooth_lora.py for the text encoder.
UNET_LORA_TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]
TEXT_LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]
# Tokens that each IP-Adapter adds to the prompt's, and the width of a head in the plus adapter's resampler.
# Source: diffusers 0.42.1, UNet2DConditionLoadersMixin, and the published weights of h94/IP-Adapter.
IP_ADAPTER_TOKENS = {"base": 4, "plus": 16}
IP_PLUS_HEAD_DIM = 64
# The number of input channels of the inpainting UNet: latents, a mask, and the latents of the masked image.
INPAINT_CHANNELS = 9

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
_CLASSES: dict[str, Any] = {
    pipeline.__name__: pipeline
    for pipeline in (
        StableDiffusionPipeline,
        StableDiffusionImg2ImgPipeline,
        StableDiffusionInpaintPipeline,
        StableDiffusionControlNetPipeline,
        StableDiffusionControlNetImg2ImgPipeline,
        StableDiffusionControlNetInpaintPipeline,
    )
}


def pipeline_class(request: GenerationRequest) -> Any:
    """Give diffusers' pipeline class for this request."""
    return _CLASSES[(CONTROLNET_CLASSES if request.controlnets else PIPELINE_CLASSES)[request.task]]


def component_modules(request: GenerationRequest = DEFAULT) -> dict[str, Any]:
    """Build the SD v1.5 modules that this request loads without weights, in `LOAD_ORDER`.

    Parameters are on the meta device, buffers are real.
    """
    with init_empty_weights(include_buffers=False):
        return make_modules(request, CONFIGS)


def make_modules(request: GenerationRequest, configs: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Build the modules that this request loads from these configurations, in `LOAD_ORDER`."""
    unet_config = configs["unet"] | ({"in_channels": INPAINT_CHANNELS} if request.task == "inpaint" else {})
    modules: dict[str, Any] = {
        "vae": AutoencoderKL(**configs["vae"]),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**configs["text_encoder"])),
        "unet": UNet2DConditionModel(**unet_config),
    }
    if request.safety_checker:
        modules["safety_checker"] = StableDiffusionSafetyChecker(CLIPConfig(**configs["safety_checker"]))
    if request.ip_adapter != "none":
        modules["image_encoder"] = CLIPVisionModelWithProjection(CLIPVisionConfig(**configs["image_encoder"]))
    if request.controlnets:
        nets: list[Any] = [ControlNetModel(**configs["controlnet"]) for _ in range(request.controlnets)]
        modules["controlnet"] = nets[0] if len(nets) == 1 else MultiControlNetModel(nets)
    adapt(modules, request)
    return {name: modules[name].eval() for name in LOAD_ORDER if name in modules}


def adapt(modules: Mapping[str, Any], request: GenerationRequest) -> None:
    """Give modules the request's attention processors, its IP-Adapter and its LoRA.

    The weights of the adapters are new.
    """
    _set_attention(modules, request)
    _load_ip_adapter(modules, request)
    _load_lora(modules, request)


def _set_attention(modules: Mapping[str, Any], request: GenerationRequest) -> None:
    """Set the attention processors of `request.attention`; sdpa is what diffusers sets by itself."""
    processors = {"xformers": XFormersAttnProcessor, "eager": AttnProcessor}
    if request.attention in processors:
        control = modules.get("controlnet")
        for module in (
            modules["unet"],
            modules["vae"],
            *([] if control is None else getattr(control, "nets", [control])),
        ):
            module.set_attn_processor(processors[request.attention]())


def _load_ip_adapter(modules: Mapping[str, Any], request: GenerationRequest) -> None:
    """Give the UNet the processors and the projection of an IP-Adapter.

    Source: diffusers 0.42.1, ``UNet2DConditionLoadersMixin._load_ip_adapter_weights``; an eager processor of cross
    attention gives way to a fused one there.
    """
    if request.ip_adapter == "none":
        return
    unet, tokens = modules["unet"], IP_ADAPTER_TOKENS[request.ip_adapter]
    width, vision = unet.config.cross_attention_dim, modules["image_encoder"].config
    processor = IPAdapterXFormersAttnProcessor if request.attention == "xformers" else IPAdapterAttnProcessor2_0
    processors = dict(unet.attn_processors)
    for name in processors:
        if name.endswith("attn2.processor"):
            layer = unet.get_submodule(name.removesuffix(".processor")).to_q
            processors[name] = processor(layer.in_features, width, num_tokens=(tokens,))
    unet.set_attn_processor(processors)
    if request.ip_adapter == "base":
        projection = ImageProjection(vision.projection_dim, width, tokens)
    else:
        projection = IPAdapterPlusImageProjection(
            embed_dims=vision.hidden_size,
            output_dims=width,
            hidden_dims=width,
            heads=max(1, width // IP_PLUS_HEAD_DIM),
            num_queries=tokens,
        )
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([projection])
    unet.config.encoder_hid_dim_type = "ip_image_proj"


def _load_lora(modules: Mapping[str, Any], request: GenerationRequest) -> None:
    """Wrap the adapted layers as ``load_lora_weights`` does, without fusing."""
    if not request.lora_rank:
        return
    # Only requests with a LoRA need peft, and its import costs half a second.
    from peft import LoraConfig

    adapted = {"unet": UNET_LORA_TARGETS} | ({"text_encoder": TEXT_LORA_TARGETS} if request.lora_text_encoder else {})
    for name, targets in adapted.items():
        # By whole names, as the keys of a LoRA's file give them: an IP-Adapter's resampler has layers of the same ends.
        layers = [
            path
            for path, _ in modules[name].named_modules()
            if path.endswith(tuple(f".{target}" for target in targets)) and not path.startswith("encoder_hid_proj")
        ]
        config = LoraConfig(r=request.lora_rank, lora_alpha=request.lora_rank, target_modules=layers)
        modules[name].add_adapter(config)


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


def assemble(modules: Mapping[str, Any], request: GenerationRequest = DEFAULT) -> Any:
    """Build the pipeline of this request around these components, without a progress bar."""
    safety_checker = modules.get("safety_checker")
    more = {"image_encoder": modules.get("image_encoder")}
    if request.controlnets:
        more["controlnet"] = modules["controlnet"]
    pipeline = pipeline_class(request)(
        vae=modules["vae"],
        text_encoder=modules["text_encoder"],
        tokenizer=byte_tokenizer(),
        unet=modules["unet"],
        scheduler=PNDMScheduler(**SCHEDULER_CONFIG),
        safety_checker=safety_checker,
        feature_extractor=CLIPImageProcessor(),
        requires_safety_checker=safety_checker is not None,
        **more,
    )
    pipeline.set_progress_bar_config(disable=True)
    if request.attention_slicing:
        pipeline.enable_attention_slicing()
    return pipeline


def apply_options(pipeline: Any, request: GenerationRequest) -> None:
    """Set the options that can change between runs of a resident pipeline."""
    (pipeline.vae.enable_tiling if request.vae_tiling else pipeline.vae.disable_tiling)()
    (pipeline.vae.enable_slicing if request.vae_slicing else pipeline.vae.disable_slicing)()


def call_arguments(
    request: GenerationRequest, image: Image.Image | None = None, control: Image.Image | None = None
) -> dict[str, Any]:
    """Give the arguments of this request's pipeline call, as its user would write them.

    Without an `image`, img2img and inpaint get noise of the request's size, and so do ControlNets without `control`.
    The mask of inpaint is the image's left half.
    """
    arguments: dict[str, Any] = {
        "prompt": [prompt_of(request.prompt_tokens)] * request.batch,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "num_images_per_prompt": request.images_per_prompt,
        "generator": torch.Generator().manual_seed(0),
    }
    size = {"width": request.effective_width, "height": request.effective_height}
    if image is None:
        image = _noise(request)
    if request.task == "img2img":
        # With the default strength of 0.8 one step would round to none.
        arguments |= {"image": [image] * request.batch, "strength": max(0.8, 1 / request.steps)}
    elif request.task == "inpaint":
        mask = Image.new("L", image.size)
        mask.paste(255, (0, 0, max(1, image.width // 2), image.height))
        arguments |= {"image": [image] * request.batch, "mask_image": [mask] * request.batch, **size}
    else:
        arguments |= size
    if request.controlnets:
        control = control or _noise(request)
        # Several ControlNets share one control image each among all requests: their pipelines take no lists of lists.
        given = [control] * (request.batch if request.controlnets == 1 else request.controlnets)
        arguments |= {"image" if request.task == "txt2img" else "control_image": given, **size}
    if request.ip_adapter != "none":
        arguments["ip_adapter_image"] = image
    return arguments


def _noise(request: GenerationRequest) -> Image.Image:
    return Image.effect_noise((request.width, request.height), 64).convert("RGB")
