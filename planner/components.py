"""What Stable Diffusion v1.5 is made of: its components and how many parameters each has."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

MODEL_ID = "stable-diffusion-v1-5/stable-diffusion-v1-5"
MODEL_REVISION = "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"

# The order in which a pipeline runs them; img2img alone has a vae_encoder stage.
STAGES = ("text_encoder", "vae_encoder", "unet", "vae_decoder", "safety_checker")
# What each stage is called on screens.
STAGE_NAMES = {
    "text_encoder": "Text encoder",
    "vae_encoder": "VAE encoder",
    "unet": "UNet",
    "vae_decoder": "VAE decoder",
    "safety_checker": "Safety checker",
}

# What of a pipeline ran: all of it, or one half of the VAE alone, as benchmarks of the VAE run it.
Half = Literal["vae.encode", "vae.decode"]
Scope = Literal["pipeline", Half]

# The libraries that decide which memory a pipeline takes, by package; builds of one release allocate alike.
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate")

FLOAT16_BYTES = 2
# vae.config.latent_channels
LATENT_CHANNELS = 4

# diffusers' class of each task.
PIPELINE_CLASSES = {"img2img": "StableDiffusionImg2ImgPipeline", "txt2img": "StableDiffusionPipeline"}


@dataclass(frozen=True)
class ModelFacts:
    """Parameter counts of each component, and where they were counted."""

    parameters: Mapping[str, int]
    source: str

    def weights_bytes(self, component: str) -> int:
        """The component's parameters in float16."""
        return self.parameters[component] * FLOAT16_BYTES


# Source: numel() over the real modules; tests/unit/test_components.py builds them on the meta device and counts again.
SD_V15 = ModelFacts(
    parameters=MappingProxyType(
        {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480, "safety_checker": 303_981_588}
    ),
    source=f"published counts of {MODEL_ID}",
)
