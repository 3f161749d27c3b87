"""Where a job runs: an attached card or the CPU, its environment, and what it can take."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from cache.machine.attached import AttachedCard
from cache.machine.model_folder import fingerprint
from cache.machine.versions import check_installed, installed
from cache.records import REHEARSAL, Environment
from planner.cards.lookup import Card, emulated_card
from planner.components import MODEL_ID, MODEL_REVISION
from planner.errors import InvalidArgument
from planner.request import GenerationRequest
from planner.units import GIB, short_gib

# A rehearsal shows the path, not a GPU: beyond this the CPU would be busy for many minutes.
MAX_REHEARSAL_PIXELS = 512 * 512
# The least that can be emulated: below it not even the weights would stand.
MIN_CAPACITY_BYTES = GIB
# What moves a peak from outside the program.
ALLOCATOR_SETTINGS = (
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "CUBLAS_WORKSPACE_CONFIG",
)

Weights = Literal["synthetic", "hub", "local"]


@dataclass(frozen=True)
class Device:
    """Where a job runs: an attached card, or the CPU for a rehearsal when `card` is None.

    With `emulated_bytes` torch is made to refuse as it would on a card of that capacity. That emulates a capacity and
    no card: kernels and CUDA context stay those of the real one.
    """

    card: AttachedCard | None = None
    emulated_bytes: int | None = None

    @property
    def kind(self) -> Literal["cuda", "cpu"]:
        """Torch's device type."""
        return "cuda" if self.card else "cpu"

    @property
    def key(self) -> str:
        """A name for the device that is the same in every process of this machine, whatever is emulated on it."""
        return self.card.uuid_hash if self.card else "cpu"

    @property
    def free_bytes(self) -> int | None:
        """What is free on the card now, None on the CPU."""
        return self.card.free_bytes if self.card else None

    def as_card(self, own_pid: int | None = None) -> Card | None:
        """The card to plan on, as `AttachedCard.as_card` and at the emulated capacity; None on the CPU."""
        if self.card is None:
            return None
        card = self.card.as_card(own_pid)
        return card if self.emulated_bytes is None else emulated_card(card, self.emulated_bytes)


def environment_of(device: Device, weights: Weights = "synthetic", model_dir: str | None = None) -> Environment:
    """The environment of a run here and now, as far as it is known before torch is loaded."""
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
        dtype="float16" if card else "bfloat16",
        attention="sdpa",
        allocator_settings=" ".join(f"{name}={os.environ[name]}" for name in ALLOCATOR_SETTINGS if name in os.environ),
        weights=f"local:{fingerprint(model_dir)}" if model_dir else sources[weights],
        emulated_bytes=device.emulated_bytes,
        **versions,
    )


def check_capacity(device: Device) -> None:
    """Refuse a capacity that cannot be emulated on this device.

    Raises:
        InvalidArgument: there is no GPU, or the capacity is not below the card's memory, or too small to load a model.
    """
    emulated = device.emulated_bytes
    if emulated is None:
        return
    shown = short_gib(emulated)
    if device.card is None:
        rule = "needs a GPU: on the CPU there is no CUDA allocator to limit"
        raise InvalidArgument("capacity", rule, shown, "leave it out to rehearse")
    if emulated < MIN_CAPACITY_BYTES:
        least = short_gib(MIN_CAPACITY_BYTES)
        raise InvalidArgument("capacity", f"must be at least {least}", shown, f"nearest: {least}")
    if emulated >= device.card.total_bytes:
        rule = f"must be below the card's memory of {short_gib(device.card.total_bytes)}"
        raise InvalidArgument("capacity", rule, shown, "leave it out to use the whole card")


def check_runnable(request: GenerationRequest, device: Device, model_dir: str | None = None) -> None:
    """Refuse what cannot run before anything is started.

    Raises:
        InvalidArgument: the folder is no pipeline, the capacity cannot be emulated, or the CPU rehearsal is too large
            or asks for offload.
        NotInstalled: a library that runs pipelines is missing.
    """
    check_installed()
    if model_dir is not None:
        try:
            readable = (Path(model_dir) / "model_index.json").is_file()
        except OSError:
            readable = False
        if not readable:
            rule = "must be a folder with model_index.json, as save_pretrained writes it"
            raise InvalidArgument("model_dir", rule, model_dir)
    check_capacity(device)
    if device.kind != "cpu":
        return
    pixels = request.effective_width * request.effective_height * request.batch
    if pixels > MAX_REHEARSAL_PIXELS:
        asked = f"{request.effective_width}x{request.effective_height} batch {request.batch}"
        raise InvalidArgument(
            "device", "cpu rehearses at most 512x512 pixels in all", asked, "smaller, or run it on a GPU"
        )
    if request.offload != "none":
        raise InvalidArgument("offload", "must be none on the CPU: there is nothing to offload from", request.offload)
