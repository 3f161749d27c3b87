"""Measured runs for Hypothesis: all that the line format allows, and what hangs together hanging together."""

from datetime import UTC, datetime

from hypothesis import strategies as st

from cache.exchange.rules import UNSAFE
from cache.records import REHEARSAL, Environment, Measured, Measurement, Prediction, StageMeasure
from planner.components import STAGES
from tests.unit.strategies import requests

MOST = 2**50
sizes = st.integers(0, MOST)
maybe_sizes = st.none() | sizes
seconds = st.floats(0, 1e7)
texts = st.text(st.characters(exclude_categories=["Cs"]).filter(lambda one: not UNSAFE.search(one)), max_size=40)
times = st.datetimes(datetime(2022, 10, 20), datetime(2026, 1, 1), timezones=st.just(UTC))


def up_to(limit: int | None) -> st.SearchStrategy[int | None]:
    """A size that is not above the limit, where there is one, or none."""
    return st.none() | st.integers(0, MOST if limit is None else limit)


def least(*limits: int | None) -> int:
    return min(limit for limit in (*limits, MOST) if limit is not None)


@st.composite
def environments(draw) -> Environment:
    kind = draw(st.sampled_from(["cuda", "cpu"]))
    on_gpu, maybe = kind == "cuda", st.none() | texts
    total = draw(st.none() | st.integers(2, MOST))
    capacities = st.none() | st.integers(1, MOST if total is None else total - 1)
    return Environment(
        device_kind=kind,
        card=draw(texts.filter(lambda name: name.strip() not in ("", REHEARSAL))) if on_gpu else REHEARSAL,
        uuid_hash=draw(maybe),
        total_bytes=total,
        compute_capability=draw(st.none() | st.sampled_from(["3.0", "7.5", "12.0", "20.9"])),
        mig=draw(st.none() | st.booleans()),
        driver=draw(maybe),
        cuda=draw(maybe),
        cudnn=draw(maybe),
        torch=draw(texts),
        diffusers=draw(texts),
        transformers=draw(texts),
        accelerate=draw(texts),
        python=draw(texts),
        dtype=draw(st.sampled_from(["float16", "bfloat16", "float32"])),
        attention=draw(texts),
        allocator_settings=draw(texts),
        weights=draw(texts),
        method=draw(st.integers(0, 1_000_000)),
        emulated_bytes=draw(capacities) if on_gpu else None,
    )


@st.composite
def measured(draw, environment: Environment) -> Measured:
    """What may come out in this environment: no part above its whole, nothing above what the card has."""
    on_gpu = environment.device_kind == "cuda"
    total = environment.total_bytes if on_gpu else None
    room = least(total, environment.emulated_bytes)
    outcome = draw(st.sampled_from(["ok", "out-of-memory", "cancelled", "failed"]))
    peak = draw(st.integers(1, room) if outcome == "ok" else up_to(room))

    def reserved(allocated: int | None, limit: int) -> int | None:
        return draw(st.none() | st.integers(allocated or 0, limit)) if on_gpu else None

    whole_reserved, whole_device = reserved(peak, room), draw(up_to(total))
    stages = []
    for stage in draw(st.lists(st.sampled_from(STAGES), unique=True)):
        allocated = draw(up_to(least(peak, whole_reserved, room)))
        stages.append(
            StageMeasure(
                stage=stage,
                peak_allocated_bytes=allocated,
                peak_reserved_bytes=reserved(allocated, least(whole_reserved, room)),
                device_bytes=draw(up_to(least(whole_device, total))),
                seconds=draw(seconds),
            )
        )
    return Measured(
        outcome=outcome,
        reason=draw(st.none() | texts),
        ended_in=draw(st.none() | st.sampled_from(["loading", *STAGES])),
        weights_bytes=draw(up_to(least(peak if outcome == "ok" else None, total))),
        peak_allocated_bytes=peak,
        peak_reserved_bytes=whole_reserved,
        peak_device_bytes=whole_device,
        context_bytes=draw(up_to(total)) if on_gpu else None,
        free_before_bytes=draw(up_to(total)) if on_gpu else None,
        num_alloc_retries=draw(st.none() | st.integers(0, 1_000_000)) if on_gpu else None,
        load_seconds=draw(st.none() | seconds),
        total_seconds=draw(st.none() | seconds),
        seconds_per_step=draw(st.none() | seconds),
        stages=tuple(stages),
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


@st.composite
def runs(draw) -> Measurement:
    """Imported runs, as `cache.exchange.lines.read_runs` gives them."""
    environment = draw(environments())
    holder = st.fixed_dictionaries({"pid": st.integers(0, 2**32), "name": texts, "used_bytes": maybe_sizes})
    return Measurement(
        measurement_id=str(draw(st.uuids())),
        created_at=draw(times).isoformat(timespec="microseconds"),
        request=draw(requests()),
        environment=environment,
        measured=draw(measured(environment)),
        holders=tuple(draw(st.lists(holder, max_size=3))),
        predictions=tuple(draw(st.lists(predictions(), unique_by=lambda one: one.basis))),
        origin="imported",
        source=draw(st.none() | texts),
    )
