"""Tell which requests one resident pipeline can serve, one after another."""

from typing import Any

from planner.request import OPTIONS, GenerationRequest

# The options that a resident pipeline takes up or leaves from one run to the next.
_OF_A_RUN = ("vae_tiling", "vae_slicing", "images_per_prompt", "hires")


def pipeline_key(request: GenerationRequest) -> tuple[Any, ...]:
    """Give the key of the pipeline and the process that this request needs; keys sort, defaults first.

    The inpainting UNet is another one. Hooks of offload belong to one pipeline object, so with them the task counts.
    """
    form = request.allocation_form()
    values = [(getattr(form, field.name), field.default) for field in OPTIONS if field.name not in _OF_A_RUN]
    task = request.task if request.task == "inpaint" or request.offload != "none" else ""
    return (request.offload != "none", *((value != default, value) for value, default in values), task)
