"""Compute the published formula, exactly as published and under its published names.

It estimates float16 inference without CPU offload as ``(base + the largest stage) * 1.2``. It is not improved here:
people look for it as it is, and the history shows how far measured runs are from it.

``height`` and ``width`` are in pixels, ``//`` is integer division, and every result is in whole bytes.
"""

from dataclasses import dataclass

from planner.components import FLOAT16_BYTES, LATENT_CHANNELS, SD_V15, ModelFacts
from planner.request import OPTIONS, VAE_SCALE_FACTOR, GenerationRequest

# The published rounding of (320 + 640 + 1280) / 3, the UNet's three channel widths.
MEAN_UNET_CHANNELS = 745
BASE_COMPONENTS = ("unet", "vae", "text_encoder")
RGB_CHANNELS = 3

ASSUMPTIONS = (
    "float16 weights and activations: 2 bytes a number",
    "every component stays on the GPU: no CPU offload",
    "inference only: no gradients and no optimizer state",
    "stages follow one another, so the largest one sets the peak",
    "20 % on top for CUDA workspace, kernels and the framework, so no CUDA context is added",
    "UNet activations from 745 channels, given as the rounded mean of 320, 640 and 1280 (which is 746.7)",
)


def get_base_vram(facts: ModelFacts = SD_V15) -> int:
    """Add up the weights of the UNet, VAE and text encoder.

    The published base leaves out the safety checker.
    """
    return sum(facts.parameters[component] for component in BASE_COMPONENTS) * FLOAT16_BYTES


def vae_encoder_memory(height: int, width: int) -> int:
    """Add up the VAE encoder's stage: the image, three feature maps of its size, and the latent."""
    image = height * width * RGB_CHANNELS * FLOAT16_BYTES
    features = 3 * (height * width * RGB_CHANNELS * FLOAT16_BYTES)
    latent = (height // VAE_SCALE_FACTOR) * (width // VAE_SCALE_FACTOR) * LATENT_CHANNELS * FLOAT16_BYTES
    return image + features + latent


def unet_memory(height: int, width: int, prompt_length: int) -> int:
    """Add up the UNet's stage: three feature maps of the latent's size, and attention."""
    latent_pixels = (height // VAE_SCALE_FACTOR) * (width // VAE_SCALE_FACTOR)
    return latent_pixels * MEAN_UNET_CHANNELS * FLOAT16_BYTES * 3 + latent_pixels * prompt_length * FLOAT16_BYTES


def vae_decoder_memory(height: int, width: int) -> int:
    """Add up the VAE decoder's stage: the latent, the image, and three maps of its size."""
    latent = (height // VAE_SCALE_FACTOR) * (width // VAE_SCALE_FACTOR) * LATENT_CHANNELS * FLOAT16_BYTES
    image = height * width * RGB_CHANNELS * FLOAT16_BYTES
    features = 3 * (height * width * RGB_CHANNELS * FLOAT16_BYTES)
    return latent + image + features


def total_vram(base: int, vae_encoder: int, unet: int, vae_decoder: int) -> int:
    """Compute ``(base + max(encoder, unet, decoder)) * 1.2``, rounded down to whole bytes."""
    # The factor is 12 / 10 in integers, for a float 1.2 would not be exact on large sums.
    return (base + max(vae_encoder, unet, vae_decoder)) * 12 // 10


@dataclass(frozen=True)
class Breakdown:
    """Hold every term of the published formula for one request, in bytes."""

    request: GenerationRequest
    facts: ModelFacts
    base_bytes: int
    vae_encoder_bytes: int
    unet_bytes: int
    vae_decoder_bytes: int
    total_bytes: int

    @property
    def stages(self) -> dict[str, int]:
        """Give the activation bytes of the three stages that the formula has a term for."""
        return {
            "vae_encoder": self.vae_encoder_bytes,
            "unet": self.unet_bytes,
            "vae_decoder": self.vae_decoder_bytes,
        }

    @property
    def activation_bytes(self) -> int:
        """Give the bytes of the largest stage."""
        return max(self.stages.values())

    @property
    def peak_stage(self) -> str:
        """Find the stage that sets the peak.

        Of equal stages it is the later, which runs beside what earlier ones left.
        """
        return max(reversed(self.stages), key=lambda stage: self.stages[stage])

    def terms(self) -> list[tuple[str, str, int]]:
        """List each line of the formula as (name, expression with this request's numbers, bytes)."""
        height, width = self.request.effective_height, self.request.effective_width
        rows, columns, tokens = self.request.latent_height, self.request.latent_width, self.request.prompt_tokens
        counts = " + ".join(f"{self.facts.parameters[component]:,}" for component in BASE_COMPONENTS)
        image = f"{height}*{width}*3*2"
        latent = f"{rows}*{columns}*4*2"
        peak = f"max({self.vae_encoder_bytes:,}, {self.unet_bytes:,}, {self.vae_decoder_bytes:,})"
        return [
            ("base", f"({counts}) * 2", self.base_bytes),
            ("encoder", f"{image} + 3*({image}) + {latent}", self.vae_encoder_bytes),
            (
                "unet",
                f"{rows}*{columns}*{MEAN_UNET_CHANNELS}*2*3 + {rows}*{columns}*{tokens}*2",
                self.unet_bytes,
            ),
            ("decoder", f"{latent} + {image} + 3*({image})", self.vae_decoder_bytes),
            ("total", f"({self.base_bytes:,} + {peak}) * 1.2", self.total_bytes),
        ]


def estimate(request: GenerationRequest, facts: ModelFacts = SD_V15) -> Breakdown:
    """Compute the published formula's terms at the request's effective size."""
    height, width = request.effective_height, request.effective_width
    base = get_base_vram(facts)
    encoder = vae_encoder_memory(height, width)
    unet = unet_memory(height, width, request.prompt_tokens)
    decoder = vae_decoder_memory(height, width)
    return Breakdown(request, facts, base, encoder, unet, decoder, total_vram(base, encoder, unet, decoder))


def not_in_the_formula(request: GenerationRequest) -> list[str]:
    """List, in words, what this request asks for and the published formula has no term for."""
    notes = ["feature maps: it counts three channels for each of the image's size, the VAE's have 128 and more"]
    if request.batch > 1:
        notes.append(f"batch {request.batch}: the formula has no batch, its numbers are those of one image")
    if request.unet_batch > request.batch:
        notes.append("guidance: it doubles the UNet batch, which the formula does not count")
    if request.safety_checker:
        notes.append("safety checker: its weights are not in the published base")
    words = (field.words(getattr(request, field.name)) for field in OPTIONS if field.name != "safety_checker")
    notes += [f"{option}: the formula does not know it" for option in words if option]
    return notes
