"""List the changes of a request that may save memory."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from planner.cards.lookup import Card
from planner.components import SD_V15, STAGES, VAE_TILE
from planner.errors import InvalidArgument
from planner.request import VAE_SCALE_FACTOR, GenerationRequest, field_named
from planner.units import gib

_VAE = ("vae_encoder", "vae_decoder")
_FLOAT16_BYTES = sum(SD_V15.weights_bytes(component) for component in ("text_encoder", "unet", "vae"))
_BOTH = ("pipe.unet", "pipe.vae")


@dataclass(frozen=True, kw_only=True)
class Change:
    """Describe a change of a request's fields or, where `fields` is empty, of the GPU.

    `touches` are the stages whose memory it moves. `rank` is the order in which to try: free changes first, those that
    give up most last. `cost` says what it costs in time or in the picture, and `code` has the lines to write. `raises`
    says why it may take more memory, where that is known.
    """

    key: str
    title: str
    fields: tuple[tuple[str, Any], ...]
    rank: float
    cost: str
    code: tuple[str, ...]
    touches: tuple[str, ...] = STAGES
    raises: str = ""

    def of(self, request: GenerationRequest) -> GenerationRequest:
        """Apply this change to the request."""
        return GenerationRequest.from_dict(request.to_dict() | dict(self.fields))


def _switched(name: str, value: Any, rank: float, cost: str, title: str | None = None, **more: Any) -> Change:
    """Make the change that puts an option of the pipeline to a value, by its own label and line of code."""
    field = field_named(name)
    change = Change(
        key=name, title=title or field.label, fields=((name, value),), rank=rank, cost=cost, code=(field.code(value),)
    )
    return replace(change, **more)


# Sources: diffusers 0.42.1, AutoencoderKL and DiffusionPipeline.enable_attention_slicing; accelerate's hooks.
_SETTINGS = (
    _switched(
        "vae_slicing",
        True,
        rank=1,
        touches=_VAE,
        cost="The same pictures. The VAE takes one image after another; nothing else is slower.",
    ),
    Change(
        key="channels_last",
        title="channels_last",
        fields=(("channels_last", True),),
        rank=2,
        touches=("unet", *_VAE),
        cost="The same pictures but for rounding, as a rule no slower on tensor cores. What it saves is an assumption "
        "that no measured run has confirmed.",
        code=tuple(f"{module}.to(memory_format=torch.channels_last)" for module in _BOTH),
    ),
    _switched(
        "vae_tiling",
        True,
        rank=3,
        touches=_VAE,
        cost="The picture changes a little: tiles of 512 pixels are blended where they overlap, and their tones may "
        "differ. The VAE computes the overlaps twice, up to 1.8 times its work.",
    ),
    _switched(
        "offload",
        "model",
        title="Model offload",
        rank=5,
        cost="The same pictures. Every call copies {moved} of weights over PCIe to the GPU, and host memory must hold "
        "them in between. It stands in place of pipe.to.",
    ),
    Change(
        key="allocator",
        title="Expandable segments",
        fields=(("allocator", "expandable"),),
        rank=1.5,
        cost="The same pictures, as fast. torch reads the variable as the process first uses the GPU; it is for Linux.",
        code=('os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"',),
    ),
    Change(
        key="channels_last_unet",
        title="channels_last, UNet alone",
        fields=(("channels_last_unet", True),),
        rank=2.1,
        touches=("unet",),
        cost="The same pictures but for rounding, as a rule no slower on tensor cores. What it saves is an assumption "
        "that no measured run has confirmed.",
        code=("pipe.unet.to(memory_format=torch.channels_last)",),
    ),
    Change(
        key="offload_sequential",
        title="Sequential offload",
        fields=(("offload", "sequential"),),
        rank=6.5,
        cost="The same pictures, many times slower: each layer's weights are copied over PCIe whenever it runs, in "
        "every step. It stands in place of pipe.to.",
        code=("pipe.enable_sequential_cpu_offload()",),
    ),
    Change(
        key="ip_adapter",
        title="No IP-Adapter",
        fields=(("ip_adapter", "none"),),
        rank=9.6,
        cost="Another picture: nothing follows the reference picture any more. A last resort. A little faster.",
        code=("pipe.unload_ip_adapter()",),
    ),
    _switched(
        "attention_slicing",
        True,
        rank=6,
        touches=("unet",),
        cost="The same pictures, but serious slow-downs: diffusers warns against it where attention is fused, as here.",
        raises="without the fused kernels attention keeps a matrix of tokens by tokens",
    ),
    Change(
        key="safety_checker",
        title="No safety checker",
        fields=(("safety_checker", False),),
        rank=8,
        cost="Nobody looks at the pictures any more: diffusers asks to keep the checker in anything that faces the "
        "public. A little faster.",
        code=("pipe = {pipeline}.from_pretrained(..., safety_checker=None, requires_safety_checker=False)",),
    ),
    Change(
        key="guidance_scale",
        title="No guidance",
        fields=(("guidance_scale", 1.0),),
        rank=9,
        touches=("text_encoder", "unet"),
        cost="Another picture: it follows the prompt far less, and a negative prompt not at all. Half the UNet's work.",
        code=("pipe(..., guidance_scale=1.0)",),
    ),
)
# Settings that are on already, and may take more memory than they save.
_UNDONE = (
    Change(
        key="attention_slicing",
        title="Attention slicing off",
        fields=(("attention_slicing", False),),
        rank=0,
        touches=("unet",),
        cost="None: the same pictures, and the fused kernels are faster.",
        code=("pipe.disable_attention_slicing()",),
    ),
    Change(
        key="channels_last",
        title="channels_last off",
        fields=(("channels_last", False),),
        rank=2,
        touches=("unet", *_VAE),
        cost="The same pictures but for rounding; the default layout may be slower on tensor cores.",
        code=tuple(f"{module}.to(memory_format=torch.contiguous_format)" for module in _BOTH),
    ),
    Change(
        key="channels_last_unet",
        title="channels_last off, UNet alone",
        fields=(("channels_last_unet", False),),
        rank=2.1,
        touches=("unet",),
        cost="The same pictures but for rounding; the default layout may be slower on tensor cores.",
        code=("pipe.unet.to(memory_format=torch.contiguous_format)",),
    ),
    Change(
        key="attention",
        title="Fused attention",
        fields=(("attention", "sdpa"),),
        rank=0.1,
        cost="None: the same pictures but for rounding, and fused kernels are faster. It is diffusers' default; set it "
        "before an IP-Adapter is loaded, which sets processors of its own.",
        code=tuple(f"{module}.set_attn_processor(AttnProcessor2_0())" for module in _BOTH),
    ),
    Change(
        key="lora_rank",
        title="LoRA fused",
        fields=(("lora_rank", 0), ("lora_text_encoder", False)),
        rank=0.2,
        touches=("text_encoder", "unet"),
        cost="The same pictures but for rounding, and faster: the LoRA becomes part of the weights. Its scale is fixed "
        "from then on, and another LoRA takes a new pipeline.",
        code=("pipe.fuse_lora()", "pipe.unload_lora_weights()"),
    ),
    Change(
        key="dtype",
        title="float16",
        fields=(("dtype", "float16"),),
        rank=0.3,
        cost="The same pictures but for rounding, and faster on tensor cores.",
        code=('pipe = {pipeline}.from_pretrained(..., variant="fp16", dtype=torch.float16)',),
    ),
    Change(
        # An offload of the other kind has the key of its field.
        key="no_offload",
        title="Offload off",
        fields=(("offload", "none"),),
        rank=0.5,
        cost="None: the same pictures, and no weights are copied at each call. It stands in place of offloading.",
        code=('pipe.to("cuda")',),
        raises="all weights are on the GPU at once",
    ),
)


# What takes something from the picture that was asked for. Combinations leave these out.
LAST_RESORTS = ("ip_adapter", "controlnets")


def settings_for(request: GenerationRequest) -> Iterator[Change]:
    """List the changes of settings that this request has left, in the order to try."""
    every = [*_UNDONE, *_SETTINGS, *_fewer(request)]
    for change in sorted((one for one in every if _is_open(one, request)), key=lambda one: one.rank):
        pipeline = change.of(request).class_name
        code = tuple(line.replace("{pipeline}", pipeline) for line in change.code)
        yield replace(change, code=code, cost=change.cost.replace("{moved}", _moved(request)))


def _moved(request: GenerationRequest) -> str:
    """Say how many bytes of weights model offload copies for each call."""
    adds = request.controlnets or request.lora_rank or request.ip_adapter != "none"
    return ("more than " if adds else "") + gib(_FLOAT16_BYTES * request.element_bytes // 2)


def _fewer(request: GenerationRequest) -> Iterator[Change]:
    """List the changes that ask for less of what this request has several of."""
    if request.images_per_prompt > 1:
        yield Change(
            key="images_per_prompt",
            title="1 image per prompt",
            fields=(("images_per_prompt", 1),),
            rank=3.9,
            cost=f"As many pictures from {request.images_per_prompt} calls in place of one; small batches keep the GPU "
            "less busy.",
            code=("pipe(..., num_images_per_prompt=1)",),
        )
    if request.controlnets:
        left = request.controlnets - 1
        nets = "" if not left else ", controlnet=controlnets[0]" if left == 1 else f", controlnet=controlnets[:{left}]"
        yield Change(
            key="controlnets",
            title={0: "No ControlNet", 1: "1 ControlNet"}.get(left, f"{left} ControlNets"),
            fields=(("controlnets", left),),
            rank=9.5,
            cost="Another picture: it no longer follows one of the control images. A last resort. Faster.",
            code=(f"pipe = {{pipeline}}.from_pretrained(...{nets})",),
        )


def _is_open(change: Change, request: GenerationRequest) -> bool:
    """Tell whether the change changes something, and nothing refuses the result."""
    if change.key == "guidance_scale":
        # A request without guidance has no use for another scale below 1.
        return request.guidance_scale > 1
    if change.key == "channels_last_unet" and request.channels_last:
        return False
    if change.key == "attention" and request.attention != "eager":
        return False
    if change.key == "dtype" and request.is_half:
        return False
    if change.key == "lora_rank" and not request.lora_rank:
        return False
    try:
        return change.of(request) != request
    except InvalidArgument:
        # Attention slicing, for one, goes with no IP-Adapter.
        return False


def why_inert(change: Change, request: GenerationRequest) -> str | None:
    """Say why this change moves no memory of this request, or None where it moves some."""
    if change.key == "vae_slicing" and request.images == 1:
        return "Does nothing at batch 1: there are no images to take one by one."
    passes = request.passes()
    if change.key == "vae_tiling" and max(max(one.latent_width, one.latent_height) for one in passes) <= VAE_TILE:
        side = VAE_TILE * VAE_SCALE_FACTOR
        return f"Does nothing up to {side}×{side}: the image is a single tile."
    return None


def to_batch(request: GenerationRequest, batch: int) -> Change:
    """Split the same work into several calls."""
    calls = -(-request.batch // batch)
    images = "" if request.task == "txt2img" else f", images[:{batch}]"
    images += f", masks[:{batch}]" if request.task == "inpaint" else ""
    return Change(
        key="batch",
        title=f"Batch {batch}",
        fields=(("batch", batch),),
        rank=4,
        cost=f"The same pictures from {calls} calls in place of one; small batches keep the GPU less busy.",
        code=(f"pipe(prompts[:{batch}]{images}, ...)",),
    )


def to_size(request: GenerationRequest, width: int, height: int, beyond: str | None = None) -> Change:
    """Make the picture smaller.

    `beyond` is a larger size that fits although the request's own does not.
    """
    share = width * height / (request.effective_width * request.effective_height)
    return Change(
        key="size",
        title=f"{width}×{height}",
        fields=(("width", width), ("height", height)),
        rank=10,
        cost=f"A smaller picture: {share:.0%} of the pixels, in less time."
        + (f" Needs jump from size to size: {beyond}, larger than asked for, fits too." if beyond else ""),
        code=_sized(request, width, height),
    )


def _sized(request: GenerationRequest, width: int, height: int) -> tuple[str, ...]:
    """Write the line that sets the size: img2img takes its image's, unless it has ControlNets."""
    if request.task == "img2img" and not request.controlnets:
        return (f"image = image.resize(({width}, {height}))",)
    return (f"pipe(..., width={width}, height={height})",)


def to_near_size(request: GenerationRequest, width: int, height: int) -> Change:
    """Make the picture a few pixels smaller or larger, where blocks of memory happen to be cut better."""
    share = width * height / (request.effective_width * request.effective_height)
    pixels = abs(width - request.effective_width)
    size = "larger" if share > 1 else "smaller"
    return Change(
        key="near_size",
        title=f"{width}×{height}, {pixels} pixels {size}",
        fields=(("width", width), ("height", height)),
        rank=3.5,
        cost=f"A slightly {size} picture: {share:.1%} of the pixels. Needs jump from size to size, as blocks of memory "
        "happen to be cut.",
        code=_sized(request, width, height),
    )


def to_workers(workers: int, sharing: int) -> Change:
    """Let fewer processes share the same GPU, so that each has a larger share."""
    alone = "one process has the GPU alone" if workers == 1 else f"{workers} processes share it"
    return Change(
        key="workers",
        title="1 worker per GPU" if workers == 1 else f"{workers} workers per GPU",
        fields=(),
        rank=4.5,
        cost=f"The same pictures and code: {alone} in place of {sharing}, so that as much at a time takes more GPUs. "
        "The setting holds for every GPU of a plan.",
        code=(),
    )


def to_card(card: Card) -> Change:
    """Run the same request on another GPU."""
    where = f", rented as {' or '.join(card.cloud)}" if card.cloud else ""
    return Change(
        key="card",
        title=card.name,
        fields=(),
        rank=7,
        cost=f"Another GPU: {gib(card.usable_bytes)} usable{where}. Nothing changes in the code or the picture.",
        code=(),
    )
