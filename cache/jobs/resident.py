"""Tell which requests one resident pipeline can serve, one after another."""

from typing import Any

from planner.request import OPTIONS, GenerationRequest

# The options that a resident pipeline takes up or leaves from one run to the next.
_OF_A_RUN = ("vae_tiling", "vae_slicing", "images_per_prompt", "hires")
# All others are built into it, or into its process; each with its default.
_BUILT_IN = {field.name: field.default for field in OPTIONS if field.name not in _OF_A_RUN}


def pipeline_key(request: GenerationRequest) -> tuple[Any, ...]:
    """Give the key of the pipeline and the process that this request needs; keys sort, defaults first.

    The inpainting UNet is another one. Hooks of offload belong to one pipeline object, so with them the task counts.
    """
    values = {name: getattr(request, name) for name in _BUILT_IN}
    # channels_last for all covers that of the UNet alone.
    values["channels_last_unet"] &= not request.channels_last
    task = request.task if request.task == "inpaint" or request.offload != "none" else ""
    changed = ((value != _BUILT_IN[name], value) for name, value in values.items())
    return (request.offload != "none", *changed, task)
