"""The NVIDIA cards in this machine, read through NVML: without CUDA, so that reading takes no memory on them."""

import hashlib
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import psutil
import pynvml

from cache.machine.versions import INSTALL, missing, torch_cuda
from planner.cards.card import OLDEST_FOR_CUDA_13
from planner.cards.lookup import Card, card_named, described_card
from planner.errors import InvalidArgument, NoGpu, UnknownCard
from planner.units import GIB

# These are the oldest Linux driver for each CUDA major version, and the oldest capability that its libraries support.
# Source: CUDA 12.0 and 13.0 release notes.
_DRIVER_FOR_CUDA = {12: 525, 13: 580}
_CAPABILITY_FOR_CUDA = {12: (5, 0), 13: OLDEST_FOR_CUDA_13}

_NO_DRIVER = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)

NEXT_STEP = (
    "run the same request with 'python -m planner verify' on a machine with an NVIDIA GPU, 'python -m planner history "
    "export FILE' there and 'history import FILE' here; "
    "'--device cpu' rehearses the path on this machine"
)


@dataclass(frozen=True)
class Holder:
    """Describe a process that holds memory on a card, None bytes if the driver does not say."""

    pid: int
    name: str
    used_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class AttachedCard:
    """Describe one card, or one MIG instance of it, as the driver reports it now."""

    index: int
    uuid: str
    name: str
    total_bytes: int
    free_bytes: int
    compute_capability: tuple[int, int]
    driver: str
    mig: bool
    instance: int | None = None
    holders: tuple[Holder, ...] = ()

    @property
    def uuid_hash(self) -> str:
        """Return a stable key from which the UUID cannot be read back."""
        return hashlib.sha256(self.uuid.encode()).hexdigest()[:16]

    @property
    def place(self) -> str:
        """Return its number, ``0``, or for a MIG instance ``0:2`` as containers write it."""
        return f"{self.index}" if self.instance is None else f"{self.index}:{self.instance}"

    @property
    def used_bytes(self) -> int:
        """Return the bytes that all processes hold now."""
        return self.total_bytes - self.free_bytes

    @property
    def used_fraction(self) -> float:
        """Return the part of the memory that is in use, in [0, 1]."""
        return min(1.0, max(0.0, self.used_bytes / self.total_bytes))

    def as_card(self, own_pid: int | None = None) -> Card:
        """Make the card to plan on: free memory is usable, and what the process `own_pid` holds.

        That process is our own worker, which would use its memory again. The context is the catalogue's, or for an
        unknown card that of similar ones.
        """
        own_bytes = sum(holder.used_bytes or 0 for holder in self.holders if holder.pid == own_pid)
        try:
            known = card_named(self.name, self.total_bytes)
        except UnknownCard:
            capability = ".".join(str(part) for part in self.compute_capability)
            described = described_card(f"{self.total_bytes / GIB:.6f}GiB", capability)
            # The history keeps runs on it under the driver's name, and finds them by it.
            known = replace(described, model=self.name)
        return replace(
            known,
            name=f"{self.name} (attached)",
            aliases=(),
            shared_names=(),
            origin="attached",
            index=self.index,
            instance=self.instance,
            usable_bytes=self.free_bytes + own_bytes,
            usable_high_bytes=self.free_bytes + own_bytes,
            compute_capability=self.compute_capability,
            source=f"free and total memory as the driver {self.driver} reports them now; {known.source}",
        )


def cards_to_plan_on(found: Sequence[AttachedCard], own_pid: int | None = None) -> list[Card]:
    """Turn attached cards into cards to plan on, as `AttachedCard.as_card` does.

    Cards with the same name are told apart by their place.
    """
    names = [one.name for one in found]
    planned = [one.as_card(own_pid) for one in found]
    return [
        card if names.count(one.name) == 1 else replace(card, name=f"{one.name} (attached, {one.place})")
        for one, card in zip(found, planned, strict=True)
    ]


@contextmanager
def _nvml() -> Generator[None]:
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _holders(handle) -> tuple[Holder, ...]:
    found = {}
    for processes in (pynvml.nvmlDeviceGetComputeRunningProcesses, pynvml.nvmlDeviceGetGraphicsRunningProcesses):
        try:
            for process in processes(handle):
                try:
                    name = psutil.Process(process.pid).name()
                except psutil.Error:
                    name = "another container or user"
                found[process.pid] = Holder(process.pid, name, process.usedGpuMemory)
        except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError):
            # Some drivers and containers do not list processes; the free memory still accounts for them.
            continue
    return tuple(found.values())


def _memory(handle) -> tuple[int, int]:
    """Read the total and the free bytes as CUDA will report them."""
    try:
        # Version 2 counts the driver's own reserve apart; torch's total_memory does not include it either.
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
        return int(memory.total - memory.reserved), int(memory.free)
    except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError):
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        return int(memory.total), int(memory.free)


def _mig_instances(handle) -> dict[int, Any]:
    """Find the handles of a card's MIG instances by number; such a card runs nothing itself."""
    try:
        if pynvml.nvmlDeviceGetMigMode(handle)[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
            return {}
        count = pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except pynvml.NVMLError:
        return {}
    instances = {}
    for index in range(count):
        # The numbers have gaps if some instances were never made.
        with suppress(pynvml.NVMLError):
            instances[index] = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
    return instances


def _read(index: int, driver: str) -> list[AttachedCard]:
    """Read the card of this index, or each of its MIG instances."""
    card = pynvml.nvmlDeviceGetHandleByIndex(index)
    instances = _mig_instances(card)
    found = []
    for instance, handle in instances.items() or [(None, card)]:
        total, free = _memory(handle)
        found.append(
            AttachedCard(
                index=index,
                uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
                name=_text(pynvml.nvmlDeviceGetName(handle)),
                total_bytes=total,
                free_bytes=free,
                compute_capability=tuple(pynvml.nvmlDeviceGetCudaComputeCapability(card)),
                driver=driver,
                mig=bool(instances),
                instance=instance,
                holders=_holders(handle),
            )
        )
    return found


def _read_all(driver: str) -> list[AttachedCard]:
    found, problem = [], None
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:
            found += _read(index, driver)
        except pynvml.NVMLError as error:
            # A card that fell off the bus, or that we may not use, must not hide the others.
            problem = error
    if problem and not found:
        raise problem
    return found


def cards() -> list[AttachedCard]:
    """List the driver's cards in PCI bus order; MIG instances stand for the card they split.

    Raises:
        NoGpu: there is no driver, or it lists no card; the message says which and what to do.
    """
    try:
        with _nvml():
            driver = _text(pynvml.nvmlSystemGetDriverVersion())
            found = _read_all(driver)
    except pynvml.NVMLError as error:
        if getattr(error, "value", None) in _NO_DRIVER:
            raise NoGpu(f"no NVIDIA driver is on this machine ({error})", NEXT_STEP) from None
        advice = f"restart the driver or the machine, or {NEXT_STEP}"
        raise NoGpu(f"the NVIDIA driver does not answer ({error})", advice) from None
    if not found:
        raise NoGpu(f"the NVIDIA driver {driver} lists no GPU", NEXT_STEP)
    return found


def plannable() -> list[Card]:
    """List the machine's own GPUs as they can be planned on now.

    Raises:
        NoGpu: the machine has none.
    """
    return cards_to_plan_on(cards())


def why_not_usable(card: AttachedCard) -> NoGpu | None:
    """Find why the installed torch cannot run on this card, with advice, or None if it can."""
    cuda = torch_cuda()
    lacking = missing()
    if lacking and "torch" in lacking.names:
        return NoGpu(f"{card.name}: torch is not installed", INSTALL)
    if cuda is None:
        advice = "install the CUDA build of the same version in a fresh environment on the GPU host"
        return NoGpu(f"{card.name}: the installed torch is a CPU build", advice)
    major = int(cuda.partition(".")[0])
    needed = _DRIVER_FOR_CUDA.get(major)
    if needed and int(card.driver.partition(".")[0]) < needed:
        reason = f"{card.name}: driver {card.driver} is too old for torch's CUDA {cuda}"
        return NoGpu(reason, f"install driver {needed} or newer")
    oldest = _CAPABILITY_FOR_CUDA.get(major)
    if oldest and card.compute_capability < oldest:
        has, needs = (".".join(map(str, pair)) for pair in (card.compute_capability, oldest))
        return NoGpu(f"{card.name}: compute capability {has}, torch's CUDA {cuda} needs {needs}", "use a newer GPU")
    return None


def _visible(found: list[AttachedCard]) -> list[AttachedCard]:
    """Keep the cards that CUDA_VISIBLE_DEVICES names, by index or by the beginning of a UUID.

    All are kept if the variable is not set.
    """
    setting = os.environ.get("CUDA_VISIBLE_DEVICES")
    if setting is None:
        return found
    wanted = [entry.strip() for entry in setting.split(",")]
    return [card for card in found if _is_called(card, wanted)]


def _is_called(card: AttachedCard, names: list[str]) -> bool:
    # A number names a whole card, so it never matches a MIG instance.
    by_index = not card.mig and str(card.index) in names
    return by_index or any(name.startswith(("GPU-", "MIG-")) and card.uuid.startswith(name) for name in names)


def usable_card(device: str | None = None) -> AttachedCard:
    """Find the attached card with this index or UUID, by default that with most free memory.

    Only cards that the installed torch can run on are considered.

    Raises:
        NoGpu: no card can be used; the message says why and what to do.
        InvalidArgument: no attached card has this index or UUID.
    """
    found = _visible(cards())
    if not found:
        raise NoGpu("CUDA_VISIBLE_DEVICES hides every GPU", "unset it, or name a GPU that is here")
    if device is not None:
        known = ", ".join(f"{card.index} ({card.name}, {card.uuid})" for card in found)
        found = [card for card in found if _is_called(card, [device])]
        if not found:
            rule = "must be an attached GPU's index or UUID, or cpu"
            raise InvalidArgument("device", rule, device, f"here: {known}")
    problems = [why_not_usable(card) for card in found]
    usable = [card for card, problem in zip(found, problems, strict=True) if problem is None]
    if not usable:
        raise next(problem for problem in problems if problem)
    return max(usable, key=lambda card: card.free_bytes)
