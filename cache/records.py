"""Define the values that the history keeps; they do not depend on how they are stored."""

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

# The name in place of a GPU's for a run without one.
REHEARSAL = "CPU rehearsal"

# How runs are measured. A change that moves measured numbers counts this up, so that old rows answer no new question.
METHOD = 1

# Outcomes that tell something of memory, so that such a run answers the same request again.
ANSWERS: tuple[Outcome, ...] = ("ok", "out-of-memory")


def content_id(value: Mapping[str, Any]) -> str:
    """Compute the SHA-256 of the canonical JSON of a mapping: sorted keys, no insignificant white space."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """The GPU and the versions that a run depends on.

    `cuda` and `cudnn` are known only once torch was loaded.

    `emulated_bytes` is the capacity at which torch was made to refuse on a larger GPU, None where it had the whole.
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
        """Compute a hash of the content."""
        return content_id(self.to_dict())

    @property
    def card_name(self) -> str:
        """Name the GPU for readers, with the emulated capacity if there was one."""
        return emulated_name(self.card, self.emulated_bytes)

    def to_dict(self) -> dict[str, Any]:
        """Give the fields by name; `emulated_bytes` only where there is one, as in older ids."""
        values = asdict(self)
        if self.emulated_bytes is None:
            del values["emulated_bytes"]
        return values

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Make the environment that is kept in a row of the store."""
        values: dict[str, Any] = {field.name: row[field.name] for field in fields(cls)}
        values["mig"] = None if row["mig"] is None else bool(row["mig"])
        return cls(**values)


# Fields that decide whether a run answers the same request again; the rest of an environment follows from these.
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
    """Remove the build from a version: 2.13.0+cpu on a laptop and 2.13.0 on a GPU host predict the same."""
    return version.partition("+")[0]


@dataclass(frozen=True, slots=True)
class StageMeasure:
    """Peaks and time of one stage.

    On the CPU, allocated counts live tensors and there is no reserved.
    """

    stage: str
    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None
    device_bytes: int | None
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """The prediction of one basis from before the run; `stages` are allocated peaks. Bytes."""

    basis: str
    verdict: str
    need_bytes: int | None
    minimum_bytes: int | None
    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None
    stages: dict[str, int]

    @classmethod
    def of(cls, answer: Answer) -> Self:
        """Take from an answer the part that a measurement is compared with."""
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
    """The result of one run. Sizes in bytes, times in seconds.

    A field is None where the device does not tell it.
    """

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
        """Make the result that a worker sent.

        Raises:
            TypeError: a field is missing or unknown.
        """
        fields: dict[str, Any] = {**values, "stages": tuple(StageMeasure(**stage) for stage in values["stages"])}
        return cls(**fields)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One run in the history: its request, its environment, its result, and the predictions from before it.

    `source` says where a run was published that was not measured here.
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
        """List what sets it apart from a plain run of its size, such as ``unguided, vae tiling``, or nothing."""
        if self.scope != "pipeline":
            return ", ".join(self.request.vae_options)
        guidance = self.request.guidance
        return ", ".join([*([guidance] if guidance == "unguided" else []), *self.request.options])

    def is_stale(self, versions: Mapping[str, str]) -> bool:
        """Tell whether it was measured with other versions than these."""
        return any(_release(getattr(self.environment, name)) != _release(versions[name]) for name in LIBRARIES)

    def to_dict(self) -> dict[str, Any]:
        """Give the run as JSON: every size an integer of bytes."""
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
