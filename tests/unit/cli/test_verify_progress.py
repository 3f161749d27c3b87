"""The progress that ``verify`` prints on stderr."""

from cache.jobs.estimate import Left
from cache.jobs.job import JobView
from cache.machine.device import Device
from planner.cli.verify import _Progress
from planner.request import GenerationRequest


def view(phase: str, **values) -> JobView:
    return JobView(job_id="job", request=GenerationRequest(), device=Device(), state="running", phase=phase, **values)


def test_finished_steps_are_printed_with_the_time_left(capsys):
    progress = _Progress(says_time=True)
    progress(view("loading", detail="text_encoder", total_seconds=1.0))
    passed = (("loading", 2.0),)
    progress(view("unet", total_seconds=3.0, phases=passed))
    progress(view("unet", total_seconds=20.0, phases=passed, step=1, of=2, left=Left(17.0, False)))
    progress(view("unet", total_seconds=21.0, phases=passed, step=1, of=2, left=Left(16.0, False)))
    progress(view("vae_decoder", total_seconds=38.0, phases=(*passed, ("unet", 34.0))))
    assert capsys.readouterr().err.splitlines() == [
        "No run here yet to estimate the time from; the first step will tell.",
        "[   1.0 s] loading: text encoder",
        "[   3.0 s] UNet: first step",
        "[  20.0 s] UNet: 1 of 2 steps finished, about 20 s left",
        "[  38.0 s] UNet: all steps finished in 34.0 s",
        "[  38.0 s] VAE decoder",
    ]


def test_a_sweep_does_not_say_the_time_of_each_request(capsys):
    _Progress(says_time=False)(view("loading"))
    assert capsys.readouterr().err == "[   0.0 s] loading\n"
