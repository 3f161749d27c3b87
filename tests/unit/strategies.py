"""Requests for Hypothesis: every size, batch and option that the rules allow."""

from hypothesis import strategies as st

from planner.fields import Choice, Field, Number, Switch, Whole
from planner.request import FIELDS, MAX_BATCH, MAX_SIDE, MIN_SIDE, GenerationRequest

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
    """Requests with these fields fixed or drawn so, all others anything, and refused combinations mended."""
    drawn = {f.name: st.just(f.default) | values(f) if f.is_later else values(f) for f in FIELDS}
    given_ = {name: value if isinstance(value, st.SearchStrategy) else st.just(value) for name, value in fixed.items()}
    return st.fixed_dictionaries(drawn | given_).map(mended)


def mended(values: dict) -> GenerationRequest:
    """The nearest request that the rules on combinations allow."""
    values = dict(values)
    values["images_per_prompt"] = min(values["images_per_prompt"], MAX_BATCH // values["batch"])
    if values["attention_slicing"]:
        values["ip_adapter"] = "none"
    if not values["lora_rank"]:
        values["lora_text_encoder"] = False
    most = MAX_SIDE / max(values["width"], values["height"])
    values["hires"] = min(values["hires"], most) if values["task"] == "txt2img" else 1.0
    return GenerationRequest(**values)
