"""What is asked for: a frozen, checked, hashable value.

A request knows nothing of cards, storage or answers. Two requests that run the same work are equal in
`request_id`, which is a hash of the canonical form (effective sizes, sorted keys, no insignificant white space).
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, Literal, Self

from planner.components import MAX_TRACED_STEPS, VAE_TILE
from planner.errors import InvalidArgument

Task = Literal["img2img", "txt2img"]
Offload = Literal["none", "model"]

TASKS: tuple[Task, ...] = ("img2img", "txt2img")
OFFLOADS: tuple[Offload, ...] = ("none", "model")

# diffusers 0.42.1: 2 ** (len(vae.config.block_out_channels) - 1) with SD v1.5's four blocks.
VAE_SCALE_FACTOR = 8

# CLIPTokenizer.model_max_length of SD v1.5: the pipeline pads and truncates every prompt to this.
MAX_PROMPT_TOKENS = 77

# Limits that keep a typing mistake from becoming a denial of service.
MIN_SIDE, MAX_SIDE = 64, 8192
MAX_BATCH = 128
MAX_STEPS = 1000
MAX_GUIDANCE_SCALE = 100.0

# Options that are on or off, and off by default; the first are the VAE's own.
_VAE_OPTIONS = ("vae_tiling", "vae_slicing")
_OPTIONS = ("attention_slicing", "channels_last")


def nearest_multiples(side: int) -> tuple[int, ...]:
    """The multiples of 8 on both sides of `side` that are allowed sizes, smaller first."""
    below = side // VAE_SCALE_FACTOR * VAE_SCALE_FACTOR
    return tuple(s for s in (below, below + VAE_SCALE_FACTOR) if MIN_SIDE <= s <= MAX_SIDE)


def parse_whole(argument: str, text: str) -> int:
    """The whole number a person typed; of one with more than 100 digits the first 100.

    Raises:
        InvalidArgument: the text is none.
    """
    found = re.fullmatch(r"\s*([+-]?)([0-9]+)\s*", text)
    if found is None:
        raise InvalidArgument(argument, "must be a whole number", text)
    # That many are out of every range and no message shows them all, and Python refuses to convert thousands.
    return int(found[1] + (found[2].lstrip("0")[:100] or "0"))


def parse_finite(argument: str, text: str) -> float:
    """The number a person typed.

    Raises:
        InvalidArgument: the text is none.
    """
    try:
        return float(text)
    except ValueError:
        raise InvalidArgument(argument, "must be a finite number", text) from None


def _check_int(argument: str, value: Any, low: int, high: int) -> None:
    # bool is an int in Python; True is no width.
    if type(value) is not int:
        raise InvalidArgument(argument, "must be a whole number", value)
    if not low <= value <= high:
        nearest = low if value < low else high
        raise InvalidArgument(argument, f"must be between {low} and {high}", value, f"nearest: {nearest}")


def _check_choice(argument: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        close = get_close_matches(str(value).lower(), choices, n=1, cutoff=0.4)
        raise InvalidArgument(
            argument, f"must be one of {', '.join(choices)}", value, f"did you mean {close[0]}?" if close else None
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationRequest:
    """One call of the Stable Diffusion v1.5 pipeline.

    `batch` counts independent requests served together: that many prompts and, for img2img, that many images.

    Raises:
        InvalidArgument: a field breaks its rule; the message has the rule, the value and the nearest way out.
    """

    task: Task = "img2img"
    width: int = 512
    height: int = 512
    batch: int = 1
    prompt_tokens: int = MAX_PROMPT_TOKENS
    guidance_scale: float = 7.5
    steps: int = 50
    safety_checker: bool = True
    vae_tiling: bool = False
    vae_slicing: bool = False
    attention_slicing: bool = False
    channels_last: bool = False
    offload: Offload = "none"

    def __post_init__(self):
        _check_choice("task", self.task, TASKS)
        for argument in ("width", "height"):
            self._check_side(argument)
        _check_int("batch", self.batch, 1, MAX_BATCH)
        _check_int("prompt_tokens", self.prompt_tokens, 1, MAX_PROMPT_TOKENS)
        _check_int("steps", self.steps, 1, MAX_STEPS)
        self._check_guidance_scale()
        for argument in ("safety_checker", "vae_tiling", "vae_slicing", "attention_slicing", "channels_last"):
            if type(getattr(self, argument)) is not bool:
                raise InvalidArgument(argument, "must be true or false", getattr(self, argument))
        _check_choice("offload", self.offload, OFFLOADS)

    def _check_side(self, argument: str) -> None:
        side = getattr(self, argument)
        _check_int(argument, side, MIN_SIDE, MAX_SIDE)
        # StableDiffusionPipeline.check_inputs refuses such a size; the img2img image processor rounds it down.
        if self.task == "txt2img" and side % VAE_SCALE_FACTOR:
            nearest = " or ".join(str(s) for s in nearest_multiples(side))
            raise InvalidArgument(argument, f"must be a multiple of {VAE_SCALE_FACTOR}", side, f"nearest: {nearest}")

    def _check_guidance_scale(self) -> None:
        value = self.guidance_scale
        if type(value) not in (int, float) or not math.isfinite(value):
            raise InvalidArgument("guidance_scale", "must be a finite number", value)
        if not 0 <= value <= MAX_GUIDANCE_SCALE:
            nearest = 0 if value < 0 else MAX_GUIDANCE_SCALE
            raise InvalidArgument(
                "guidance_scale", f"must be between 0 and {MAX_GUIDANCE_SCALE:g}", value, f"nearest: {nearest:g}"
            )
        # Adding zero makes -0.0 the 0.0 it is equal to, and so one request.
        object.__setattr__(self, "guidance_scale", float(value) + 0.0)

    @property
    def effective_width(self) -> int:
        """The width the pipeline works on: img2img rounds down to a multiple of 8."""
        return self.width // VAE_SCALE_FACTOR * VAE_SCALE_FACTOR

    @property
    def effective_height(self) -> int:
        """The height the pipeline works on: img2img rounds down to a multiple of 8."""
        return self.height // VAE_SCALE_FACTOR * VAE_SCALE_FACTOR

    @property
    def is_rounded(self) -> bool:
        """Whether the pipeline works on a smaller size than was asked for."""
        return (self.effective_width, self.effective_height) != (self.width, self.height)

    @property
    def latent_width(self) -> int:
        """Columns of the latent image."""
        return self.width // VAE_SCALE_FACTOR

    @property
    def latent_height(self) -> int:
        """Rows of the latent image."""
        return self.height // VAE_SCALE_FACTOR

    @property
    def unet_batch(self) -> int:
        """Images in one UNet call: twice the batch under guidance, whose two halves are concatenated.

        Source: diffusers 0.42.1, ``do_classifier_free_guidance`` is ``guidance_scale > 1``.
        """
        return self.batch * (2 if self.guidance_scale > 1 else 1)

    def canonical(self) -> Self:
        """The same work at the size the pipeline works on."""
        return replace(self, width=self.effective_width, height=self.effective_height)

    @property
    def request_id(self) -> str:
        """SHA-256 of the canonical form: the same for every request that runs the same work."""
        text = json.dumps(self.canonical().to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, as the JSON contract spells them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The request with these fields; those left out take their defaults.

        Raises:
            InvalidArgument: a field is unknown, or its value breaks its rule.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                close = get_close_matches(str(name), known, n=1)
                raise InvalidArgument(
                    "request", "has an unknown field", name, f"did you mean {close[0]}?" if close else None
                )
        return cls(**values)

    @property
    def guidance(self) -> str:
        """Whether the UNet is guided, in a word: ``guided`` or ``unguided``."""
        return "guided" if self.unet_batch > self.batch else "unguided"

    @property
    def options(self) -> list[str]:
        """The pipeline's options that are not at their defaults, as a person says them: ``vae tiling``."""
        options: list[str] = [name.replace("_", " ") for name in (*_VAE_OPTIONS, *_OPTIONS) if getattr(self, name)]
        if self.offload != "none":
            options.append(f"{self.offload} offload")
        if not self.safety_checker:
            options.append("no safety checker")
        return options

    @property
    def vae_options(self) -> list[str]:
        """Those of `options` that the VAE alone has as well."""
        return [name.replace("_", " ") for name in _VAE_OPTIONS if getattr(self, name)]

    def describe(self) -> str:
        """One line a person would read in a ticket."""
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
        """Tell whether the VAE cuts the image into tiles: the option is on, and one tile does not hold the image."""
        return self.vae_tiling and max(self.latent_width, self.latent_height) > VAE_TILE

    def allocation_form(self) -> Self:
        """Give the canonical request of all that allocate alike at this size.

        The prompt's length, the guidance scale on either side of 1 and steps beyond `MAX_TRACED_STEPS` move no
        allocation. Stored curves have a hash of this form for their key.
        """
        return replace(
            self.canonical(),
            prompt_tokens=MAX_PROMPT_TOKENS,
            guidance_scale=7.5 if self.unet_batch > self.batch else 1.0,
            steps=min(self.steps, MAX_TRACED_STEPS),
        )

    def replay_form(self) -> Self:
        """Give the allocation form in landscape: a replay of a portrait image gives the same peaks, unless it is tiled.

        Measured runs are matched by `allocation_form`, for kernels of a real GPU may tell the orientations apart.
        """
        form = self.allocation_form()
        if form.is_tiled:
            return form
        return replace(form, width=max(form.width, form.height), height=min(form.width, form.height))
