import pickle

import pytest

from planner.errors import InvalidArgument, NoGpu, PlannerError, UnknownCard


@pytest.mark.parametrize(
    "error",
    [InvalidArgument("width", "must be a whole number", "x"), UnknownCard("T5", "T4"), NoGpu("why", "what next")],
)
def test_errors_can_be_pickled(error):
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, PlannerError)
    assert (str(again), vars(again)) == (str(error), vars(error))
