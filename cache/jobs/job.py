"""One measuring job: its request, its progress and its end."""

import threading
from dataclasses import dataclass, field
from typing import Any, Literal

from cache.machine.device import Device, Weights
from cache.records import Environment, Measured, Measurement, Prediction
from planner.request import GenerationRequest

# Each phase has a begin and an end on the progress bar, in [0, 1].
_REACHED = {
    "waiting": (0.0, 0.0),
    "starting": (0.0, 0.02),
    "loading": (0.02, 0.35),
    "warm-up": (0.35, 0.45),
    "text_encoder": (0.45, 0.47),
    "vae_encoder": (0.47, 0.5),
    "unet": (0.5, 0.88),
    "vae_decoder": (0.88, 0.93),
    "safety_checker": (0.93, 0.97),
    "reading back": (0.97, 1.0),
}

JobState = Literal["queued", "running", "ok", "out-of-memory", "cancelled", "failed", "cached"]
ENDED: tuple[JobState, ...] = ("ok", "out-of-memory", "cancelled", "failed", "cached")


@dataclass(frozen=True, kw_only=True)
class JobView:
    """Hold the state of a job at one moment; times are seconds.

    `phases` are the phases that have ended, with how long each took.
    """

    job_id: str
    request: GenerationRequest
    device: Device
    state: JobState = "queued"
    ahead: int = 0
    phase: str | None = None
    detail: str | None = None
    step: int | None = None
    of: int | None = None
    phase_seconds: float = 0.0
    total_seconds: float = 0.0
    phases: tuple[tuple[str, float], ...] = ()
    measurement_id: str | None = None
    reason: str | None = None
    measured: Measured | None = None
    # This is the run if the history could not keep it; its line can be imported later.
    unkept: Measurement | None = None

    @property
    def ended(self) -> bool:
        """Tell whether the job has ended."""
        return self.state in ENDED

    @property
    def fraction(self) -> float:
        """Estimate the progress in [0, 1]; how long phases take differs from card to card."""
        if self.ended:
            return 1.0
        if self.phase not in _REACHED:
            return 0.0
        begin, end = _REACHED[self.phase]
        within = min(1.0, self.step / self.of) if self.step is not None and self.of else 0.0
        return begin + (end - begin) * within


@dataclass
class Job:
    """Hold the mutable state of a job; the queue's lock guards it."""

    job_id: str
    request: GenerationRequest
    device: Device
    environment: Environment
    weights: Weights
    model_dir: str | None
    predictions: tuple[Prediction, ...] = ()
    record_to: str | None = None
    state: JobState = "queued"
    phase: str | None = None
    detail: str | None = None
    step: int | None = None
    of: int | None = None
    started: float | None = None
    phase_started: float = 0.0
    ended_at: float | None = None
    phases: list[tuple[str, float]] = field(default_factory=list)
    measurement_id: str | None = None
    reason: str | None = None
    measured: Measured | None = None
    unkept: Measurement | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)

    def enter(self, message: dict[str, Any], at: float) -> None:
        """Apply a progress message received at the time `at`; a new phase closes the one before."""
        if message["phase"] != self.phase:
            self.close_phase(at)
            self.phase, self.phase_started = message["phase"], at
        self.detail, self.step, self.of = message.get("detail"), message.get("step"), message.get("of")

    def close_phase(self, at: float) -> None:
        """Add the current phase to `phases` with its seconds until `at`."""
        if self.phase is not None:
            self.phases.append((self.phase, at - self.phase_started))
            self.phase = None

    def resident_key(self) -> tuple[Any, ...]:
        """Return the key of what a worker must have loaded to serve this job."""
        request = self.request
        # Offload hooks belong to one pipeline object, so with offload the task is part of the key.
        task = request.task if request.offload != "none" else None
        return (
            self.device.key,
            # A worker keeps the limit that was set in it.
            self.device.emulated_bytes,
            self.environment.weights,
            request.safety_checker,
            request.channels_last,
            request.offload,
            task,
        )

    def view(self, ahead: int, now: float) -> JobView:
        """Return the state of the job at the time `now`, with `ahead` jobs before it in the queue."""
        at = self.ended_at or now
        return JobView(
            job_id=self.job_id,
            request=self.request,
            device=self.device,
            state=self.state,
            ahead=ahead,
            phase=self.phase,
            detail=self.detail,
            step=self.step,
            of=self.of,
            phase_seconds=at - self.phase_started if self.phase else 0.0,
            total_seconds=at - self.started if self.started else 0.0,
            phases=tuple(self.phases),
            measurement_id=self.measurement_id,
            reason=self.reason,
            measured=self.measured,
            unkept=self.unkept,
        )
