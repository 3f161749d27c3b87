"""Name routines: calls that allocate in the same order share a name."""

from collections.abc import Iterator
from typing import NamedTuple

from planner.components import MAX_TRACED_STEPS
from planner.programs.upsampling import copied_in_unet, copied_in_vae
from planner.request import VAE_SCALE_FACTOR, GenerationRequest

# The routines inside the UNet and, with a prefix, inside a ControlNet: blocks, and the attention layers of each depth.
CONTROL = "control."
SELF_ATTENTION, CROSS_ATTENTION = "attn1", "attn2"
VAE_ATTENTIONS = ("vae.encoder.attention", "vae.decoder.attention")


class Layout(NamedTuple):
    """Say how the input of a VAE half lies in memory.

    A tile that is cut from a tensor is not contiguous. Images come from PIL by way of numpy, so they are channels_last,
    unless the caller made a planar tensor of them.
    """

    is_cut: bool = False
    is_planar: bool = False


def in_rows(request: GenerationRequest) -> tuple[str, ...]:
    """List the components whose weights are channels_last."""
    if request.channels_last:
        return "unet", "vae"
    return ("unet",) if request.channels_last_unet else ()


def are_latents_in_rows(request: GenerationRequest) -> bool:
    """Tell whether the latents given to the UNet and to the VAE's decoder are channels_last.

    Latents drawn on the host are not, and inpainting starts from such; encoded ones are if the VAE is.
    """
    return request.channels_last and request.task == "img2img"


def routine_name(routine: str, request: GenerationRequest, batch: int, height: int, width: int, layout: Layout) -> str:
    """Name the compiled routine of a call at this batch and latent size.

    The name has the routine, its variant, and the conditions that change the order of allocations. The order differs
    where a tensor is contiguous by chance or by origin. In the VAE's linear layers and in attention that is not fused,
    transposed features are contiguous for one image and not for several. A feature map of one pixel has every memory
    format, a tile cut from an image has none. The order also differs where upsamplers copy a channels_last input, at
    large batches and sizes, and with the data type, for a cast to float32 does nothing where all is float32.
    """
    parts = [routine, *_variant(routine, request), *_order(routine, request, batch, height, width, layout)]
    return "/".join(parts if request.is_half else [*parts, request.dtype])


def _variant(routine: str, request: GenerationRequest) -> Iterator[str]:
    """List the options of the request that change the routine's allocations."""
    kind = routine.removeprefix(CONTROL)
    is_control = routine.startswith("control")
    if routine == "text_encoder" and request.lora_text_encoder:
        yield "lora"
    elif routine in ("image_encoder", "ip_projection", "ip_embeddings"):
        yield request.ip_adapter
        yield from [request.guidance] * (routine == "ip_embeddings")
    elif routine.startswith("control_image"):
        yield request.guidance
    elif routine in VAE_ATTENTIONS and request.attention != "sdpa":
        yield request.attention
    elif kind.startswith((SELF_ATTENTION, CROSS_ATTENTION)):
        yield from _attention(kind, request, is_control)
    elif routine == "unet":
        yield from ["controlled"] * bool(request.controlnets) + ["ip"] * (request.ip_adapter != "none")
    elif routine == "unet.conv_in" and request.task == "inpaint":
        yield "inpaint"
    elif routine == "controlnets":
        yield str(request.controlnets)
    elif routine == "check":
        yield "checked" if request.safety_checker else "unchecked"
    if routine.startswith("vae.") and request.channels_last:
        yield "channels_last"
    if not is_control and _is_in_unet(routine) and request.is_unet_in_rows:
        yield "channels_last"


def _attention(kind: str, request: GenerationRequest, is_control: bool) -> Iterator[str]:
    # Slicing is set on components that know it, and a wrapper of several ControlNets does not.
    sliced = request.attention_slicing and not (is_control and request.controlnets > 1)
    processor = "sliced" if sliced else request.attention
    has_ip = request.ip_adapter != "none" and kind.startswith(CROSS_ATTENTION) and not is_control
    if has_ip:
        yield request.ip_adapter
        # The IP-Adapter's processor of cross attention is fused, whatever stood in its place before.
        processor = "sdpa" if processor == "eager" else processor
    if processor != "sdpa":
        yield processor
    if request.lora_rank and not is_control:
        yield "lora"


def _is_in_unet(kind: str) -> bool:
    return kind in ("unet", "unet.conv_in", "mid") or kind.startswith(("down.", "up."))


def _order(
    routine: str, request: GenerationRequest, batch: int, height: int, width: int, layout: Layout
) -> Iterator[str]:
    """List the conditions on the size and the layout that change the order of allocations."""
    kind = routine.removeprefix(CONTROL)
    is_attention = kind.startswith((SELF_ATTENTION, CROSS_ATTENTION))
    of_vae = routine.startswith("vae.") and routine != "vae.blend"
    if of_vae or is_attention or _is_in_unet(kind) or routine in ("controlnet", "controlnets"):
        yield "pixel" if is_pixel(routine, height, width) else "any"
    if of_vae or is_attention or routine == "ip_embeddings":
        yield "one" if batch == 1 else "many"
    if of_vae and layout.is_cut:
        yield "cut"
    if layout.is_planar and routine.startswith(("vae._encode", "vae.encoder")):
        yield "planar"
    # Latents that are channels_last make a ControlNet's feature maps so, whose own weights never are.
    if are_latents_in_rows(request) and (of_vae or _is_in_unet(kind) or routine in ("controlnet", "controlnets")):
        yield "rows"
    # The UNet's own frame is the same whatever its blocks copy.
    if routine != "unet" and (copied := copied_upsamplers(routine, request, batch, height, width)):
        yield f"copied{''.join(map(str, copied))}"


def copied_upsamplers(
    routine: str, request: GenerationRequest, batch: int, latent_height: int, latent_width: int
) -> tuple[int, ...]:
    """Give the indices of the routine's upsamplers that copy a channels_last input.

    Without the option, the UNet's feature maps never are channels_last, and the VAE decoder's are for several images.
    """
    if routine.startswith("up.") and request.is_unet_in_rows:
        own = int(routine.removeprefix("up."))
        return tuple(index for index in copied_in_unet(batch, latent_height, latent_width) if index == own)
    if routine == "unet" and request.is_unet_in_rows:
        return copied_in_unet(batch, latent_height, latent_width)
    if routine in ("vae._decode", "vae.decoder") and (request.channels_last or batch > 1):
        return copied_in_vae(batch, latent_height, latent_width)
    return ()


def is_pixel(routine: str, latent_height: int, latent_width: int) -> bool:
    """Tell whether the routine's smallest feature map is one pixel.

    The UNet and the ControlNets halve the latent three times.
    """
    smallest = 1 if routine.startswith("vae.") else VAE_SCALE_FACTOR
    return max(latent_height, latent_width) <= smallest


def pipeline_name(request: GenerationRequest) -> str:
    """Name the routine of the request's pipeline call."""
    parts = [request.task, request.guidance, f"steps{min(request.steps, MAX_TRACED_STEPS)}"]
    if request.controlnets:
        parts.append("controlnet" if request.controlnets == 1 else "controlnets")
    if request.ip_adapter != "none":
        parts.append("ip")
    if request.task == "inpaint" and request.images_per_prompt > 1:
        # Masks and masked images are repeated on the GPU then.
        parts.append("repeated")
    if not request.is_half:
        parts.append(request.dtype)
    return "/".join(parts)


def weights_name(component: str, request: GenerationRequest) -> str:
    """Name the list of the component's weights that this request loads."""
    parts = [component]
    if component == "unet":
        parts += ["inpaint"] * (request.task == "inpaint")
        parts += [request.ip_adapter] * (request.ip_adapter != "none") + ["lora"] * bool(request.lora_rank)
    elif component == "text_encoder" and request.lora_text_encoder:
        parts.append("lora")
    return "/".join(parts)
