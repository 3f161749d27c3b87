"""A request for one pipeline call: a frozen, checked, hashable value.

A request knows nothing of cards, storage or answers. Two requests that run the same work are equal in
`request_id`, which is a hash of the canonical form (effective sizes, sorted keys, no insignificant white space).

The attributes of `GenerationRequest` are the one list of request fields: the command line, the address, the page's
controls, the history's columns, the import checks and the remedies read it as `FIELDS`.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, NamedTuple, Self

from planner.components import CONTROLNET_CLASSES, MAX_TRACED_STEPS, PIPELINE_CLASSES, VAE_TILE
from planner.errors import InvalidArgument
from planner.fields import Choice, Field, Number, Switch, Whole, did_you_mean, named_fields, row

Task = Literal["img2img", "txt2img", "inpaint"]
Offload = Literal["none", "model", "sequential"]
Dtype = Literal["float16", "bfloat16", "float32"]
IpAdapter = Literal["none", "base", "plus"]
AttentionKind = Literal["sdpa", "xformers", "eager"]
AllocatorKind = Literal["default", "expandable"]

TASKS: tuple[Task, ...] = ("img2img", "txt2img", "inpaint")
OFFLOADS: tuple[Offload, ...] = ("none", "model", "sequential")
DTYPES: tuple[Dtype, ...] = ("float16", "bfloat16", "float32")
IP_ADAPTERS: tuple[IpAdapter, ...] = ("none", "base", "plus")
ATTENTION_KINDS: tuple[AttentionKind, ...] = ("sdpa", "xformers", "eager")
ALLOCATORS: tuple[AllocatorKind, ...] = ("default", "expandable")

# diffusers 0.42.1: 2 ** (len(vae.config.block_out_channels) - 1) with SD v1.5's four blocks.
VAE_SCALE_FACTOR = 8

# CLIPTokenizer.model_max_length of SD v1.5: the pipeline pads and truncates every prompt to this.
MAX_PROMPT_TOKENS = 77

# Limits that keep a typing mistake from becoming a denial of service.
MIN_SIDE, MAX_SIDE = 64, 8192
MAX_BATCH = 128
MAX_STEPS = 1000
MAX_GUIDANCE_SCALE = 100.0
MAX_CONTROLNETS = 4
MAX_LORA_RANK = 512
MAX_HIRES = 8.0

_SIDE_HELP = f"{MIN_SIDE} to {MAX_SIDE} pixels. txt2img needs a multiple of 8; img2img rounds down to one."


def nearest_multiples(side: int) -> tuple[int, ...]:
    """List the multiples of 8 on both sides of `side` that are allowed sizes, smaller first."""
    below = side // VAE_SCALE_FACTOR * VAE_SCALE_FACTOR
    return tuple(s for s in (below, below + VAE_SCALE_FACTOR) if MIN_SIDE <= s <= MAX_SIDE)


class Need(NamedTuple):
    """Describe what an option needs of the other fields, at any value but its default."""

    is_met: Callable[[Mapping[str, Any]], bool]
    rule: str
    way_out: str


# SlicedAttnProcessor takes the place of the IP-Adapter's processors, and fails on its pair of inputs.
_NEEDS: dict[str, Need] = {
    "lora_text_encoder": Need(
        lambda values: values["lora_rank"] > 0, "needs a LoRA rank of 1 or more", "for example: 16"
    ),
    "ip_adapter": Need(
        lambda values: not values["attention_slicing"],
        "must be none with attention slicing, which replaces the IP-Adapter's attention processors",
        "leave attention slicing off",
    ),
    "attention_slicing": Need(
        lambda values: values["ip_adapter"] == "none",
        "must be off with an IP-Adapter, whose attention processors it would replace",
        "ip_adapter none",
    ),
    "hires": Need(
        lambda values: values["task"] == "txt2img",
        "must be 1 but for txt2img, which the first pass is",
        "task txt2img",
    ),
}


def unmet(name: str, values: Mapping[str, Any]) -> Need | None:
    """Give the need of this option that these values do not meet, or None."""
    need = _NEEDS.get(name)
    return None if need is None or need.is_met(values) else need


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationRequest:
    """One call of the Stable Diffusion v1.5 pipeline.

    `batch` counts independent requests served together: that many prompts and, for img2img, that many images.

    Raises:
        InvalidArgument: a field breaks its rule; the message has the rule, the value and the nearest way out.
    """

    task: Task = row(
        Choice(
            default="img2img",
            choices=TASKS,
            label="Task",
            help="img2img starts from an image, txt2img from noise alone, inpaint from an image and a mask, on the "
            "inpainting UNet of nine input channels.",
        )
    )
    width: int = row(
        Whole(default=512, low=MIN_SIDE, high=MAX_SIDE, step=VAE_SCALE_FACTOR, label="Width, px", help=_SIDE_HELP)
    )
    height: int = row(
        Whole(default=512, low=MIN_SIDE, high=MAX_SIDE, step=VAE_SCALE_FACTOR, label="Height, px", help=_SIDE_HELP)
    )
    batch: int = row(
        Whole(
            default=1,
            low=1,
            high=MAX_BATCH,
            label="Batch",
            help="Requests served together: that many prompts and, for img2img, that many images.",
        )
    )
    images_per_prompt: int = row(
        Whole(
            default=1,
            low=1,
            high=MAX_BATCH,
            label="Images per prompt",
            help="`num_images_per_prompt`: so many pictures of each prompt. The batch times this is what the UNet and "
            "the VAE decoder work on.",
            is_later=True,
        )
    )
    prompt_tokens: int = row(
        Whole(
            default=MAX_PROMPT_TOKENS,
            low=1,
            high=MAX_PROMPT_TOKENS,
            label="Prompt tokens",
            help="CLIP tokens of the prompt, start and end included. The pipeline pads every prompt to 77, so this "
            "changes the formula and nothing else.",
            changes="formula",
        )
    )
    guidance_scale: float = row(
        Number(
            default=7.5,
            low=0.0,
            high=MAX_GUIDANCE_SCALE,
            step=0.5,
            label="Guidance scale",
            help="Above 1 the UNet runs on twice the batch.",
        )
    )
    steps: int = row(
        Whole(
            default=50,
            low=1,
            high=MAX_STEPS,
            label="Steps",
            help="Denoising steps. They take time and do not move the peak. img2img runs four in five, at its default "
            "strength of 0.8.",
            changes="time",
        )
    )
    safety_checker: bool = row(
        Switch(
            default=True,
            label="Safety checker",
            group="Pipeline",
            help="A fourth model on the GPU, run on every picture. The pipeline loads it by default.",
            evidence="full",
        )
    )
    vae_tiling: bool = row(
        Switch(
            default=False,
            label="VAE tiling",
            group="Memory savers",
            help="`pipe.vae.enable_tiling()`: encode and decode in tiles.",
            evidence="half",
            call="pipe.vae.enable_tiling()",
            is_vae=True,
        )
    )
    vae_slicing: bool = row(
        Switch(
            default=False,
            label="VAE slicing",
            group="Memory savers",
            help="`pipe.vae.enable_slicing()`: one image at a time. Does nothing at batch 1.",
            evidence="half",
            call="pipe.vae.enable_slicing()",
            is_vae=True,
        )
    )
    attention_slicing: bool = row(
        Switch(
            default=False,
            label="Attention slicing",
            group="Memory savers",
            help="`pipe.enable_attention_slicing()`: attention in slices, without the fused kernels.",
            call="pipe.enable_attention_slicing()",
        )
    )
    channels_last: bool = row(
        Switch(
            default=False,
            label="channels_last",
            group="Precision and layout",
            help="UNet and VAE in `torch.channels_last`, the layout that tensor cores prefer.",
        )
    )
    channels_last_unet: bool = row(
        Switch(
            default=False,
            label="channels_last, UNet alone",
            group="Precision and layout",
            help="`pipe.unet.to(memory_format=torch.channels_last)`, as diffusers' documentation has it. channels_last "
            "takes the VAE as well.",
            said="channels_last UNet",
            is_later=True,
        )
    )
    offload: Offload = row(
        Choice(
            default="none",
            choices=OFFLOADS,
            label="Offload",
            group="Memory savers",
            help="model: `pipe.enable_model_cpu_offload()` keeps one component on the GPU at a time. sequential: "
            "`pipe.enable_sequential_cpu_offload()` keeps one layer there, and is far slower.",
            evidence="half",
            call="pipe.enable_{}_cpu_offload()",
        )
    )
    dtype: Dtype = row(
        Choice(
            default="float16",
            choices=DTYPES,
            label="Data type",
            group="Precision and layout",
            help="Of all weights and activations. bfloat16 has tensor cores from compute capability 8.0 on; float32 "
            "takes twice the memory.",
            said="{}",
            is_later=True,
        )
    )
    controlnets: int = row(
        Whole(
            default=0,
            low=0,
            high=MAX_CONTROLNETS,
            label="ControlNets",
            group="Pipeline",
            help="ControlNets that run before each UNet call, each with its own control image; guess mode off.",
            said="ControlNets: {}",
            is_later=True,
        )
    )
    lora_rank: int = row(
        Whole(
            default=0,
            low=0,
            high=MAX_LORA_RANK,
            label="LoRA rank",
            group="Pipeline",
            help="A LoRA on the UNet's attention, not fused. 0 is none, and a fused LoRA (`pipe.fuse_lora()`, then "
            "`pipe.unload_lora_weights()`) takes no memory.",
            said="LoRA rank {}",
            is_later=True,
        )
    )
    lora_text_encoder: bool = row(
        Switch(
            default=False,
            label="LoRA on the text encoder too",
            group="Pipeline",
            help="Whether the LoRA's file has layers of the text encoder as well, as kohya's trainer writes them.",
            said="LoRA on the text encoder",
            is_later=True,
        )
    )
    ip_adapter: IpAdapter = row(
        Choice(
            default="none",
            choices=IP_ADAPTERS,
            label="IP-Adapter",
            group="Pipeline",
            help="`pipe.load_ip_adapter(...)`: a picture as a prompt, with its image encoder (ViT-H) on the GPU. base "
            "adds 4 tokens, plus adds 16.",
            said="IP-Adapter {}",
            is_later=True,
        )
    )
    attention: AttentionKind = row(
        Choice(
            default="sdpa",
            choices=ATTENTION_KINDS,
            label="Attention",
            group="Precision and layout",
            help="The attention processor of UNet and VAE. sdpa: diffusers' default, fused kernels. xformers: "
            "`pipe.enable_xformers_memory_efficient_attention()`. eager: the plain processor, which keeps a matrix of "
            "tokens by tokens.",
            said="{} attention",
            is_later=True,
        )
    )
    allocator: AllocatorKind = row(
        Choice(
            default="default",
            choices=ALLOCATORS,
            label="Segments",
            group="Allocator",
            help="expandable: `PYTORCH_ALLOC_CONF=expandable_segments:True`, which wastes less reserved memory.",
            said="{} segments",
            is_later=True,
        )
    )
    hires: float = row(
        Number(
            default=1.0,
            low=1.0,
            high=MAX_HIRES,
            step=0.25,
            label="Hires factor",
            group="Pipeline",
            help="Above 1: txt2img at this size, then img2img at so many times the size in the same process, as hires "
            "fix does. The worse of both passes decides.",
            said="hires {:g}",
            is_later=True,
        )
    )

    def __post_init__(self):
        for field in FIELDS:
            object.__setattr__(self, field.name, field.checked(getattr(self, field.name)))
        if self.task == "txt2img":
            for argument in ("width", "height"):
                self._check_multiple(argument)
        for argument, rule, value, hint in self._refusals():
            raise InvalidArgument(argument, rule, value, hint)

    def _check_multiple(self, argument: str) -> None:
        # StableDiffusionPipeline.check_inputs refuses such a size; the img2img image processor rounds it down.
        side = getattr(self, argument)
        if side % VAE_SCALE_FACTOR:
            nearest = " or ".join(str(s) for s in nearest_multiples(side))
            raise InvalidArgument(argument, f"must be a multiple of {VAE_SCALE_FACTOR}", side, f"nearest: {nearest}")

    def _refusals(self) -> Iterator[tuple[str, str, Any, str]]:
        """List the combinations that diffusers or this planner refuses: (argument, rule, value, way out)."""
        if self.images > MAX_BATCH:
            most = MAX_BATCH // self.batch
            yield "images_per_prompt", f"times the batch must be at most {MAX_BATCH}", self.images, f"nearest: {most}"
        values = self.to_dict()
        for name, need in _NEEDS.items():
            if values[name] != field_named(name).default and not need.is_met(values):
                yield name, need.rule, values[name], need.way_out
        if self.hires > 1:
            longest = max(self.width, self.height)
            if longest * self.hires > MAX_SIDE:
                rule = f"times the longer side must be at most {MAX_SIDE} pixels"
                yield "hires", rule, self.hires, f"nearest: {MAX_SIDE / longest:g}"

    @property
    def images(self) -> int:
        """Count the pictures of one call: the batch times the images of each prompt."""
        return self.batch * self.images_per_prompt

    @property
    def most_batch(self) -> int:
        """Give the largest batch that the planner accepts with so many images of each prompt."""
        return MAX_BATCH // self.images_per_prompt

    @property
    def most_side(self) -> int:
        """Give the longest side, in pixels, that the planner accepts with this factor of hires fix."""
        return int(MAX_SIDE / self.hires)

    @property
    def class_name(self) -> str:
        """Name diffusers' class of this call."""
        return (CONTROLNET_CLASSES if self.controlnets else PIPELINE_CLASSES)[self.task]

    @property
    def is_half(self) -> bool:
        """Tell whether weights and activations take two bytes an element."""
        return self.dtype != "float32"

    @property
    def element_bytes(self) -> int:
        """Give the bytes of one element of weights and activations."""
        return 2 if self.is_half else 4

    @property
    def processor(self) -> str:
        """Name the UNet's attention processor: that of `attention`, or ``sliced``."""
        return "sliced" if self.attention_slicing else self.attention

    @property
    def is_unet_in_rows(self) -> bool:
        """Tell whether the UNet's weights are channels_last."""
        return self.channels_last or self.channels_last_unet

    def passes(self) -> tuple[Self, ...]:
        """Give the pipeline calls of this request: itself, or the two passes of hires fix."""
        if self.hires == 1:
            return (self,)
        first = replace(self, hires=1.0)
        sides = {name: round(getattr(self, name) * self.hires) for name in ("width", "height")}
        return first, replace(first, task="img2img", **sides).canonical()

    @property
    def effective_width(self) -> int:
        """Give the width that the pipeline works on: img2img rounds down to a multiple of 8."""
        return self.width // VAE_SCALE_FACTOR * VAE_SCALE_FACTOR

    @property
    def effective_height(self) -> int:
        """Give the height that the pipeline works on: img2img rounds down to a multiple of 8."""
        return self.height // VAE_SCALE_FACTOR * VAE_SCALE_FACTOR

    @property
    def is_rounded(self) -> bool:
        """Tell whether the pipeline works on a smaller size than was asked for."""
        return (self.effective_width, self.effective_height) != (self.width, self.height)

    @property
    def latent_width(self) -> int:
        """Count the columns of the latent image."""
        return self.width // VAE_SCALE_FACTOR

    @property
    def latent_height(self) -> int:
        """Count the rows of the latent image."""
        return self.height // VAE_SCALE_FACTOR

    @property
    def unet_batch(self) -> int:
        """Count the images in one UNet call: twice the batch under guidance.

        Source: diffusers 0.42.1, ``do_classifier_free_guidance`` is ``guidance_scale > 1``.
        """
        return self.images * (2 if self.guidance_scale > 1 else 1)

    def canonical(self) -> Self:
        """Give the same work at the size that the pipeline works on."""
        return replace(self, width=self.effective_width, height=self.effective_height)

    @property
    def request_id(self) -> str:
        """Hash the canonical form with SHA-256: equal for all requests that run the same work."""
        text = json.dumps(self.canonical().to_record(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Give the fields by name, as the JSON contract spells them."""
        return asdict(self)

    def to_record(self) -> dict[str, Any]:
        """Give the fields as ids and files of runs have them: without later fields that are at their defaults."""
        values = self.to_dict()
        for field in FIELDS:
            if field.is_later and values[field.name] == field.default:
                del values[field.name]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make the request with these fields; those left out take their defaults.

        Raises:
            InvalidArgument: a field is unknown, or its value breaks its rule.
        """
        known = [field.name for field in FIELDS]
        for name in values:
            if name not in known:
                raise InvalidArgument("request", "has an unknown field", name, did_you_mean(str(name), known))
        return cls(**values)

    @property
    def guidance(self) -> str:
        """Say in a word whether the UNet is guided: ``guided`` or ``unguided``."""
        return "guided" if self.unet_batch > self.images else "unguided"

    @property
    def options(self) -> list[str]:
        """List the pipeline's options that are not at their defaults, as a person says them: ``vae tiling``."""
        # Models that are left out are said last.
        said = sorted(OPTIONS, key=lambda field: field.default is True)
        return [words for field in said if (words := field.words(getattr(self, field.name)))]

    @property
    def vae_options(self) -> list[str]:
        """List those of `options` that the VAE alone has as well."""
        return [words for field in OPTIONS if field.is_vae and (words := field.words(getattr(self, field.name)))]

    def arguments(self) -> list[str]:
        """List the options of the command line that make this request; defaults are left out."""
        return [text for field in FIELDS if (text := field.arguments(getattr(self, field.name)))]

    def describe(self) -> str:
        """Say the request in one line, for a ticket."""
        return ", ".join(
            [
                f"{self.task} {self.effective_width}×{self.effective_height}",
                f"batch {self.batch}",
                f"{self.guidance} (UNet batch {self.unet_batch})",
                f"{self.steps} step{'' if self.steps == 1 else 's'}",
                *self.options,
            ]
        )

    @property
    def is_tiled(self) -> bool:
        """Tell whether the VAE cuts the image into tiles."""
        return self.vae_tiling and max(self.latent_width, self.latent_height) > VAE_TILE

    def allocation_form(self) -> Self:
        """Give the canonical request of all that allocate alike at this size.

        The prompt's length, the guidance scale on either side of 1 and steps beyond `MAX_TRACED_STEPS` move no
        allocation. Stored curves have a hash of this form for their key.
        """
        return replace(
            self.canonical(),
            prompt_tokens=MAX_PROMPT_TOKENS,
            guidance_scale=7.5 if self.unet_batch > self.images else 1.0,
            steps=min(self.steps, MAX_TRACED_STEPS),
            channels_last_unet=self.channels_last_unet and not self.channels_last,
        )

    def loading_form(self) -> "GenerationRequest":
        """Give the smallest request that loads the same weights."""
        return GenerationRequest(
            task="inpaint" if self.task == "inpaint" else "img2img",
            safety_checker=self.safety_checker,
            offload=self.offload,
            dtype=self.dtype,
            controlnets=self.controlnets,
            lora_rank=self.lora_rank,
            lora_text_encoder=self.lora_text_encoder,
            ip_adapter=self.ip_adapter,
        )

    def replay_form(self) -> Self:
        """Give the allocation form in landscape, unless the image is tiled.

        A replay of a portrait image gives the same peaks.

        Measured runs are matched by `allocation_form`, for kernels of a real GPU may tell the orientations apart.
        """
        form = self.allocation_form()
        if form.is_tiled:
            return form
        return replace(form, width=max(form.width, form.height), height=min(form.width, form.height))


# Every field of a request, in the order of its attributes.
FIELDS = named_fields(fields(GenerationRequest))
# The arguments of the pipeline's call; all other fields are options of the pipeline.
_OF_THE_CALL = ("task", "width", "height", "batch", "prompt_tokens", "guidance_scale", "steps")
OPTIONS = tuple(field for field in FIELDS if field.name not in _OF_THE_CALL)


def field_named(name: str) -> Field:
    """Give the request field of this name.

    Raises:
        KeyError: there is none.
    """
    return _BY_NAME[name]


_BY_NAME = {field.name: field for field in FIELDS}
DEFAULT = GenerationRequest()
