"""Test pages when the history cannot be written: an error, nothing lost, no traceback."""

import json

import pytest

from cache.exchange.lines import line_of, read_runs
from cache.history.location import HistoryRefused
from cache.history.store import Store
from pages.shared.history.details import delete
from planner.request import GenerationRequest
from tests.conftest import damage, make_environment, make_measured
from tests.ui.conftest import texts
from tests.unit.exchange.test_lines import RUN

VERIFY, HISTORY = "pages/1_Verify.py", "pages/2_History.py"
REASON = "cannot be written (database or disk is full) - free space on its disk"


@pytest.fixture
def full(own_history, monkeypatch):
    """Make every later write of this method of the history fail on a full disk."""

    def fill(*methods: str, done: str = "written") -> None:
        def refuse(*_, **__):
            raise HistoryRefused(own_history, done, "database or disk is full", "free space on its disk")

        for method in methods:
            monkeypatch.setattr(Store, method, refuse)

    return fill


def test_an_unkept_run_is_shown_and_can_be_downloaded(open_page, nvml, cuda_build, scripted, own_history, full, capsys):
    scripted("good")
    at = open_page(VERIFY, width="64", height="64", steps="2")
    full("end_job")
    at.button(key="verify").click().run()
    for _ in range(100):
        if at.error:
            break
        at.run()
    assert not at.exception
    assert f"The history could not keep this run: the history {own_history} {REASON}." in texts(at.error)
    assert "Completed" in texts(at.markdown)
    [button] = at.get("download_button")
    assert button.proto.label == "Download the run"
    # Whoever runs the server finds it in the log.
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert json.loads(line)["measured"]["peak_allocated_bytes"] == 1000
    assert read_runs([line.encode()])


def test_a_job_that_cannot_be_stored_is_an_error(open_page, no_driver, scripted, full):
    scripted("good")
    at = open_page(VERIFY, width="64", height="64", steps="2")
    full("add_job")
    at.button(key="verify").click().run()
    assert not at.exception and REASON in texts(at.error)


def test_a_queue_that_cannot_start_is_an_error(open_page, no_driver, full):
    full("open_jobs", done="read")
    at = open_page(VERIFY, width="64", height="64")
    assert not at.exception and "cannot be read" in texts(at.error)
    assert at.button(key="verify").disabled


def test_an_import_on_a_full_disk_is_an_error(open_page, full):
    at = open_page(HISTORY)
    full("import_measurements")
    lines = f"{line_of(RUN)}\n".encode()
    at.file_uploader(key="import").set_value(("runs.jsonl", lines, "application/jsonl")).run()
    assert not at.exception
    assert REASON in texts(at.error) and "Nothing was imported." in texts(at.error)


def test_a_run_that_cannot_be_deleted_stays(own_history, full):
    store = Store(own_history)
    store.save_measurement(GenerationRequest(), make_environment(), make_measured())
    [run] = store.measurements()
    full("delete_measurement")
    # A dialog reruns alone, which AppTest cannot do: what its button does is called.
    said = delete(run)
    assert "database or disk is full" in said and said.endswith("Nothing was deleted.")
    assert len(store.measurements()) == 1


def test_a_history_damaged_while_serving_is_replaced(open_page, own_history):
    store = Store(own_history)
    store.save_measurement(GenerationRequest(), make_environment(), make_measured())
    at = open_page(HISTORY)
    assert len(at.dataframe[0].value) == 1
    damage(own_history)
    at.run()
    assert not at.exception and "file is not a database" in texts(at.error)
    at.run()
    assert not at.exception and not at.error
    assert "A damaged history was set aside as" in texts(at.warning)
