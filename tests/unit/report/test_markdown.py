"""A plan as Markdown: its table, its notes, and a command that repeats it."""

import json
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cards.lookup import CATALOGUE, SLICES, card_named, described_card, shared_card
from planner.cli.arguments import cards_of
from planner.cli.main import main
from planner.fit import fit
from planner.plan import Plan
from planner.report.markdown import fit_markdown, fit_notes
from planner.request import GenerationRequest
from planner.units import gib, signed_gib
from tests.unit.asked import plan_asked
from tests.unit.strategies import requests

BIG = GenerationRequest(width=2048, height=2048)


def answers_of(request: GenerationRequest, *names: str, basis: str = "dry-run"):
    return [fit(request, card_named(name), basis) for name in names]


def test_the_table_has_a_row_for_each_card_and_notes():
    answers = answers_of(BIG, "T4", "A100", "RTX 4060")
    text = fit_markdown(BIG, answers, {"torch": "2.13.0"}, "python -m planner fit --width 2048")
    lines = text.splitlines()
    assert f"**{BIG.describe()}**" in lines
    for answer in answers:
        row = next(line for line in lines if line.startswith(f"| {answer.card.name} |"))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1].endswith(answer.verdict) and cells[5] == "dry-run"
        assert cells[2:5] == [
            gib(answer.need_bytes),
            gib(answer.card.usable_bytes),
            signed_gib(answer.headroom_bytes),
        ]
    [t4] = [answer for answer in answers if answer.card.name == "T4"]
    assert f"- T4: runs from {gib(t4.minimum_bytes)}, with slower kernels or allocator retries" in lines
    assert "torch 2.13.0" in text and "$ python -m planner fit --width 2048" in lines
    assert {line.count("|") for line in lines if line.startswith("|")} == {7}


def test_the_notes_equal_those_of_the_terminal(capsys):
    assert main(["fit", "--batch", "4", "--gpu", "H100", "--gpu", "T4", "--no-reference"]) == 0
    request = GenerationRequest(batch=4)
    told = capsys.readouterr().err.splitlines()
    assert fit_notes(request, answers_of(request, "H100", "T4")) == told
    assert any(note.startswith("assumed - batch 4") for note in told)


def test_it_says_what_stays_on_the_gpu_after_the_call():
    request = GenerationRequest()
    [a10] = answers_of(request, "A10")
    after = a10.after_call
    [line] = [line for line in fit_markdown(request, [a10], {}, "").splitlines() if "after the call" in line]
    assert line.startswith(f"- A10: after the call {gib(after.total_bytes)} stay in use")
    assert f"{gib(after.cached_bytes)} cached, of which torch.cuda.empty\\_cache()" in line
    for other in (*answers_of(BIG, "T4"), *answers_of(request, "A10", basis="formula")):
        assert other.after_call is None
        assert "after the call" not in fit_markdown(BIG, [other], {}, "")


def test_markdown_in_names_is_escaped():
    answer = fit(GenerationRequest(), card_named("T4"), "measured")
    text = fit_markdown(GenerationRequest(channels_last=True), [answer], {}, "")
    assert "| T4 | ? unknown | - | 14.56 GiB | - | measured |" in text
    odd = fit(GenerationRequest(), described_card("16GiB", "7.5"), "dry-run")
    assert "channels\\_last" not in fit_markdown(GenerationRequest(batch=2, channels_last=True), [odd], {}, "")


def test_the_command_line_prints_it(capsys):
    arguments = ["fit", "--width", "2048", "--height", "2048", "--gpu", "T4", "--gpu", "RTX 4060", "--no-reference"]
    assert main([*arguments, "--format", "md"]) == 10
    said = capsys.readouterr()
    assert said.out.startswith("## Will it fit?\n") and not said.err
    command = next(line for line in said.out.splitlines() if line.startswith("$ "))
    assert command == f'$ python -m planner {" ".join(arguments[:5])} --gpu T4 --gpu "RTX 4060" --no-reference'
    assert "torch 2" in said.out


def test_json_and_format_json_agree(capsys):
    def printed(*flags: str) -> str:
        assert main(["fit", "--gpu", "T4", "--no-reference", *flags]) == 0
        return capsys.readouterr().out

    assert printed("--json") == printed("--format", "json") == printed("--json", "--format", "json")
    assert json.loads(printed("--json"))["gpus"][0]["name"] == "T4"
    assert printed() == printed("--format", "table")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format", "html"], "error: --format must be one of table, json, md, got 'html'"),
        (["--format", "md", "--json"], "error: --format must be json where --json is given, got 'md'"),
    ],
)
def test_unknown_or_contradicting_formats_are_refused(capsys, flags, message):
    assert main(["fit", *flags]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(message) and not said.out


@given(
    request=requests(),
    cards=st.lists(st.sampled_from([*CATALOGUE, *SLICES]), min_size=1, max_size=4, unique=True),
    described=st.booleans(),
    workers=st.integers(1, 4),
    basis=st.sampled_from(["best", "dry-run", "formula"]),
)
def test_the_command_stands_for_the_same_request_and_cards(request, cards, described, workers, basis):
    chosen = [*cards, *([described_card("16GiB", "7.5")] if described else [])]
    shares = [shared_card(card, workers) for card in chosen]
    parts = shlex.split(Plan(request=request, basis=basis, published=False).command(shares))
    assert parts[:4] == ["python", "-m", "planner", "fit"]
    plan = plan_asked(parts[4:])
    assert (plan.request, plan.basis, plan.published) == (request, basis, False)
    again = cards_of(plan)
    assert [card.name for card in again] == [card.name for card in shares]
    assert all(abs(a.usable_bytes - b.usable_bytes) < workers for a, b in zip(again, shares, strict=True))


def test_an_attached_card_is_repeated_as_attached(nvml):
    from cache.machine.attached import cards

    card = cards()[0].as_card()
    assert Plan().command([card]) == "python -m planner fit --gpu attached"
