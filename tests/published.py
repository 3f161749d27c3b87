"""The dry run against published measurements, in the order in which the benchmark took them.

``python -m tests.published`` prints the README's table. Source of tests/data/published.csv: the column `source` of each
row.
"""

import csv
import dataclasses
from typing import NamedTuple

from planner.dryrun import KernelPolicy, dry_run
from planner.flatten import Flattening, events_of
from planner.program import Op, shipped
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
    """The benchmark: one process, one VAE, encode and decode at each size, the cache emptied before each."""
    # A size of its own, so that every call's sizes are plain numbers.
    sequence = Flattening(shipped(), GenerationRequest(width=64, height=64), "all")
    sequence.load("vae")
    spans = []
    for allocated, reserved in zip(VAE[::2], VAE[1::2], strict=True):
        assert allocated["pipeline"] == reserved["pipeline"]
        height, width = int(allocated["H"]) // 8, int(allocated["W"]) // 8
        encodes = allocated["pipeline"] == "vae.encode"
        sequence.request = dataclasses.replace(sequence.request, vae_tiling="tiling" in allocated["vae_options"])
        # The benchmark's image is a tensor of its own making and so not channels_last, as one from PIL is.
        sequence.layout = sequence.layout._replace(is_planar=True)
        given = sequence.birth((0, height * width * (3 * 64 if encodes else 4) * 2), 0)
        sequence.event(Op.EMPTY_CACHE, 0)
        begin = sum(map(len, sequence.ops))
        [result] = sequence.call("vae._encode" if encodes else "vae._decode", 1, height, width)
        spans.append((begin, sum(map(len, sequence.ops)), allocated, reserved))
        for number in (result, given):
            sequence.event(Op.DEATH, number)
    events = sequence.flat().at(1, 8, 8)
    timeline = dry_run(events, KernelPolicy.of((8, 9)), with_timeline=True).timeline
    assert timeline is not None
    found = []
    for begin, end, *rows in spans:
        most = (timeline[begin:end].max(axis=0) - timeline[begin - 1]) / MIB
        found += [Error(row, predicted) for row, predicted in zip(rows, most, strict=True)]
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
