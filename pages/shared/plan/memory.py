"""Split the memory of an answer into its parts, as rows for charts and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from planner.answer import Answer
from planner.components import STAGES
from planner.programs.assemble import components_of
from planner.programs.library import BYTES, Library
from planner.programs.names import weights_name
from planner.replay.timeline import Part
from planner.request import GenerationRequest

# The stages that the published formula has a term for.
FORMULA_STAGES = ("vae_encoder", "unet", "vae_decoder")
# Labels for each kind of a timeline's parts, in the order in which a bar stacks them.
KINDS = {
    "weights": "Weights",
    "tensors": "Tensors",
    "workspace": "Workspace",
    "slack": "Allocator",
    "context": "Context",
}
# Parts below this share of the total are combined in one row.
_SMALL = 0.001


def weights_bytes(request: GenerationRequest, library: Library) -> int:
    """Return the bytes of what the request loads: parameters, buffers and adapters."""
    total = 0
    for component in components_of(request):
        name = weights_name(component, request)
        rows = library.weights_of(name, element_bytes=request.element_bytes, rank=request.lora_rank)
        total += int(rows[:, BYTES].sum()) * (request.controlnets if component == "controlnet" else 1)
    return total


def stages_of(request: GenerationRequest) -> tuple[str, ...]:
    """Return the stages that the request's calls run, in their order."""
    optional = {
        "image_encoder": request.ip_adapter != "none",
        "vae_encoder": any(one.task != "txt2img" for one in request.passes()),
        "controlnet": request.controlnets > 0,
        "safety_checker": request.safety_checker,
    }
    return tuple(stage for stage in STAGES if optional.get(stage, True))


def need_parts(answer: Answer, request: GenerationRequest, library: Library | None) -> list[tuple[str, int]]:
    """Return the parts of a need as (name, bytes), which add up to `need_bytes`.

    With offload, weights are loaded and unloaded, and an answer does not say which are there at the peak.
    """
    need, allocated, reserved = answer.need_bytes, answer.peak_allocated_bytes, answer.peak_reserved_bytes
    if need is None or allocated is None or reserved is None:
        return []
    if answer.basis == "formula":
        # The formula has no term for this stage, so the stage holds only the base.
        base = answer.stages["text_encoder"]
        return [("Weights", base), ("Activations", allocated - base), ("+20 %", need - allocated)]
    above = [("Allocator", reserved - allocated), ("Context", need - reserved)]
    if library is None or request.offload != "none":
        return [("Allocated", allocated), *above]
    weights = weights_bytes(request, library)
    return [("Weights", weights), ("Tensors and workspace", allocated - weights), *above]


class PartRow(NamedTuple):
    """One line of the breakdown at the peak, with the label of its kind."""

    kind: str
    name: str
    size_bytes: int
    share: float


def part_rows(parts: Sequence[Part]) -> list[PartRow]:
    """Return the parts by kind, largest first; small parts of a kind are one row."""
    total = sum(part.size_bytes for part in parts)
    rows = []
    for kind, label in KINDS.items():
        of_kind = sorted((p for p in parts if p.kind == kind and p.size_bytes), key=lambda part: -part.size_bytes)
        large = [part for part in of_kind if part.size_bytes >= _SMALL * total]
        small = of_kind[len(large) :]
        rows += [PartRow(label, part.name, part.size_bytes, part.size_bytes / total) for part in large]
        if small:
            size = sum(part.size_bytes for part in small)
            name = small[0].name if len(small) == 1 else f"{len(small)} smaller parts"
            rows.append(PartRow(label, name, size, size / total))
    return rows


class BesideRow(NamedTuple):
    """One term of the formula beside that of the dry run, in bytes; None if there is none.

    `term` is a stage, ``weights``, or ``need``, the total.
    """

    term: str
    formula_bytes: int | None
    dry_run_bytes: int | None

    @property
    def ratio(self) -> float | None:
        """Return the dry run's bytes over the formula's, None if there are none of one."""
        return self.dry_run_bytes / self.formula_bytes if self.dry_run_bytes and self.formula_bytes else None


def beside_rows(formula: Answer, dry_run: Answer, request: GenerationRequest, library: Library) -> list[BesideRow]:
    """Return rows for the weights, each stage of the request without them, and the need.

    With offload, weights are loaded and unloaded, so a stage includes those that are there.
    """
    without_weights = request.offload == "none"
    # The formula has no term for this stage, so the stage holds only the base.
    base, weights = formula.stages["text_encoder"], weights_bytes(request, library)
    rows = [BesideRow("weights", base, weights)] if without_weights else []
    rows += [
        BesideRow(
            stage,
            formula.stages[stage] - without_weights * base if stage in FORMULA_STAGES else None,
            dry_run.stages[stage] - without_weights * weights,
        )
        for stage in stages_of(request)
    ]
    return [*rows, BesideRow("need", formula.need_bytes, dry_run.need_bytes)]


def ratio_words(formula: Answer, dry_run: Answer) -> str:
    """Return in words how many times the formula's need the dry run's is."""
    ratio = BesideRow("need", formula.need_bytes, dry_run.need_bytes).ratio
    return "there is nothing to compare" if ratio is None else f"{ratio:.2f} times as much"


_MOST_TELLING = ("no", "tight", "unknown", "fits")


def card_to_look_at(answers: Iterable[Answer]) -> str:
    """Return the name of the first GPU that does not fit, else a tight one, else the first."""
    return min(answers, key=lambda answer: _MOST_TELLING.index(answer.verdict)).card.name
