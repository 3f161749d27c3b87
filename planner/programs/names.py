"""Name routines: calls that allocate in the same order share a name."""

from typing import NamedTuple

from planner.components import MAX_TRACED_STEPS
from planner.programs.upsampling import copied_in_unet, copied_in_vae
from planner.request import VAE_SCALE_FACTOR, GenerationRequest


class Layout(NamedTuple):
    """Say how the input of a VAE half lies in memory.

    A tile that is cut from a tensor is not contiguous. Images come from PIL by way of numpy, so they are channels_last,
    unless the caller made a planar tensor of them.
    """

    is_cut: bool = False
    is_planar: bool = False


def variant_of(routine: str, request: GenerationRequest) -> str:
    """Name the options of the request that change the routine's allocations, or ``plain``."""
    options = {"unet": ("channels_last", "attention_slicing")}
    names = ("channels_last",) if routine.startswith("vae.") else options.get(routine, ())
    return "+".join(name for name in names if getattr(request, name)) or "plain"


def routine_name(routine: str, request: GenerationRequest, batch: int, height: int, width: int, layout: Layout) -> str:
    """Name the compiled routine of a call at this batch and latent size.

    The name has the routine, its variant, and the conditions that change the order of allocations. The order differs
    where a tensor is contiguous by chance or by origin. In the VAE's linear layers and in sliced attention, transposed
    features are contiguous for one image and not for several. A feature map of one pixel has every memory format, a
    tile cut from an image has none. Latents drawn on the host are not channels_last, encoded ones may be. The order
    also differs where upsamplers copy a channels_last input, at large batches and sizes.
    """
    order = ["pixel" if is_pixel(routine, height, width) else "any"]
    of_vae = routine.startswith("vae.")
    if of_vae or (routine == "unet" and request.attention_slicing):
        order.append("one" if batch == 1 else "many")
    if of_vae and layout.is_cut:
        order.append("cut")
    if layout.is_planar and routine in ("vae._encode", "vae.encoder"):
        order.append("planar")
    if request.channels_last and (of_vae or routine == "unet"):
        order.append(request.task)
    if copied := copied_upsamplers(routine, request, batch, height, width):
        order.append(f"copied{''.join(map(str, copied))}")
    return "/".join((routine, variant_of(routine, request), *order))


def copied_upsamplers(
    routine: str, request: GenerationRequest, batch: int, latent_height: int, latent_width: int
) -> tuple[int, ...]:
    """Give the indices of the routine's upsamplers that copy a channels_last input.

    Without the option, the UNet's feature maps never are channels_last, and the VAE decoder's are for several images.
    """
    if routine == "unet" and request.channels_last:
        return copied_in_unet(batch, latent_height, latent_width)
    if routine in ("vae._decode", "vae.decoder") and (request.channels_last or batch > 1):
        return copied_in_vae(batch, latent_height, latent_width)
    return ()


def is_pixel(routine: str, latent_height: int, latent_width: int) -> bool:
    """Tell whether the routine's smallest feature map is one pixel.

    The UNet halves the latent three times.
    """
    smallest = {"unet": VAE_SCALE_FACTOR}.get(routine, 1 if routine.startswith("vae.") else 0)
    return max(latent_height, latent_width) <= smallest


def pipeline_name(request: GenerationRequest) -> str:
    """Name the routine of the request's pipeline call."""
    parts = [
        request.task,
        request.guidance,
        "checked" if request.safety_checker else "unchecked",
        f"steps{min(request.steps, MAX_TRACED_STEPS)}",
    ]
    return "/".join(parts)
