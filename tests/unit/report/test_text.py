import shlex
from dataclasses import replace

import pytest
from hypothesis import given

from planner.cards.lookup import card_named
from planner.cli import main as cli
from planner.fit import fit
from planner.report.text import fit_text, text_table, threshold_notes, verify_command
from planner.request import GenerationRequest
from planner.units import gib
from tests.unit.asked import request_asked
from tests.unit.strategies import requests


def test_columns_line_up():
    table = text_table(("a", "bb"), [("1", "2"), ("333", "4")], right=(1,))
    assert table.splitlines() == ["a    bb", "---  --", "1     2", "333   4"]


def test_a_negative_headroom_has_its_sign_and_verdict():
    request = GenerationRequest(width=8192, height=8192)
    text = fit_text(request, [fit(request, card_named("RTX 4060"))])
    assert "✕ no" in text and "−" in text
    assert "dry-run" in text and "GiB" in text and "GB " not in text


def test_an_unknown_answer_has_no_numbers():
    request = GenerationRequest()
    assert "? unknown" in fit_text(request, [fit(request, card_named("T4"), "measured")])


@given(requests())
def test_the_command_reads_back_as_the_same_request(request):
    argv = shlex.split(verify_command(request))
    assert argv[:4] == ["python", "-m", "planner", "verify"]
    assert request_asked(argv[4:]) == request


def test_defaults_are_left_out_of_the_command():
    assert verify_command(GenerationRequest()) == "python -m planner verify"
    assert verify_command(GenerationRequest(), 3 * 2**29) == "python -m planner verify --capacity 1536MiB"
    assert verify_command(GenerationRequest(safety_checker=False, steps=2)) == (
        "python -m planner verify --steps 2 --no-safety-checker"
    )


@pytest.mark.parametrize("command", ["fit", "verify", "gpus", "doctor", "history"])
def test_every_command_has_help(command, capsys):
    assert cli.main([command, "--help"]) == 0
    assert len(capsys.readouterr().out) > 100


def test_notes_say_how_a_tight_card_may_still_run():
    request = GenerationRequest(width=2048, height=2048)
    names = ("T4", "A100", "RTX 4060")
    tight, no = threshold_notes([fit(request, card_named(name)) for name in names])
    assert tight.startswith("T4: runs from 8.") and "slower kernels or allocator retries" in tight
    assert no.startswith("RTX 4060: even the minimum, 9.") and no.endswith("too much")
    batch = GenerationRequest(batch=8, width=768, height=768, channels_last=True)
    need = fit(batch, card_named("A10")).need_bytes
    just = replace(card_named("A10"), usable_bytes=need)
    [note] = threshold_notes([fit(batch, just)])
    upper = fit(batch, just).worst_need_bytes
    assert upper > need
    assert note == f"A10: the need fits, but the upper end of its range, {gib(upper)}, does not"
    assert threshold_notes([fit(request, card_named("RTX 4060"), "formula")]) == []
