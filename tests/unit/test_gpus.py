from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import InvalidArgument, UnknownCard
from planner.fit import fit
from planner.gpus import (
    CATALOGUE,
    DEFAULT_CARDS,
    MAX_WORKERS,
    SLICES,
    card_named,
    card_row,
    described_card,
    emulated_card,
    emulated_name,
    shared_card,
)
from planner.request import GenerationRequest
from planner.units import GIB


def test_the_catalogue_has_the_cards_people_rent():
    names = {card.name for card in CATALOGUE}
    asked = ["T4", "A10", "A10G", "A100-40GB", "A100-80GB", "L4", "L40S", "H200"]
    asked += ["RTX 3060", "RTX 3090", "RTX 4060", "RTX 4090", "RTX 5090"]
    assert set(asked) <= names
    for alias in ("V100", "H100", "A100"):
        assert card_named(alias)


def test_names_and_aliases_are_unique():
    names = [name for card in (*CATALOGUE, *SLICES) for name in (card.name, *card.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("card", CATALOGUE, ids=lambda card: card.name)
def test_each_number_is_plausible_and_has_a_source(card):
    assert type(card.usable_bytes) is type(card.context_bytes) is int
    assert 0 < card.context_low_bytes <= card.context_bytes < card.usable_bytes <= card.usable_high_bytes
    assert card.bandwidth_gb_s and card.float16_tflops
    assert all(word in card.source for word in ("usable memory", "context", "bandwidth"))
    assert card_row(card)["compute_capability"] == card.capability


def test_a_bare_a100_is_the_smaller_one():
    assert card_named("A100").name == "A100-40GB"
    assert card_named("V100").name == "V100-16GB"
    assert DEFAULT_CARDS == ("T4", "A10", "A100")


@pytest.mark.parametrize(
    ("name", "nearest"), [("a10", "A10"), ("T40", "T4"), ("RTX 4090 Ti", "RTX 4090"), ("A100-40", "A100-40GB")]
)
def test_a_name_that_is_not_exact_names_the_nearest(name, nearest):
    with pytest.raises(UnknownCard, match=f"unknown card '{name}' - nearest: '{nearest}'; 'python -m planner gpus'"):
        card_named(name)


@pytest.mark.parametrize("name", ["FOO", "MI300X", ""])
def test_a_name_that_is_near_to_none_is_no_guess(name):
    with pytest.raises(UnknownCard) as error:
        card_named(name)
    assert str(error.value) == f"unknown card '{name}' - 'python -m planner gpus' lists them all"


@pytest.mark.parametrize("name", ["", "🦄", "A" * 10_000])
def test_any_text_gets_a_message(name):
    with pytest.raises(UnknownCard):
        card_named(name)


def test_a_described_card_takes_the_context_of_its_kind():
    card = described_card("16GiB", "7.5")
    t4 = card_named("T4")
    assert (card.context_low_bytes, card.context_bytes) == (t4.context_low_bytes, t4.context_bytes)
    # No 8.7 is in the catalogue: all of major 8; no 10 either: all there are.
    eights = [c.context_bytes for c in CATALOGUE if c.compute_capability[0] == 8]
    assert described_card("16GiB", "8.7").context_bytes == max(eights)
    assert described_card("16GiB", "10.0").context_bytes == max(c.context_bytes for c in CATALOGUE)


@pytest.mark.parametrize(
    "capability", ["7", "7.", "seven.five", "4.9", "21.0", "7.55", "", "-7.5", "７.５", "9" * 5000 + ".0"]
)
def test_a_wrong_capability_is_refused(capability):
    with pytest.raises(InvalidArgument, match=r"compute_capability must be a version from 5\.0 up"):
        described_card("16GiB", capability)


@pytest.mark.parametrize("card", SLICES, ids=lambda card: card.name)
def test_a_slice_is_less_than_its_card_and_says_that_it_is_an_estimate(card):
    whole = card_named(card.name.rpartition(" ")[0])
    assert 0 < card.context_low_bytes <= card.context_bytes == whole.context_bytes
    assert card.context_bytes < card.usable_bytes <= card.usable_high_bytes
    eighths = {"1": 1, "2": 2, "3": 4}[card.name.rpartition(" ")[2][0]]
    # NVIDIA's names round up: never more than its part of the whole.
    assert card.usable_bytes <= whole.usable_high_bytes * eighths / 8
    assert card.bandwidth_gb_s and card.bandwidth_gb_s == whole.bandwidth_gb_s * eighths // 8
    assert card.compute_capability == whole.compute_capability
    assert "estimate" in card.source and "not a report" in card.source
    assert card.model == card.name


def test_a_slice_is_found_by_its_name_and_by_the_drivers():
    assert len(SLICES) == 12
    assert card_named("A100 3g.20gb") is card_named("A100-40GB 3g.20gb")
    assert card_named("NVIDIA H100 80GB HBM3 MIG 1g.10gb").name == "H100-80GB 1g.10gb"
    assert not set(SLICES) & set(CATALOGUE)
    with pytest.raises(UnknownCard, match=r"nearest: 'A100-40GB 3g\.20gb'"):
        card_named("A100-40GB 3g.21gb")


REQUEST = GenerationRequest(width=768, height=768)


@given(workers=st.integers(1, MAX_WORKERS), name=st.sampled_from([card.name for card in (*CATALOGUE, *SLICES)]))
def test_a_share_answers_as_a_card_with_that_part_of_the_memory(workers, name):
    card = card_named(name)
    share = fit(REQUEST, shared_card(card, workers), "dry-run")
    usable, high = card.usable_bytes // workers, card.usable_high_bytes // workers
    alike = fit(REQUEST, replace(card, usable_bytes=usable, usable_high_bytes=high), "dry-run")
    assert (share.verdict, share.need_bytes, share.minimum_bytes) == (
        alike.verdict,
        alike.need_bytes,
        alike.minimum_bytes,
    )
    if not share.assumptions:
        together = workers * (share.peak_reserved_bytes + share.context_bytes)
        assert (share.verdict == "fits") is (together <= card.usable_bytes)


def test_a_share_is_named_and_one_worker_has_the_whole_card():
    card = card_named("T4")
    assert shared_card(card, 1) is card
    share = shared_card(card, 3)
    assert share.name == "T4, 1 of 3 workers"
    assert share.context_bytes == card.context_bytes
    # What was measured with the whole card does not speak of a third of it.
    assert share.model != card.model
    assert share.bandwidth_gb_s == card.bandwidth_gb_s // 3
    described = described_card("16GiB", "7.5")
    assert shared_card(described, 2).bandwidth_gb_s is None


@pytest.mark.parametrize("workers", [0, -1, MAX_WORKERS + 1, True, 2.0])
def test_a_wrong_number_of_workers_is_refused(workers):
    with pytest.raises(InvalidArgument, match="workers must be"):
        shared_card(card_named("T4"), workers)


def test_an_emulated_capacity_is_less_memory_and_the_same_card_otherwise():
    card = card_named("H100-80GB")
    at_16_gib = emulated_card(card, 16 * GIB)
    assert at_16_gib.name == "H100-80GB, 16 GiB emulated" == emulated_name("H100-80GB", 16 * GIB)
    assert (at_16_gib.usable_bytes, at_16_gib.usable_high_bytes) == (16 * GIB, 16 * GIB)
    assert at_16_gib.model == card.model and at_16_gib.aliases == ()
    assert at_16_gib.source.startswith("a capacity emulated on H100-80GB")
    large = GenerationRequest(width=2048, height=2048)
    whole, limited = (fit(large, one, "dry-run") for one in (card, at_16_gib))
    assert (whole.verdict, limited.verdict) == ("fits", "tight")
    for name in ("need_bytes", "peak_allocated_bytes", "context_bytes", "stages"):
        assert getattr(whole, name) == getattr(limited, name)


def test_what_others_hold_is_not_there_for_an_emulation_either():
    full = replace(card_named("H100-80GB"), usable_bytes=10 * GIB, usable_high_bytes=10 * GIB)
    assert emulated_card(full, 16 * GIB).usable_bytes == 10 * GIB
    assert emulated_name("T4", None) == "T4"
