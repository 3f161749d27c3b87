"""Describe Stable Diffusion v1.5: stages, components, and constants that move memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

MODEL_ID = "stable-diffusion-v1-5/stable-diffusion-v1-5"
MODEL_REVISION = "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"

# The order in which a pipeline runs them. Only img2img and inpaint have a vae_encoder stage, only an IP-Adapter an
# image_encoder; each UNet call is preceded by the ControlNets.
STAGES = ("text_encoder", "image_encoder", "vae_encoder", "controlnet", "unet", "vae_decoder", "safety_checker")
# The names of the stages on screens.
STAGE_NAMES = {
    "text_encoder": "Text encoder",
    "image_encoder": "Image encoder",
    "vae_encoder": "VAE encoder",
    "controlnet": "ControlNet",
    "unet": "UNet",
    "vae_decoder": "VAE decoder",
    "safety_checker": "Safety checker",
}

# What of a pipeline ran: all of it, or one half of the VAE alone, as benchmarks of the VAE run it.
Half = Literal["vae.encode", "vae.decode"]
Scope = Literal["pipeline", Half]

# The libraries that decide which memory a pipeline takes, by package; builds of one release allocate alike.
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate")

# The components that hold weights, in the order in which the worker loads them.
LOAD_ORDER = ("vae", "text_encoder", "unet", "safety_checker", "image_encoder", "controlnet")
# Under model offload, the order in which components take turns on the GPU: each one evicts the one before it. The
# safety checker is excluded and stays. A ControlNet evicts nothing, and stays until the call returns.
# Source: diffusers 0.42.1, StableDiffusionPipeline.model_cpu_offload_seq; DiffusionPipeline.enable_model_cpu_offload.
OFFLOAD_ORDER = ("text_encoder", "image_encoder", "unet", "vae")
# The component that each stage runs.
COMPONENT_OF_STAGE = {
    "text_encoder": "text_encoder",
    "image_encoder": "image_encoder",
    "vae_encoder": "vae",
    "controlnet": "controlnet",
    "unet": "unet",
    "vae_decoder": "vae",
    "safety_checker": "safety_checker",
}

FLOAT16_BYTES = 2
# vae.config.latent_channels
LATENT_CHANNELS = 4

# The side of a VAE tile and the distance from one tile to the next, in latents: neighbours share a quarter.
# Source: diffusers 0.42.1, AutoencoderKL with sample_size 512 and tile_overlap_factor 0.25.
VAE_TILE = 64
VAE_TILE_STRIDE = 48

# From this many steps on, a further step changes no allocation: PNDM keeps four noise predictions, and has them by
# then. Memory programs are traced up to here.
MAX_TRACED_STEPS = 6

# diffusers' class of each task, without and with ControlNets.
PIPELINE_CLASSES = {
    "img2img": "StableDiffusionImg2ImgPipeline",
    "txt2img": "StableDiffusionPipeline",
    "inpaint": "StableDiffusionInpaintPipeline",
}
CONTROLNET_CLASSES = {
    "img2img": "StableDiffusionControlNetImg2ImgPipeline",
    "txt2img": "StableDiffusionControlNetPipeline",
    "inpaint": "StableDiffusionControlNetInpaintPipeline",
}


@dataclass(frozen=True)
class ModelFacts:
    """Hold the parameter count of each component, and the source of the counts."""

    parameters: Mapping[str, int]
    source: str

    def weights_bytes(self, component: str) -> int:
        """Compute the bytes of the component's parameters in float16."""
        return self.parameters[component] * FLOAT16_BYTES


# Source: numel() over the real modules; tests/unit/test_components.py builds them on the meta device and counts again.
SD_V15 = ModelFacts(
    parameters=MappingProxyType(
        {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480, "safety_checker": 303_981_588}
    ),
    source=f"published counts of {MODEL_ID}",
)
