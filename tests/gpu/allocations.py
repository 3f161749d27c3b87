"""Allocations as torch records them on a card, and as a program predicts them, in one form to be compared.

An allocation is the bytes that were asked for. Only those above 1 MiB are compared: below lie indices and statistics
of norms, whose kernels keep scratch of their own.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from planner.allocator import SMALL_SIZE
from planner.dryrun import KernelPolicy
from planner.program import Events, Op


def recorded(trace: Iterable[Mapping[str, Any]]) -> list[int]:
    """Sizes above 1 MiB from ``torch.cuda.memory._snapshot()["device_traces"][device]``, in order."""
    return [entry["size"] for entry in trace if entry["action"] == "alloc" and entry["size"] > SMALL_SIZE]


def predicted(events: Events, policy: KernelPolicy) -> list[int]:
    """Sizes above 1 MiB that the call allocates with the preferred kernels, in order; weights are left out."""
    loaded = int((events.kinds == Op.LOADED).argmax())
    convolutions = policy.convolution_bytes(events.convolutions).tolist()
    attentions = policy.attention_bytes(events.attentions).tolist()
    sizes, has_handle = [], False
    for kind, value in zip(events.kinds[loaded:].tolist(), events.values[loaded:].tolist(), strict=True):
        match Op(kind):
            case Op.BIRTH:
                sizes.append(value)
            case Op.CONVOLUTION:
                sizes.append(convolutions[value])
            case Op.ATTENTION:
                sizes.append(attentions[value])
            case Op.PRODUCT if not has_handle:
                sizes.append(policy.cublas_bytes)
                has_handle = True
    return [size for size in sizes if size > SMALL_SIZE]


@dataclass(frozen=True)
class Difference:
    """Sizes that only one of the two has, with how often, largest first."""

    only_real: list[tuple[int, int]]
    only_predicted: list[tuple[int, int]]
    matched: int
    real: int

    @property
    def share(self) -> float:
        """The part of the real allocations that was predicted, in [0, 1]."""
        return self.matched / self.real if self.real else 1.0


def difference(real: list[int], expected: list[int]) -> Difference:
    """What was allocated and not predicted, and the other way round."""
    ours, theirs = Counter(expected), Counter(real)
    return Difference(
        only_real=sorted((theirs - ours).items(), reverse=True),
        only_predicted=sorted((ours - theirs).items(), reverse=True),
        matched=(ours & theirs).total(),
        real=len(real),
    )
