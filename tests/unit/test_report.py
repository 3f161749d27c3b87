import shlex

import pytest
from hypothesis import given

from planner import cli
from planner.fit import fit
from planner.gpus import card_named
from planner.report import fit_text, text_table, verify_command
from planner.request import GenerationRequest
from tests.unit.strategies import requests


def test_columns_line_up():
    table = text_table(("a", "bb"), [("1", "2"), ("333", "4")], right=(1,))
    assert table.splitlines() == ["a    bb", "---  --", "1     2", "333   4"]


def test_a_miss_is_shown_with_its_sign_and_word():
    request = GenerationRequest(width=8192, height=8192)
    text = fit_text(request, [fit(request, card_named("RTX 4060"))])
    assert "✕ no" in text and "−" in text
    assert "dry-run" in text and "GiB" in text and "GB " not in text


def test_an_unknown_answer_has_no_numbers():
    request = GenerationRequest()
    assert "? unknown" in fit_text(request, [fit(request, card_named("T4"), "measured")])


@given(requests())
def test_the_command_asks_for_the_same_request(request):
    argv = shlex.split(verify_command(request))
    assert argv[:4] == ["python", "-m", "planner", "verify"]
    arguments = cli._parser().parse_args(argv[3:])
    assert cli.request_from(arguments) == request


def test_defaults_are_left_out_of_the_command():
    assert verify_command(GenerationRequest()) == "python -m planner verify"
    assert verify_command(GenerationRequest(safety_checker=False, steps=2)) == (
        "python -m planner verify --steps 2 --no-safety-checker"
    )


@pytest.mark.parametrize("command", ["fit", "verify", "gpus", "doctor", "history"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    assert len(capsys.readouterr().out) > 100
