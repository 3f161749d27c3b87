import pytest

from planner.cards.lookup import card_named, described_card
from planner.components import STAGES
from planner.programs.assemble import components_of, events_of
from planner.programs.files import shipped
from planner.replay.dry_run import dry_run
from planner.replay.kernels import KernelPolicy
from planner.replay.timeline import LOADING, POINTS, block_of, timeline_of
from planner.request import GenerationRequest

REQUESTS = [
    (GenerationRequest(), "A100-40GB"),
    (GenerationRequest(width=2048, height=2048), "T4"),
    (GenerationRequest(width=2048, height=2048), "RTX 4060"),
    (GenerationRequest(task="txt2img", offload="model", batch=2, safety_checker=False), "A10"),
    (GenerationRequest(width=1500, height=900, vae_tiling=True), "H100-80GB"),
]


@pytest.fixture(params=REQUESTS, ids=lambda pair: f"{pair[0].describe()} on {pair[1]}")
def drawn(request):
    request_, name = request.param
    return request_, card_named(name), timeline_of(request_, card_named(name), shipped())


def test_points_keep_the_peaks_and_cover_every_event(drawn):
    _, card, timeline = drawn
    assert 0 < len(timeline.points) <= POINTS * 1.2
    assert timeline.points[0].event == 0
    assert [point.event for point in timeline.points] == sorted({point.event for point in timeline.points})
    assert max(point.reserved_bytes for point in timeline.points) == timeline.run.peak_reserved_bytes
    assert max(point.allocated_bytes for point in timeline.points) == timeline.run.peak_allocated_bytes
    assert all(point.reserved_bytes <= card.usable_bytes - card.context_bytes for point in timeline.points)


def test_bands_follow_one_another_in_the_order_of_the_stages(drawn):
    request, _, timeline = drawn
    assert timeline.bands[0].stage == LOADING
    assert timeline.bands[-1].end == timeline.events
    for before, after in zip(timeline.bands, timeline.bands[1:], strict=False):
        assert before.end == after.begin
    names = [band.stage for band in timeline.bands[1:]]
    assert names == [stage for stage in STAGES if stage in names]
    if timeline.run.outcome == "ok":
        assert ("vae_encoder" in names) == (request.task == "img2img")
        assert ("safety_checker" in names) == request.safety_checker


def test_parts_add_up_to_what_is_reserved_at_the_peak_and_the_context(drawn):
    _, card, timeline = drawn
    at_the_peak = timeline.run.timeline[timeline.peak_event]
    assert sum(part.size_bytes for part in timeline.parts) == at_the_peak[1] + card.context_bytes
    assert all(part.size_bytes >= 0 for part in timeline.parts)
    assert timeline.total("context") == card.context_bytes
    allocated = sum(part.size_bytes for part in timeline.parts if part.name != "reserved, not allocated")
    assert allocated - card.context_bytes == at_the_peak[0] == timeline.run.peak_allocated_bytes


def test_weights_are_those_that_are_on_the_card_at_the_peak(drawn):
    request, _, timeline = drawn
    weights = {part.name: part.size_bytes for part in timeline.parts if part.kind == "weights"}
    assert all(size == shipped().weights_bytes(name) for name, size in weights.items())
    if request.offload == "none":
        assert set(weights) == set(components_of(request))
    else:
        assert set(weights) == {"unet"}


def test_a_run_that_is_out_of_memory_says_what_found_no_room():
    timeline = timeline_of(GenerationRequest(width=2048, height=2048), card_named("RTX 4060"), shipped())
    assert timeline.run.outcome == "out-of-memory"
    assert timeline.failed.stage == "vae_encoder"
    assert timeline.failed.module.startswith("vae.encoder.")
    assert timeline.failed.size_bytes == 2048 * 2048 * 128 * 2
    assert timeline_of(GenerationRequest(), card_named("T4"), shipped()).failed is None


def test_a_card_too_small_for_its_own_context_is_out_of_memory_at_once():
    tiny = described_card("64MiB", "7.5")
    timeline = timeline_of(GenerationRequest(), tiny, shipped())
    assert (timeline.run.outcome, timeline.failed.stage) == ("out-of-memory", LOADING)


def test_the_peak_is_named():
    timeline = timeline_of(GenerationRequest(width=1024, height=1024), card_named("A10"), shipped())
    assert (timeline.peak_stage, timeline.operation) == ("vae_decoder", "convolution")
    assert timeline.module == "vae.decoder.up_blocks.2.upsamplers.0.conv"
    assert timeline.total("workspace") > 2**30


def test_retries_and_fallbacks_are_those_of_the_card():
    request, card = GenerationRequest(width=2048, height=2048), card_named("T4")
    run = timeline_of(request, card, shipped()).run
    again = dry_run(
        events_of(shipped(), request), KernelPolicy.of(card.compute_capability), card.usable_bytes - card.context_bytes
    )
    assert (run.num_alloc_retries, run.fallbacks) == (again.num_alloc_retries, again.fallbacks)
    assert run.num_alloc_retries > 0


@pytest.mark.parametrize(
    ("module", "block"),
    [
        ("vae.decoder.up_blocks.3.resnets.0.conv1", "vae.decoder.up_blocks.3"),
        ("vae.decoder.conv_in", "vae.decoder.conv_in"),
        ("vae.encoder.mid_block.attentions.0.to_q", "vae.encoder.mid_block"),
        ("unet.down_blocks.1.attentions.0.proj_in", "unet.down_blocks.1"),
        ("unet.mid_block.resnets.1", "unet.mid_block"),
        ("text_encoder.encoder.layers.3.mlp", "text_encoder.encoder"),
        ("", "pipeline"),
    ],
)
def test_modules_are_grouped_as_a_person_would(module, block):
    assert block_of(module) == block
