"""The device of a job: an attached card or the CPU, its environment, and the requests that it can run."""

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from cache.machine.attached import AttachedCard
from cache.machine.model_folder import Contents, contents_of, fingerprint
from cache.machine.versions import check_installed, installed
from cache.records import REHEARSAL, DeviceKind, Environment
from cache.settings import MAX_PIXELS, MAX_STEPS
from planner.cards.lookup import Card, emulated_card
from planner.components import MODEL_ID, MODEL_REVISION
from planner.errors import InvalidArgument
from planner.request import DEFAULT, GenerationRequest
from planner.units import GIB, short_gib

# A rehearsal tests the code path. With more pixels than this the CPU would be busy for many minutes.
MAX_REHEARSAL_PIXELS = 512 * 512
# Smaller capacities cannot be emulated, since not even the weights would fit.
MIN_CAPACITY_BYTES = GIB
# These environment variables change the peaks of a run.
ALLOCATOR_SETTINGS = (
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "CUBLAS_WORKSPACE_CONFIG",
)

# torch reads the first of these that is set, as the process starts.
_ALLOCATOR_CONF = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
EXPANDABLE = "expandable_segments:True"

Weights = Literal["synthetic", "hub", "local"]


def dtype_used(request: GenerationRequest, kind: DeviceKind) -> str:
    """Name the data type in which the request runs.

    bfloat16 takes 2 bytes like float16. The CPU has fast kernels for it, and none for float16.
    """
    return "bfloat16" if kind == "cpu" and request.is_half else request.dtype


def allocator_environment(request: GenerationRequest, environment: Mapping[str, str]) -> dict[str, str]:
    """Give the environment variables that a worker needs for the request's allocator, before torch starts.

    Other settings of the allocator in `environment` are kept.
    """
    if request.allocator == "default":
        return {}
    given = next((environment[name] for name in _ALLOCATOR_CONF if name in environment), "")
    others = [part for part in given.split(",") if part and not part.startswith("expandable_segments")]
    return {_ALLOCATOR_CONF[0]: ",".join([*others, EXPANDABLE])}


@dataclass(frozen=True)
class Device:
    """Name the device of a job: an attached card, or if `card` is None the CPU for a rehearsal.

    With `emulated_bytes` torch refuses memory as it would on a card of that capacity. Only the capacity is emulated:
    kernels and CUDA context stay those of the real card.
    """

    card: AttachedCard | None = None
    emulated_bytes: int | None = None

    @property
    def kind(self) -> Literal["cuda", "cpu"]:
        """Return torch's device type."""
        return "cuda" if self.card else "cpu"

    @property
    def key(self) -> str:
        """Return the device's key, the same in every process of this machine and at every capacity."""
        return self.card.uuid_hash if self.card else "cpu"

    @property
    def free_bytes(self) -> int | None:
        """Return the bytes that are free on the card now, None on the CPU."""
        return self.card.free_bytes if self.card else None

    def as_card(self, own_pid: int | None = None) -> Card | None:
        """Make the card to plan on, at the emulated capacity if there is one; None on the CPU.

        `own_pid` is as for `AttachedCard.as_card`.
        """
        if self.card is None:
            return None
        card = self.card.as_card(own_pid)
        return card if self.emulated_bytes is None else emulated_card(card, self.emulated_bytes)


def environment_of(
    device: Device,
    weights: Weights = "synthetic",
    model_dir: str | None = None,
    request: GenerationRequest = DEFAULT,
) -> Environment:
    """Describe the environment of a run of `request`, as far as it is known before torch is loaded."""
    variables = os.environ | allocator_environment(request, os.environ)
    sources = {"synthetic": "synthetic", "hub": f"hub:{MODEL_ID}@{MODEL_REVISION}"}
    card = device.card
    versions: dict[str, Any] = dict(installed())
    return Environment(
        device_kind=device.kind,
        card=card.name if card else REHEARSAL,
        uuid_hash=card.uuid_hash if card else None,
        total_bytes=card.total_bytes if card else psutil.virtual_memory().total,
        mig=card.mig if card else None,
        driver=card.driver if card else None,
        dtype=dtype_used(request, device.kind),
        attention=request.attention,
        allocator_settings=" ".join(f"{name}={variables[name]}" for name in ALLOCATOR_SETTINGS if name in variables),
        weights=f"local:{fingerprint(model_dir)}" if model_dir else sources[weights],
        emulated_bytes=device.emulated_bytes,
        **versions,
    )


def check_capacity(device: Device) -> None:
    """Check that the device's emulated capacity can be emulated on it.

    Raises:
        InvalidArgument: the device is the CPU, or the capacity is too small or not below the card's memory.
    """
    emulated = device.emulated_bytes
    if emulated is None:
        return
    shown = short_gib(emulated)
    if device.card is None:
        rule = "needs a GPU: on the CPU there is no CUDA allocator to limit"
        raise InvalidArgument("capacity", rule, shown, "leave it out to rehearse")
    if emulated < MIN_CAPACITY_BYTES:
        minimum = short_gib(MIN_CAPACITY_BYTES)
        raise InvalidArgument("capacity", f"must be at least {minimum}", shown, f"nearest: {minimum}")
    if emulated >= device.card.total_bytes:
        rule = f"must be below the GPU's memory of {short_gib(device.card.total_bytes)}"
        raise InvalidArgument("capacity", rule, shown, "leave it out to use the whole GPU")


def _pixels_of(request: GenerationRequest) -> int:
    """Count the pixels of all images of the request, of hires fix those of its larger pass."""
    last = request.passes()[-1]
    return last.effective_width * last.effective_height * last.images


def check_limits(request: GenerationRequest) -> None:
    """Check a request against the limits that are set for what may be run here.

    Raises:
        InvalidArgument: it has more steps, or more pixels in all, than may be run.
    """
    if request.steps > MAX_STEPS.value:
        rule = f"must be at most {MAX_STEPS.value} here ({MAX_STEPS.name})"
        raise InvalidArgument("steps", rule, request.steps, f"use {MAX_STEPS.value}")
    pixels = _pixels_of(request)
    if pixels > MAX_PIXELS.value:
        rule = f"times height times batch must be at most {MAX_PIXELS.value} pixels here ({MAX_PIXELS.name})"
        raise InvalidArgument("width", rule, pixels, "smaller, or fewer at once")


def check_folder(model_dir: str) -> None:
    """Check that a folder holds a pipeline.

    Raises:
        InvalidArgument: it does not.
    """
    try:
        readable = (Path(model_dir) / "model_index.json").is_file()
    except OSError:
        readable = False
    if not readable:
        rule = "must be a folder with model_index.json, as save_pretrained writes it"
        raise InvalidArgument("model_dir", rule, model_dir)


def check_runnable(
    request: GenerationRequest, device: Device, model_dir: str | None = None, weights: Weights = "synthetic"
) -> None:
    """Check that a request can run on the device with these weights, before anything is started.

    Raises:
        InvalidArgument: the folder is no pipeline, the weights lack what the request needs, the attention processor
            cannot run here, the capacity cannot be emulated, the request is beyond a limit that is set, or the CPU
            rehearsal is too large.
        NotInstalled: a library that runs pipelines is missing.
    """
    check_installed()
    if model_dir is not None:
        check_folder(model_dir)
        _check_contents(request, contents_of(model_dir), "this folder has")
    elif weights == "hub":
        _check_contents(request, Contents(), "the Hub's model has")
    _check_attention(request, device)
    check_capacity(device)
    check_limits(request)
    if device.kind == "cpu":
        _check_rehearsal(request)


def _check_contents(request: GenerationRequest, found: Contents, whose: str) -> None:
    """Check that real weights have all components that the request needs."""
    wanted = 9 if request.task == "inpaint" else 4
    if found.unet_channels != wanted:
        rule = f"needs a UNet of {wanted} input channels, and that which {whose} takes {found.unet_channels}"
        raise InvalidArgument("task", rule, request.task, "synthetic weights have any, --model-dir another folder")
    if found.controlnets < request.controlnets:
        rule = f"must be at most {found.controlnets}, as many as {whose}"
        nearest = f"nearest: {found.controlnets}, or synthetic weights"
        raise InvalidArgument("controlnets", rule, request.controlnets, nearest)
    if request.ip_adapter != "none" and not found.has_image_encoder:
        rule = f"must be none, for no image encoder is in what {whose}"
        raise InvalidArgument("ip_adapter", rule, request.ip_adapter, "nearest: none, or synthetic weights")


def _check_attention(request: GenerationRequest, device: Device) -> None:
    if request.attention != "xformers":
        return
    if device.kind == "cpu":
        rule = "must be sdpa or eager on the CPU: xformers has kernels for GPUs alone"
        raise InvalidArgument("attention", rule, request.attention, "sdpa takes the same memory")
    if importlib.util.find_spec("xformers") is None:
        rule = "must be sdpa or eager, for xformers is not installed here"
        raise InvalidArgument("attention", rule, request.attention, "pip install xformers, built for this torch")


def _check_rehearsal(request: GenerationRequest) -> None:
    if _pixels_of(request) > MAX_REHEARSAL_PIXELS:
        last = request.passes()[-1]
        asked = f"{last.effective_width}x{last.effective_height} batch {last.images}"
        raise InvalidArgument(
            "device", "cpu rehearses at most 512x512 pixels in all", asked, "smaller, or run it on a GPU"
        )
