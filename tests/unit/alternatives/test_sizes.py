"""The other way round: every boundary is where the dry run says fits and one step on does not."""

import json
import random
from dataclasses import replace

import pytest

from planner.alternatives.sizes import (
    RATIOS,
    boundary,
    largest_batch,
    largest_size,
    size_at,
    sizes,
    smallest_card,
    steps_of,
)
from planner.cards.lookup import CATALOGUE, card_named, described_card
from planner.cli.main import main
from planner.fit import fit
from planner.programs.assemble import events_of
from planner.programs.files import shipped
from planner.replay.dry_run import dry_run
from planner.replay.kernels import KernelPolicy
from planner.replay.peaks import fits_within, need_bound_bytes, need_bytes
from planner.request import MAX_BATCH, MAX_SIDE, GenerationRequest

# Cards of every kernel policy, small ones and large ones.
CARDS = [*CATALOGUE, described_card("8GiB", "6.1"), described_card("4GiB", "7.5"), described_card("3GiB", "8.6")]
T4 = card_named("T4")


def random_request(rng: random.Random, largest: int = 120) -> GenerationRequest:
    return GenerationRequest(
        task=rng.choice(["img2img", "txt2img"]),
        width=8 * rng.randint(8, largest),
        height=8 * rng.randint(8, largest),
        batch=rng.choice([1, 1, 1, 2, 3, 8]),
        guidance_scale=rng.choice([1.0, 7.5]),
        steps=rng.choice([1, 3, 6, 50]),
        safety_checker=rng.random() < 0.7,
        vae_tiling=rng.random() < 0.2,
        vae_slicing=rng.random() < 0.2,
        attention_slicing=rng.random() < 0.2,
        channels_last=rng.random() < 0.2,
        offload=rng.choice(["none", "none", "model"]),
    )


def does_fit(request: GenerationRequest, card) -> bool:
    return fit(request, card, "dry-run").verdict == "fits"


def test_a_bound_is_below_the_need():
    rng, library = random.Random(1), shipped()
    for _ in range(20):
        request, card = random_request(rng, 500), rng.choice(CARDS)
        bound = need_bound_bytes(request, card, library)
        assert need_bound_bytes(request, card, library, workspace=False) <= bound <= need_bytes(request, card, library)


def test_a_need_is_that_of_the_answer():
    rng, library = random.Random(2), shipped()
    for _ in range(30):
        request, card = random_request(rng), rng.choice(CARDS)
        answer = fit(request, card, "dry-run")
        assert need_bytes(request, card, library) == answer.need_bytes
        decides = answer.worst_need_bytes or answer.need_bytes
        assert fits_within(request, card, library, decides) and not fits_within(request, card, library, decides - 1)
        assert answer.minimum_bytes is not None
        assert need_bound_bytes(request, card, library, workspace=False) <= answer.minimum_bytes


def test_an_upright_image_needs_what_a_lying_one_does():
    library = shipped()
    for options in ({}, {"attention_slicing": True}, {"channels_last": True}, {"task": "txt2img", "batch": 3}):
        lying = GenerationRequest(width=1000, height=456, **options)
        upright = replace(lying, width=456, height=1000)
        runs = [dry_run(events_of(library, one), KernelPolicy.of((8, 6))) for one in (lying, upright)]
        assert runs[0] == runs[1]


@pytest.mark.parametrize("seed", range(2))
def test_the_found_size_and_batch_fit_and_one_step_more_does_not(seed):
    rng, library, found_none = random.Random(seed), shipped(), 0
    for _ in range(50):
        request, card = random_request(rng, 64), rng.choice(CARDS)
        if rng.random() < 0.5:
            batch = largest_batch(replace(request, batch=1), card, library)
            found_none += batch.images == 0
            if batch.images:
                assert does_fit(replace(request, batch=batch.images), card), (request, card.name)
            if batch.images < MAX_BATCH:
                assert not does_fit(replace(request, batch=batch.images + 1), card), (request, card.name)
            assert batch.is_limit == (batch.images == MAX_BATCH)
            continue
        ratio = rng.choice(list(RATIOS.values()))
        size, steps = largest_size(request, card, ratio, library), steps_of(ratio)
        found_none += size is None
        step = steps[0] - 1 if size is None else min(size.width, size.height) // 8
        if size is not None:
            assert (size.width, size.height) == size_at(ratio, step)
            assert does_fit(replace(request, width=size.width, height=size.height), card), (request, card.name)
            assert size.is_limit == (step == steps[-1])
        if step < steps[-1]:
            width, height = size_at(ratio, step + 1)
            assert not does_fit(replace(request, width=width, height=height), card), (request, card.name)
    assert found_none < 25


def test_a_ratio_keeps_to_the_grid_and_the_limits():
    for ratio in RATIOS.values():
        for step in (steps_of(ratio)[0], steps_of(ratio)[-1], 123):
            width, height = size_at(ratio, step)
            assert width % 8 == height % 8 == 0 and 64 <= min(width, height) <= max(width, height) <= MAX_SIDE
            assert abs(width / height - ratio[0] / ratio[1]) < 8 * max(width, height) / min(width, height) ** 2
        assert max(size_at(ratio, steps_of(ratio)[-1] + 1)) > MAX_SIDE


@pytest.mark.parametrize("fitting", [set(), {3}, {3, 4, 5}, {3, 9}, set(range(3, 41)), set(range(3, 12)) | {14, 17}])
def test_a_boundary_is_found_whatever_fits(fitting):
    # The bound lets more through than fits.
    found = boundary(range(3, 41), lambda step: step <= 25 or step in fitting, lambda step: step in fitting)
    assert found == max(fitting, default=None)


def test_where_there_is_no_step_there_is_no_boundary():
    assert boundary(range(3, 3), lambda step: True, lambda step: True) is None


def test_the_limit_is_said():
    found = sizes(GenerationRequest(vae_tiling=True, width=384, height=384), card_named("H200"), shipped())
    assert found.sizes["square"] is not None and found.sizes["square"].is_limit
    assert found.sizes["square"].width == MAX_SIDE
    assert found.batch.is_limit and found.batch.images == MAX_BATCH


def test_progress_goes_to_its_end():
    told: list[float] = []
    sizes(GenerationRequest(offload="model"), T4, shipped(), told.append)
    assert told == sorted(told) and len(told) == 5 and told[-1] == 1


def test_the_smallest_card_is_the_least_that_fits():
    rng = random.Random(3)
    for _ in range(15):
        request = random_request(rng, 250)
        fitting = [card for card in CARDS if does_fit(request, card)]
        found = smallest_card(request, CARDS)
        assert (found is None) == (not fitting)
        if found:
            assert found.usable_bytes == min(card.usable_bytes for card in fitting) and found in fitting


def test_sizes_as_json(capsys):
    assert main(["sizes", "--gpu", "T4", "--gpu", "RTX 4060", "--json", "--width", "768", "--height", "512"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert list(value) == ["schema", "request", "gpus", "smallest"]
    assert value["smallest"] == "RTX 4060"
    request = GenerationRequest(width=768)
    assert value["request"] == request.to_dict()
    for row, name in zip(value["gpus"], ("T4", "RTX 4060"), strict=True):
        found = sizes(request, card_named(name))
        assert list(row) == ["name", "basis", "usable_bytes", *RATIOS, "batch", "notes", "reason"]
        assert (row["name"], row["basis"], row["batch"]) == (name, "dry-run", found.batch.images)
        for ratio in RATIOS:
            size = found.sizes[ratio]
            assert size is not None
            assert row[ratio] == {"width": size.width, "height": size.height}


def test_sizes_that_none_fits_are_null_and_said(capsys):
    arguments = ["sizes", "--gpu-memory", "3GiB", "--compute-capability", "8.6"]
    assert main([*arguments, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    [row] = value["gpus"]
    assert [row[ratio] for ratio in RATIOS] == [None] * 4 and row["batch"] == 0 and value["smallest"] is None
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert said.out.count("none") == 5 and "none of these GPUs fits" in said.err


def test_a_gpu_whose_kernels_nobody_knows_does_not_stop_the_others(capsys):
    asked = ["sizes", "--dtype", "bfloat16", "--gpu", "T4", "--gpu", "A10"]
    assert main([*asked, "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    unknown, known = body["gpus"]
    assert (unknown["square"], unknown["batch"]) == (None, 0) and "cuDNN" in unknown["reason"]
    assert known["square"] and known["reason"] is None
    assert body["smallest"] == "A10"
    assert main(asked) == 0
    said = capsys.readouterr()
    assert said.out.count("unknown") == 5 and f"T4: {unknown['reason']}" in said.err


def test_sizes_as_a_table(capsys):
    assert main(["sizes", "--gpu", "H200", "--vae-tiling", "--width", "384", "--height", "384"]) == 0
    said = capsys.readouterr()
    assert "8192×8192+" in said.out and "128+" in said.out and "dry-run" in said.out
    assert "larger ones were not tried" in said.err and "H200" in said.err
