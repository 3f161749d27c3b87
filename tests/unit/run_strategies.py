"""Measured runs for Hypothesis: all that the line format allows, and what hangs together hanging together."""

from dataclasses import replace
from datetime import UTC, datetime

from hypothesis import strategies as st

from cache.records import Environment, Measured, Measurement, Prediction, StageMeasure
from cache.strict import UNSAFE
from planner.components import STAGES
from tests.unit.strategies import requests

sizes = st.integers(0, 2**50)
maybe_sizes = st.none() | sizes
seconds = st.floats(0, 1e7)
texts = st.text(st.characters(exclude_categories=["Cs"]).filter(lambda one: not UNSAFE.search(one)), max_size=40)
times = st.datetimes(datetime(2022, 1, 1), datetime(2026, 1, 1), timezones=st.just(UTC))


@st.composite
def environments(draw) -> Environment:
    environment = draw(_whole_cards())
    total = environment.total_bytes
    if environment.device_kind == "cpu" or (total is not None and total < 2):
        return environment
    capacities = st.integers(1, 2**50 if total is None else total - 1)
    return replace(environment, emulated_bytes=draw(st.none() | capacities))


def _whole_cards() -> st.SearchStrategy[Environment]:
    maybe = st.none() | texts
    return st.builds(
        Environment,
        device_kind=st.sampled_from(["cuda", "cpu"]),
        card=texts,
        uuid_hash=maybe,
        total_bytes=maybe_sizes,
        compute_capability=st.none() | st.sampled_from(["6.0", "7.5", "12.0"]),
        mig=st.none() | st.booleans(),
        driver=maybe,
        cuda=maybe,
        cudnn=maybe,
        torch=texts,
        diffusers=texts,
        transformers=texts,
        accelerate=texts,
        python=texts,
        dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
        attention=texts,
        allocator_settings=texts,
        weights=texts,
        method=st.integers(0, 1_000_000),
    )


@st.composite
def measured(draw) -> Measured:
    outcome = draw(st.sampled_from(["ok", "out-of-memory", "cancelled", "failed"]))
    peak = draw(sizes if outcome == "ok" else maybe_sizes)
    below = maybe_sizes if peak is None else st.none() | st.integers(0, peak)
    stages = tuple(
        StageMeasure(
            stage=stage,
            peak_allocated_bytes=draw(below),
            peak_reserved_bytes=draw(maybe_sizes),
            device_bytes=draw(maybe_sizes),
            seconds=draw(seconds),
        )
        for stage in draw(st.lists(st.sampled_from(STAGES), unique=True))
    )
    return Measured(
        outcome=outcome,
        reason=draw(st.none() | texts),
        ended_in=draw(st.none() | st.sampled_from(["loading", *STAGES])),
        weights_bytes=draw(below),
        peak_allocated_bytes=peak,
        peak_reserved_bytes=draw(maybe_sizes),
        peak_device_bytes=draw(maybe_sizes),
        context_bytes=draw(maybe_sizes),
        free_before_bytes=draw(maybe_sizes),
        num_alloc_retries=draw(st.none() | st.integers(0, 1_000_000)),
        load_seconds=draw(st.none() | seconds),
        total_seconds=draw(st.none() | seconds),
        seconds_per_step=draw(st.none() | seconds),
        stages=stages,
    )


def predictions() -> st.SearchStrategy[Prediction]:
    return st.builds(
        Prediction,
        basis=st.sampled_from(["formula", "dry-run", "calibrated", "measured"]),
        verdict=st.sampled_from(["fits", "tight", "no", "unknown"]),
        need_bytes=maybe_sizes,
        minimum_bytes=maybe_sizes,
        peak_allocated_bytes=maybe_sizes,
        peak_reserved_bytes=maybe_sizes,
        stages=st.dictionaries(st.sampled_from(STAGES), sizes),
    )


def runs(**fixed) -> st.SearchStrategy[Measurement]:
    """Imported runs, as `cache.exchange.read_runs` gives them."""
    parts = {
        "measurement_id": st.uuids().map(str),
        "created_at": times.map(lambda time: time.isoformat(timespec="microseconds")),
        "request": requests(),
        "environment": environments(),
        "measured": measured(),
        "holders": st.lists(
            st.fixed_dictionaries({"pid": st.integers(0, 2**32), "name": texts, "used_bytes": maybe_sizes}), max_size=3
        ).map(tuple),
        "predictions": st.lists(predictions(), unique_by=lambda one: one.basis).map(tuple),
        "origin": st.just("imported"),
        "source": st.none() | texts,
    }
    return st.builds(Measurement, **parts | fixed)
