"""Test the notices of a damaged history, and the recovery of its runs."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cache.history.location import HistoryRefused
from cache.history.store import Store
from planner.request import GenerationRequest
from tests.conftest import damage, make_environment, make_measured
from tests.ui.conftest import texts

VERIFY, HISTORY = "pages/1_Verify.py", "pages/2_History.py"


@pytest.fixture
def set_aside(own_history) -> Path:
    """Damage the beginning of a history of three runs."""
    store = Store(own_history)
    for width in (512, 640, 768):
        store.save_measurement(GenerationRequest(width=width), make_environment(), make_measured())
    with closing(sqlite3.connect(own_history)) as db:
        db.execute("pragma wal_checkpoint(truncate)")
    content = own_history.read_bytes()
    own_history.write_bytes(b"\x55" * 4096 + content[4096:])
    aside = Store(own_history).moved_aside
    assert aside is not None
    return aside


def test_history_recovers_a_damaged_file(open_page, set_aside, own_history):
    at = open_page(HISTORY)
    assert str(set_aside) in texts(at.warning) and not at.dataframe
    at.button(key="recover-0").click().run()
    assert not at.exception and not at.warning
    assert "Recovered 3 runs; 0 were already known, 0 could not be read completely." in texts(at.success)
    assert f"The file is kept as `{set_aside}.recovered`." in texts(at.success)
    assert sorted(at.dataframe[0].value["Size"]) == [" 512×512", " 640×512", " 768×512"]
    assert set(at.dataframe[0].value["Outcome"]) == {"ok"}
    at.run()
    assert not at.success and not at.warning and not [one for one in at.button if one.key == "recover-0"]


def test_a_file_can_be_left_as_it_is(open_page, set_aside):
    at = open_page(HISTORY)
    at.button(key="leave-0").click().run()
    assert not at.exception and not at.warning
    assert f"The file is kept as `{set_aside}.discarded`." in texts(at.success)
    assert Path(f"{set_aside}.discarded").is_file()


def test_a_failed_recovery_is_an_error(open_page, set_aside, own_history, monkeypatch):
    at = open_page(HISTORY)

    def full(*_):
        raise HistoryRefused(own_history, "written", "database or disk is full", "free space on its disk")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "add_recovered", full)
        at.button(key="recover-0").click().run()
    assert not at.exception
    assert "database or disk is full" in texts(at.error) and "Nothing was recovered." in texts(at.error)
    assert str(set_aside) in texts(at.warning) and set_aside.is_file()


def test_a_damaged_file_without_runs_says_so(open_page, own_history):
    damage(own_history)
    at = open_page(HISTORY)
    at.button(key="recover-0").click().run()
    assert not at.exception and "it is no SQLite file" in texts(at.error)
    at.button(key="leave-0").click().run()
    assert not at.exception and not at.warning


def test_a_damaged_file_that_disappears_says_so(open_page, set_aside):
    at = open_page(HISTORY)
    set_aside.unlink()
    at.button(key="recover-0").click().run()
    assert not at.exception and "No such file or directory" in texts(at.error) and not at.warning


def test_other_pages_warn_until_the_file_is_handled(open_page, own_history, no_driver):
    damage(own_history)
    at = open_page(VERIFY)
    assert "was set aside as" in texts(at.warning) and "**History** page can recover the runs" in texts(at.warning)
    [aside] = Store(own_history).damaged_files()
    aside.unlink()
    assert "set aside" not in texts(at.run().warning)
