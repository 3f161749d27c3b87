"""The dry run against published measurements.

``python -m tests.published`` prints the README's table. Source of tests/data/published.csv: the column `source` of each
row.
"""

import csv
from typing import NamedTuple

from planner.dryrun import KernelPolicy, dry_run
from planner.flatten import events_of
from planner.halves import half_alone
from planner.program import shipped
from planner.request import GenerationRequest
from planner.units import MIB
from tests.conftest import ROOT

ROWS = list(csv.DictReader((ROOT / "tests/data/published.csv").read_text().splitlines()))
VAE = [row for row in ROWS if row["pipeline"].startswith("vae.")]
PIPELINE = [row for row in ROWS if row["pipeline"].startswith("txt2img")]


class Error(NamedTuple):
    row: dict
    predicted: float

    @property
    def relative(self) -> float:
        return self.predicted / float(self.row["value"]) - 1


def vae_errors() -> list[Error]:
    """The benchmark of the VAE alone, each call in a process that has encoded 512x512 before, as its own had."""
    found = []
    for allocated, reserved in zip(VAE[::2], VAE[1::2], strict=True):
        assert allocated["pipeline"] == reserved["pipeline"]
        request = GenerationRequest(
            width=int(allocated["W"]), height=int(allocated["H"]), vae_tiling="tiling" in allocated["vae_options"]
        )
        history = half_alone(shipped(), allocated["pipeline"], request)
        timeline = dry_run(history.events, KernelPolicy.of((8, 9)), with_timeline=True).timeline
        assert timeline is not None
        most = (timeline[history.begin : history.end].max(axis=0) - timeline[history.begin - 1]) / MIB
        found += [Error(row, predicted) for row, predicted in zip((allocated, reserved), most, strict=True)]
    return found


def pipeline_errors() -> list[Error]:
    """Whole pipelines, published for cards without tensor cores."""
    found = []
    for row in PIPELINE:
        # Sequential offload is not in the request's vocabulary.
        if row["offload"] not in ("none", "enable_model_cpu_offload"):
            continue
        request = GenerationRequest(
            task="txt2img",
            width=int(row["W"]),
            height=int(row["H"]),
            steps=30,
            offload="none" if row["offload"] == "none" else "model",
        )
        major, minor = divmod(int(row["sm"]), 10)
        result = dry_run(events_of(shipped(), request), KernelPolicy.of((major, minor)))
        found.append(Error(row, result.peak_allocated_bytes / MIB))
    return found


def table() -> str:
    """Every comparison as Markdown."""
    lines = [
        "| card | what | size | peak | published, MiB | dry run, MiB | off by |",
        "|---|---|---|---|---:|---:|---:|",
    ]
    for error in (*vae_errors(), *pipeline_errors()):
        row = error.row
        what = row["pipeline"] if row["component"].startswith("vae") else "whole pipeline"
        what += " in tiles" if "tiling" in row["vae_options"] else ""
        what += ", model offload" if row["offload"] == "enable_model_cpu_offload" else ""
        peak = "allocated" if "allocated" in row["statistic"] else "reserved"
        lines.append(
            f"| {row['gpu']} | {what} | {row['W']}×{row['H']} | {peak} | {float(row['value']):,.1f} "
            f"| {error.predicted:,.1f} | {error.relative:+.2%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
