"""Write the planned pipeline call as a Python script, ready to run on a machine with a GPU."""

from collections.abc import Iterator

from planner.components import MODEL_ID, MODEL_REVISION
from planner.request import GenerationRequest, field_named

# Source: diffusers 0.42.1, StableDiffusionImg2ImgPipeline.__call__.
DEFAULT_STRENGTH = 0.8
_PROMPT = "a fantasy landscape, trending on artstation"
# Published weights for SD v1.5. Their revisions are not pinned, so that a script says what its user would write.
INPAINT_MODEL_ID = "stable-diffusion-v1-5/stable-diffusion-inpainting"
CONTROLNET_IDS = (
    "lllyasviel/control_v11p_sd15_canny",
    "lllyasviel/control_v11f1p_sd15_depth",
    "lllyasviel/control_v11p_sd15_openpose",
    "lllyasviel/control_v11p_sd15_lineart",
)
IP_ADAPTER_ID = "h94/IP-Adapter"
IP_ADAPTER_FILES = {"base": "ip-adapter_sd15.bin", "plus": "ip-adapter-plus_sd15.bin"}
LORA_FILE = "lora.safetensors"
ALLOCATOR_LINE = 'os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"'
# The options that the VAE and the attention have, each a line by its field, in the order in which diffusers wants them:
# attention slicing replaces the processors that were set before.
_SWITCHED = ("vae_tiling", "vae_slicing", "attention_slicing")


def attention_lines(request: GenerationRequest) -> list[str]:
    """List the lines that set the attention processors; none for diffusers' default."""
    if request.attention == "xformers":
        return ["pipe.enable_xformers_memory_efficient_attention()"]
    if request.attention == "eager":
        nets = ["net"] if request.controlnets else []
        lines = [f"{module}.set_attn_processor(AttnProcessor())" for module in ("pipe.unet", "pipe.vae")]
        return lines + [f"for net in controlnets:\n    {net}.set_attn_processor(AttnProcessor())" for net in nets]
    return []


def _imports(request: GenerationRequest) -> list[str]:
    names = {one.class_name for one in request.passes()} | ({"ControlNetModel"} if request.controlnets else set())
    lines = ["import torch", f"from diffusers import {', '.join(sorted(names))}"]
    if request.attention == "eager":
        lines.append("from diffusers.models.attention_processor import AttnProcessor")
    if request.task != "txt2img" or request.controlnets or request.ip_adapter != "none":
        lines.append("from PIL import Image")
    if request.allocator == "default":
        return lines
    # torch reads the variable as it starts to use the GPU.
    return ["import os", "", ALLOCATOR_LINE, "", *lines]


def _loading(request: GenerationRequest) -> Iterator[str]:
    """Write the lines that load the pipeline."""
    dtype = f"torch.{request.dtype}"
    if request.controlnets:
        yield "controlnets = ["
        for name in CONTROLNET_IDS[: request.controlnets]:
            yield f'    ControlNetModel.from_pretrained("{name}", torch_dtype={dtype}),'
        yield "]"
    yield f"pipe = {request.class_name}.from_pretrained("
    if request.task == "inpaint":
        yield f'    "{INPAINT_MODEL_ID}",'
    else:
        yield f'    "{MODEL_ID}",'
        yield f'    revision="{MODEL_REVISION}",'
    if request.controlnets:
        yield f"    controlnet={'controlnets[0]' if request.controlnets == 1 else 'controlnets'},"
    if request.dtype == "float16":
        yield '    variant="fp16",'
    yield f"    dtype={dtype},"
    yield "    use_safetensors=True,"
    if not request.safety_checker:
        yield "    safety_checker=None,"
        yield "    requires_safety_checker=False,"
    yield ")"


def _options(request: GenerationRequest) -> Iterator[str]:
    """Write the lines that switch the pipeline's options on and put it on the GPU."""
    # An IP-Adapter's own processors take the place of some of these, so that these come first.
    yield from attention_lines(request)
    if request.ip_adapter != "none":
        file = IP_ADAPTER_FILES[request.ip_adapter]
        yield f'pipe.load_ip_adapter("{IP_ADAPTER_ID}", subfolder="models", weight_name="{file}")'
    if request.lora_rank:
        on_text = "the UNet and the text encoder" if request.lora_text_encoder else "the UNet alone"
        yield f"# Put your own LoRA here, of rank {request.lora_rank}, on {on_text}."
        yield f'pipe.load_lora_weights("{LORA_FILE}")'
    in_rows = ("unet", "vae") if request.channels_last else ("unet",) if request.channels_last_unet else ()
    for module in in_rows:
        yield f"pipe.{module}.to(memory_format=torch.channels_last)"
    yield _placing(request, "pipe")
    for field in map(field_named, _SWITCHED):
        if value := getattr(request, field.name):
            yield field.code(value)


def _placing(request: GenerationRequest, name: str) -> str:
    line = 'pipe.to("cuda")' if request.offload == "none" else field_named("offload").code(request.offload)
    return line.replace("pipe", name, 1)


def _inputs(request: GenerationRequest) -> Iterator[str]:
    """Write the lines that make the inputs of the first call."""
    yield f'prompts = ["{_PROMPT}"] * {request.batch}'
    size = f"({request.width}, {request.height})"
    if request.task != "txt2img":
        yield "# Put your own images here, of this size."
        yield f'inputs = [Image.new("RGB", {size}, "gray")] * {request.batch}'
    if request.task == "inpaint":
        yield "# White is painted anew."
        yield f'masks = [Image.new("L", {size}, "white")] * {request.batch}'
    if request.controlnets:
        yield "# Put your own control images here."
        yield f'controls = [Image.new("RGB", {size}, "gray")] * {_controls(request)}'
    if request.ip_adapter != "none":
        yield "# The picture that the IP-Adapter follows."
        yield f'reference = Image.new("RGB", {size}, "gray")'


def _controls(request: GenerationRequest) -> int:
    """Count the control images.

    One ControlNet takes one for each prompt, several share one each among all prompts.
    """
    return request.batch if request.controlnets == 1 else request.controlnets


def _call(request: GenerationRequest, of: str = "pipe", images: str = "inputs") -> Iterator[str]:
    """Write the lines of one pipeline call."""
    size = [f"    width={request.effective_width},", f"    height={request.effective_height},"]
    yield f"images = {of}("
    yield "    prompt=prompts,"
    if request.task == "img2img":
        yield f"    image={images},"
        # With the default strength of 0.8 a single step would round to zero steps.
        yield f"    strength={max(DEFAULT_STRENGTH, 1 / request.steps)},"
    elif request.task == "inpaint":
        yield f"    image={images},"
        yield "    mask_image=masks,"
    if request.controlnets:
        yield f"    {'image' if request.task == 'txt2img' else 'control_image'}=controls,"
    if request.task != "img2img" or request.controlnets:
        yield from size
    if request.ip_adapter != "none":
        yield "    ip_adapter_image=reference,"
    if request.images_per_prompt > 1:
        yield f"    num_images_per_prompt={request.images_per_prompt},"
    yield f"    num_inference_steps={request.steps},"
    yield f"    guidance_scale={request.guidance_scale},"
    # The plan assumes that the host draws the latents.
    yield "    generator=torch.Generator().manual_seed(0),"
    yield ").images"


def _second(request: GenerationRequest) -> Iterator[str]:
    """Write the second call of hires fix: img2img on the same components, at the larger size."""
    second = request.passes()[1]
    size = f"({second.width}, {second.height})"
    has_checker = request.safety_checker
    yield ""
    # from_pipe would cast to float32 unless it is told the type, and loses the hooks of offload.
    yield f"again = {second.class_name}(**pipe.components, requires_safety_checker={has_checker})"
    if request.offload != "none":
        yield _placing(request, "again")
    if request.images_per_prompt > 1:
        yield "# One picture of each prompt is refined as many times as it was drawn."
        yield f"images = images[:: {request.images_per_prompt}]"
    yield f"larger = [image.resize({size}) for image in images]"
    if request.controlnets:
        yield f"controls = [image.resize({size}) for image in controls]"
    yield from _call(second, "again", "larger")


def snippet(request: GenerationRequest) -> str:
    """Write a script that makes the pipeline call of this request and prints the reserved peak."""
    first, *others = request.passes()
    return "\n".join(
        [
            f"# {request.describe()}",
            *_imports(request),
            "",
            *_loading(request),
            *_options(request),
            "",
            *_inputs(request),
            "",
            *_call(first),
            *(_second(request) if others else ()),
            "",
            "for number, image in enumerate(images):",
            '    image.save(f"image-{number}.png")',
            "# The plan's need is this peak and the CUDA context, which torch does not count.",
            'print(f"{torch.cuda.max_memory_reserved() / 2**30:.2f} GiB reserved at the peak")',
            "",
        ]
    )
