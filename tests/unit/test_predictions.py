from dataclasses import replace

import pytest

from cache.machine.attached import cards
from cache.machine.device import Device
from cache.outcomes import exit_code_of, verdict_of
from cache.predictions import Compared, compare, peak_error, predictions_for
from cache.records import Measurement, Prediction
from planner.cards.lookup import card_named
from planner.fit import fit
from planner.request import GenerationRequest
from planner.units import GIB
from tests.conftest import make_environment, make_measured

PREDICTION = Prediction.of(fit(GenerationRequest(), card_named("T4"), "formula"))


def a_run(**changes) -> Measurement:
    return Measurement(
        measurement_id="x",
        created_at="2026-11-23T00:00:00+00:00",
        request=GenerationRequest(),
        environment=make_environment(),
        measured=make_measured(**changes),
        predictions=(PREDICTION,),
    )


def test_an_error_is_signed_from_the_measured_value():
    assert Compared("x", 50, 100).error == -0.5
    assert Compared("x", 150, 100).error == 0.5
    assert Compared("x", None, 100).error is None
    assert Compared("x", 100, None).error is None


def test_lines_follow_the_stages_and_end_with_the_whole():
    lines = compare(a_run(), PREDICTION)
    assert [line.name for line in lines] == [
        "UNet, allocated",
        "VAE decoder, allocated",
        "Peak allocated",
        "Peak reserved",
        "GPU memory needed",
    ]
    assert lines[-1].measured_bytes == 4_200_000_000
    assert lines[-1].predicted_bytes == PREDICTION.need_bytes


def test_a_cpu_run_has_no_reserved_line():
    run = a_run(peak_reserved_bytes=None, context_bytes=None)
    assert [line.name for line in compare(run, PREDICTION)][-1] == "Peak allocated"


@pytest.mark.parametrize(
    ("changes", "verdict", "code"),
    [
        ({}, "fits", 0),
        ({"num_alloc_retries": 1}, "tight", 11),
        ({"outcome": "out-of-memory"}, "no", 10),
        ({"outcome": "failed"}, "unknown", 12),
        ({"outcome": "cancelled"}, "unknown", 12),
    ],
)
def test_verdict_of_a_run(changes, verdict, code):
    run = a_run(**changes)
    assert (verdict_of(run), exit_code_of(run)) == (verdict, code)


def test_only_a_finished_run_has_a_peak_error():
    assert peak_error(a_run(), PREDICTION) == pytest.approx(2_151_410_518 / 3_500_000_000 - 1)
    assert peak_error(a_run(outcome="out-of-memory"), PREDICTION) is None


def test_a_rehearsal_has_errors_but_no_verdict():
    live, formula = predictions_for(GenerationRequest(), Device())
    assert (live.basis, live.verdict, live.need_bytes, live.peak_reserved_bytes) == ("dry-run", "unknown", None, None)
    # Living storages alone: no rounding and no workspace, so less than on any card.
    assert live.peak_allocated_bytes == max(live.stages.values())
    assert live.peak_allocated_bytes < fit(GenerationRequest(), card_named("T4"), "dry-run").peak_allocated_bytes
    assert replace(formula, verdict="fits") == PREDICTION


def test_predictions_use_the_free_memory_of_a_card(nvml):
    nvml.free[0] = 1_000_000_000
    predictions = predictions_for(GenerationRequest(), Device(cards()[0]))
    assert [(one.basis, one.verdict) for one in predictions] == [("dry-run", "no"), ("formula", "no")]


def test_a_run_at_a_capacity_is_predicted_for_that_capacity(nvml):
    """Expect the sizes of the whole card, with its kernels and context, and another verdict."""
    request, card = GenerationRequest(width=1280, height=1280), cards()[0]
    device = Device(card, 4 * GIB)
    assert device.as_card().name == "Tesla T4 (attached), 4 GiB emulated"
    assert device.as_card().usable_bytes == 4 * GIB
    whole, limited = (predictions_for(request, one) for one in (Device(card), device))
    assert [(one.basis, one.verdict) for one in whole] == [("dry-run", "fits"), ("formula", "fits")]
    assert [(one.basis, one.verdict) for one in limited] == [("dry-run", "no"), ("formula", "fits")]
    assert [replace(one, verdict="") for one in whole] == [replace(one, verdict="") for one in limited]
