import io
import json
import pickle
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.exchange import lines as exchange
from cache.exchange.lines import NotARun, line_of, lines_in, lines_of, measurement_of, read_runs
from cache.records import Measured, Measurement, Prediction
from planner.cards.lookup import card_named
from planner.fit import fit
from planner.request import GenerationRequest
from tests.conftest import make_environment, make_measured
from tests.unit.run_strategies import runs

REQUEST = GenerationRequest()
RUN = Measurement(
    measurement_id="058b453b-4320-4786-884d-4a0ba9dc0203",
    created_at="2026-11-24T09:31:08.000000+00:00",
    request=REQUEST,
    environment=make_environment(),
    measured=make_measured(),
    holders=({"pid": 7, "name": "python", "used_bytes": None},),
    predictions=(Prediction.of(fit(REQUEST, card_named("T4"), "formula")),),
    origin="imported",
)


def changed(**changes: Any) -> str:
    """The line of `RUN` with values set by dotted path; `...` takes one away."""
    line = json.loads(line_of(RUN))
    for path, value in changes.items():
        *outer, last = (int(part) if part.isdigit() else part for part in path.split("__"))
        at = line
        for part in outer:
            at = at[part]
        if value is ...:
            del at[last]
        else:
            at[last] = value
    return json.dumps(line)


ON_CPU = {
    "environment__device_kind": "cpu",
    "environment__card": "CPU rehearsal",
    "measured__peak_reserved_bytes": None,
    "measured__context_bytes": None,
    "measured__num_alloc_retries": None,
    "measured__stages__0__peak_reserved_bytes": None,
    "measured__stages__1__peak_reserved_bytes": None,
}


@given(runs())
def test_every_run_comes_back_as_it_went_out(run):
    line = line_of(run)
    assert "\n" not in line
    assert measurement_of(line, 1) == run
    assert line_of(measurement_of(line, 1)) == line


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from(["", "ok", "unet", "img2img", "1.0", "\ud800", "\x1b[2J", "9999-12-31T23:59:59-14:00"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def paths_in(value: Any, path: tuple = ()) -> list[tuple]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] + [found for key, entry in inner for found in paths_in(entry, (*path, key))]


def read_or_refused(line: str) -> None:
    """The one thing that must hold of any line: it is a run that the format can say, or a refusal on one line."""
    try:
        run = measurement_of(line, 3)
    except NotARun as error:
        assert str(error).startswith("line 3") and len(str(error)) < 400
        assert str(error).isprintable()
    else:
        assert measurement_of(line_of(run), 1) == run


@settings(max_examples=1000, deadline=None)
@given(st.data())
def test_any_value_anywhere_is_read_or_refused(data):
    line = json.loads(line_of(RUN))
    *outer, last = data.draw(st.sampled_from([path for path in paths_in(line) if path]))
    at = line
    for part in outer:
        at = at[part]
    match data.draw(st.sampled_from(["set", "delete", "add"])):
        case "set":
            at[last] = data.draw(json_values)
        case "delete":
            del at[last]
        case "add" if isinstance(at, dict):
            at[data.draw(st.text(max_size=8))] = data.draw(json_values)
        case "add":
            at.append(data.draw(json_values))
    read_or_refused(json.dumps(line))


@settings(max_examples=1000, deadline=None)
@given(st.integers(0, 4000), st.binary(max_size=8), st.integers(0, 8))
def test_damaged_bytes_are_read_or_refused(position, inserted, removed):
    line = line_of(RUN).encode()
    position %= len(line) + 1
    damaged = line[:position] + inserted + line[position + removed :]
    try:
        found = read_runs([damaged, line[:position]])
    except NotARun:
        return
    assert len(found) <= 2


REFUSED = [
    ("", "line 3 must be JSON (Expecting value, column 1), got ''"),
    ("{}", "line 3: format must be given, got nothing"),
    ("[]", "line 3 must be an object, got a list"),
    ('{"id": 1, "id": 2}', "line 3 must not name a field twice, got 'id'"),
    ('{"id": NaN}', "line 3 must hold finite numbers only, got 'NaN'"),
    ("[" * 100_000, "line 3 must not be nested so deeply, got '[[[["),
    ('{"id": ' + "1" * 5000 + "}", "line 3 must be JSON (a number is too long), got"),
    (
        changed(format="other/run"),
        "format must be 'will-it-fit/run', which is all that this planner reads, got 'other/run'",
    ),
    (changed(version=2, surprise=1), "version must be 1, which is all that this planner reads, got 2"),
    (changed(version=True), "version must be 1, which is all that this planner reads, got True"),
    (changed(surprise=1), "line 3 has an unknown field, got 'surprise'"),
    (changed(measured__outcom="ok"), "measured has an unknown field, got 'outcom' (did you mean outcome?)"),
    (changed(measured__outcome=...), "measured.outcome must be given, got nothing"),
    (changed(measured__stages=...), "measured.stages must be given, got nothing"),
    (changed(request__steps=...), "request.steps must be given, got nothing"),
    (changed(predictions__0__verdict=...), "predictions[0].verdict must be given, got nothing"),
    (changed(id="../../etc"), "id must be a UUID in lower case, got '../../etc'"),
    (changed(id=RUN.measurement_id.upper()), "id must be a UUID in lower case"),
    (changed(created_at="2026-11-24T09:31:08"), "created_at must be a time with its offset"),
    (changed(created_at="0001-01-01T00:00:00+14:00"), "created_at must be a time with its offset"),
    (changed(created_at=1), "created_at must be a time with its offset"),
    (changed(created_at="2999-01-01T00:00:00+00:00"), "created_at must not be in the future"),
    (changed(created_at="0001-01-01T00:00:00+00:00"), "created_at must not be before Stable Diffusion v1.5, of 2022-"),
    (changed(created_at="2022-10-19T23:59:59+00:00"), "created_at must not be before Stable Diffusion v1.5, of 2022-"),
    (changed(scope="vae.encode"), "scope must be pipeline: only whole runs are imported, got 'vae.encode'"),
    (changed(request__width=500.0), "request.width must be a whole number, got 500.0"),
    (changed(request__width=True), "request.width must be a whole number, got True"),
    (changed(request__width=[[1]]), "request.width must be a single value, got a list"),
    (changed(request__guidance_scale=10**400), "request.guidance_scale must be a number of at most 64 bits"),
    (changed(request__task="txt2img", request__width=500), "got 500 (nearest: 496 or 504)"),
    (changed(measured__stages__1__seconds=-1), "measured.stages[1].seconds must be a number between 0 and 1e+07"),
    (changed(measured__stages__1__stage="unet"), "measured.stages[1] must not stand there twice, got 'unet'"),
    (changed(measured__stages__0__stage="untet"), "measured.stages[0].stage must be one of text_encoder, "),
    (
        changed(measured__load_seconds=8).replace(": 8,", ": 1e400,"),
        "load_seconds must be a number between 0 and 1e+07, got inf",
    ),
    (changed(measured__num_alloc_retries=False), "num_alloc_retries must be a whole number between 0 and 1000000"),
    (changed(measured__weights_bytes=2**51), "weights_bytes must be a whole number between 0 and 1125899906842624"),
    (changed(measured__reason="x" * 2001), "measured.reason must be text of at most 2000 characters, got 'xxx"),
    (changed(measured__reason="\x1b[2J"), "measured.reason must be text without control characters"),
    (changed(environment__card="\ud800"), "environment.card must be text without control characters"),
    (changed(environment__card="\u202etxt"), "environment.card must be text without control characters"),
    (changed(environment__mig=0), "environment.mig must be true or false, got 0"),
    (changed(environment__compute_capability="seven"), "environment.compute_capability must be a version from 3.0"),
    (changed(environment__compute_capability="99.9"), "compute_capability must be a version from 3.0 to 20.9"),
    (changed(environment__compute_capability="0.0"), "compute_capability must be a version from 3.0 to 20.9"),
    (changed(environment__card=""), "environment.card must be a name, got ''"),
    (changed(environment__card=" "), "environment.card must be a name, got ' '"),
    (changed(environment__card="CPU rehearsal"), "environment.card must be a card where device_kind is cuda, got 'CPU"),
    (
        changed(environment__device_kind="cpu"),
        "environment.card must be 'CPU rehearsal' where device_kind is cpu, got 'Tesla T4'",
    ),
    (
        changed(environment__device_kind="cpu", environment__card="CPU rehearsal", measured__context_bytes=None),
        "measured.num_alloc_retries must be null where device_kind is cpu, got 0",
    ),
    (
        changed(**ON_CPU | {"measured__stages__0__peak_reserved_bytes": 3_300_000_000}),
        "measured.stages[0].peak_reserved_bytes must be null where device_kind is cpu, got 3300000000",
    ),
    (changed(environment__dtype="int8"), "environment.dtype must be one of float16"),
    (changed(environment__method=True), "environment.method must be a whole number"),
    (changed(environment__emulated_bytes=0), "environment.emulated_bytes must be a whole number between 1 and"),
    (
        changed(environment__emulated_bytes=15_634_661_376),
        "environment.emulated_bytes must be below the card's 15634661376, got 15634661376",
    ),
    (
        changed(environment__device_kind="cpu", environment__emulated_bytes=2**33),
        "environment.emulated_bytes must be null where device_kind is cpu, got 8589934592",
    ),
    (changed(holders__0__pid=-1), "holders[0].pid must be a whole number"),
    (changed(holders={}), "holders must be a list, got an object"),
    (changed(predictions__0__basis="best"), "predictions[0].basis must be one of formula"),
    (changed(predictions__0__stages={"unets": 1}), "predictions[0].stages has an unknown field, got 'unets' (did"),
    (changed(measured__peak_allocated_bytes=None), "peak_allocated_bytes must be given where the outcome is ok"),
    (
        changed(measured__stages__0__peak_allocated_bytes=3_500_000_001),
        "measured.stages[0].peak_allocated_bytes must be at most the whole run's 3500000000, got 3500000001",
    ),
    (changed(measured__peak_allocated_bytes=0), "peak_allocated_bytes must be above 0 where the outcome is ok, got 0"),
    (
        changed(measured__peak_reserved_bytes=5, measured__stages=[]),
        "measured.peak_reserved_bytes must be at least the 3500000000 allocated, got 5",
    ),
    (
        changed(measured__stages__0__peak_reserved_bytes=3_000_000_000),
        "measured.stages[0].peak_reserved_bytes must be at least the 3100000000 allocated, got 3000000000",
    ),
    (
        changed(measured__stages__0__peak_reserved_bytes=2**32),
        "measured.stages[0].peak_reserved_bytes must be at most the whole run's 4000000000, got 4294967296",
    ),
    (
        changed(measured__stages__1__device_bytes=2**33),
        "measured.stages[1].device_bytes must be at most the whole run's 4200000000, got 8589934592",
    ),
    *(
        (changed(**{f"measured__{name}": 2**49}), f"measured.{name} must be at most the card's 15634661376, got 5629")
        for name in (
            "peak_allocated_bytes",
            "peak_reserved_bytes",
            "peak_device_bytes",
            "context_bytes",
            "free_before_bytes",
            "weights_bytes",
        )
    ),
    (
        changed(measured__peak_device_bytes=None, measured__stages__0__device_bytes=2**34),
        "measured.stages[0].device_bytes must be at most the card's 15634661376, got 17179869184",
    ),
    (
        changed(environment__emulated_bytes=2**31),
        "measured.peak_allocated_bytes must be at most the emulated 2147483648, got 3500000000",
    ),
    (
        changed(measured__weights_bytes=3_500_000_001),
        "measured.weights_bytes must be at most the peak of 3500000000, got 3500000001",
    ),
]


@pytest.mark.parametrize(("line", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_no_run_is_refused_by_line_field_rule_and_value(line, message):
    with pytest.raises(NotARun) as caught:
        measurement_of(line, 3)
    assert str(caught.value).startswith("line 3")
    assert message in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_what_may_be_unknown_may_be_missing():
    run = measurement_of(changed(source=..., environment__cudnn=..., measured__reason=...), 1)
    assert run == replace(RUN, environment=replace(RUN.environment, cudnn=None))


def test_an_emulated_capacity_goes_along_and_its_absence_is_not_written():
    assert "emulated_bytes" not in line_of(RUN)
    emulated = replace(RUN, environment=replace(RUN.environment, emulated_bytes=2**33))
    assert '"emulated_bytes":8589934592' in line_of(emulated)
    assert measurement_of(line_of(emulated), 1) == emulated
    assert measurement_of(changed(environment__emulated_bytes=None), 1) == RUN


def test_a_rehearsal_has_its_name_and_nothing_of_a_card():
    run = measurement_of(changed(**ON_CPU), 1)
    assert (run.environment.card, run.measured.peak_reserved_bytes) == ("CPU rehearsal", None)
    # Live tensors may be swapped out.
    assert measurement_of(changed(**ON_CPU | {"environment__total_bytes": 2**30}), 1)


def test_a_card_that_does_not_say_its_memory_has_no_limit():
    assert measurement_of(changed(environment__total_bytes=None, measured__free_before_bytes=2**40), 1)


def test_a_run_that_did_not_end_well_may_hold_less_than_its_weights():
    line = changed(measured__outcome="out-of-memory", measured__peak_allocated_bytes=3_500_000_000)
    assert measurement_of(line, 1).measured.outcome == "out-of-memory"


def test_times_are_kept_in_utc():
    line = changed(created_at="2026-11-24T11:31:08+02:00")
    assert measurement_of(line, 1).created_at == "2026-11-24T09:31:08.000000+00:00"


def test_a_clock_may_be_a_few_hours_ahead():
    soon = (datetime.now(UTC) + timedelta(hours=20)).isoformat()
    assert measurement_of(changed(created_at=soon), 1)


def test_a_reference_row_may_be_half_of_the_vae():
    run = measurement_of(changed(scope="vae.decode", created_at="2999-01-01T00:00:00+00:00"), 1, "reference")
    assert (run.scope, run.origin) == ("vae.decode", "reference")


def test_what_other_programs_said_is_made_portable():
    measured = Measured(outcome="failed", reason="a\nb\x1b[31m\ud800" + "x" * 3000)
    holders = ({"pid": 1, "name": "\u202eevil", "used_bytes": None},)
    run = measurement_of(line_of(replace(RUN, measured=measured, holders=holders, origin="own")), 1)
    assert run.measured.reason.startswith("a b [31m xxx") and len(run.measured.reason) == 2000
    assert run.holders[0]["name"] == " evil"


def test_empty_lines_count_for_nothing_but_are_counted():
    line = line_of(RUN).encode()
    assert read_runs([b"\n", line + b"\r\n", b"  \n"]) == [RUN]
    with pytest.raises(NotARun, match="line 3 must be JSON"):
        read_runs([b"\n", line, b"x"])
    assert read_runs([]) == []


def test_a_file_has_its_limits(monkeypatch):
    line = line_of(RUN).encode()
    with pytest.raises(NotARun, match="line 1 must be UTF-8, got b'\\\\xff"):
        read_runs([b"\xff\xfe{"])
    with pytest.raises(NotARun, match="line 2 must be at most 65536 bytes"):
        read_runs(lines_in(io.BytesIO(line + b"\n" + b"x" * 10_000_000)))
    assert max(map(len, lines_in(io.BytesIO(b"x" * 200_000)))) == 65537
    monkeypatch.setattr(exchange, "MAX_RUNS", 2)
    with pytest.raises(NotARun, match="line 3 must be among the first 2 runs"):
        read_runs([line] * 3)
    monkeypatch.setattr(exchange, "MAX_FILE_BYTES", 2 * len(line))
    with pytest.raises(NotARun, match=r"line 3 must end within \d+ bytes"):
        read_runs([line] * 3)


def test_ten_thousand_lines_are_read_in_seconds():
    lines = [line.encode() for line in lines_of([RUN] * 10_000)]
    began = time.perf_counter()
    assert len(read_runs(lines)) == 10_000
    # About one on two idle cores.
    assert time.perf_counter() - began < 6
