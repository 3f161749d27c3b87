"""Made-up runs on made-up cards, with a truth to recover: workspace fraction, constant and noise."""

import random
from collections.abc import Sequence

import numpy as np

from cache.records import Measured, StageMeasure
from planner.calibration.evidence import Evidence
from planner.calibration.runs import Observation
from planner.calibration.similarity import traits_of
from planner.calibration.workspace_curve import FRACTIONS, Curve, curve_of
from planner.programs.files import shipped
from planner.replay.kernels import KernelPolicy
from planner.request import GenerationRequest
from planner.units import GIB, MIB

TURING = (7, 5)
VERSIONS = "torch 2.13.0"
SIZES = ((512, 512), (768, 768), (512, 768), (1024, 1024), (640, 960), (1280, 1280), (896, 896), (1536, 1024))
REQUESTS = [GenerationRequest(width=width, height=height) for width, height in SIZES]
STALE = "torch 2.12.0"
# Sixteen that people ask for, of both tasks, small ones among them.
ORDINARY = [
    *(GenerationRequest(width=w, height=h) for w, h in ((1024, 1024), (768, 512), (320, 1024), (256, 384))),
    *(GenerationRequest(width=w, height=h) for w, h in ((512, 512), (640, 448), (896, 896), (512, 768), (1280, 1280))),
    *(
        GenerationRequest(task="txt2img", width=w, height=h)
        for w, h in ((320, 1024), (512, 512), (768, 768), (1024, 1024))
    ),
    *(GenerationRequest(task="txt2img", width=w, height=h) for w, h in ((1536, 1024), (640, 960), (1280, 720))),
]
TARGETS = [
    GenerationRequest(),
    GenerationRequest(task="txt2img", width=1024, height=1024),
    GenerationRequest(width=1536, height=1536),
    GenerationRequest(width=2048, height=2048),
]

_curves: dict[tuple, Curve] = {}


def curve(request: GenerationRequest, capability: tuple[int, int] = TURING) -> Curve:
    """The request's curve, made once."""
    key = (request.allocation_form(), KernelPolicy.of(capability))
    if key not in _curves:
        _curves[key] = curve_of(shipped(), *key)
    return _curves[key]


def at(values: np.ndarray, fraction: float) -> float:
    """A curve's value at this workspace fraction."""
    return float(np.interp(fraction, FRACTIONS, values))


def peak_at(request: GenerationRequest, fraction: float, capability: tuple[int, int] = TURING) -> float:
    """The allocated peak that a card whose kernels take this fraction has."""
    return max(at(values, fraction) for values in curve(request, capability).stages.values())


def run_of(
    request: GenerationRequest,
    number: int = 0,
    *,
    fraction: float = 1.0,
    constant: float = 0,
    factor: float = 1.0,
    **changes,
) -> Observation:
    """Simulate a run whose kernels take this workspace fraction and `constant` bytes, everything times `factor`."""
    capability = changes.get("capability", TURING)
    of = curve(request, capability)
    stages = {stage: round((at(values, fraction) + constant) * factor) for stage, values in of.stages.items()}
    values = {
        "run_id": f"run-{number}",
        "created_at": f"2026-11-{1 + number % 28:02d}T00:00:00.000000+00:00",
        "request": request,
        "card": "Tesla T4",
        "capability": capability,
        "cudnn": 9,
        "versions": VERSIONS,
        "kind": "full",
        "peak_allocated_bytes": max(stages.values()),
        "peak_reserved_bytes": round((at(of.reserved, fraction) + constant) * factor),
        "context_bytes": 150 * MIB,
        "stages": stages,
    }
    return Observation(**values | changes)


def history(
    count: int,
    seed: int,
    *,
    fraction: float,
    constant: float = 0,
    noise: float = 0.01,
    absurd: float = 0.05,
    stale: float = 0.0,
    requests: Sequence[GenerationRequest] = REQUESTS,
    **changes,
) -> list[Observation]:
    """So many runs of various requests, each off by the noise, a few absurdly, a share of them with other versions."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        factor = 1 + rng.gauss(0, noise)
        if rng.random() < absurd:
            factor = rng.choice([0.3, 0.5, 2.0, 3.0])
        changes["versions"] = STALE if stale and rng.random() < stale else VERSIONS
        found.append(
            run_of(rng.choice(requests), number, fraction=fraction, constant=constant, factor=factor, **changes)
        )
    return found


def measured_of(run: Observation) -> Measured:
    """What a worker would have kept of this run."""
    stages = tuple(
        StageMeasure(stage=stage, peak_allocated_bytes=size, peak_reserved_bytes=None, device_bytes=None, seconds=1.0)
        for stage, size in run.stages.items()
    )
    return Measured(
        outcome="ok",
        peak_allocated_bytes=run.peak_allocated_bytes,
        peak_reserved_bytes=run.peak_reserved_bytes,
        context_bytes=run.context_bytes,
        num_alloc_retries=0,
        stages=stages,
    )


def evidence_of(observations: list[Observation], versions: str = VERSIONS) -> Evidence:
    """The evidence of these runs, curves made as they are asked for."""

    def curves_of(asked: Sequence[Observation]) -> dict[str, Curve]:
        return {one.run_id: curve(one.request, one.capability) for one in asked}

    return Evidence(observations, curves_of, versions)


def target(request: GenerationRequest, **changes):
    """What is asked for on a T4 today."""
    return traits_of(request, TURING, **{"versions": VERSIONS} | changes)


def absurd_run(request: GenerationRequest, number: int, size_gib: float = 40) -> Observation:
    """A run that somebody mistyped."""
    size = round(size_gib * GIB)
    return run_of(request, number, peak_allocated_bytes=size, peak_reserved_bytes=size, stages={})
