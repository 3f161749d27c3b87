"""The published measurements as lines of the history's format.

``python -m tests.reference_rows`` prints cache/reference_runs/published.jsonl from tests/data/published.csv. Sequential
offload and other models than SD v1.5's are not in the request's vocabulary, and so not in the file.
"""

import csv
import uuid
from collections.abc import Iterator

from cache.exchange import lines_of
from cache.records import Environment, Measured, Measurement, Scope
from planner.request import GenerationRequest, Offload, Task
from planner.units import MIB
from tests.conftest import ROOT

ROWS = list(csv.DictReader((ROOT / "tests/data/published.csv").read_text().splitlines()))
VAE = [row for row in ROWS if row["pipeline"].startswith("vae.")]
PIPELINE = [row for row in ROWS if row["pipeline"].startswith("txt2img")]

NAMESPACE = uuid.UUID("6a3c2f8e-95b7-4d0e-8c41-7e2f0d9b6a15")
# When the rows were taken into the file; their publishers say no time.
TAKEN_AT = "2026-11-24T00:00:00.000000+00:00"
# As torch names them.
CARDS = {"RTX 4090": "NVIDIA GeForce RTX 4090", "Tesla P100": "Tesla P100", "GTX 1070": "NVIDIA GeForce GTX 1070"}
OFFLOADS: dict[str, Offload] = {"none": "none", "enable_model_cpu_offload": "model"}
HALVES: dict[str, tuple[Scope, Task]] = {
    "vae.encode": ("vae.encode", "img2img"),
    "vae.decode": ("vae.decode", "txt2img"),
}


def _environment(row: dict[str, str]) -> Environment:
    # 2.7.1+cu128 (pyproject pin at that commit)
    version = row["torch"].partition(" (")[0]
    torch, _, build = version.partition("+cu")
    model = row["model"].partition(" fp16")[0]
    return Environment(
        device_kind="cuda",
        card=CARDS[row["gpu"]],
        compute_capability=f"{row['sm'][:-1]}.{row['sm'][-1]}",
        cuda=f"{build[:-1]}.{build[-1]}" if build else None,
        torch=torch if build else "unknown",
        diffusers="unknown",
        transformers="unknown",
        accelerate="unknown",
        python="unknown",
        dtype="float16",
        attention="sdpa",
        allocator_settings="",
        weights=f"hub:{model}",
    )


def _bytes(row: dict[str, str]) -> int:
    assert row["unit"] == "MiB"
    return round(float(row["value"]) * MIB)


def _measurement(rows: list[dict[str, str]], request: GenerationRequest, scope: Scope) -> Measurement:
    """One run, of which each row is a peak."""
    ids = ", ".join(row["id"] for row in rows)
    peaks = {"allocated" if "allocated" in row["statistic"] else "reserved": _bytes(row) for row in rows}
    assert len(peaks) == len(rows)
    return Measurement(
        measurement_id=str(uuid.uuid5(NAMESPACE, ids)),
        created_at=TAKEN_AT,
        request=request,
        environment=_environment(rows[0]),
        measured=Measured(
            outcome="ok",
            peak_allocated_bytes=peaks["allocated"],
            peak_reserved_bytes=peaks.get("reserved"),
        ),
        origin="reference",
        scope=scope,
        source=f"{rows[0]['source']}, {ids}",
    )


def rows() -> Iterator[Measurement]:
    """The runs in the order of the table."""
    for allocated, reserved in zip(VAE[::2], VAE[1::2], strict=True):
        scope, task = HALVES[allocated["pipeline"]]
        request = GenerationRequest(
            task=task,
            width=int(allocated["W"]),
            height=int(allocated["H"]),
            safety_checker=False,
            vae_tiling="tiling" in allocated["vae_options"],
        )
        yield _measurement([allocated, reserved], request, scope)
    for row in PIPELINE:
        if row["offload"] in OFFLOADS:
            request = GenerationRequest(
                task="txt2img",
                width=int(row["W"]),
                height=int(row["H"]),
                steps=30,
                offload=OFFLOADS[row["offload"]],
            )
            yield _measurement([row], request, "pipeline")


if __name__ == "__main__":
    for line in lines_of(rows()):
        print(line)
