"""What the history keeps, as values: they know nothing of how they are stored."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self

from planner.answer import Answer
from planner.cards.card import emulated_name
from planner.components import LIBRARIES, Scope
from planner.request import GenerationRequest

Outcome = Literal["ok", "out-of-memory", "cancelled", "failed"]
DeviceKind = Literal["cuda", "cpu"]
# Who measured a run: this planner, another one whose file was imported, or whoever published a row that ships.
Origin = Literal["own", "imported", "reference"]

# What stands for the card of a run without one.
REHEARSAL = "CPU rehearsal"

# How runs are measured. A change that moves measured numbers counts this up, so that old rows answer no new question.
METHOD = 1

# Outcomes that say something of memory and so answer the same request again.
ANSWERS: tuple[Outcome, ...] = ("ok", "out-of-memory")


def content_id(value: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a mapping: sorted keys, no insignificant white space."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """The card and the versions a run depends on. `cuda` and `cudnn` are known only once torch was loaded.

    `emulated_bytes` is the capacity at which torch was made to refuse on a larger card, None where it had the whole.
    """

    device_kind: DeviceKind
    card: str
    uuid_hash: str | None = None
    total_bytes: int | None = None
    compute_capability: str | None = None
    mig: bool | None = None
    driver: str | None = None
    cuda: str | None = None
    cudnn: str | None = None
    torch: str
    diffusers: str
    transformers: str
    accelerate: str
    python: str
    dtype: str
    attention: str
    allocator_settings: str
    weights: str
    method: int = METHOD
    emulated_bytes: int | None = None

    @property
    def environment_id(self) -> str:
        """A hash of the content."""
        return content_id(self.to_dict())

    @property
    def card_name(self) -> str:
        """The card as a reader should see it: what was measured at an emulated capacity says so."""
        return emulated_name(self.card, self.emulated_bytes)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name. That nothing was emulated is said by nothing, as it was before there was such a field."""
        values = asdict(self)
        if self.emulated_bytes is None:
            del values["emulated_bytes"]
        return values

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """The environment kept in a row of the store."""
        values: dict[str, Any] = {field.name: row[field.name] for field in fields(cls)}
        values["mig"] = None if row["mig"] is None else bool(row["mig"])
        return cls(**values)


# Two runs with equal values here are runs of the same thing; the rest of an environment follows from these.
SAME_KEY = (
    "device_kind",
    "card",
    "uuid_hash",
    "driver",
    *LIBRARIES,
    "dtype",
    "attention",
    "allocator_settings",
    "weights",
    "method",
    "emulated_bytes",
)


def _release(version: str) -> str:
    """The version without its build: 2.13.0+cpu on a laptop and 2.13.0 on a GPU host predict the same."""
    return version.partition("+")[0]


@dataclass(frozen=True, slots=True)
class StageMeasure:
    """Peaks and time of one stage. On the CPU, allocated counts live tensors and there is no reserved."""

    stage: str
    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None
    device_bytes: int | None
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What a basis said of the run before it ran; `stages` are allocated peaks."""

    basis: str
    verdict: str
    need_bytes: int | None
    minimum_bytes: int | None
    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None
    stages: dict[str, int]

    @classmethod
    def of(cls, answer: Answer) -> Self:
        """The part of an answer that a measurement is compared with."""
        return cls(
            basis=answer.basis,
            verdict=answer.verdict,
            need_bytes=answer.need_bytes,
            minimum_bytes=answer.minimum_bytes,
            peak_allocated_bytes=answer.peak_allocated_bytes,
            peak_reserved_bytes=answer.peak_reserved_bytes,
            stages=dict(answer.stages),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What one run gave. Sizes in bytes, times in seconds; None where the device does not tell."""

    outcome: Outcome
    reason: str | None = None
    ended_in: str | None = None
    weights_bytes: int | None = None
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    peak_device_bytes: int | None = None
    context_bytes: int | None = None
    free_before_bytes: int | None = None
    num_alloc_retries: int | None = None
    load_seconds: float | None = None
    total_seconds: float | None = None
    seconds_per_step: float | None = None
    stages: tuple[StageMeasure, ...] = ()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The run that a worker sent or a row keeps.

        Raises:
            TypeError: a field is missing or unknown.
        """
        fields: dict[str, Any] = {**values, "stages": tuple(StageMeasure(**stage) for stage in values["stages"])}
        return cls(**fields)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One run in the history: what was asked, where, what came out, what had been predicted.

    `source` says where a run comes from that was not measured here.
    """

    measurement_id: str
    created_at: str
    request: GenerationRequest
    environment: Environment
    measured: Measured
    holders: tuple[dict[str, Any], ...] = ()
    predictions: tuple[Prediction, ...] = field(default=())
    origin: Origin = "own"
    scope: Scope = "pipeline"
    source: str | None = None

    @property
    def options(self) -> str:
        """What tells it from a plain run of its size, such as ``unguided, vae tiling``; empty where nothing does."""
        if self.scope != "pipeline":
            return ", ".join(self.request.vae_options)
        guidance = self.request.guidance
        return ", ".join([*([guidance] if guidance == "unguided" else []), *self.request.options])

    def is_stale(self, versions: Mapping[str, str]) -> bool:
        """Whether it was measured with other versions than these."""
        return any(_release(getattr(self.environment, name)) != _release(versions[name]) for name in LIBRARIES)

    def to_dict(self) -> dict[str, Any]:
        """As JSON: every size an integer of bytes."""
        return {
            "id": self.measurement_id,
            "created_at": self.created_at,
            "origin": self.origin,
            "scope": self.scope,
            "source": self.source,
            "request": self.request.to_dict(),
            "environment": asdict(self.environment),
            **asdict(self.measured),
            "holders": list(self.holders),
            "predictions": [asdict(prediction) for prediction in self.predictions],
        }
