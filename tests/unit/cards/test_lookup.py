import pickle
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cards.catalogue import ROWS
from planner.cards.catalogue_rows import usable_of
from planner.cards.lookup import (
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
from planner.cards.names import normalised
from planner.errors import InvalidArgument, UnknownCard
from planner.fit import fit
from planner.request import GenerationRequest
from planner.units import GIB


def test_the_catalogue_has_the_cards_people_rent():
    names = {card.name for card in CATALOGUE}
    asked = ["T4", "A10", "A10G", "A100-40GB", "A100-80GB", "L4", "L40S", "H200"]
    asked += ["RTX 3060", "RTX 3090", "RTX 4060", "RTX 4090", "RTX 5090"]
    assert set(asked) <= names
    for alias in ("V100", "H100", "A100"):
        assert card_named(alias)


def test_normalised_names_are_unique():
    owners: dict[str, set[str]] = {}
    for card in (*CATALOGUE, *SLICES):
        for name in (card.name, *card.aliases):
            assert normalised(name)
            owners.setdefault(normalised(name), set()).add(card.name)
    assert {key: names for key, names in owners.items() if len(names) > 1} == {}
    assert len({card.name for card in (*CATALOGUE, *SLICES)}) == len(CATALOGUE) + len(SLICES)


@pytest.mark.parametrize("card", CATALOGUE, ids=lambda card: card.name)
def test_each_number_is_plausible_and_has_a_source(card):
    assert type(card.usable_bytes) is type(card.context_bytes) is int
    assert 0 < card.context_low_bytes <= card.context_bytes < card.usable_bytes <= card.usable_high_bytes
    assert card.is_laptop or card.bandwidth_gb_s
    assert "no rates" in card.source or all(word in card.source for word in ("usable memory", "context", "bandwidth"))
    row = card_row(card)
    assert row["compute_capability"] == card.capability and row["runs_pinned_torch"] is (not row["notes"])
    assert (card.origin, card.workers, card.whole) == ("catalogue", 1, card)


def test_reported_numbers_are_those_reported():
    for name, low, high in [
        ("T4", 14.56, 14.76),
        ("A10", 22.03, 22.2),
        ("A100", 39.38, 39.56),
        ("RTX 3060", 11.62, 11.77),
        ("RTX 3090", 23.56, 23.70),
        ("RTX 4060", 7.6, 7.75),
        ("RTX 4090", 23.51, 23.65),
    ]:
        card = card_named(name)
        assert (card.usable_bytes, card.usable_high_bytes) == (round(low * GIB), round(high * GIB))
    # Few or older reports: newer drivers keep more, so the low end is below them.
    old = card_named("RTX 2080 Ti")
    assert old.usable_bytes < 10.75 * GIB and "newer drivers" in old.source


@pytest.mark.parametrize("row", [row for row in ROWS if row.usable], ids=lambda row: row.name)
def test_derived_memory_of_reported_cards_is_within_the_reports(row):
    others = [other for other in ROWS if other is not row]
    if not any(other.usable and other.capability == row.capability for other in others):
        pytest.skip("no other card of its capability was reported")
    low, high = usable_of(replace(row, usable=None), others)
    lowest, highest = row.reported
    # A third of a GiB, or 2 % of a large card, is how far a rule may be off the end of what was seen.
    reach = max(0.34, 0.02 * row.memory)
    assert low <= lowest + reach and high >= highest - reach and 0 < low <= high


def test_derived_memory_says_so_and_is_below_the_total():
    derived = [(row, card_named(row.name)) for row in ROWS if not row.usable]
    assert len(derived) > 30
    for row, card in derived:
        assert "derived, for no report of this card was found" in card.source
        assert 0.85 * row.memory * GIB < card.usable_bytes <= card.usable_high_bytes < row.memory * GIB


def test_a100_alone_is_the_smaller_one():
    assert card_named("A100").name == "A100-40GB"
    assert card_named("V100").name == "V100-16GB"
    assert DEFAULT_CARDS == ("T4", "A10", "A100")


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("t4", "T4"),
        ("Tesla T4", "T4"),
        ("NVIDIA A10", "A10"),
        ("a10", "A10"),
        ("A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("A100-PCIE-40GB", "A100-40GB"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB"),
        ("NVIDIA H100 80GB HBM3", "H100-80GB"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("GeForce RTX 2080 Ti", "RTX 2080 Ti"),
        ("NVIDIA GeForce RTX 4070 Laptop GPU", "RTX 4070 Laptop"),
        ("NVIDIA GeForce RTX 4070 SUPER", "RTX 4070 Super"),
        ("rtx 4070", "RTX 4070"),
        ("4090", "RTX 4090"),
        ("rtx4090", "RTX 4090"),
        ("RTX_4090", "RTX 4090"),
        ("3080ti", "RTX 3080 Ti"),
        ("1070", "GTX 1070"),
        ("NVIDIA L40S", "L40S"),
        ("Quadro RTX 6000", "Quadro RTX 6000"),
        ("RTX 6000", "Quadro RTX 6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("a6000", "RTX A6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000"),
        ("NVIDIA TITAN V", "TITAN V"),
        ("Tesla P100-PCIE-16GB", "P100"),
        ("NVIDIA T4 GPU", "T4"),
        ("NVIDIA B200", "B200"),
        ("4060 Ti", "RTX 4060 Ti 8GB"),
        ("RTX 3060-12GB", "RTX 3060"),
    ],
)
def test_a_card_has_the_names_that_drivers_clouds_and_people_use(name, model):
    for text in (name, name.upper(), f"  {name.casefold()} ", name.replace(" ", "-"), name.replace(" ", "_")):
        assert card_named(text).name == model


@pytest.mark.parametrize(
    ("name", "total_gib", "model"),
    [
        ("NVIDIA GeForce RTX 4060 Ti", 7.6, "RTX 4060 Ti 8GB"),
        ("NVIDIA GeForce RTX 4060 Ti", 15.6, "RTX 4060 Ti 16GB"),
        ("NVIDIA GeForce RTX 3080", 9.7, "RTX 3080 10GB"),
        ("NVIDIA GeForce RTX 3080", 11.7, "RTX 3080 12GB"),
        ("NVIDIA GeForce RTX 3080 Laptop GPU", 15.7, "RTX 3080 Laptop 16GB"),
        ("NVIDIA RTX A2000", 11.7, "RTX A2000 12GB"),
        ("Tesla T4", 14.6, "T4"),
    ],
)
def test_memory_tells_sizes_of_one_name_apart(name, total_gib, model):
    assert card_named(name, round(total_gib * GIB)).name == model


def test_a_name_never_matches_a_part_of_another():
    assert card_named("A10").name == "A10" and card_named("A100").name == "A100-40GB"
    assert card_named("4070").name != card_named("4070 Ti").name != card_named("4070 Ti Super").name
    for name in ("A10 0", "A1000", "L4 0", "T4x", "xT4", "NVIDIA", "RTX", "0"):
        with pytest.raises(UnknownCard):
            card_named(name)


@pytest.mark.parametrize("text", ["T4,A10", "t4, rtx 4090", "A100,A100,L4"])
def test_a_list_in_one_argument_is_refused_with_advice(text):
    with pytest.raises(UnknownCard, match="name each GPU by itself: --gpu") as error:
        card_named(text)
    assert error.value.parts == tuple(part.strip() for part in text.split(","))
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


def test_an_old_card_notes_that_it_cannot_be_verified():
    for name in ("V100", "P100", "GTX 1080 Ti", "TITAN V"):
        (note,) = card_named(name).notes
        assert "planned for and not verified" in note and "7.5 or newer" in note
        assert shared_card(card_named(name), 2).notes == (note,)
    assert [card.name for card in CATALOGUE if not card.runs_pinned_torch] == [
        card.name for card in CATALOGUE if card.compute_capability < (7, 5)
    ]
    assert card_named("T4").notes == ()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("RTX 2071", "RTX 2070"),
        ("T5", "T4"),
        ("RTX 4090 Ti", "RTX 4090"),
        ("RTX 4060 Super", "RTX 4060"),
        ("GTX 1060", "GTX 1060 6GB"),
        ("GTX 3060", "RTX 3060"),
        ("A100-40", "A100-40GB"),
    ],
)
def test_a_wrong_name_suggests_the_nearest(name, nearest):
    with pytest.raises(UnknownCard, match=f"unknown GPU '{name}' - nearest: '{nearest}'; 'python -m planner gpus'"):
        card_named(name)


@pytest.mark.parametrize("name", ["FOO", "MI300X", "", "RTX 9070", "RX 7600", "GTX 1660 Ti", "B100", "K80", "A1000"])
def test_a_name_unlike_any_other_suggests_nothing(name):
    with pytest.raises(UnknownCard) as error:
        card_named(name)
    assert str(error.value) == f"unknown GPU '{name}' - 'python -m planner gpus' lists them all"


@pytest.mark.parametrize("name", ["", "🦄", "A" * 10_000])
def test_any_text_gets_a_message(name):
    with pytest.raises(UnknownCard):
        card_named(name)


def test_a_described_card_has_the_context_of_its_capability():
    card = described_card("16GiB", "7.5")
    turing = [c for c in CATALOGUE if c.compute_capability == (7, 5)]
    assert card.context_low_bytes == min(c.context_low_bytes for c in turing)
    assert card.context_bytes == max(c.context_bytes for c in turing)
    # No 8.7 is in the catalogue: all of major 8; no 11 either: all there are.
    eights = [c.context_bytes for c in CATALOGUE if c.compute_capability[0] == 8]
    assert described_card("16GiB", "8.7").context_bytes == max(eights)
    assert described_card("16GiB", "11.0").context_bytes == max(c.context_bytes for c in CATALOGUE)


@pytest.mark.parametrize(
    "capability", ["7", "7.", "seven.five", "4.9", "21.0", "7.55", "", "-7.5", "７.５", "9" * 5000 + ".0"]
)
def test_a_wrong_capability_is_refused(capability):
    with pytest.raises(InvalidArgument, match=r"compute_capability must be a version from 5\.0 up"):
        described_card("16GiB", capability)


@pytest.mark.parametrize("card", SLICES, ids=lambda card: card.name)
def test_a_slice_is_a_part_of_its_card_and_an_estimate(card):
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


def test_a_slice_has_its_own_name_and_the_drivers():
    assert len(SLICES) == 12
    assert card_named("A100 3g.20gb") is card_named("A100-40GB 3g.20gb")
    assert card_named("NVIDIA H100 80GB HBM3 MIG 1g.10gb").name == "H100-80GB 1g.10gb"
    assert not set(SLICES) & set(CATALOGUE)
    with pytest.raises(UnknownCard, match=r"nearest: 'A100-40GB 3g\.20gb'"):
        card_named("A100-40GB 3g.21gb")


REQUEST = GenerationRequest(width=768, height=768)


# The first example also loads the memory programs, which may take longer than the default deadline.
@settings(deadline=None)
@given(workers=st.integers(1, MAX_WORKERS), name=st.sampled_from([card.name for card in (*CATALOGUE, *SLICES)]))
def test_a_share_answers_as_a_card_of_its_size(workers, name):
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


def test_a_share_has_a_name_and_one_worker_the_whole_card():
    card = card_named("T4")
    assert shared_card(card, 1) is card
    share = shared_card(card, 3)
    assert share.name == "T4, 1 of 3 workers"
    assert share.context_bytes == card.context_bytes
    # Runs on the whole card are no evidence for a third of it.
    assert share.model != card.model
    assert share.bandwidth_gb_s == card.bandwidth_gb_s // 3
    described = described_card("16GiB", "7.5")
    assert shared_card(described, 2).bandwidth_gb_s is None


@pytest.mark.parametrize("workers", [0, -1, MAX_WORKERS + 1, True, 2.0])
def test_a_wrong_number_of_workers_is_refused(workers):
    with pytest.raises(InvalidArgument, match="workers must be"):
        shared_card(card_named("T4"), workers)


def test_an_emulated_capacity_changes_the_memory_alone():
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


def test_memory_of_others_limits_an_emulation_too():
    full = replace(card_named("H100-80GB"), usable_bytes=10 * GIB, usable_high_bytes=10 * GIB)
    assert emulated_card(full, 16 * GIB).usable_bytes == 10 * GIB
    assert emulated_name("T4", None) == "T4"
