"""Compute how a peak depends on the workspace that convolutions take, from which calibration learns."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from planner.components import STAGES, Scope
from planner.programs.assemble import events_of
from planner.programs.events import Events
from planner.programs.library import Library, Op
from planner.programs.vae_alone import STAGE_OF, half_alone
from planner.replay.dry_run import DryRun, dry_run
from planner.replay.kernels import REPLAYED_FRACTIONS, KernelPolicy
from planner.replay.peaks import peaks_of
from planner.request import GenerationRequest

# Counted up when a curve of the same request comes out differently, so that no older one is used.
VERSION = 4

# The values of `KernelPolicy.workspace_fraction` at which allocated peaks are known: close together from zero to
# preferred, where cuDNN chooses, wider up to the cautious end.
FRACTIONS = np.concatenate([np.linspace(0, 1, 41), np.linspace(1, 2, 11)[1:]])
PREFERRED = 40
# A reserved peak takes a replay of its own: it is computed at these fractions and interpolated between them.
KNOTS = np.array(REPLAYED_FRACTIONS)


@dataclass(frozen=True, eq=False)
class Curve:
    """Peaks of one request by kernels of one GPU, at each workspace fraction. Bytes, float64.

    `stages` are allocated peaks by stage, (fractions,) each; `reserved` is the reserved peak, (fractions,). Of a half
    of the VAE alone both are above what stood allocated and reserved before.
    """

    stages: Mapping[str, np.ndarray]
    reserved: np.ndarray

    @property
    def peak_stage(self) -> str:
        """Find the stage that allocates most with preferred kernels; of equal ones the later."""
        return max(reversed(list(self.stages)), key=lambda stage: self.stages[stage][PREFERRED])

    def to_dict(self) -> dict[str, list[int]]:
        """Give whole bytes, by stage and ``reserved``."""
        rows = {**self.stages, "reserved": self.reserved}
        return {name: np.rint(values).astype(np.int64).tolist() for name, values in rows.items()}

    @classmethod
    def from_dict(cls, rows: Mapping[str, list[int]]) -> "Curve":
        """Make the curve that `to_dict` gave.

        Raises:
            ValueError: a row has another number of fractions, a peak is not above zero, or there are no stages.
            KeyError: there is no ``reserved``.
        """
        arrays = {name: np.array(values, dtype=np.float64) for name, values in rows.items()}
        if any(array.shape != FRACTIONS.shape for array in arrays.values()):
            raise ValueError(f"a curve has {len(FRACTIONS)} fractions")
        if not all(np.isfinite(array).all() and (array > 0).all() for array in arrays.values()):
            raise ValueError("a curve's peaks are above zero")
        reserved = arrays.pop("reserved")
        if not arrays or not set(arrays) <= set(STAGES):
            raise ValueError(f"a curve has stages of {', '.join(STAGES)}")
        return cls({stage: arrays[stage] for stage in STAGES if stage in arrays}, reserved)


def curve_of(library: Library, request: GenerationRequest, policy: KernelPolicy, scope: Scope = "pipeline") -> Curve:
    """Compute the curve of this request by dry runs with kernels of this policy.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    preferred = replace(policy, workspace_fraction=1.0)
    if scope == "pipeline":
        events = events_of(library, request)
        used = _used(dry_run(events, preferred, with_timeline=True))
        base, begin, end, stages = 0, 0, len(events.kinds), events.stages()
        work = request.replay_form()

        def reserved_by(kernels: KernelPolicy) -> int:
            return peaks_of(library, work, kernels).reserved_bytes

    else:
        events, begin, end = half_alone(library, scope, request)
        used = _used(dry_run(events, preferred, with_timeline=True))
        before = max(begin - 1, 0)
        base, stages = used[before, 0], np.full(len(events.kinds), STAGES.index(STAGE_OF[scope]))

        def reserved_by(kernels: KernelPolicy) -> int:
            reserved = _used(dry_run(events, kernels, with_timeline=True))[:, 1]
            return int(reserved[begin:end].max() - reserved[before])

    found: dict[bytes, int] = {}
    reserved = []
    for knot in KNOTS.tolist():
        kernels = replace(policy, workspace_fraction=knot)
        # Many knots give equal sizes: channels_last kernels take nothing below the cautious end, others no more.
        taken = kernels.convolution_bytes(events.convolutions).tobytes()
        if taken not in found:
            found[taken] = reserved_by(kernels)
        reserved.append(float(found[taken]))
    peaks = _allocated(events, policy, used, begin, end, stages)
    return Curve({stage: values - base for stage, values in peaks.items()}, np.interp(FRACTIONS, KNOTS, reserved))


def _used(run: DryRun) -> np.ndarray:
    assert run.timeline is not None
    return run.timeline


def _allocated(
    events: Events, policy: KernelPolicy, used: np.ndarray, begin: int, end: int, stages: np.ndarray
) -> dict[str, np.ndarray]:
    """Compute the allocated peak of each stage at each fraction, from one replay with preferred kernels.

    Blocks of tensors stay where they are; only the workspace of convolutions is replaced.
    """
    kinds, allocated = events.kinds, used[:, 0].astype(np.float64)
    is_convolution = kinds == Op.CONVOLUTION
    is_kernel = is_convolution | (kinds == Op.ATTENTION)
    # A kernel's workspace is gone before the next event, so what stood before it is the last other event's.
    latest = np.maximum.accumulate(np.where(is_kernel, 0, np.arange(len(kinds))))
    rows = events.values[is_convolution]
    wanted = np.stack(
        [
            replace(policy, workspace_fraction=float(fraction)).convolution_bytes(events.convolutions)[rows]
            for fraction in FRACTIONS
        ],
        axis=1,
    ).astype(np.float64)
    before = allocated[latest][is_convolution]
    # A block may hold more than was asked for; where nothing is asked for there is none.
    beyond = allocated[is_convolution] - before - wanted[:, PREFERRED]
    with_workspace = before[:, None] + wanted + np.where(wanted > 0, np.maximum(beyond, 0)[:, None], 0)
    of_call = np.zeros(len(kinds), dtype=bool)
    of_call[begin:end] = True
    found = {}
    for index in np.unique(stages[of_call & (stages >= 0)]).tolist():
        here = of_call & (stages == index)
        rest = allocated[here & ~is_convolution].max()
        peaks = with_workspace[here[is_convolution]]
        found[STAGES[index]] = np.maximum(peaks.max(axis=0), rest) if len(peaks) else np.full(len(FRACTIONS), rest)
    return found
