"""One measuring job: its request, its progress and its end."""

import threading
from dataclasses import dataclass, field
from typing import Any, Literal

from cache.jobs.estimate import DENOISE, PART_OF, PARTS, Estimate, Left, Reached, about, fraction, left
from cache.jobs.resident import pipeline_key
from cache.machine.device import Device, Weights
from cache.records import Environment, Measured, Measurement, Prediction
from planner.request import GenerationRequest

JobState = Literal["queued", "running", "ok", "out-of-memory", "cancelled", "failed", "cached"]
ENDED: tuple[JobState, ...] = ("ok", "out-of-memory", "cancelled", "failed", "cached")


@dataclass(frozen=True, kw_only=True)
class JobView:
    """Hold the state of a job at one moment; times are seconds.

    `phases` are the phases that have ended, with how long each took. `step` counts the finished steps `of` all.
    `fraction` is the progress in [0, 1]: it never falls, and is 1 only once the job has ended.
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
    fraction: float = 0.0
    left: Left | None = None
    estimate: Estimate | None = None
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
    def steps_text(self) -> str | None:
        """Say how many steps of the UNet have finished, or None in another phase."""
        if self.phase != "unet":
            return None
        if not self.step:
            return "UNet: first step"
        return f"UNet: {self.step} of {self.of} step{'' if self.of == 1 else 's'} finished"

    @property
    def left_text(self) -> str | None:
        """Say how much time is left, or None while that is not known."""
        if self.left is None:
            return None
        return f"{about(self.left.seconds)}{' of steps' if self.left.is_steps_only else ''} left"


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
    asker: str | None = None
    estimate: Estimate | None = None
    state: JobState = "queued"
    phase: str | None = None
    detail: str | None = None
    step: int | None = None
    of: int | None = None
    started: float | None = None
    phase_started: float = 0.0
    # The time of the newest message, which is the end of a step.
    heard_at: float = 0.0
    # The largest share that was shown, so that a new estimate never moves the bar back.
    shown: float = 0.0
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
        self.heard_at = at
        self.detail, self.step, self.of = message.get("detail"), message.get("step"), message.get("of")

    def close_phase(self, at: float) -> None:
        """Add the current phase to `phases` with its seconds until `at`."""
        if self.phase is not None:
            self.phases.append((self.phase, at - self.phase_started))
            self.phase = None

    def reached(self, at: float) -> Reached | None:
        """Return how far the run is at the time `at`, or None before it began."""
        part = PART_OF.get(self.phase or "")
        if part is None:
            return None
        spent = dict.fromkeys(PARTS, 0.0)
        for phase, seconds in [*self.phases, (str(self.phase), at - self.phase_started)]:
            if phase in PART_OF:
                spent[PART_OF[phase]] += seconds
        before = sum(spent[earlier] for earlier in PARTS[: PARTS.index(part)])
        steps = (self.step, self.of, self.heard_at - self.phase_started) if part == DENOISE and self.step else (0, 0, 0)
        finished, calls, steps_s = steps
        return Reached(part, spent[part], before, finished, calls or 0, steps_s)

    def resident_key(self) -> tuple[Any, ...]:
        """Return the key of what a worker must have loaded to serve this job."""
        return (
            self.device.key,
            # A worker keeps the limit that was set in it.
            self.device.emulated_bytes,
            self.environment.weights,
            pipeline_key(self.request),
        )

    def view(self, ahead: int, now: float) -> JobView:
        """Return the state of the job at the time `now`, with `ahead` jobs before it in the queue."""
        at = self.ended_at or now
        reached = self.reached(at)
        if reached:
            self.shown = max(self.shown, fraction(reached, self.estimate))
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
            fraction=1.0 if self.state in ENDED else self.shown,
            left=left(reached, self.estimate) if reached else None,
            estimate=self.estimate,
            phases=tuple(self.phases),
            measurement_id=self.measurement_id,
            reason=self.reason,
            measured=self.measured,
            unkept=self.unkept,
        )
