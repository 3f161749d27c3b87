"""A sweep of many requests on one device: the requests and their capacities, their order, and which can run.

The built-in grid varies sizes, batches and options together, which takes far fewer runs than all combinations.
"""

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any, NamedTuple

from cache.exchange.rules import Broken, load, nullable, scalar, table, whole
from cache.jobs.resident import pipeline_key
from cache.machine.device import MIN_CAPACITY_BYTES, Device, Weights, check_runnable
from planner.errors import InvalidArgument
from planner.request import GenerationRequest, Task
from planner.units import GIB

MAX_ENTRIES = 10_000
MAX_FILE_BYTES = 16 * 1024**2

_SQUARES = tuple((side, side) for side in (256, 512, 768, 1024, 1536, 2048))
# The latents of these sizes have odd sides, and width and height differ.
_ODD = ((520, 776), (1000, 1304), (1096, 616))

# The grid emulates a capacity that many cards have and at which every outcome occurs. By the dry run the first request
# fits, the next three are tight, or out of memory for txt2img, and the last is out of memory.
GRID_CAPACITY_BYTES = 16 * GIB
_AT_CAPACITY = (
    {"width": 1536, "height": 1536},
    {"width": 2048, "height": 2048},
    {"width": 1024, "height": 1024, "batch": 4},
    {"width": 1024, "height": 1024, "batch": 8},
    {"width": 768, "height": 768, "batch": 16},
)

# The tasks of the grid share their weights; inpainting has a UNet of its own.
_TASKS: tuple[Task, ...] = ("img2img", "txt2img")

# The grid varies these fields of a request, and ignores their values in its base.
VARIED = ("task", "width", "height", "batch", "guidance_scale", "vae_tiling", "channels_last")

_CAPACITY = "capacity_bytes"
_FIELDS = [field.name for field in fields(GenerationRequest)]
_ENTRY = table(
    dict.fromkeys(_FIELDS, scalar) | {_CAPACITY: nullable(whole(MIN_CAPACITY_BYTES, 4096 * GIB))},
    optional=frozenset({*_FIELDS, _CAPACITY}),
)


class Entry(NamedTuple):
    """Hold a request of a sweep and the capacity to emulate for it; None is the whole card."""

    request: GenerationRequest
    capacity_bytes: int | None = None

    def device(self, device: Device) -> Device:
        """Return the device with this entry's capacity."""
        return replace(device, emulated_bytes=self.capacity_bytes)


class Skipped(NamedTuple):
    """Hold an entry that cannot run on the device, and the reason."""

    entry: Entry
    error: InvalidArgument


def _changes() -> Iterable[dict[str, Any]]:
    def change(task: Task, size: tuple[int, int], **others: Any) -> dict[str, Any]:
        plain = {"batch": 1, "guidance_scale": 7.5, "vae_tiling": False, "channels_last": False}
        return plain | {"task": task, "width": size[0], "height": size[1]} | others

    for index, size in enumerate((*_SQUARES, *_ODD)):
        one, other = _TASKS[index % 2], _TASKS[(index + 1) % 2]
        yield from (change(task, size) for task in _TASKS)
        yield change(one, size, guidance_scale=1.0)
        yield change(other, size, channels_last=True)
        # A smaller image is a single tile, so tiling would change nothing.
        if min(size) >= 768:
            yield from (change(task, size, vae_tiling=True) for task in _TASKS)
    for batch in (2, 4, 8):
        for index, size in enumerate((*_SQUARES[:3], _ODD[0])):
            yield from (change(task, size, batch=batch) for task in _TASKS)
            yield change(_TASKS[(index + batch // 4) % 2], size, batch=batch, guidance_scale=1.0)
    for task in _TASKS:
        yield from (change(task, (1024, 1024), batch=batch) for batch in (2, 4))
        yield change(task, (512, 512), batch=4, channels_last=True)
        yield change(task, (1024, 1024), batch=2, vae_tiling=True)


def grid(base: GenerationRequest, capacity_bytes: int | None = None) -> list[Entry]:
    """Make the built-in sweep; fields that it does not vary, such as the steps, are the base's.

    All combinations would be hundreds of runs. Instead it has each size and each batch with both tasks and with and
    without guidance, tiling for sizes of more than one tile, and channels_last at every size. A few more requests,
    near the limit of 16 GiB, are at that emulated capacity, and the others at `capacity_bytes`.
    """
    plain = {"guidance_scale": 7.5, "batch": 1, "vae_tiling": False, "channels_last": False}
    limited = [plain | {"task": task} | change for change in _AT_CAPACITY for task in _TASKS]
    found = [
        Entry(GenerationRequest.from_dict(base.to_dict() | change), capacity)
        for changes, capacity in ((_changes(), capacity_bytes), (limited, GRID_CAPACITY_BYTES))
        for change in changes
    ]
    # If `capacity_bytes` is the grid's own capacity, some requests come twice.
    return list(dict.fromkeys(found))


def entries_in(text: bytes, base: GenerationRequest, capacity_bytes: int | None = None) -> list[Entry]:
    """Read the entries of a JSON array of objects, each with its differences from the base.

    An object may have a ``capacity_bytes`` of its own; without it `capacity_bytes` counts.

    Raises:
        InvalidArgument: it is no such array, or an entry breaks a rule; the message has the entry's index, from 0.
    """
    if len(text) > MAX_FILE_BYTES:
        raise InvalidArgument("sweep", f"must be a file of at most {MAX_FILE_BYTES} bytes", "more")
    try:
        entries = load(text.decode())
    except UnicodeDecodeError:
        raise InvalidArgument("sweep", "must be a JSON file in UTF-8", text[:40]) from None
    except Broken as broken:
        raise InvalidArgument("sweep", broken.rule, broken.value) from None
    if type(entries) is not list or not 0 < len(entries) <= MAX_ENTRIES:
        found = f"{len(entries)} of them" if type(entries) is list else "no array"
        raise InvalidArgument("sweep", f"must be a JSON array of 1 to {MAX_ENTRIES} objects", found)
    return [_entry(index, entry, Entry(base, capacity_bytes)) for index, entry in enumerate(entries)]


def _entry(index: int, entry: Any, base: Entry) -> Entry:
    try:
        values = base.request.to_dict() | {_CAPACITY: base.capacity_bytes} | _ENTRY(entry)
        capacity_bytes = values.pop(_CAPACITY)
        return Entry(GenerationRequest.from_dict(values), capacity_bytes)
    except Broken as broken:
        path = broken.inside(f"sweep[{index}]").path
        value = broken.shown if isinstance(broken.value, (list, dict)) else broken.value
        raise InvalidArgument(path, broken.rule, value, broken.nearest) from None
    except InvalidArgument as error:
        raise InvalidArgument(f"sweep[{index}].{error.argument}", error.rule, error.value, error.nearest) from None


def in_order(entries: Iterable[Entry]) -> list[Entry]:
    """Sort entries by the model that they need, and then by their size.

    Each model is loaded only once. An out-of-memory ends the worker, so large requests come last. An emulated capacity
    needs a worker of its own, so it comes after the whole card.
    """

    def key(entry: Entry) -> tuple[Any, ...]:
        request, capacity = entry.request, entry.capacity_bytes
        largest = request.passes()[-1]
        pixels = largest.effective_width * largest.effective_height
        limit = (capacity is not None, capacity or 0)
        return (*limit, pipeline_key(request), pixels * request.images, pixels * request.unet_batch, request.task)

    return sorted(entries, key=key)


def runnable(
    entries: Iterable[Entry], device: Device, model_dir: str | None = None, weights: Weights = "synthetic"
) -> tuple[list[Entry], list[Skipped]]:
    """Split the entries into those that can run on the device with these weights and those that cannot.

    Raises:
        InvalidArgument: no entry can run; the message says why the first cannot.
    """
    can: list[Entry] = []
    cannot: list[Skipped] = []
    for entry in entries:
        try:
            check_runnable(entry.request, entry.device(device), model_dir, weights)
        except InvalidArgument as error:
            cannot.append(Skipped(entry, error))
        else:
            can.append(entry)
    if not can:
        raise cannot[0].error
    return can, cannot
