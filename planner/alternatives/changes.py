"""List the changes of a request that may save memory."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from planner.cards.lookup import Card
from planner.components import PIPELINE_CLASSES, SD_V15, STAGES, VAE_TILE
from planner.request import VAE_SCALE_FACTOR, GenerationRequest, field_named
from planner.units import gib

_VAE = ("vae_encoder", "vae_decoder")
_MOVED_BYTES = sum(SD_V15.weights_bytes(component) for component in ("text_encoder", "unet", "vae"))
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
        cost=f"The same pictures. Every call copies {gib(_MOVED_BYTES)} of weights over PCIe to the GPU, and host "
        "memory must hold them in between. It stands in place of pipe.to.",
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
        key="offload",
        title="Offload off",
        fields=(("offload", "none"),),
        rank=0.5,
        cost="None: the same pictures, and no weights are copied at each call. It stands in place of offloading.",
        code=('pipe.to("cuda")',),
        raises="all weights are on the GPU at once",
    ),
)


def settings_for(request: GenerationRequest) -> Iterator[Change]:
    """List the changes of settings that this request has left, in the order to try."""
    on = [change for change in _SETTINGS if _is_open(change, request)]
    undone = [change for change in _UNDONE if _is_open(change, request)]
    for change in sorted(undone + on, key=lambda change: change.rank):
        yield replace(change, code=tuple(line.format(pipeline=PIPELINE_CLASSES[request.task]) for line in change.code))


def _is_open(change: Change, request: GenerationRequest) -> bool:
    if change.key == "guidance_scale":
        # A request without guidance has no use for another scale below 1.
        return request.guidance_scale > 1
    return any(getattr(request, name) != value for name, value in change.fields)


def why_inert(change: Change, request: GenerationRequest) -> str | None:
    """Say why this change moves no memory of this request, or None where it moves some."""
    if change.key == "vae_slicing" and request.batch == 1:
        return "Does nothing at batch 1: there are no images to take one by one."
    if change.key == "vae_tiling" and max(request.latent_width, request.latent_height) <= VAE_TILE:
        side = VAE_TILE * VAE_SCALE_FACTOR
        return f"Does nothing up to {side}×{side}: the image is a single tile."
    return None


def to_batch(request: GenerationRequest, batch: int) -> Change:
    """Split the same work into several calls."""
    calls = -(-request.batch // batch)
    images = f", images[:{batch}]" if request.task == "img2img" else ""
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
    is_image = request.task == "img2img"
    return Change(
        key="size",
        title=f"{width}×{height}",
        fields=(("width", width), ("height", height)),
        rank=10,
        cost=f"A smaller picture: {share:.0%} of the pixels, in less time."
        + (f" Needs jump from size to size: {beyond}, larger than asked for, fits too." if beyond else ""),
        code=(f"image = image.resize(({width}, {height}))",)
        if is_image
        else (f"pipe(..., width={width}, height={height})",),
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
