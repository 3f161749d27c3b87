import pickle

import pytest

from cache.history.location import HistoryRefused
from planner.cli.main import main
from planner.errors import MOST_OF_A_MESSAGE, CannotWrite, InvalidArgument, NoGpu, PlannerError, UnknownCard


@pytest.mark.parametrize(
    "error",
    [InvalidArgument("width", "must be a whole number", "x"), UnknownCard("T5", "T4"), NoGpu("why", "what next")],
)
def test_errors_can_be_pickled(error):
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, PlannerError)
    assert (str(again), vars(again)) == (str(error), vars(error))


LONG = "x" * 3000


@pytest.mark.parametrize(
    "error",
    [
        InvalidArgument("width", "must be a whole number", LONG),
        InvalidArgument("width", "must be a whole number", LONG.encode()),
        InvalidArgument("width", "must be a whole number", [LONG, LONG]),
        InvalidArgument("width", "must be a whole number", 10**5000),
        InvalidArgument(LONG, f"must be one of {LONG}", LONG, LONG),
        UnknownCard(LONG, "T4"),
        UnknownCard(",".join([LONG] * 9), None, (LONG,) * 9),
        NoGpu(LONG, LONG),
        CannotWrite(LONG, "no room", "free space there"),
        HistoryRefused(LONG, "opened", "no room", "free space there"),
        PlannerError(LONG),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_repeats_only_the_beginning_of_a_long_value(error):
    assert len(str(error)) <= MOST_OF_A_MESSAGE
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), vars(again)) == (str(error), vars(error))


def test_a_shortened_message_keeps_its_advice():
    text = str(CannotWrite(LONG, "no room", "free space there"))
    assert text.startswith("xxx") and text.endswith("(no room) - free space there") and " ... " in text


@pytest.mark.parametrize(
    "argv",
    [
        ("fit", "--gpu", LONG),
        ("fit", "--width", LONG),
        ("history", "show", LONG),
        ("history", "import", LONG),
        ("history", "export", LONG),
        ("history", "recover", LONG),
        (LONG,),
        ("history", LONG),
        ("fit", f"--{LONG}"),
        ("fit", LONG),
        ("verify", "--device", LONG),
        ("verify", "--device", "cpu", "--sweep", LONG),
    ],
)
def test_a_command_repeats_only_the_beginning_of_a_long_value(capsys, argv):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert error.count("x") < 500
