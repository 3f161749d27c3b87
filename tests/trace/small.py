"""SD v1.5's architecture with a few channels: the same modules, connections and order, in megabytes."""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPTextConfig, CLIPTextModel

from planner.request import GenerationRequest
from planner.tracing.pipeline import SAFETY_CHECKER_CONFIG, UNET_CONFIG, VAE_CONFIG, assemble
from planner.tracing.tracer import move_buffers

TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CHANNELS = (8, 16, 16, 16)


def small_modules() -> dict[str, torch.nn.Module]:
    vision = SAFETY_CHECKER_CONFIG["vision_config"] | TEXT | {"projection_dim": 8}
    text = SAFETY_CHECKER_CONFIG["text_config"] | TEXT | {"projection_dim": 8}
    groups = {"norm_num_groups": 4}
    torch.manual_seed(0)
    modules = {
        "vae": AutoencoderKL(**VAE_CONFIG | groups | {"block_out_channels": CHANNELS}),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT, projection_dim=16, bos_token_id=0, eos_token_id=2)),
        "unet": UNet2DConditionModel(
            **UNET_CONFIG
            | groups
            | {"block_out_channels": CHANNELS, "cross_attention_dim": 16, "attention_head_dim": 4}
        ),
        "safety_checker": StableDiffusionSafetyChecker(
            CLIPConfig(projection_dim=8, text_config=text, vision_config=vision)
        ),
    }
    return {name: module.eval() for name, module in modules.items()}


def small_pipeline(request: GenerationRequest):
    """The pipeline with weights, on the CPU."""
    modules = small_modules()
    if not request.safety_checker:
        del modules["safety_checker"]
    return assemble(modules, request.task)


def small_pipeline_on_meta(request: GenerationRequest):
    """The pipeline without, on the meta device."""
    modules = small_modules()
    if not request.safety_checker:
        del modules["safety_checker"]
    for module in modules.values():
        move_buffers(module)
        module.to("meta")
    return assemble(modules, request.task)
