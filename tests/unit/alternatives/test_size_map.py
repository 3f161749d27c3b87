"""The map: each verdict and each headroom is that of `planner.fit`, and what is a bound is one."""

import random

import pytest

from planner.alternatives.size_map import BATCHES, FEW_SIDES, by_batch, by_card, cell, columns, left_out, scaled
from planner.cards.lookup import CATALOGUE, SLICES, card_named, described_card
from planner.fit import fit
from planner.programs.files import shipped
from planner.request import GenerationRequest
from tests.unit.alternatives.test_sizes import CARDS, random_request


def check(found) -> None:
    answer = fit(found.request, found.card, "dry-run")
    assert found.verdict == answer.verdict, (found, answer.minimum_bytes)
    if found.is_bound:
        assert found.verdict == "no" and found.headroom_bytes >= answer.headroom_bytes
    else:
        assert found.headroom_bytes == answer.headroom_bytes, found


@pytest.mark.parametrize("seed", range(3))
def test_a_cell_is_the_answer_of_the_dry_run(seed):
    rng, verdicts, bounds = random.Random(seed), set(), 0
    for _ in range(60):
        request, card = random_request(rng, 400), rng.choice(CARDS)
        check(cell(request, card, shipped()))
        found = cell(request, card, shipped(), exact=False)
        check(found)
        verdicts.add(found.verdict)
        bounds += found.is_bound
    assert verdicts == {"fits", "tight", "no"} and bounds


def test_near_its_minimum_a_cell_says_what_the_answer_says():
    rng = random.Random(7)
    for _ in range(25):
        request = random_request(rng)
        answer = fit(request, card_named("L4"), "dry-run")
        assert answer.minimum_bytes and answer.need_bytes
        size_bytes = answer.minimum_bytes + rng.randrange(-(2**28), 2**28)
        check(cell(request, described_card(f"{size_bytes}B", "8.9"), shipped()))


def test_a_map_by_card_has_600_cells_and_says_what_the_cards_say():
    requests = columns(GenerationRequest(), is_square=True)
    rows = by_card(requests, (*CATALOGUE, *SLICES), shipped())
    assert len(rows) * len(rows[0]) >= 600
    cells = [found for row in rows for found in row]
    assert {found.verdict for found in cells} == {"fits", "tight", "no"}
    assert not any(found.is_bound for found in cells)
    for found in random.Random(5).sample(cells, 60):
        check(found)


def test_a_map_by_batch_says_what_the_card_says():
    told: list[float] = []
    requests = columns(GenerationRequest(), FEW_SIDES, is_square=True)
    rows = by_batch(requests, BATCHES, card_named("RTX 3060"), shipped(), told.append)
    assert [row[0].request.batch for row in rows] == list(BATCHES)
    assert told[-1] == 1 and len(told) == len(BATCHES)
    for found in random.Random(6).sample([found for row in rows for found in row], 50):
        check(found)


def test_columns_keep_the_ratio_and_have_the_asked_size():
    request = GenerationRequest(width=1000, height=600)
    found = columns(request, is_square=False)
    assert request in found
    assert all(one.width == one.height * 5 // 3 // 8 * 8 for one in found)
    assert [one.width for one in found] == sorted({one.width for one in found})
    assert all(one.width == one.height for one in columns(request, is_square=True))
    assert request.height not in [one.height for one in columns(request, is_square=True)]


def test_a_size_beyond_the_limits_is_none():
    assert scaled(GenerationRequest(width=1024), 8192, is_square=False) is None
    assert scaled(GenerationRequest(), 8192, is_square=True) is not None


def test_columns_that_say_nothing_are_left_out_but_one():
    def column(*verdicts):
        return [
            cell(GenerationRequest(width=side, height=side), card_named("T4"), shipped())
            for side in [{"fits": 512, "tight": 2048, "no": 4096}[verdict] for verdict in verdicts]
        ]

    assert left_out([column("fits", "fits", "fits", "tight", "no", "no")]) == (2, 1)
    assert left_out([column("tight", "no")]) == (0, 0)
    assert left_out([column("fits", "fits")]) == (1, 0)
    assert left_out([column("no", "no", "no")]) == (0, 2)
