"""SD v1.5's architecture with a few channels: the same modules, connections and order, in megabytes."""

import torch

from planner.request import GenerationRequest
from planner.tracing.pipeline import CONFIGS, assemble, make_modules
from planner.tracing.tracer import DTYPES, in_rows, move_buffers

LAYERS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
GROUPS = {"norm_num_groups": 4, "block_out_channels": (8, 16, 16, 16)}
# A head of the IP-Adapter's resampler is 64 wide, so prompts are as wide here.
WIDTH = 64
ATTENTION = {"cross_attention_dim": WIDTH, "attention_head_dim": 4}
TEXT = LAYERS | {"hidden_size": WIDTH, "projection_dim": WIDTH}
SMALL = {
    "unet": CONFIGS["unet"] | GROUPS | ATTENTION,
    "vae": CONFIGS["vae"] | GROUPS,
    "text_encoder": TEXT | {"bos_token_id": 0, "eos_token_id": 2},
    "safety_checker": {
        "projection_dim": 8,
        "text_config": CONFIGS["safety_checker"]["text_config"] | LAYERS | {"projection_dim": 8},
        "vision_config": CONFIGS["safety_checker"]["vision_config"] | LAYERS | {"projection_dim": 8},
    },
    "image_encoder": CONFIGS["image_encoder"] | LAYERS | {"projection_dim": 8},
    "controlnet": CONFIGS["controlnet"] | GROUPS | ATTENTION,
}


def small_modules(request: GenerationRequest) -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    return make_modules(request, SMALL)


def small_pipeline(request: GenerationRequest):
    """The pipeline with weights, on the CPU, in float32."""
    modules = small_modules(request)
    for name in in_rows(request):
        modules[name].to(memory_format=torch.channels_last)
    return assemble(modules, request)


def small_pipeline_on_meta(request: GenerationRequest):
    """The pipeline without, on the meta device."""
    modules = small_modules(request)
    for name, module in modules.items():
        module.to(DTYPES[request.dtype])
        if name in in_rows(request):
            module.to(memory_format=torch.channels_last)
        move_buffers(module)
        module.to("meta")
    return assemble(modules, request)
