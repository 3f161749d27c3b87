"""Write published measurements as lines of the history's format.

``python -m tests.reference_rows`` prints cache/history/reference_runs/published.jsonl from tests/data/published.csv,
and with ``pipelines`` as its argument cache/history/reference_runs/pipelines.jsonl from tests/data/pipelines.csv.
Sequential offload and other models than SD v1.5's are not in the request's vocabulary, and so not in the files.
"""

import csv
import re
import sys
import uuid
from collections.abc import Iterator

from cache.exchange.lines import lines_of
from cache.records import Environment, Measured, Measurement
from planner.components import Scope
from planner.request import GenerationRequest, Offload, Task
from planner.units import GIB, MIB
from tests.conftest import ROOT


def _table(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((ROOT / "tests/data" / name).read_text().splitlines()))


ROWS = _table("published.csv")
WHOLE = _table("pipelines.csv")
VAE = [row for row in ROWS if row["pipeline"].startswith("vae.")]
PIPELINE = [row for row in ROWS if row["pipeline"].startswith("txt2img")]

NAMESPACE = uuid.UUID("6a3c2f8e-95b7-4d0e-8c41-7e2f0d9b6a15")
# When the rows were taken into the files; their publishers say no time.
TAKEN_AT = "2026-11-24T00:00:00.000000+00:00"
WHOLE_TAKEN_AT = "2026-11-27T00:00:00.000000+00:00"
# As torch names them.
CARDS = {
    "RTX 4090": "NVIDIA GeForce RTX 4090",
    "RTX 4060 Laptop": "NVIDIA GeForce RTX 4060 Laptop GPU",
    "Tesla P100": "Tesla P100",
    "GTX 1070": "NVIDIA GeForce GTX 1070",
    "Tesla T4": "Tesla T4",
    "Tesla T4 (Colab)": "Tesla T4",
    "NVIDIA A10": "NVIDIA A10",
    "NVIDIA A100": "NVIDIA A100",
    "NVIDIA A100-SXM4-40GB": "NVIDIA A100-SXM4-40GB",
}
OFFLOADS: dict[str, Offload] = {"none": "none", "enable_model_cpu_offload": "model"}
HALVES: dict[str, tuple[Scope, Task]] = {
    "vae.encode": ("vae.encode", "img2img"),
    "vae.decode": ("vae.decode", "txt2img"),
}


def _versions(text: str) -> tuple[str, str | None, str | None]:
    """Give (torch, CUDA, cuDNN) as a row names them; a torch that was built elsewhere is unknown.

    Rows say ``2.7.1+cu128 (pyproject pin at that commit)``, ``2.0.x (torch.compile used; not pinned)``,
    ``NGC 22.11 (1.14.0a0, CUDA 11.8)`` or ``Colab; sibling run same month: 2.8.0+cu126, cudnn 9.10.2.21``.
    """
    if container := re.fullmatch(r"NGC .* \((\S+), CUDA (\S+)\)", text):
        return container[1], container[2], None
    if colab := re.fullmatch(r"Colab; .*: (\S+)\+cu(\d+), cudnn (\d+)\.(\d+)\.(\d+)\.\d+", text):
        major, minor, patch = (int(part) for part in colab.groups()[2:])
        return colab[1], f"{colab[2][:-1]}.{colab[2][-1]}", str(major * 10_000 + minor * 100 + patch)
    torch, _, build = text.partition(" (")[0].partition("+cu")
    if not torch[:1].isdigit():
        return "unknown", None, None
    return torch, f"{build[:-1]}.{build[-1]}" if build else None, None


def _environment(row: dict[str, str]) -> Environment:
    torch, cuda, cudnn = _versions(row["torch"])
    model = row["model"].partition(" fp16")[0]
    return Environment(
        device_kind="cuda",
        card=CARDS[row["gpu"]],
        compute_capability=f"{row['sm'][:-1]}.{row['sm'][-1]}",
        cuda=cuda,
        cudnn=cudnn,
        torch=torch,
        diffusers="unknown",
        transformers="unknown",
        accelerate="unknown",
        python="unknown",
        dtype="float16",
        attention="xformers" if "xformers" in row["attention"] else "sdpa",
        allocator_settings="",
        weights=f"hub:{model}",
    )


# The NGC container's benchmark divides by 1e9 and calls it GB; all others write binary units or bytes.
UNITS = {"B": 1, "MiB": MIB, "GiB": GIB, "GB": 10**9}


def _bytes(row: dict[str, str]) -> int:
    return round(float(row["value"]) * UNITS[row["unit"]])


def _measurement(
    rows: list[dict[str, str]], request: GenerationRequest, scope: Scope, taken_at: str = TAKEN_AT
) -> Measurement:
    """Make one run, of which each row is a peak."""
    ids = ", ".join(row["id"] for row in rows)
    peaks = {"allocated" if "allocated" in row["statistic"] else "reserved": _bytes(row) for row in rows}
    assert len(peaks) == len(rows)
    return Measurement(
        measurement_id=str(uuid.uuid5(NAMESPACE, ids)),
        created_at=taken_at,
        request=request,
        environment=_environment(rows[0]),
        measured=Measured(
            outcome="ok",
            peak_allocated_bytes=peaks.get("allocated"),
            peak_reserved_bytes=peaks.get("reserved"),
        ),
        origin="reference",
        scope=scope,
        source=f"{rows[0]['source']}, {ids}",
    )


def rows() -> Iterator[Measurement]:
    """Give the runs of published.csv in the order of the table."""
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


def whole_pipelines() -> Iterator[Measurement]:
    """Give the runs of pipelines.csv in the order of the table, each a whole pipeline.

    The open-muse benchmark runs 12 steps and writes beside each row what 20 gave; steps move no allocation. What
    ``memory_reserved`` says after a run is its peak: the allocator keeps its segments. A row that does not name its
    steps has the pipelines' default of 50.
    """
    for row in WHOLE:
        named = re.search(r"(\d+) steps\)?$", row["pipeline"])
        steps = int(named[1]) if named else 12 if "open-muse" in row["source"] else 50
        request = GenerationRequest(
            task="img2img" if row["pipeline"].startswith("img2img") else "txt2img",
            width=int(row["W"]),
            height=int(row["H"]),
            batch=int(row["batch"]),
            guidance_scale=float(row["cfg"].removeprefix("on (").removesuffix(")")),
            steps=steps,
            safety_checker=row["safety_checker_on_gpu"].startswith("yes"),
            vae_slicing="slicing" in row["vae_options"],
            offload="model" if row["offload"].startswith("enable_model_cpu_offload") else "none",
        )
        yield _measurement([row], request, "pipeline", WHOLE_TAKEN_AT)


if __name__ == "__main__":
    for line in lines_of(whole_pipelines() if sys.argv[1:] == ["pipelines"] else rows()):
        print(line)
