"""Estimate how long a run takes, from measured runs, and how much time a running job has left.

A run has four parts: the worker prepares (starts, loads the weights, warms up), the pipeline encodes, the UNet
denoises, and the VAE decodes. Times are seconds.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import median_low
from typing import NamedTuple

from cache.jobs.resident import pipeline_key
from cache.records import Environment, Measured, Measurement
from planner.report.script import DEFAULT_STRENGTH
from planner.request import OPTIONS, GenerationRequest

PREPARE, ENCODE, DENOISE, DECODE = PARTS = ("prepare", "encode", "denoise", "decode")
# The part of a run to which each phase of a job belongs. A job that waits for its device has not begun.
PART_OF = {
    "starting": PREPARE,
    "loading": PREPARE,
    "warm-up": PREPARE,
    "text_encoder": ENCODE,
    "image_encoder": ENCODE,
    "vae_encoder": ENCODE,
    "controlnet": DENOISE,
    "unet": DENOISE,
    "vae_decoder": DECODE,
    "safety_checker": DECODE,
    "reading back": DECODE,
}
# A job that waited for its device was open for longer, and files in the system's cache load faster. So preparing is
# expected to take the lower median of so many runs.
RECENT = 5
# A bar that is full says that the run has ended, so it stops here before the end.
ALMOST_DONE = 0.99


class Estimate(NamedTuple):
    """Hold the expected seconds of each part of a run; `calls` counts calls of the UNet.

    `run` is the measured run that it comes from. `is_scaled` tells that this run had another size, batch or option, and
    `has_same_weights` that `prepare_s` is from loads of the same weights.
    """

    prepare_s: float
    encode_s: float
    step_s: float
    decode_s: float
    calls: int
    run: Measurement
    is_scaled: bool
    has_same_weights: bool

    @property
    def total_s(self) -> float:
        """Add up the seconds of all parts."""
        return sum(self.part_s(part) for part in PARTS)

    def part_s(self, part: str) -> float:
        """Return the expected seconds of one of `PARTS`."""
        return {
            PREPARE: self.prepare_s,
            ENCODE: self.encode_s,
            DENOISE: self.step_s * self.calls,
            DECODE: self.decode_s,
        }[part]


class Reached(NamedTuple):
    """Hold how far a running job is; times are seconds.

    `spent_s` is the time in this part, and `before_s` the time in the parts before it. `finished` of `calls` UNet calls
    are done, the last of them `steps_s` after the first began; `calls` is 0 until the first is done.
    """

    part: str
    spent_s: float
    before_s: float = 0.0
    finished: int = 0
    calls: int = 0
    steps_s: float = 0.0


class Left(NamedTuple):
    """Hold the seconds that a job has left; `is_steps_only` leaves out what follows the last step."""

    seconds: float
    is_steps_only: bool


def unet_calls(request: GenerationRequest) -> int:
    """Count the calls of the UNet in a run: with PNDM one more than the steps that run.

    img2img skips the first steps: at its default strength it runs four in five.

    Source: diffusers 0.42.1, PNDMScheduler.set_timesteps repeats the second timestep, and
    StableDiffusionImg2ImgPipeline.get_timesteps.
    """
    return sum(_calls_of_pass(one) for one in request.passes())


def _calls_of_pass(request: GenerationRequest) -> int:
    steps = request.steps
    if request.task == "img2img":
        steps = min(int(steps * max(DEFAULT_STRENGTH, 1 / steps)), steps)
    return steps + 1 if request.steps > 1 else steps


def estimate(
    request: GenerationRequest,
    environment: Environment,
    runs: Sequence[Measurement],
    open_s: Mapping[str, float],
    *,
    is_resident: bool = False,
) -> Estimate | None:
    """Estimate a run from `runs` of this machine on the same GPU, or return None if there is none.

    `runs` succeeded, have their times, and are newest first, as `Store.timed_runs` lists them. The run with the most
    similar work counts, the newest of equal ones. Where it had another size, its steps are scaled by latent pixels
    times the UNet's batch, and its VAE by latent pixels times the batch.

    `open_s` has the seconds for which the jobs of these runs were open, by the run's id. `is_resident` says that a
    worker has the model loaded.
    """
    if not runs:
        return None
    run = min(runs, key=lambda one: _distance(one.request, request))
    step_ratio, image_ratio = _work(request) / _work(run.request), _images(request) / _images(run.request)
    seconds = {stage.stage: stage.seconds for stage in run.measured.stages}
    encode_s = sum(seconds.get(name, 0.0) for name in ("text_encoder", "image_encoder", "vae_encoder"))
    total_s, step_s = run.measured.total_seconds, run.measured.seconds_per_step
    assert total_s is not None and step_s is not None
    unet_s = seconds.get("controlnet", 0.0) + seconds.get("unet", step_s * unet_calls(run.request))
    decode_s = max(0.0, total_s - encode_s - unet_s)
    same_weights = [one for one in runs if one.environment.weights == environment.weights]
    # Other options load other modules, or the same ones in another way.
    same_pipeline = [one for one in same_weights if pipeline_key(one.request) == pipeline_key(request)]
    return Estimate(
        prepare_s=_prepare_s(same_pipeline or same_weights or runs, open_s, is_resident=is_resident),
        encode_s=encode_s * image_ratio,
        step_s=step_s * step_ratio,
        decode_s=decode_s * image_ratio,
        calls=unet_calls(request),
        run=run,
        is_scaled=_distance(run.request, request) > (0, 0.0),
        has_same_weights=bool(same_weights),
    )


def _work(request: GenerationRequest) -> float:
    """Return the work of a UNet call: latent pixels times the UNet's batch.

    Of hires fix it is the mean of all its calls.
    """
    passes = request.passes()
    works = (_calls_of_pass(one) * one.latent_width * one.latent_height * one.unet_batch for one in passes)
    return sum(works) / unet_calls(request)


def _images(request: GenerationRequest) -> int:
    """Return the work of the VAE: latent pixels times the images, of both passes of hires fix."""
    return sum(one.latent_width * one.latent_height * one.images for one in request.passes())


def _distance(one: GenerationRequest, other: GenerationRequest) -> tuple[int, float]:
    """Return how much the work differs: the number of other options, then the ratio of sizes.

    The ratio is the sum of the logarithms of both kinds of work, without sign.
    """
    others = sum(getattr(one, field.name) != getattr(other, field.name) for field in OPTIONS)
    others += one.task != other.task
    return others, abs(math.log(_work(one) / _work(other))) + abs(math.log(_images(one) / _images(other)))


def expected_text(expected: Estimate | None) -> str:
    """Say in a sentence how long a run takes and what this is estimated from."""
    if expected is None:
        return "No run here yet to estimate the time from; the first step will tell."
    time = about(expected.total_s)
    of = expected.run
    day = of.created_at[:10]
    source = f"scaled from a run of {of.request.describe()}" if expected.is_scaled else "at the pace of such a run"
    download = "" if expected.has_same_weights else ", without the time to read or download these weights"
    return f"{time[0].upper()}{time[1:]}, {source} on {day}{download}."


def _prepare_s(runs: Sequence[Measurement], open_s: Mapping[str, float], *, is_resident: bool) -> float:
    """Estimate the seconds in which a job is open before the pipeline is called.

    A job whose worker had the model loaded was open for less than loading takes, and stores the seconds of the load
    before.
    """
    loads = [run.measured.load_seconds for run in runs if run.measured.load_seconds is not None][:RECENT]
    load_s = median_low(loads) if loads else 0.0
    loaded, resident = [], []
    for run in runs:
        if run.measurement_id in open_s:
            prepared = max(0.0, open_s[run.measurement_id] - _total_s(run.measured))
            (loaded if prepared >= (run.measured.load_seconds or 0.0) else resident).append(prepared)
    if is_resident and resident:
        return median_low(resident[:RECENT])
    prepare_s = median_low(loaded[:RECENT]) if loaded else load_s
    return max(0.0, prepare_s - load_s) if is_resident else prepare_s


def _total_s(measured: Measured) -> float:
    return measured.total_seconds or 0.0


def left(reached: Reached, expected: Estimate | None) -> Left | None:
    """Compute the seconds that are left, or return None while nothing is known about them.

    After the first call of the UNet they come from the job's own calls, and before that from the estimate.
    """
    later = PARTS[PARTS.index(reached.part) + 1 :]
    follows = sum(expected.part_s(part) for part in later) if expected else 0.0
    if reached.part == DENOISE and reached.finished:
        step_s = reached.steps_s / reached.finished
        in_call = min(step_s, max(0.0, reached.spent_s - reached.steps_s))
        # The call under way may take longer than the others; the calls after it are still to come.
        unfinished = step_s * (reached.calls - reached.finished)
        return Left(max(0.0, unfinished - in_call) + follows, is_steps_only=expected is None)
    if expected is None:
        return None
    return Left(max(0.0, expected.part_s(reached.part) - reached.spent_s) + follows, is_steps_only=False)


def fraction(reached: Reached, expected: Estimate | None) -> float:
    """Compute the share of a job's time that has passed, in [0, `ALMOST_DONE`]; 0 while nothing is known."""
    remaining = left(reached, expected)
    if remaining is None:
        return 0.0
    passed, seconds = reached.before_s + reached.spent_s, remaining.seconds
    if remaining.is_steps_only:
        # What follows the last step was never timed here. The bar keeps the room of one step for it.
        seconds += reached.steps_s / reached.finished
    return min(ALMOST_DONE, passed / (passed + seconds)) if passed + seconds else 0.0


def about(seconds: float) -> str:
    """Write seconds as a person says them.

    >>> about(3), about(48), about(100), about(580), about(4000)
    ('a few seconds', 'about 50 s', 'about 2 min', 'about 10 min', 'about 1 h 7 min')
    """
    if seconds < 10:
        return "a few seconds"
    tens = round(seconds / 10) * 10
    if tens < 90:
        return f"about {tens} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"about {minutes} min"
    return f"about {minutes // 60} h {minutes % 60} min".removesuffix(" 0 min")
