from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.history.store import Store
from cache.jobs.estimate import (
    ALMOST_DONE,
    DECODE,
    DENOISE,
    ENCODE,
    PARTS,
    PREPARE,
    Left,
    Reached,
    about,
    estimate,
    expected_text,
    fraction,
    left,
    unet_calls,
)
from cache.jobs.job import Job
from cache.machine.device import Device
from cache.records import Measurement, StageMeasure
from planner.components import MODEL_ID
from planner.request import GenerationRequest
from tests.conftest import make_environment, make_measured

REQUEST = GenerationRequest(width=512, height=512, steps=50)


def seconds_of(**stages: float) -> tuple[StageMeasure, ...]:
    return tuple(StageMeasure(name, 1, 1, 1, seconds) for name, seconds in stages.items())


def run_of(request: GenerationRequest = REQUEST, name: str = "run", **measured) -> Measurement:
    """Return a run with 1 s to encode, 2 s a step, 3 s to decode, and 10 s to load."""
    unet_s = 2.0 * unet_calls(request)
    values = {
        "load_seconds": 10.0,
        "seconds_per_step": 2.0,
        "total_seconds": unet_s + 4.0,
        "stages": seconds_of(text_encoder=0.25, vae_encoder=0.75, unet=unet_s, vae_decoder=2.0, safety_checker=1.0),
    }
    return Measurement(
        measurement_id=name,
        created_at="2026-11-30T12:00:00.000000+00:00",
        request=request,
        environment=make_environment(),
        measured=make_measured(**values | measured),
    )


def expected(request: GenerationRequest, *runs: Measurement, open_s=None, **options):
    found = estimate(request, make_environment(), runs, open_s or {}, **options)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("task", "steps", "calls"),
    [("img2img", 50, 41), ("img2img", 8, 7), ("img2img", 2, 2), ("img2img", 1, 1), ("txt2img", 50, 51)],
)
def test_the_calls_are_those_of_the_pipeline(task, steps, calls):
    assert unet_calls(replace(REQUEST, task=task, steps=steps)) == calls


def test_nothing_is_invented_without_a_run():
    assert estimate(REQUEST, make_environment(), [], {}) is None
    assert "No run here yet" in expected_text(None)


def test_the_same_request_takes_what_it_took():
    found = expected(REQUEST, run_of())
    assert found[:5] == (10.0, 1.0, 2.0, 3.0, 41) and not found.is_scaled
    assert found.total_s == 10 + 1 + 82 + 3


def test_steps_scale_with_the_unets_batch_and_images_with_the_batch():
    found = expected(replace(REQUEST, width=1024, batch=2, guidance_scale=1.0), run_of())
    assert found[:5] == (10.0, 4.0, 4.0, 12.0, 41) and found.is_scaled


def test_the_run_with_the_nearest_work_counts_and_then_the_newest():
    far = run_of(replace(REQUEST, width=64, height=64), "far", seconds_per_step=9.0)
    tiled = run_of(replace(REQUEST, vae_tiling=True), "tiled")
    newer, older = run_of(name="newer"), run_of(name="older", seconds_per_step=5.0)
    assert expected(REQUEST, far, tiled, newer, older).run is newer
    assert expected(REQUEST, far, tiled).run is far


def test_a_run_without_stages_is_split_by_its_steps():
    found = expected(REQUEST, run_of(stages=()))
    assert (found.encode_s, found.decode_s, found.total_s) == (0.0, 4.0, 96.0)


def test_a_worker_with_the_model_loaded_prepares_faster():
    runs = [run_of(name="resident"), run_of(name="loaded"), run_of(name="loaded too")]
    total = runs[0].measured.total_seconds
    open_s = {"resident": total + 2.0, "loaded": total + 18.0, "loaded too": total + 20.0}
    assert expected(REQUEST, *runs, open_s=open_s).prepare_s == 18.0
    assert expected(REQUEST, *runs, open_s=open_s, is_resident=True).prepare_s == 2.0
    del open_s["resident"]
    # What is neither loaded nor timed is left of the time before the call.
    assert expected(REQUEST, *runs, open_s=open_s, is_resident=True).prepare_s == 8.0


def test_other_weights_are_said_not_to_be_timed():
    of_hub = make_environment(weights=f"hub:{MODEL_ID}@revision")
    found = estimate(REQUEST, of_hub, [run_of()], {})
    assert not found.has_same_weights
    assert "without the time to read or download these weights" in expected_text(found)
    assert "without" not in expected_text(expected(REQUEST, run_of()))


def test_the_time_left_comes_from_the_jobs_own_steps_once_there_is_one():
    known = expected(REQUEST, run_of())
    assert left(Reached(PREPARE, 4.0), known) == Left(6 + 1 + 82 + 3, False)
    assert left(Reached(DENOISE, 0.5, 11.0), known) == Left(81.5 + 3, False)
    own = Reached(DENOISE, 16.0, 11.0, finished=3, calls=41, steps_s=15.0)
    assert left(own, known) == Left(38 * 5 - 1 + 3, False)
    assert left(own, None) == Left(38 * 5 - 1, True)
    assert left(Reached(ENCODE, 0.5), None) is None and fraction(Reached(ENCODE, 0.5), None) == 0
    # A call that takes longer than those before leaves the calls after it.
    assert left(own._replace(spent_s=60.0), None) == Left(37 * 5, True)


def test_the_bar_is_the_share_of_the_time():
    known = expected(REQUEST, run_of())
    assert fraction(Reached(PREPARE, 5.0), known) == pytest.approx(5 / 96)
    assert fraction(Reached(DENOISE, 41.0, 11.0, 20, 41, 40.0), known) == pytest.approx(52 / 96)
    assert fraction(Reached(DECODE, 500.0, 93.0), known) == ALMOST_DONE
    # The bar keeps room for the decoder, whose time is not known.
    assert fraction(Reached(DENOISE, 4.0, 0.0, 2, 2, 4.0), None) == pytest.approx(4 / 6)


@given(
    st.lists(st.floats(0.01, 50), min_size=8, max_size=8),
    st.integers(1, 6),
    st.booleans(),
)
def test_the_bar_never_falls_and_is_full_only_at_the_end(times, calls, is_known):
    """Play a job whose phases take any time, with and without an estimate that may be wrong."""
    job = Job("job", REQUEST, Device(), make_environment(), "synthetic", None, state="running", started=0.0)
    job.estimate = expected(REQUEST, run_of()) if is_known else None
    phases = ("waiting", "loading", "warm-up", "text_encoder", "vae_encoder", "unet", "vae_decoder", "safety_checker")
    at, shown = 0.0, []
    for phase, seconds in zip(phases, times, strict=True):
        job.enter({"phase": phase}, at)
        for step in range(1, calls + 1):
            if phase == "unet":
                job.enter({"phase": phase, "step": step, "of": calls}, at + seconds * step / calls)
            shown.append(job.view(0, at + seconds * step / calls).fraction)
        at += seconds
    assert shown == sorted(shown) and max(shown) <= ALMOST_DONE
    assert shown[0] == 0
    job.close_phase(at)
    job.state = "ok"
    assert job.view(0, at).fraction == 1


def test_finished_steps_are_counted():
    job = Job("job", REQUEST, Device(), make_environment(), "synthetic", None, state="running", started=1.0)
    job.enter({"phase": "unet"}, 1.0)
    assert (job.view(0, 2.0).steps_text, job.view(0, 2.0).left_text) == ("UNet: first step", None)
    job.enter({"phase": "unet", "step": 3, "of": 41}, 19.0)
    view = job.view(0, 19.0)
    assert (view.steps_text, view.left_text) == ("UNet: 3 of 41 steps finished", "about 4 min of steps left")
    job.estimate = expected(REQUEST, run_of())
    assert job.view(0, 19.0).left_text == "about 4 min left"
    job.enter({"phase": "vae_decoder"}, 20.0)
    assert job.view(0, 21.0).steps_text is None


def test_all_parts_have_words_for_their_time():
    assert [about(seconds) for seconds in (0, 9.9, 44, 86, 3599, 7300)] == [
        "a few seconds",
        "a few seconds",
        "about 40 s",
        "about 1 min",
        "about 1 h",
        "about 2 h 2 min",
    ]
    assert sum(expected(REQUEST, run_of()).part_s(part) for part in PARTS) == 96


def test_only_own_runs_of_the_same_gpu_are_timed(store: Store):
    environment = make_environment()
    timed = make_measured(total_seconds=9.0, seconds_per_step=2.0)
    store.add_job("job", REQUEST, environment, "owner")
    run_id = store.end_job("job", REQUEST, environment, timed)
    store.save_measurement(REQUEST, make_environment(card="Tesla T4", uuid_hash="another"), timed)
    store.save_measurement(REQUEST, make_environment(device_kind="cpu", uuid_hash=None), timed)
    store.save_measurement(REQUEST, environment, make_measured(outcome="cancelled"))
    store.save_measurement(REQUEST, environment, make_measured(seconds_per_step=None))
    store.import_measurements([replace(run_of(), measurement_id="11111111-1111-4111-8111-111111111111")])
    runs, open_s = store.timed_runs(environment)
    assert [run.measurement_id for run in runs] == list(open_s) == [run_id]
    assert 0 <= open_s[run_id] < 60
    on_cpu, _ = store.timed_runs(make_environment(device_kind="cpu", uuid_hash=None))
    assert [run.environment.device_kind for run in on_cpu] == ["cpu"]
