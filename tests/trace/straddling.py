"""Requests on both sides of every condition on a size that the traced code has, up to the largest that are allowed."""

import math
from dataclasses import replace

from hypothesis import strategies as st

from planner.programs.upsampling import COPIED_ABOVE_NUMEL, COPIED_FROM_BATCH, UNET_UPSAMPLERS, VAE_UPSAMPLERS
from planner.request import MAX_BATCH, MAX_SIDE, MIN_SIDE, VAE_SCALE_FACTOR, GenerationRequest
from tests.unit.strategies import requests

LEAST, MOST = MIN_SIDE // VAE_SCALE_FACTOR, MAX_SIDE // VAE_SCALE_FACTOR

# Latents, times the batch, at which each upsampler begins to copy. The UNet's batch is the request's, or twice that.
VAE_EDGES = [COPIED_ABOVE_NUMEL // (2 * channels * scale**2) for channels, scale in VAE_UPSAMPLERS]
UNET_EDGES = [COPIED_ABOVE_NUMEL * halved**2 // (2 * channels) for channels, halved in UNET_UPSAMPLERS]

batches = st.one_of(
    st.integers(1, 3),
    # The batch that makes upsamplers copy, for the VAE and, under guidance, for the UNet.
    st.sampled_from([COPIED_FROM_BATCH // 2 - 1, COPIED_FROM_BATCH // 2, COPIED_FROM_BATCH - 1, COPIED_FROM_BATCH]),
    st.integers(1, MAX_BATCH),
    st.just(MAX_BATCH),
)
# The UNet's smallest feature map is one pixel at 8. VAE tiles are 64 wide and 48 apart: some sides leave narrow ones.
latents = st.one_of(
    st.integers(LEAST, 24),
    st.sampled_from([LEAST, 9, 48, 49, 63, 64, 65, 96, 97, 112, 113, MOST - 1, MOST]),
    st.integers(LEAST, MOST),
)
sides = latents.map(lambda latent: latent * VAE_SCALE_FACTOR)
# Few steps: each is traced. The two passes of hires fix are traced as calls of their own, and what sequential offload
# moves is on no device that a trace can tell from the meta device.
anything = requests(
    width=sides,
    height=sides,
    batch=batches,
    steps=st.integers(1, 3),
    guidance_scale=st.sampled_from([1.0, 7.5]),
    offload=st.sampled_from(["none", "model"]),
    hires=1.0,
)

# A tiled or sliced trace plays every tile of every image: more than this many take a minute.
MOST_CALLS = 60
# Images, masks and control images that stay real on the host: more pixels than this take gigabytes.
MOST_PIXELS = 2**25


def is_quick(request: GenerationRequest) -> bool:
    """Whether a live trace of the request takes seconds: one of thousands of tiles or slices takes minutes."""
    if request.task == "inpaint" or request.controlnets:
        pixels = request.width * request.height * request.images * (request.controlnets + 1)
        if pixels > MOST_PIXELS:
            return False
    images = request.images if request.vae_slicing else 1
    tiles = math.ceil(request.latent_height / 48) * math.ceil(request.latent_width / 48) if request.vae_tiling else 1
    slices = request.unet_batch * request.steps if request.attention_slicing else 1
    return images * tiles <= MOST_CALLS and slices <= MOST_CALLS


@st.composite
def at_an_edge(draw: st.DrawFn) -> GenerationRequest:
    """Draw a request whose largest feature map is near the size from which an upsampler copies."""
    request = replace(draw(anything), images_per_prompt=1)
    of_unet = draw(st.booleans())
    if of_unet:
        request = replace(request, channels_last=True, vae_tiling=False)
    guided = of_unet and request.unet_batch > request.images
    edge = draw(st.sampled_from(UNET_EDGES if of_unet else VAE_EDGES)) // (2 if guided else 1)
    batch = draw(st.integers(max(1, -(-edge // MOST**2)), COPIED_FROM_BATCH))
    height = draw(st.integers(max(LEAST, -(-edge // (batch * MOST))), MOST))
    width = edge // (batch * height) + draw(st.integers(-1, 2))
    width = min(max(width, LEAST), MOST)
    return replace(request, batch=batch, height=VAE_SCALE_FACTOR * height, width=VAE_SCALE_FACTOR * width)


def straddling() -> st.SearchStrategy[GenerationRequest]:
    """Draw any request that a live trace answers in seconds, every second one at an edge."""
    return st.one_of(anything, at_an_edge()).filter(is_quick)
