import pytest

from planner.errors import InvalidArgument, UnknownCard
from planner.gpus import CATALOGUE, DEFAULT_CARDS, card_named, card_row, described_card


def test_the_catalogue_has_the_cards_people_rent():
    names = {card.name for card in CATALOGUE}
    asked = ["T4", "A10", "A10G", "A100-40GB", "A100-80GB", "L4", "L40S", "H200"]
    asked += ["RTX 3060", "RTX 3090", "RTX 4060", "RTX 4090", "RTX 5090"]
    assert set(asked) <= names
    for alias in ("V100", "H100", "A100"):
        assert card_named(alias)


def test_names_and_aliases_are_unique():
    names = [name for card in CATALOGUE for name in (card.name, *card.aliases)]
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
