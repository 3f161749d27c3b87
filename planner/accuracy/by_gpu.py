"""Say how wrong predictions were on one GPU, or what evidence is nearest, and which conditions runs confirm.

Whole pipelines and halves of the VAE are told apart, and so are runs of which only the reserved peak was published:
a figure is never taken over two of these.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median
from typing import Literal, NamedTuple

from planner.accuracy.grading import Graded, Peak
from planner.cards.card import family_of
from planner.cards.lookup import CATALOGUE, Card
from planner.replay.assumptions import assumptions
from planner.request import GenerationRequest
from planner.units import gib

Capability = tuple[int, int]

# A GPU is graded by what the other runs make of the dry run: that is what is answered for it. A condition is confirmed
# by the dry run itself, whatever runs have corrected.
GRADED_BASIS = "calibrated"
CONFIRMING_BASIS = "dry-run"
# A run within this of what was measured confirms the mechanism; runs of one benchmark differ by half of it.
CONFIRMED_WITHIN = 0.005
# An image of more pixels than this is a large one: at 1024x1024 the VAE takes about as much as everything else.
LARGE_PIXELS = 1024 * 1024

PEAKS: tuple[Peak, Peak] = ("allocated", "reserved")
NOT_MEASURED = "not measured"
WHOLE = ("run of a whole pipeline", "runs of whole pipelines")
HALVES = ("run of one half of the VAE", "runs of halves of the VAE")
RESERVED_ALONE = "the reserved peak alone"


class Gpu(NamedTuple):
    """A GPU: its name for people, the model under which its runs are found, and its compute capability."""

    name: str
    model: str
    capability: Capability


def gpu_of(card: Card) -> Gpu:
    """Give the GPU under which a card's runs are found; for one worker's share it is the whole GPU."""
    whole = card.whole
    return Gpu(whole.name, whole.model, whole.compute_capability)


def measured_gpus(graded: Iterable[Graded]) -> list[Gpu]:
    """List every GPU with a graded run, the one with most runs of whole pipelines first."""
    found: dict[str, tuple[Gpu, int, int]] = {}
    for one in graded:
        model = one.observation.model
        gpu, whole, halves = found.get(model) or (Gpu(model, model, one.observation.capability), 0, 0)
        found[model] = gpu, whole + one.is_whole, halves + (not one.is_whole)
    ordered = sorted(found.values(), key=lambda counted: (-counted[1], -counted[2], counted[0].name))
    return [gpu for gpu, _, _ in ordered]


def version_words(capability: Capability) -> str:
    """Write a compute capability as NVIDIA does, such as ``7.5``."""
    return f"{capability[0]}.{capability[1]}"


def off_words(error: float) -> str:
    """Write a signed error in per cent with the digits that it takes to see it: ``−17.4 %``, ``+0.02 %``."""
    digits = 1 if abs(error) >= 0.1 else 2
    # Rounded first, so that what is shown as nothing has no sign.
    value = round(100 * error, digits) + 0.0
    return f"{value:+.{digits}f} %".replace("-", "−") if value else f"{0:.{digits}f} %"


def median_words(error: float) -> str:
    """Write the size of an error in per cent."""
    return off_words(abs(error)).removeprefix("+")


def work_of(one: Graded) -> str:
    """Say in a few words what ran, without the GPU: ``txt2img 512×512, batch 4, model offload``."""
    observation = one.observation
    request = observation.request
    what = request.task if one.is_whole else observation.scope
    size = f"{request.effective_width}×{request.effective_height}"
    batch = f", batch {request.batch}" if request.batch > 1 else ""
    options = "" if observation.traits.options == "plain" else f", {observation.traits.options}"
    layout = ", channels_last" if request.channels_last else ""
    return f"{what} {size}{batch}{options}{layout}"


def versions_words(one: Graded) -> str:
    """Name the versions that a run says, ``torch 2.0.x``.

    Those that it does not say are left out.
    """
    known = [part for part in one.observation.versions.split(", ") if part and not part.endswith(" unknown")]
    return ", ".join(known) or "unknown versions"


def circumstances(one: Graded) -> list[str]:
    """List what a reader must know beside a run's error: the peak, other attention, a memory it fills."""
    found = [] if one.peak == "allocated" else ["reserved"]
    if one.observation.attention != "sdpa":
        found.append(f"attention {one.observation.attention}")
    card = one.observation.gpu
    if one.observation.emulated_bytes is not None:
        found.append(f"{gib(one.observation.emulated_bytes)} emulated")
    if one.is_capped and card is not None:
        found.append(f"by the dry run it fills {gib(card.usable_bytes)}")
    return found


@dataclass(frozen=True)
class Tally:
    """At least one run of one kind, and how far off they were."""

    runs: tuple[Graded, ...]
    basis: str = GRADED_BASIS

    @cached_property
    def errors(self) -> list[float]:
        """Give the signed error of each run."""
        return [one.error(self.basis) for one in self.runs]

    @property
    def median_error(self) -> float:
        """Give the median of the errors, to either side."""
        return median(map(abs, self.errors))

    @cached_property
    def worst(self) -> Graded:
        """Give the run that was missed most, to either side."""
        return max(self.runs, key=lambda one: abs(one.error(self.basis)))

    @property
    def worst_error(self) -> float:
        """Give the signed error of the run that was missed most."""
        return self.worst.error(self.basis)

    @property
    def inside(self) -> int:
        """Count the runs whose measured peak lies in the interval of the answer without that run."""
        return sum(one.is_covered for one in self.runs)

    def errors_words(self, *, is_brief: bool = False) -> str:
        """Say the median and the worst error, ``median 0.04 %, worst -17.4 % (img2img 1800×1200)``.

        What ran is left out where `is_brief`.
        """
        worst = off_words(self.worst_error) + ("" if is_brief else f" ({work_of(self.worst)})")
        if len(self.runs) == 1:
            return f"off by {worst}"
        return f"median {median_words(self.median_error)}, worst {worst}"


def tally(graded: Iterable[Graded]) -> Tally | None:
    """Give the tally of these runs, None where there are none."""
    runs = tuple(graded)
    return Tally(runs) if runs else None


def _counted(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def kinds_words(allocated: Tally | None, reserved: Tally | None, one: str, many: str, *, is_brief: bool = False) -> str:
    """Say count and errors of allocated peaks, and apart from them of runs with the reserved peak alone."""
    told = []
    if allocated:
        told.append(f"{_counted(len(allocated.runs), one, many)}, {allocated.errors_words(is_brief=is_brief)}")
    if reserved:
        count = len(reserved.runs)
        counted = f"{count:,} more" if allocated else _counted(count, one, many)
        told.append(f"{counted} with {RESERVED_ALONE}, {reserved.errors_words(is_brief=is_brief)}")
    return "; ".join(told)


Nearness = Literal["compute capability", "architecture", "major compute capability"]


@dataclass(frozen=True)
class GpuAccuracy:
    """The errors of predictions on one GPU.

    `allocated` and `reserved` are runs of whole pipelines, the second with the reserved peak alone; `halves` are runs
    of one half of the VAE. `nearest` has the GPUs next to one that was not measured, which are alike in `nearness`;
    `assumed` is what the dry run takes for granted where nothing of the same compute capability was measured.
    """

    gpu: Gpu
    allocated: Tally | None = None
    reserved: Tally | None = None
    halves: Tally | None = None
    nearest: tuple["GpuAccuracy", ...] = ()
    nearness: Nearness | None = None
    assumed: tuple[str, ...] = field(default=())

    @property
    def is_measured(self) -> bool:
        """Tell whether a whole pipeline was measured on it; halves of the VAE do not count."""
        return self.allocated is not None or self.reserved is not None

    @property
    def whole_runs(self) -> tuple[Graded, ...]:
        """Give its runs of whole pipelines, those with allocated peaks first."""
        return tuple(one for found in (self.allocated, self.reserved) if found for one in found.runs)

    @property
    def runs_to_show(self) -> tuple[Graded, ...]:
        """Give its own runs, whole pipelines first, or those of the nearest GPUs where it has none."""
        if self.is_measured:
            return (*self.whole_runs, *(self.halves.runs if self.halves else ()))
        return tuple(one for near in self.nearest for one in near.whole_runs)

    def sentence(self) -> str:
        """Answer "how wrong on this GPU?" in one sentence, without a full stop."""
        if self.is_measured:
            return f"{self.gpu.name}: {kinds_words(self.allocated, self.reserved, *WHOLE)}"
        if not self.nearest:
            family = f"compute capability {self.gpu.capability[0]}.x"
            notes = [
                note.removeprefix(f"compute capability {version_words(self.gpu.capability)}: ") for note in self.assumed
            ]
            assumed = f"; assumed: {'; '.join(notes)}" if notes else ""
            return f"{self.gpu.name}: {NOT_MEASURED}, nor is any GPU of {family}{assumed}"
        alike = "" if self.nearness == "compute capability" else f" of the same {self.nearness}"
        told = " and ".join(f"{near.gpu.name} ({near._brief()})" for near in self.nearest)
        return f"{self.gpu.name}: {NOT_MEASURED}; nearest evidence{alike}: {told}"

    def _brief(self) -> str:
        return kinds_words(self.allocated, self.reserved, "run", "runs", is_brief=True)

    def further_sentences(self) -> list[str]:
        """Say what belongs beside the sentence: versions, intervals, halves of the VAE, what is assumed."""
        found = [_conditions_of(self.whole_runs)] if self.whole_runs else []
        for what, of in (("measured peaks", self.allocated), (f"runs with {RESERVED_ALONE}", self.reserved)):
            if of:
                found.append(
                    f"{of.inside:,} of {len(of.runs):,} {what} lie in the interval of the answer without that run"
                )
        if self.halves:
            counted = _counted(len(self.halves.runs), *HALVES)
            found.append(f"apart from these, {counted} alone: {self.halves.errors_words()}")
        if self.nearest:
            found += [f"assumed - {note}" for note in self.assumed]
        return found


def _conditions_of(runs: Sequence[Graded]) -> str:
    """Say with which attention and versions runs were measured, the most frequent first."""
    counts = Counter(f"attention {one.observation.attention} and {versions_words(one)}" for one in runs)
    return "measured with " + "; ".join(f"{name} ({count})" for name, count in counts.most_common())


def by_gpu(graded: Sequence[Graded], gpu: Gpu) -> GpuAccuracy:
    """Tell how wrong predictions were on this GPU, or name the nearest evidence."""
    own = _told(graded, gpu)
    if own.is_measured:
        return own
    nearness, nearest = _nearest(graded, gpu)
    assumed = () if nearness == "compute capability" else tuple(assumptions(GenerationRequest(), gpu.capability))
    return GpuAccuracy(gpu, halves=own.halves, nearest=nearest, nearness=nearness, assumed=assumed)


def _told(graded: Iterable[Graded], gpu: Gpu) -> GpuAccuracy:
    own = [one for one in graded if one.observation.model == gpu.model]

    def whole(peak: Peak) -> Tally | None:
        return tally(one for one in own if one.is_whole and one.peak == peak)

    return GpuAccuracy(gpu, whole("allocated"), whole("reserved"), tally(one for one in own if not one.is_whole))


def _nearest(graded: Sequence[Graded], gpu: Gpu) -> tuple[Nearness | None, tuple[GpuAccuracy, ...]]:
    """Find measured GPUs of the same compute capability, else architecture, else major compute capability."""
    measured = measured_gpus(one for one in graded if one.is_whole)
    family = family_of(gpu.capability)
    levels: tuple[tuple[Nearness, Callable[[Gpu], bool]], ...] = (
        ("compute capability", lambda other: other.capability == gpu.capability),
        ("architecture", lambda other: family_of(other.capability) == family),
        ("major compute capability", lambda other: other.capability[0] == gpu.capability[0]),
    )
    for nearness, is_alike in levels:
        if alike := [other for other in measured if is_alike(other)]:
            return nearness, tuple(_told(graded, other) for other in alike)
    return None, ()


# The conditions that runs confirm; a run counts for each that its request has.
CONDITIONS: dict[str, Callable[[GenerationRequest], bool]] = {
    "one plain image": lambda request: (
        request.batch == 1
        and not (request.vae_tiling or request.attention_slicing or request.channels_last)
        and request.offload == "none"
        and not _is_large(request)
    ),
    "several images": lambda request: request.batch > 1,
    "large images": lambda request: _is_large(request),
    "VAE tiling": lambda request: request.vae_tiling,
    "VAE slicing": lambda request: request.vae_slicing and request.batch > 1,
    "model offload": lambda request: request.offload == "model",
    "channels_last": lambda request: request.channels_last,
    "attention slicing": lambda request: request.attention_slicing,
}


def _is_large(request: GenerationRequest) -> bool:
    return request.effective_width * request.effective_height > LARGE_PIXELS


State = Literal["confirmed", "disagrees", "not measured"]
STATES: tuple[State, ...] = ("confirmed", "disagrees", "not measured")


@dataclass(frozen=True)
class Confirmation:
    """The errors of the dry run under one condition, allocated and reserved peaks apart."""

    allocated: Tally | None
    reserved: Tally | None

    @property
    def state(self) -> State:
        """Say whether every run agrees within `CONFIRMED_WITHIN`."""
        found = self.allocated or self.reserved
        if found is None:
            return "not measured"
        return _state(found)


def _state(found: Tally) -> State:
    return "confirmed" if within(found) == len(found.runs) else "disagrees"


def within(found: Tally) -> int:
    """Count the runs that are off by `CONFIRMED_WITHIN` at most."""
    return sum(abs(error) <= CONFIRMED_WITHIN for error in found.errors)


@dataclass(frozen=True)
class Confirmed:
    """The results on one compute capability, by condition.

    `gpus` are those that were measured there.
    """

    capability: Capability
    gpus: tuple[str, ...]
    conditions: dict[str, Confirmation]

    @property
    def title(self) -> str:
        """Name the compute capability and NVIDIA's architecture."""
        return f"{version_words(self.capability)} {family_of(self.capability)}"

    def words(self, state: State) -> list[str]:
        """Name the conditions in this state with their runs, such as ``large images (0 of 1, worst -17.4 %)``.

        Allocated and reserved peaks of one condition are named apart, for one may be confirmed and the other not.
        """
        if state == "not measured":
            return [name for name, found in self.conditions.items() if found.state == state]
        told = []
        for name, found in self.conditions.items():
            for of, peak in ((found.allocated, ""), (found.reserved, " by the reserved peak")):
                if of and _state(of) == state:
                    worst = "" if state == "confirmed" else f", worst {off_words(of.worst_error)}"
                    told.append(f"{name}{peak} ({within(of)} of {len(of.runs)}{worst})")
        return told

    def sentence(self) -> str:
        """Say in one line what is confirmed, what disagrees and what is not measured, without a full stop."""
        if not self.gpus:
            return f"{self.title}: {NOT_MEASURED}"
        told = (f"{state}: {', '.join(words)}" for state in STATES if (words := self.words(state)))
        return f"{self.title} ({', '.join(self.gpus)}) - {'; '.join(told)}"


def confirmed(graded: Sequence[Graded], *, is_whole: bool) -> list[Confirmed]:
    """Tell for each compute capability which conditions are confirmed by runs.

    For whole pipelines those of the catalogue that nobody measured are there too, so that they are seen to be empty.
    """
    chosen = [one for one in graded if one.is_whole == is_whole]
    capabilities = {one.observation.capability for one in chosen}
    if is_whole:
        capabilities |= {card.compute_capability for card in CATALOGUE}
    return [_confirmed_on(capability, chosen) for capability in sorted(capabilities)]


def _confirmed_on(capability: Capability, chosen: Sequence[Graded]) -> Confirmed:
    runs = [one for one in chosen if one.observation.capability == capability]

    def of(holds: Callable[[GenerationRequest], bool], peak: Peak) -> Tally | None:
        found = tuple(one for one in runs if one.peak == peak and holds(one.observation.request))
        return Tally(found, CONFIRMING_BASIS) if found else None

    return Confirmed(
        capability,
        tuple(gpu.name for gpu in measured_gpus(runs)),
        {name: Confirmation(of(holds, "allocated"), of(holds, "reserved")) for name, holds in CONDITIONS.items()},
    )
