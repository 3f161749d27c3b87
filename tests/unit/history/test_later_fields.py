"""A request field that comes after a release: one row in the table of fields, and histories and files hold."""

from dataclasses import replace

import pytest
import sqlite_utils

from cache.history.migrations import migrations, request_column
from planner.fields import Choice, Number, Switch, Whole
from planner.request import FIELDS, GenerationRequest

LATER = [
    Whole(default=0, low=0, high=4, label="Several", help="So many.", name="several", is_later=True),
    Switch(default=False, label="Later", help="On or off.", name="later", is_later=True),
    Number(default=1.5, low=1, high=4, step=0.5, label="Factor", help="A factor.", name="factor", is_later=True),
    Choice(default="a", choices=("a", "b"), label="Word", help="A word.", name="word", is_later=True),
]


@pytest.mark.parametrize("field", LATER, ids=lambda field: field.name)
def test_older_rows_have_the_default(field):
    db = sqlite_utils.Database(memory=True)
    migrations.apply(db)
    request = GenerationRequest(width=768)
    db.table("requests").insert({"id": request.request_id, **request.to_record()})
    request_column(field)(db)
    [row] = db.table("requests").rows
    assert field.checked(bool(row[field.name]) if isinstance(field, Switch) else row[field.name]) == field.default
    # An older planner knows a history of more steps by their names.
    assert request_column(field).__name__ == f"request_{field.name}"


def test_ids_and_files_leave_a_later_default_out(monkeypatch):
    plain = GenerationRequest()
    fields = [replace(field, is_later=field.name == "offload") for field in FIELDS]
    monkeypatch.setattr("planner.request.FIELDS", fields)
    assert "offload" not in plain.to_record() and "offload" in plain.to_dict()
    offloaded = GenerationRequest(offload="model")
    assert offloaded.to_record()["offload"] == "model" and offloaded.request_id != plain.request_id


def test_ids_in_histories_hold():
    # As the first release hashed the default request.
    first = "744c2a81b9238e30fd4750131f394623510c64e2ff7c095b14e6c1b62d9be153"
    assert GenerationRequest().request_id == first
