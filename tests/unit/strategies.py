"""Requests for Hypothesis: every size, batch and option that the rules allow."""

from hypothesis import strategies as st

from planner.fields import Choice, Field, Number, Switch, Whole
from planner.request import FIELDS, MAX_SIDE, MIN_SIDE, GenerationRequest

sides = st.integers(MIN_SIDE, MAX_SIDE)
multiples = st.integers(MIN_SIDE // 8, MAX_SIDE // 8).map(lambda latent: latent * 8)


def values(field: Field) -> st.SearchStrategy:
    """Every value that a field's own rule allows; sides are such as both tasks take."""
    if field.name in ("width", "height"):
        return multiples
    if isinstance(field, Choice):
        return st.sampled_from(field.choices)
    if isinstance(field, Whole):
        return st.integers(field.low, field.high)
    if isinstance(field, Number):
        return st.floats(field.low, field.high)
    assert isinstance(field, Switch)
    return st.booleans()


def requests(**fixed) -> st.SearchStrategy[GenerationRequest]:
    return st.builds(GenerationRequest, **{field.name: values(field) for field in FIELDS} | fixed)
