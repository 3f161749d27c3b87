"""Write the planned pipeline call as a Python script, ready to run on a machine with a GPU."""

from planner.components import MODEL_ID, MODEL_REVISION, PIPELINE_CLASSES
from planner.request import OPTIONS, GenerationRequest, field_named

# Source: diffusers 0.42.1, StableDiffusionImg2ImgPipeline.__call__.
DEFAULT_STRENGTH = 0.8
_PROMPT = "a fantasy landscape, trending on artstation"


def _options(request: GenerationRequest) -> list[str]:
    """List the lines that put the pipeline on the GPU and switch its options on."""
    lines = []
    if request.channels_last:
        lines += [f"pipe.{module}.to(memory_format=torch.channels_last)" for module in ("unet", "vae")]
    offload = field_named("offload")
    lines.append('pipe.to("cuda")' if request.offload == "none" else offload.code(request.offload))
    switched = (field for field in OPTIONS if field.call and field != offload)
    return lines + [field.code(value) for field in switched if (value := getattr(request, field.name)) != field.default]


def _loading(request: GenerationRequest) -> list[str]:
    lines = [
        f"pipe = {PIPELINE_CLASSES[request.task]}.from_pretrained(",
        f'    "{MODEL_ID}",',
        f'    revision="{MODEL_REVISION}",',
        '    variant="fp16",',
        "    dtype=torch.float16,",
        "    use_safetensors=True,",
    ]
    if not request.safety_checker:
        lines += ["    safety_checker=None,", "    requires_safety_checker=False,"]
    return [*lines, ")"]


def _call(request: GenerationRequest) -> list[str]:
    lines = ["images = pipe(", "    prompt=prompts,"]
    if request.task == "img2img":
        # With the default strength of 0.8 a single step would round to zero steps.
        lines += ["    image=inputs,", f"    strength={max(DEFAULT_STRENGTH, 1 / request.steps)},"]
    else:
        lines += [f"    width={request.width},", f"    height={request.height},"]
    return [
        *lines,
        f"    num_inference_steps={request.steps},",
        f"    guidance_scale={request.guidance_scale},",
        # The plan assumes that the host draws the latents.
        "    generator=torch.Generator().manual_seed(0),",
        ").images",
    ]


def snippet(request: GenerationRequest) -> str:
    """Write a script that makes the pipeline call of this request and prints the reserved peak."""
    is_image = request.task == "img2img"
    inputs = [
        "# Put your own images here, of this size.",
        f'inputs = [Image.new("RGB", ({request.width}, {request.height}), "gray")] * {request.batch}',
    ]
    return "\n".join(
        [
            f"# {request.describe()}",
            "import torch",
            f"from diffusers import {PIPELINE_CLASSES[request.task]}",
            *(["from PIL import Image"] if is_image else []),
            "",
            *_loading(request),
            *_options(request),
            "",
            f'prompts = ["{_PROMPT}"] * {request.batch}',
            *(inputs if is_image else []),
            "",
            *_call(request),
            "",
            "for number, image in enumerate(images):",
            '    image.save(f"image-{number}.png")',
            "# The plan's need is this peak and the CUDA context, which torch does not count.",
            'print(f"{torch.cuda.max_memory_reserved() / 2**30:.2f} GiB reserved at the peak")',
            "",
        ]
    )
