"""Runs that go from one history to another."""

import sqlite3
import time
import uuid
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache.exchange.lines import line_of, lines_of, read_runs
from cache.history.store import Store
from cache.records import Measured
from planner.components import STAGES
from planner.errors import InvalidArgument
from planner.request import GenerationRequest
from tests.conftest import make_measured
from tests.unit.exchange.test_lines import RUN
from tests.unit.run_strategies import runs


def sent(store: Store) -> list:
    """The runs of a history as another one reads them."""
    return read_runs(line.encode() for line in lines_of(store.measurements()))


def test_a_run_arrives_as_it_was_with_where_it_comes_from(store):
    run = replace(RUN, source="a colleague's T4")
    assert store.import_measurements([run]) == (1, 0)
    assert store.measurements() == [run]
    assert store.already_measured(run.request, run.environment) == run


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(runs(), max_size=3, unique_by=lambda run: run.measurement_id))
def test_every_run_survives_the_store(tmp_path, found):
    store = Store(tmp_path / f"{uuid.uuid4()}.db")
    assert store.import_measurements(found) == (len(found), 0)
    assert store.import_measurements(found) == (0, len(found))
    kept = {run.measurement_id: run for run in store.measurements()}
    assert kept == {run.measurement_id: replace(run, request=run.request.canonical()) for run in found}
    assert store.import_measurements(sent(store)) == (0, len(found))


def test_own_runs_are_known_and_stay_own(store, environment):
    store.save_measurement(GenerationRequest(width=515), environment, make_measured())
    store.save_measurement(GenerationRequest(), environment, Measured(outcome="failed", reason="one\ntwo\x1b[0m"))
    before = store.measurements()
    assert store.import_measurements(sent(store)) == (0, 2)
    assert store.measurements() == before
    assert {run.origin for run in before} == {"own"}


def test_only_what_is_new_is_added(store, environment, tmp_path):
    other = Store(tmp_path / "other.db")
    store.save_measurement(GenerationRequest(), environment, make_measured())
    assert other.import_measurements(sent(store)) == (1, 0)
    store.save_measurement(GenerationRequest(batch=2), environment, make_measured())
    assert other.import_measurements(sent(store)) == (1, 1)
    assert sent(other) == sent(store)


def test_a_rounded_size_is_known_again(store):
    run = replace(RUN, request=GenerationRequest(width=515))
    assert store.import_measurements([run]) == (1, 0)
    assert store.import_measurements([run]) == (0, 1)


def test_the_same_run_twice_in_a_file_counts_once(store):
    assert store.import_measurements([RUN, RUN]) == (1, 1)
    assert store.import_measurements([]) == (0, 0)


@pytest.mark.parametrize(
    "change", [{"source": "other"}, {"measured": make_measured(num_alloc_retries=1)}, {"holders": ()}]
)
def test_another_run_with_the_same_id_is_refused_and_nothing_is_kept(store, change):
    store.import_measurements([RUN])
    new = replace(RUN, measurement_id=str(uuid.uuid4()))
    with pytest.raises(InvalidArgument, match=f"id must be the id of one run.*got '{RUN.measurement_id}'"):
        store.import_measurements([new, replace(RUN, **change)])
    with pytest.raises(InvalidArgument, match="in the history or in the file"):
        store.import_measurements([new, replace(new, **change)])
    assert store.measurements() == [RUN]


def test_a_failure_in_the_middle_keeps_nothing(store, monkeypatch):
    def broken(*_):
        raise sqlite3.OperationalError("disk full")

    monkeypatch.setattr(Store, "_keep_shared", broken)
    with pytest.raises(sqlite3.OperationalError):
        store.import_measurements([RUN])
    assert store.measurements() == []


def test_an_import_changes_the_revision_unless_all_is_known(store):
    revisions = [store.revision()]
    for _ in range(2):
        store.import_measurements([RUN])
        revisions.append(store.revision())
    assert revisions[0] != revisions[1] == revisions[2]


def test_an_imported_run_is_deleted_like_any_other_and_may_come_back(store):
    store.import_measurements([RUN])
    store.delete_measurement(RUN.measurement_id)
    assert store.measurements() == []
    assert store.import_measurements([RUN]) == (1, 0)


def test_ten_thousand_runs_come_in_within_seconds(store):
    stages = tuple(replace(RUN.measured.stages[0], stage=stage) for stage in STAGES)
    run = replace(RUN, measured=replace(RUN.measured, stages=stages), predictions=RUN.predictions)
    second = replace(run.predictions[0], basis="dry-run")
    run = replace(run, predictions=(*run.predictions, second))
    lines = [line_of(replace(run, measurement_id=str(uuid.uuid4()))).encode() for _ in range(10_000)]
    began = time.perf_counter()
    assert store.import_measurements(read_runs(lines)) == (10_000, 0)
    # About three on two idle cores.
    assert time.perf_counter() - began < 16
