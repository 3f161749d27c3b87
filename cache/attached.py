"""The NVIDIA cards in this machine, seen through NVML: without CUDA, so that looking takes no memory on them."""

import hashlib
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import psutil
import pynvml

from cache.versions import torch_cuda
from planner.errors import InvalidArgument, NoGpu, UnknownCard
from planner.gpus import Card, card_named, described_card
from planner.units import GIB

# The oldest Linux driver for each CUDA major version, and the oldest card its libraries still run on.
# Source: CUDA 12.0 and 13.0 release notes.
_DRIVER_FOR_CUDA = {12: 525, 13: 580}
_CAPABILITY_FOR_CUDA = {12: (5, 0), 13: (7, 5)}

_NO_DRIVER = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)

NEXT_STEP = (
    "run the same request with 'python -m planner verify' on a machine with an NVIDIA GPU, copy the history file that "
    "'python -m planner doctor' names there, and point PLANNER_DB at the copy here; "
    "'--device cpu' rehearses the path on this machine"
)


@dataclass(frozen=True)
class Holder:
    """A process that holds memory on a card; its memory is None where the driver does not tell."""

    pid: int
    name: str
    used_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class AttachedCard:
    """One card as the driver sees it now."""

    index: int
    uuid: str
    name: str
    total_bytes: int
    free_bytes: int
    compute_capability: tuple[int, int]
    driver: str
    mig: bool
    holders: tuple[Holder, ...] = ()

    @property
    def uuid_hash(self) -> str:
        """A stable key that does not give the serial away."""
        return hashlib.sha256(self.uuid.encode()).hexdigest()[:16]

    @property
    def used_bytes(self) -> int:
        """What is taken now, by whomever."""
        return self.total_bytes - self.free_bytes

    def as_card(self) -> Card:
        """The card to plan on: usable is what is free now, the context is the catalogue's where it knows the card."""
        try:
            known = card_named(self.name)
        except UnknownCard:
            capability = ".".join(str(part) for part in self.compute_capability)
            known = described_card(f"{self.total_bytes / GIB:.6f}GiB", capability)
        return replace(
            known,
            name=f"{self.name} (attached)",
            aliases=(),
            usable_bytes=self.free_bytes,
            usable_high_bytes=self.total_bytes,
            compute_capability=self.compute_capability,
            source=f"free and total memory as the driver {self.driver} reports them now; {known.source}",
        )


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
        except pynvml.NVMLError:
            # Some drivers and containers do not list processes; the free memory above still counts them.
            continue
    return tuple(found.values())


def _read(index: int, driver: str) -> AttachedCard:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    try:
        # Version 2 counts the driver's own reserve apart; torch's total_memory does not include it either.
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
        total = memory.total - memory.reserved
    except (pynvml.NVMLError, AttributeError):
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        total = memory.total
    try:
        mig = pynvml.nvmlDeviceGetMigMode(handle)[0] == pynvml.NVML_DEVICE_MIG_ENABLE
    except pynvml.NVMLError:
        mig = False
    return AttachedCard(
        index=index,
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        total_bytes=int(total),
        free_bytes=int(memory.free),
        compute_capability=tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
        driver=driver,
        mig=mig,
        holders=_holders(handle),
    )


def cards() -> list[AttachedCard]:
    """Every card the driver lists, in PCI bus order.

    Raises:
        NoGpu: there is no driver, or it lists no card; the message says which and what to do.
    """
    try:
        with _nvml():
            driver = _text(pynvml.nvmlSystemGetDriverVersion())
            found = [_read(index, driver) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        if getattr(error, "value", None) in _NO_DRIVER:
            raise NoGpu(f"no NVIDIA driver is on this machine ({error})", NEXT_STEP) from None
        advice = f"restart the driver or the machine, or {NEXT_STEP}"
        raise NoGpu(f"the NVIDIA driver does not answer ({error})", advice) from None
    if not found:
        raise NoGpu(f"the NVIDIA driver {driver} lists no card", NEXT_STEP)
    return found


def why_not_usable(card: AttachedCard) -> NoGpu | None:
    """Why the installed torch cannot run on this card and what would help, or None when it can."""
    cuda = torch_cuda()
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
        return NoGpu(f"{card.name}: compute capability {has}, torch's CUDA {cuda} needs {needs}", "use a newer card")
    return None


def _visible(found: list[AttachedCard]) -> list[AttachedCard]:
    """The cards that CUDA_VISIBLE_DEVICES leaves; all of them where it is not set or names MIG instances."""
    setting = os.environ.get("CUDA_VISIBLE_DEVICES")
    if setting is None or "MIG-" in setting:
        return found
    wanted = [entry.strip() for entry in setting.split(",")]
    return [card for card in found if str(card.index) in wanted or any(e and card.uuid.startswith(e) for e in wanted)]


def usable_card(device: str | None = None) -> AttachedCard:
    """The attached card with this index or UUID (default: the one with most free memory) that torch can run on.

    Raises:
        NoGpu: no card can be used; the message says why and what to do.
        InvalidArgument: no attached card has this index or UUID.
    """
    found = _visible(cards())
    if not found:
        raise NoGpu("CUDA_VISIBLE_DEVICES hides every card", "unset it, or name a card that is here")
    if device is None:
        chosen = max(found, key=lambda card: card.free_bytes)
    else:
        matching = [card for card in found if device in (str(card.index), card.uuid)]
        if not matching:
            known = ", ".join(f"{card.index} ({card.name}, {card.uuid})" for card in found)
            raise InvalidArgument(
                "device", "must be an attached card's index or UUID, or cpu", device, f"here: {known}"
            )
        chosen = matching[0]
    reason = why_not_usable(chosen)
    if reason:
        raise reason
    return chosen
