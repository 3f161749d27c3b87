"""Find measured runs by GPU family and by request, and compute what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from planner.calibration.runs import Observation, Run, newest
from planner.calibration.similarity import MIN_WEIGHT, Traits, traits_of
from planner.calibration.workspace_curve import Curve
from planner.cards.lookup import Card, family_of
from planner.request import GenerationRequest

if TYPE_CHECKING:
    from planner.calibration.calibrate import Calibration

# With this many runs of a GPU model, their CUDA contexts are used in place of the catalogue's.
_ENOUGH_CONTEXTS = 3


class Contexts(NamedTuple):
    """The least, middle and most memory to expect for a GPU's CUDA context. Bytes."""

    low: int
    middle: int
    high: int


# Gives each run's curve, by run id; runs for which there is no program are left out.
CurvesOf = Callable[[Sequence[Observation]], Mapping[str, Curve]]


class Evidence:
    """All measured runs that a prediction can rest on, newest first.

    What follows from them is computed when asked for.

    `versions` are those that a prediction is for: runs of others are stale.
    """

    def __init__(self, observations: Iterable[Observation], curves_of: CurvesOf, versions: str):
        self.observations = tuple(observations)
        self.versions = versions
        self._curves_of = curves_of
        self._calibrations: dict[str, Calibration | None] = {}

    def of_family(self, family: str) -> list[Observation]:
        """List the runs on GPUs of this family."""
        return [one for one in self.observations if family_of(one.capability) == family]

    def with_curves(self, observations: Sequence[Observation]) -> list[Run]:
        """Pair the runs that ended unhindered with their curves.

        Runs that no program can replay are left out.
        """
        full = [one for one in observations if one.kind == "full"]
        curves = self._curves_of(full) if full else {}
        return [Run(one, curves[one.run_id]) for one in full if one.run_id in curves]

    def calibration(self, capability: tuple[int, int]) -> Calibration | None:
        """Build the calibration from the runs of this capability's GPU family, or None where there are none.

        Runs that met the end of their memory only bound their peak. In simulations such bounds made no answer better,
        and alone they made intervals too narrow.
        """
        family = family_of(capability)
        if family not in self._calibrations:
            # Most answers do without it, and a cold start is faster without its tables.
            from planner.calibration.calibrate import Calibration

            # The newest are selected before their curves are made, which takes time.
            runs = self.with_curves(newest(self._calibrating(family)))
            self._calibrations[family] = Calibration(runs) if runs else None
        return self._calibrations[family]

    def has_enough_for(self, request: GenerationRequest, card: Card) -> bool:
        """Tell whether there may be enough runs like this request to correct it."""
        target = self.target(request, card)
        return sum(target.weight(one.traits) for one in self._calibrating(target.family)) >= MIN_WEIGHT

    def _calibrating(self, family: str) -> list[Observation]:
        return [one for one in self.of_family(family) if one.kind == "full" and one.peak_allocated_bytes]

    def of_request(self, request: GenerationRequest, card: Card) -> tuple[list[Observation], list[Observation]]:
        """List the runs of this request on this GPU model, newest first: current ones, and stale ones."""
        form, model = request.allocation_form(), card.model
        found = [
            one for one in self.observations if one.scope == "pipeline" and one.model == model and one.form == form
        ]
        fresh = [one for one in found if one.versions == self.versions]
        return fresh, [one for one in found if one.versions != self.versions]

    def target(self, request: GenerationRequest, card: Card) -> Traits:
        """Give the similarity key of this request on this GPU with the installed versions.

        The cuDNN is that of the newest run with today's versions on such GPUs, since cuDNN comes with torch.
        """
        family = self.of_family(family_of(card.compute_capability))
        cudnn = next((one.cudnn for one in family if one.cudnn and one.versions == self.versions), None)
        return traits_of(request, card.compute_capability, cudnn=cudnn, versions=self.versions)

    def contexts(self, card: Card) -> Contexts:
        """Give the CUDA context: as measured where there are enough runs, else the catalogue's range.

        The range is the middle of what was measured, so that one absurd run does not set it.
        """
        found = sorted(one.context_bytes for one in self.observations if one.context_bytes and one.model == card.model)
        if len(found) < _ENOUGH_CONTEXTS:
            return Contexts(card.context_low_bytes, card.context_bytes, card.context_bytes)
        outer = max(1, len(found) // 10)
        return Contexts(found[outer], round(median(found)), found[len(found) - 1 - outer])
