"""Check rules between the fields of one run, whose values may each be possible and yet impossible together.

A run that is measured here keeps every one of these rules (`cache.worker.measure`, `cache.worker.probes`), so that
another history takes in what this one exports.
"""

from collections.abc import Iterable
from typing import Any

from cache.exchange.rules import Broken
from cache.records import REHEARSAL, Environment, Measured, StageMeasure

_WHOLE = "measured"


def _refuse(path: str, rule: str, value: Any) -> None:
    raise Broken(rule, value).inside(path)


def _at_most(path: str, value: int | None, limit: int | None, whose: str) -> None:
    if value is not None and limit is not None and value > limit:
        _refuse(path, f"must be at most {whose} {limit}", value)


def _parts(measured: Measured) -> Iterable[tuple[str, Measured | StageMeasure]]:
    """List the whole run and its stages, each with its path."""
    yield _WHOLE, measured
    yield from ((f"{_WHOLE}.stages[{index}]", stage) for index, stage in enumerate(measured.stages))


def _check_peaks(measured: Measured, may_lack_allocated: bool) -> None:
    peak = measured.peak_allocated_bytes
    if measured.outcome == "ok":
        if peak is None and not (may_lack_allocated and measured.peak_reserved_bytes):
            _refuse(f"{_WHOLE}.peak_allocated_bytes", "must be given where the outcome is ok", peak)
        if peak == 0:
            _refuse(f"{_WHOLE}.peak_allocated_bytes", "must be above 0 where the outcome is ok", peak)
        _at_most(f"{_WHOLE}.weights_bytes", measured.weights_bytes, peak, "the peak of")
    for path, stage in list(_parts(measured))[1:]:
        assert isinstance(stage, StageMeasure)
        for name, whole in (
            ("peak_allocated_bytes", peak),
            ("peak_reserved_bytes", measured.peak_reserved_bytes),
            ("device_bytes", measured.peak_device_bytes),
        ):
            _at_most(f"{path}.{name}", getattr(stage, name), whole, "the whole run's")
    # Blocks are parts of the segments that the allocator reserved.
    for path, part in _parts(measured):
        allocated, reserved = part.peak_allocated_bytes, part.peak_reserved_bytes
        if allocated is not None and reserved is not None and reserved < allocated:
            _refuse(f"{path}.peak_reserved_bytes", f"must be at least the {allocated} allocated", reserved)


def _check_rehearsal(environment: Environment, measured: Measured) -> None:
    if environment.card != REHEARSAL:
        _refuse("environment.card", f"must be {REHEARSAL!r} where device_kind is cpu", environment.card)
    # The CPU has no caching allocator and no context, and does not tell how much is free.
    names = ("context_bytes", "free_before_bytes", "num_alloc_retries")
    told = [(f"{_WHOLE}.{name}", getattr(measured, name)) for name in names]
    told += [(f"{path}.peak_reserved_bytes", part.peak_reserved_bytes) for path, part in _parts(measured)]
    for path, value in told:
        if value is not None:
            _refuse(path, "must be null where device_kind is cpu", value)


def _check_card(environment: Environment, measured: Measured) -> None:
    if environment.card == REHEARSAL:
        _refuse("environment.card", "must be a card where device_kind is cuda", environment.card)
    total, emulated = environment.total_bytes, environment.emulated_bytes
    if total is not None and emulated is not None and emulated >= total:
        _refuse("environment.emulated_bytes", f"must be below the card's {total}", emulated)
    # Torch is made to refuse sizes beyond an emulated capacity; the rest of the GPU is there for others.
    limit, whose = (total, "the card's") if emulated is None else (emulated, "the emulated")
    for path, part in _parts(measured):
        for name in ("peak_allocated_bytes", "peak_reserved_bytes"):
            _at_most(f"{path}.{name}", getattr(part, name), limit, whose)
        device = "peak_device_bytes" if path == _WHOLE else "device_bytes"
        _at_most(f"{path}.{device}", getattr(part, device), total, "the card's")
    for name in ("weights_bytes", "context_bytes", "free_before_bytes"):
        _at_most(f"{_WHOLE}.{name}", getattr(measured, name), total, "the card's")


def check_relations(environment: Environment, measured: Measured, *, may_lack_allocated: bool = False) -> None:
    """Refuse values that cannot be of one run.

    `may_lack_allocated` accepts a run of which only the reserved peak was published.

    Raises:
        Broken: with the path of the field from the run's own level, the rule and the value.
    """
    if not environment.card.strip():
        _refuse("environment.card", "must be a name", environment.card)
    if environment.device_kind == "cpu":
        if environment.emulated_bytes is not None:
            rule = "must be null where device_kind is cpu"
            _refuse("environment.emulated_bytes", rule, environment.emulated_bytes)
        _check_rehearsal(environment, measured)
    else:
        _check_card(environment, measured)
    _check_peaks(measured, may_lack_allocated)
