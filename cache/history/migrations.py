"""The schema of the history, as numbered steps. A released step is never edited: add the next one."""

from typing import Any

from sqlite_utils import Database, Migrations

from planner.fields import Choice, Field, Number, Switch, Text, Whole
from planner.request import FIELDS

migrations = Migrations("will_it_fit")

# SQLite has no truth values: a switch is kept as 0 or 1.
_STORED_AS: dict[type[Field], type] = {Choice: str, Text: str, Whole: int, Number: float, Switch: int}


@migrations()
def m001_requests_and_environments(db: Database) -> None:
    """Make tables of values that many runs share, keyed by a hash of their content."""
    db.table("requests").create(
        {
            "id": str,
            "task": str,
            "width": int,
            "height": int,
            "batch": int,
            "prompt_tokens": int,
            "guidance_scale": float,
            "steps": int,
            "safety_checker": int,
            "vae_tiling": int,
            "vae_slicing": int,
            "attention_slicing": int,
            "channels_last": int,
            "offload": str,
        },
        pk="id",
        strict=True,
    )
    db.table("environments").create(
        {
            "id": str,
            "device_kind": str,
            "card": str,
            "uuid_hash": str,
            "total_bytes": int,
            "compute_capability": str,
            "mig": int,
            "driver": str,
            "cuda": str,
            "cudnn": str,
            "torch": str,
            "diffusers": str,
            "transformers": str,
            "accelerate": str,
            "python": str,
            "dtype": str,
            "attention": str,
            "allocator_settings": str,
            "weights": str,
            "method": int,
        },
        pk="id",
        not_null={"device_kind", "card", "torch", "diffusers", "dtype", "weights", "method"},
        strict=True,
    )


@migrations()
def m002_measurements(db: Database) -> None:
    """Make a table of runs, of their stages, and of the predictions made before they ran."""
    db.table("measurements").create(
        {
            "id": str,
            "request_id": str,
            "environment_id": str,
            "created_at": str,
            "outcome": str,
            "reason": str,
            "ended_in": str,
            "weights_bytes": int,
            "peak_allocated_bytes": int,
            "peak_reserved_bytes": int,
            "peak_device_bytes": int,
            "context_bytes": int,
            "free_before_bytes": int,
            "num_alloc_retries": int,
            "load_seconds": float,
            "total_seconds": float,
            "seconds_per_step": float,
            "holders": str,
        },
        pk="id",
        foreign_keys=[("request_id", "requests", "id"), ("environment_id", "environments", "id")],
        not_null={"request_id", "environment_id", "created_at", "outcome", "holders"},
        strict=True,
    )
    db.table("measurements").create_index(["request_id", "environment_id"])
    db.table("measurements").create_index(["created_at"])
    db.table("stages").create(
        {
            "measurement_id": str,
            "stage": str,
            "peak_allocated_bytes": int,
            "peak_reserved_bytes": int,
            "device_bytes": int,
            "seconds": float,
        },
        pk=("measurement_id", "stage"),
        foreign_keys=[("measurement_id", "measurements", "id")],
        strict=True,
    )
    db.table("predictions").create(
        {
            "measurement_id": str,
            "basis": str,
            "verdict": str,
            "need_bytes": int,
            "minimum_bytes": int,
            "peak_allocated_bytes": int,
            "peak_reserved_bytes": int,
            "stages": str,
        },
        pk=("measurement_id", "basis"),
        foreign_keys=[("measurement_id", "measurements", "id")],
        not_null={"verdict", "stages"},
        strict=True,
    )


@migrations()
def m003_model_facts(db: Database) -> None:
    """Keep the parameters of each component as counted from the real modules."""
    db.table("model_facts").create(
        {
            "model": str,
            "diffusers": str,
            "transformers": str,
            "component": str,
            "parameters": int,
            "weights_bytes": int,
        },
        pk=("model", "diffusers", "transformers", "component"),
        not_null={"parameters", "weights_bytes"},
        strict=True,
    )


@migrations()
def m004_jobs(db: Database) -> None:
    """Keep jobs, so that a reload finds its job again and a crash leaves a trace."""
    db.table("jobs").create(
        {
            "id": str,
            "request": str,
            "request_id": str,
            "environment_id": str,
            "state": str,
            "owner": str,
            "created_at": str,
            "ended_at": str,
            "measurement_id": str,
            "reason": str,
        },
        pk="id",
        not_null={"request", "state", "owner", "created_at"},
        strict=True,
    )
    db.table("jobs").create_index(["state"])


@migrations()
def m005_programs(db: Database) -> None:
    """Keep memory programs that were compiled here for other versions than the shipped ones."""
    db.table("programs").create(
        {"versions": str, "header": str, "numbers": bytes, "created_at": str},
        pk="versions",
        not_null={"header", "numbers", "created_at"},
        strict=True,
    )


@migrations()
def m006_origins(db: Database) -> None:
    """Tell imported runs apart; `kept_at` is when a row came into this file."""
    measurements = db.table("measurements")
    measurements.add_column("origin", str, not_null_default="own")
    measurements.add_column("source", str)
    measurements.add_column("kept_at", str)


@migrations()
def m007_curves(db: Database) -> None:
    """Keep what calibration reads off a dry run: many requests take long to replay."""
    db.table("curves").create({"id": str, "numbers": str}, pk="id", not_null={"numbers"}, strict=True)


@migrations()
def m008_emulated_capacities(db: Database) -> None:
    """Keep the capacity that was emulated; null, as in older rows, is the whole GPU."""
    db.table("environments").add_column("emulated_bytes", int)


@migrations()
def m009_digests(db: Database) -> None:
    """Keep a hash of a run's rows, by which recovery knows them; older rows have none."""
    db.table("measurements").add_column("digest", str)


@migrations()
def m010_audit_and_stopped_jobs(db: Database) -> None:
    """Keep a line for each deletion and import, and mark jobs that ended with the planner."""
    db.table("audit").create(
        {"id": int, "at": str, "who": str, "action": str, "runs": int, "detail": str},
        pk="id",
        not_null={"at", "who", "action", "runs"},
        strict=True,
    )
    db.table("jobs").add_column("stopped", int)


def request_column(field: Field) -> Any:
    """Make the step that gives requests a column for a later field; older rows have the field's default.

    It is a step of its own, so that an older planner refuses a history whose requests say more than it knows.
    """

    def step(db: Database) -> None:
        kind = _STORED_AS[type(field)]
        db.table("requests").add_column(field.name, kind, not_null_default=kind(field.default))

    step.__name__ = f"request_{field.name}"
    return step


for _field in FIELDS:
    if _field.is_later:
        migrations()(request_column(_field))
