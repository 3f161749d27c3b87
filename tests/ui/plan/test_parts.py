"""Test the texts and numbers of the Plan page without a page."""

from dataclasses import replace

import pytest

from pages.shared.history.run import off_words
from pages.shared.plan.memory import beside_rows, card_to_look_at, need_parts, part_rows, stages_of, weights_bytes
from pages.shared.plan.timeline import failure_sentence, pass_sentence, peak_sentence, trouble_sentence
from pages.shared.plan.verdicts import minimum_line, other_line, range_words
from planner.cards.lookup import card_named
from planner.components import STAGES
from planner.fit import fit
from planner.programs.files import shipped
from planner.replay.timeline import Failed, Part, timeline_of
from planner.request import GenerationRequest

REQUESTS = [
    GenerationRequest(),
    GenerationRequest(task="txt2img", width=1024, height=768, safety_checker=False),
    GenerationRequest(batch=4, offload="model"),
    GenerationRequest(width=2048, height=2048, vae_tiling=True),
    GenerationRequest(task="txt2img", controlnets=2, lora_rank=64, ip_adapter="plus", dtype="float32", hires=1.5),
    GenerationRequest(task="inpaint", lora_rank=8, lora_text_encoder=True, allocator="expandable"),
]
T4, RTX_4060 = card_named("T4"), card_named("RTX 4060")


@pytest.mark.parametrize("basis", ["dry-run", "formula"])
@pytest.mark.parametrize("request_", REQUESTS)
def test_the_parts_of_a_need_add_up_to_it(request_, basis):
    answer = fit(request_, T4, basis)
    parts = need_parts(answer, request_, shipped())
    assert sum(size for _, size in parts) == answer.need_bytes
    assert all(size >= 0 for _, size in parts)
    assert (parts[0][0] == "Weights") == (basis == "formula" or request_.offload == "none")


@pytest.mark.parametrize("request_", REQUESTS)
def test_weights_are_those_that_the_timeline_holds(request_):
    timeline = timeline_of(request_, card_named("A100"), shipped())
    if request_.offload == "none":
        assert timeline.total("weights") == weights_bytes(request_, shipped())


def test_the_stages_are_those_that_the_request_runs():
    assert stages_of(GenerationRequest(task="txt2img", safety_checker=False)) == (
        "text_encoder",
        "unet",
        "vae_decoder",
    )
    everything = GenerationRequest(task="txt2img", controlnets=1, ip_adapter="base", hires=2)
    assert stages_of(everything) == STAGES
    for request in (everything, GenerationRequest(task="inpaint"), GenerationRequest(controlnets=2)):
        assert {band.stage for band in timeline_of(request, card_named("A100"), shipped()).bands} - {"loading"} == set(
            stages_of(request)
        )


def test_the_pass_that_peaks_is_named():
    request = GenerationRequest(task="txt2img", hires=2)
    assert pass_sentence(request, fit(request, T4, "dry-run")) == (
        "Of the two passes the second allocates most: img2img at 1024×1024."
    )
    assert pass_sentence(GenerationRequest(), fit(GenerationRequest(), T4, "dry-run")) is None


def test_an_answer_without_a_need_has_no_parts():
    assert need_parts(fit(GenerationRequest(), T4, "measured"), GenerationRequest(), None) == []


def test_weights_count_the_loaded_components():
    library = shipped()
    without = weights_bytes(GenerationRequest(safety_checker=False), library)
    assert weights_bytes(GenerationRequest(), library) - without == library.weights_bytes("safety_checker")


@pytest.mark.parametrize("request_", REQUESTS)
def test_rows_of_the_peak_keep_every_byte(request_):
    parts = timeline_of(request_, T4, shipped()).parts
    rows = part_rows(parts)
    assert sum(row.size_bytes for row in rows) == sum(part.size_bytes for part in parts)
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert all(row.size_bytes > 0 for row in rows)


def test_small_parts_are_combined():
    rows = part_rows([Part("tensors", "large", 10**6), Part("tensors", "a", 3), Part("tensors", "b", 4)])
    assert [(row.name, row.size_bytes) for row in rows] == [("large", 10**6), ("2 smaller parts", 7)]


@pytest.mark.parametrize("request_", REQUESTS)
def test_compared_rows_follow_the_request(request_):
    formula, dry_run = (fit(request_, T4, basis) for basis in ("formula", "dry-run"))
    rows = {row.term: row for row in beside_rows(formula, dry_run, request_, shipped())}
    assert ("vae_encoder" in rows) == (request_.task != "txt2img" or request_.hires > 1)
    assert ("safety_checker" in rows) == request_.safety_checker
    assert ("weights" in rows) == (request_.offload == "none")
    assert rows["text_encoder"].formula_bytes is None and rows["text_encoder"].ratio is None
    assert rows["need"].ratio == pytest.approx(dry_run.need_bytes / formula.need_bytes)
    if request_.offload == "none":
        assert rows["unet"].formula_bytes == formula.stages["unet"] - formula.stages["text_encoder"]
        assert 0 < rows["unet"].dry_run_bytes < dry_run.stages["unet"]
    else:
        assert rows["unet"].dry_run_bytes == dry_run.stages["unet"]


def test_the_gpu_to_show_has_the_worst_verdict():
    fits, tight, no = (replace(fit(REQUESTS[0], T4), verdict=verdict) for verdict in ("fits", "tight", "no"))
    cards = [replace(T4, name=name) for name in "abc"]
    answers = [replace(answer, card=card) for answer, card in zip((fits, tight, no), cards, strict=True)]
    assert card_to_look_at(answers) == "c"
    assert card_to_look_at(answers[:2]) == "b"
    assert card_to_look_at([answers[0], replace(fits, card=cards[1])]) == "a"


def test_minimum_line():
    fits = fit(REQUESTS[0], T4)
    usable, gibibyte = T4.usable_bytes, 2**30
    assert minimum_line(fits) is None
    assert minimum_line(replace(fits, verdict="no", minimum_bytes=fits.need_bytes)) is None
    tight = replace(fits, verdict="tight", need_bytes=usable + 3 * gibibyte)
    assert minimum_line(replace(tight, minimum_bytes=4 * gibibyte)) == "runs more slowly: minimum 4.00 GiB"
    assert "which only some of these GPUs have" in minimum_line(replace(tight, minimum_bytes=usable + 1))
    ranged = replace(fits, verdict="tight", worst_need_bytes=5 * gibibyte)
    assert minimum_line(ranged) == "fits, but not at the upper end of its range, 5.00 GiB"
    # A measured need has no range: where it is tight, its runs had allocator retries.
    assert minimum_line(replace(fits, verdict="tight", basis="measured", minimum_bytes=fits.need_bytes)) is None
    missed = replace(tight, verdict="no", minimum_bytes=usable + gibibyte)
    assert minimum_line(missed) == "cannot run: minimum 15.56 GiB, 1.00 GiB short"


def test_other_line():
    assert other_line(fit(REQUESTS[0], T4, "formula")) == "formula: fits, needs 2.40 GiB, without the activations"
    assert other_line(replace(fit(REQUESTS[0], T4, "measured"), basis="dry-run")) == "dry-run: unknown"


def test_failure_sentence_names_stage_and_size():
    request = GenerationRequest(width=2048, height=2048)
    timeline, answer = timeline_of(request, RTX_4060, shipped()), fit(request, RTX_4060)
    timeline = replace(timeline, failed=Failed("vae_encoder", "new tensor", "vae.encoder.conv_in", 2**30))
    told = failure_sentence(timeline, answer, 7 * 2**30)
    assert told == (
        "Out of memory in the VAE encoder: a new tensor of 1.00 GiB, of `vae.encoder.conv_in`, did not fit into "
        "7.00 GiB."
    )
    assert "before memory ran out" in peak_sentence(timeline)
    assert "some of these GPUs have" in failure_sentence(timeline, replace(answer, verdict="tight"), 7)
    loading = replace(timeline, failed=Failed("loading", "new tensor", "pipeline", 2**30))
    told = failure_sentence(loading, answer, 7)
    assert "while the weights are loaded: a new tensor of 1.00 GiB, of the pipeline's own code" in told
    assert failure_sentence(replace(timeline, failed=None), answer, 7) is None


def test_trouble_sentence_counts_retries_and_fallbacks():
    timeline = timeline_of(GenerationRequest(), T4, shipped())
    assert trouble_sentence(timeline) is None
    tried = replace(timeline, run=replace(timeline.run, num_alloc_retries=1, fallbacks=2))
    told = trouble_sentence(tried)
    assert "ran out of memory once" in told and "2 shapes of convolution" in told
    tried = replace(timeline, run=replace(timeline.run, num_alloc_retries=3))
    assert "3 times" in trouble_sentence(tried) and "convolution" not in trouble_sentence(tried)


def test_peak_sentence_names_operation_and_module():
    timeline = timeline_of(GenerationRequest(), T4, shipped())
    kernel = (Part("workspace", "of the running kernel", 2**29),)
    told = peak_sentence(replace(timeline, operation="convolution", module="vae.decoder.conv_in", parts=kernel))
    assert told.endswith("at a convolution of `vae.decoder.conv_in`; 0.50 GiB of it is that convolution's workspace.")
    told = peak_sentence(
        replace(timeline, operation="new tensor", module="pipeline", parts=(), peak_stage="text_encoder")
    )
    assert told.endswith("comes in the text encoder, at a new tensor of the pipeline's own code.")


def test_range_words():
    assert range_words(2**30, 2**31) == "between 1.00 GiB and 2.00 GiB allocated; it fits only if the upper end fits"
    assert "allocated, need up to 3.00 GiB; it fits" in range_words(2**30, 2**31, 3 * 2**30)
    assert range_words(2**30, 2**30 + 512) == "1.00 GiB allocated at both ends"


def test_off_words():
    assert [off_words(error) for error in (-0.023, 0.5, -0.0004)] == [
        "2.3\N{NO-BREAK SPACE}% too low",
        "50.0\N{NO-BREAK SPACE}% too high",
        "within 0.1\N{NO-BREAK SPACE}%",
    ]
