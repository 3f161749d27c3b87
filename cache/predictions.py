"""Predict a run before it is measured, and compare it with its predictions afterwards."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from cache.machine.device import Device
from cache.records import REHEARSAL, Measurement, Prediction
from planner.calibration.evidence import Evidence
from planner.cards.lookup import Card
from planner.components import SD_V15, STAGE_NAMES, STAGES, ModelFacts
from planner.errors import NoProgram
from planner.fit import fit
from planner.programs.files import shipped
from planner.programs.library import Library
from planner.replay.dry_run import live_peaks
from planner.request import GenerationRequest


def predictions_for(
    request: GenerationRequest,
    device: Device,
    facts: ModelFacts = SD_V15,
    own_pid: int | None = None,
    library: Library | None = None,
    evidence: Evidence | None = None,
) -> tuple[Prediction, ...]:
    """Predict this request on this device by each basis, the most trusted first, to be kept with the run.

    Memory that our own worker (`own_pid`) holds counts as free, since the run takes it over. A calibrated prediction is
    among them where `evidence` has enough runs for one. At an emulated capacity they are for that much memory, with the
    real GPU's kernels and context.
    """
    card = device.as_card(own_pid)
    if card is None:
        return _rehearsed(request, facts, library)
    answers = [fit(request, card, "dry-run", facts, library), fit(request, card, "formula", facts)]
    calibrated = fit(request, card, "calibrated", facts, library, evidence)
    if calibrated.reason is None:
        answers.insert(0, calibrated)
    return tuple(Prediction.of(answer) for answer in answers if answer.need_bytes is not None)


def _rehearsed(request: GenerationRequest, facts: ModelFacts, library: Library | None) -> tuple[Prediction, ...]:
    """Predict a rehearsal: its sizes hold anywhere, but it has no verdict, and a CPU takes no workspace."""
    nowhere = Card(
        name=REHEARSAL,
        usable_bytes=0,
        usable_high_bytes=0,
        context_bytes=0,
        context_low_bytes=0,
        compute_capability=(0, 0),
    )
    formula = replace(Prediction.of(fit(request, nowhere, "formula", facts)), verdict="unknown")
    try:
        peaks = live_peaks(library or shipped(), request)
    except NoProgram:
        return (formula,)
    live = Prediction(
        basis="dry-run",
        verdict="unknown",
        need_bytes=None,
        minimum_bytes=None,
        peak_allocated_bytes=max(peaks.values()),
        peak_reserved_bytes=None,
        stages=peaks,
    )
    return (live, formula)


@dataclass(frozen=True)
class Compared:
    """One line of the comparison: predicted and measured bytes, None where one of them is not known."""

    name: str
    predicted_bytes: int | None
    measured_bytes: int | None

    @property
    def error(self) -> float | None:
        """Compute ``predicted / measured - 1``: negative is a prediction that was too low."""
        if self.predicted_bytes is None or not self.measured_bytes:
            return None
        return self.predicted_bytes / self.measured_bytes - 1


def compare(measurement: Measurement, prediction: Prediction) -> list[Compared]:
    """Compare each measured peak with its prediction: by stage, whole, reserved, on the device."""
    measured = measurement.measured
    by_stage = {stage.stage: stage for stage in measured.stages}
    lines = [
        Compared(f"{STAGE_NAMES[stage]}, allocated", prediction.stages.get(stage), by_stage[stage].peak_allocated_bytes)
        for stage in STAGES
        if stage in by_stage
    ]
    lines.append(Compared("Peak allocated", prediction.peak_allocated_bytes, measured.peak_allocated_bytes))
    if measured.peak_reserved_bytes is not None:
        lines.append(Compared("Peak reserved", prediction.peak_reserved_bytes, measured.peak_reserved_bytes))
        used = measured.peak_reserved_bytes + (measured.context_bytes or 0)
        lines.append(Compared("GPU memory needed", prediction.need_bytes, used))
    return lines


def peak_error(measurement: Measurement, prediction: Prediction) -> float | None:
    """Compute ``predicted / measured - 1`` of the allocated peak of a run that succeeded, else None."""
    if measurement.measured.outcome != "ok":
        return None
    return Compared("", prediction.peak_allocated_bytes, measurement.measured.peak_allocated_bytes).error


def errors_on_gpus(measurements: Iterable[Measurement], basis: str) -> list[float]:
    """List the `peak_error` of this basis over the runs on GPUs that have one.

    Rehearsals do not count.
    """
    found = (
        peak_error(measurement, prediction)
        for measurement in measurements
        if measurement.environment.device_kind == "cuda"
        for prediction in measurement.predictions
        if prediction.basis == basis
    )
    return [error for error in found if error is not None]
