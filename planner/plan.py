"""A plan: the request, the GPUs and the basis that somebody asks about, as one value; and its answer.

The command line, the HTTP interface and the pages read what they are given into a `Plan`, ask `answer_plan`, and show
the answer. A plan is also an address: `Plan.from_query` and `Plan.to_query` have the same names, which links keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from planner.alternatives.images import ImageRow, Listed, answer_images, parse_images
from planner.answer import BASES, Answer, Verdict, worst
from planner.cards.lookup import DEFAULT_CARDS, MAX_WORKERS, Card, card_named, described_card, shared_card
from planner.errors import InvalidArgument, PlannerError, UnknownCard
from planner.fields import Choice, Field, Switch, Text, Whole, did_you_mean, named_fields, row
from planner.fit import fit
from planner.formula import Breakdown, estimate
from planner.request import DEFAULT, FIELDS, GenerationRequest
from planner.units import exact_size

if TYPE_CHECKING:
    from planner.calibration.evidence import Evidence
    from planner.programs.library import Library

# The name of the GPUs in an address, which may stand there several times.
GPU_KEY = "gpu"
# The machine's own GPUs, among the names of others.
ATTACHED = "attached"
DEFAULT_GPUS = tuple(card_named(name).name for name in DEFAULT_CARDS)

Pairs = Iterable[tuple[str, str]]


class _Images(Text):
    """Images that run one after another, as `planner.alternatives.images` writes them."""

    def parse(self, text: str) -> str:
        """Return the text if it lists images; see `Field.parse`."""
        parse_images(text)
        return text


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A question: a request, GPUs, the basis of the answer, and images that run beside the request.

    `gpus` are names of the catalogue or `ATTACHED`; None is nobody's choice, which means the default GPUs unless one
    is described or attached. `published` counts the reference runs that ship as evidence.

    Raises:
        UnknownCard: a name is not in the catalogue.
        InvalidArgument: a field breaks its rule.
    """

    request: GenerationRequest = DEFAULT
    gpus: tuple[str, ...] | None = None
    basis: str = row(
        Choice(
            default=BASES[0],
            choices=BASES,
            label="Basis",
            help="measured: a run of this very request on such a GPU. calibrated: the dry run corrected by runs of "
            "such GPUs, with an interval. dry-run: every allocation of the real modules, replayed on a simulated GPU. "
            "formula: the published closed form. best: the first of these that has an answer.",
        )
    )
    published: bool = row(
        Switch(
            default=True,
            label="Count reference runs",
            help="Measurements that others published, each with its source, ship with the planner and count beside "
            "the history's own. Off: only your own and imported runs count.",
        )
    )
    gpu_memory: str = row(
        Text(
            default="",
            label="GPU memory",
            help="Of a GPU that is not in the list: its usable memory as torch reports it, in KiB, MiB or GiB: 16GiB.",
        )
    )
    compute_capability: str = row(
        Text(
            default="",
            label="Compute capability",
            help="It says which kernels run, and with how much workspace: 7.5. NVIDIA lists it for every GPU.",
        )
    )
    attached: bool = row(
        Switch(
            default=False,
            label="GPUs in this machine",
            help="As the driver sees them, with the memory that is free on each now. That is the machine where the "
            "app runs.",
        )
    )
    workers: int = row(
        Whole(
            default=1,
            low=1,
            high=MAX_WORKERS,
            label="Workers per GPU",
            help="Processes that share each GPU evenly. Each loads the whole pipeline and has its own CUDA context.",
        )
    )
    images: str = row(
        _Images(
            default="",
            label="Images",
            help="Images that run one after another, such as 1024x768, or 1024x768*2 for two at once, with commas "
            "between. The worst decides.",
        )
    )

    def __post_init__(self):
        if self.gpus is not None:
            names = tuple(dict.fromkeys(gpu_name(name) for name in self.gpus))
            object.__setattr__(self, "gpus", names)
        for field in PLAN_FIELDS:
            object.__setattr__(self, field.name, field.checked(getattr(self, field.name)))
        if bool(self.gpu_memory) != bool(self.compute_capability):
            both = ("gpu_memory", "compute_capability")
            missing, given = both if self.compute_capability else both[::-1]
            example = "for example gpu_memory 16GiB with compute_capability 7.5"
            raise InvalidArgument(missing, f"must be given with {given}", None, example)

    @property
    def uses_library(self) -> bool:
        """Tell whether the answer can rest on memory programs."""
        return self.basis != "formula"

    @property
    def uses_evidence(self) -> bool:
        """Tell whether the answer can rest on measured runs."""
        return self.basis not in ("formula", "dry-run")

    @property
    def image_rows(self) -> list[ImageRow]:
        """List the images that run beside the request."""
        return parse_images(self.images)

    def cards(self, attached: Callable[[], Sequence[Card]]) -> list[Card]:
        """List the GPUs, each once, or with several workers one worker's share of each.

        `attached` finds the machine's own and is called only where they are asked for.

        Raises:
            InvalidArgument: no GPU is chosen, or the described one breaks a rule.
            PlannerError: what `attached` raises.
        """
        chosen: list[Card] = []
        for name in self.gpus or ():
            chosen += attached() if name == ATTACHED else [card_named(name)]
        if self.attached and ATTACHED not in (self.gpus or ()):
            chosen += attached()
        if self.gpu_memory:
            chosen.append(described_card(self.gpu_memory, self.compute_capability))
        if self.gpus is None and not chosen:
            chosen = [card_named(name) for name in DEFAULT_GPUS]
        if not chosen:
            default = f"left out, it is {', '.join(DEFAULT_CARDS)}"
            raise InvalidArgument(GPU_KEY, "must name a GPU where none is described or attached", "", default)
        return [shared_card(card, self.workers) for card in dict.fromkeys(chosen)]

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Make the plan of values by name, as `read_query` gives them; a name left out takes its default.

        Raises:
            PlannerError: a value breaks its rule.
        """
        of_request = {field.name: values[field.name] for field in FIELDS if field.name in values}
        others = {field.name: values[field.name] for field in PLAN_FIELDS if field.name in values}
        names = values.get(GPU_KEY)
        return cls(
            request=GenerationRequest.from_dict(of_request), gpus=None if names is None else tuple(names), **others
        )

    @classmethod
    def from_query(cls, pairs: Pairs, ignored: Iterable[str] = ()) -> Self:
        """Read a plan from the names and values of an address; those `ignored` are somebody else's.

        Raises:
            PlannerError: a name is unknown or given twice, or a value breaks its rule.
        """
        pairs = [(name, text) for name, text in pairs if name not in set(ignored)]
        names = [name for name, _ in pairs]
        for name in names:
            if name not in PLAN_KEYS:
                raise InvalidArgument("query", "has an unknown name", name, name_meant(name))
            if name != GPU_KEY and names.count(name) > 1:
                raise InvalidArgument(name, "must be given once", [text for other, text in pairs if other == name])
        values, errors = read_query(pairs)
        if errors:
            raise errors[0]
        return cls.from_values(values)

    def to_values(self) -> dict[str, Any]:
        """Give the plan's values by name, all of them but a choice of GPUs that nobody made."""
        found: dict[str, Any] = self.request.to_dict()
        if self.gpus is not None:
            found[GPU_KEY] = list(self.gpus)
        return found | {field.name: getattr(self, field.name) for field in PLAN_FIELDS}

    def to_query(self) -> list[tuple[str, str]]:
        """Write the plan as names and values that `from_query` reads; defaults are left out."""
        values = self.to_values()
        pairs = [(name, field.text(values[name])) for name, field in _BY_NAME.items() if values[name] != field.default]
        # A single empty name is how an address says that none is chosen.
        return pairs + [(GPU_KEY, name) for name in (() if self.gpus is None else self.gpus or ("",))]

    def command(self, cards: Sequence[Card]) -> str:
        """Write the command that answers this plan on these of its GPUs; defaults are left out."""
        basis = [] if self.basis == BASES[0] else [f"--basis {self.basis}"]
        reference = [] if self.published else ["--no-reference"]
        return " ".join(
            ["python -m planner fit", *self.request.arguments(), *_card_arguments(cards), *basis, *reference]
        )


PLAN_FIELDS: tuple[Field, ...] = named_fields(fields(Plan))
_BY_NAME = {field.name: field for field in (*FIELDS, *PLAN_FIELDS)}
# Every name in a plan's address.
PLAN_KEYS = (*(field.name for field in FIELDS), GPU_KEY, *(field.name for field in PLAN_FIELDS))


def plan_field(name: str) -> Field:
    """Give the field of this name in a plan, of its request or beside it.

    Raises:
        KeyError: there is none.
    """
    return _BY_NAME[name]


def default_of(name: str) -> Any:
    """Give what a plan has under this name in an address where nothing else was chosen."""
    return list(DEFAULT_GPUS) if name == GPU_KEY else _BY_NAME[name].default


def name_meant(name: str) -> str | None:
    """Suggest the name of a plan nearest to an unknown one, as a question; None where none is near."""
    return did_you_mean(name.lower(), PLAN_KEYS)


def gpu_name(text: str) -> str:
    """Give the catalogue's name of a GPU by any of its names, or `ATTACHED`.

    Raises:
        UnknownCard: there is none.
    """
    return ATTACHED if text.casefold() == ATTACHED else card_named(text).name


def read_query(pairs: Pairs) -> tuple[dict[str, Any], list[PlannerError]]:
    """Read each value of an address by its own rule; give the good ones, and the errors.

    Names that are not a plan's are passed over. Of a name given several times, the last value counts. Rules that
    concern several fields are those of `Plan`.
    """
    values: dict[str, Any] = {}
    errors: list[PlannerError] = []
    pairs = list(pairs)
    given = {name: text for name, text in pairs if name in _BY_NAME}
    for name, text in given.items():
        field = _BY_NAME[name]
        try:
            values[name] = field.checked(field.parse(text))
        except InvalidArgument as error:
            errors.append(error)
    texts = [text for name, text in pairs if name == GPU_KEY]
    names = []
    for text in filter(None, texts):
        try:
            names.append(gpu_name(text))
        except UnknownCard as error:
            errors.append(error)
    if names or texts == [""]:
        values[GPU_KEY] = list(dict.fromkeys(names))
    return values, errors


def _card_arguments(cards: Sequence[Card]) -> list[str]:
    """List the options that name these GPUs, each of them once, and how many workers share them."""
    workers = max((card.workers for card in cards), default=1)
    named = dict.fromkeys(_card_argument(card.whole) for card in cards)
    return [*named, *([f"--workers {workers}"] if workers > 1 else [])]


def _card_argument(card: Card) -> str:
    if card.origin == "described" or card.emulated_bytes is not None:
        # It is in no list: its memory and compute capability name it.
        return f"--gpu-memory {exact_size(card.usable_bytes)} --compute-capability {card.capability}"
    if card.origin == "attached":
        return "--gpu attached"
    return f'--gpu "{card.model}"' if " " in card.model else f"--gpu {card.model}"


class PlanAnswer(NamedTuple):
    """A plan with its GPUs, an answer for each, the formula's terms, and the answers of the listed images, if any."""

    plan: Plan
    answers: tuple[Answer, ...]
    formula: Breakdown
    images: Listed | None = None

    @property
    def cards(self) -> list[Card]:
        """List the GPUs."""
        return [answer.card for answer in self.answers]

    @property
    def verdict(self) -> Verdict:
        """Give the verdict that decides over every GPU, and over every listed image on it."""
        verdicts = [answer.verdict for answer in self.answers]
        return worst([*verdicts, self.images.verdict] if self.images else verdicts)


def answer_plan(
    plan: Plan,
    cards: Sequence[Card],
    *,
    library: Library | None = None,
    evidence: Evidence | None = None,
    on_next: Callable[[], None] = lambda: None,
) -> PlanAnswer:
    """Answer the plan on these GPUs, which are those of `Plan.cards`.

    `on_next` is called before each answer, of the request and of each image on each GPU; it may raise to stop.

    Raises:
        InvalidArgument: the request's task does not take the size of a listed image.
    """
    answers = []
    for card in cards:
        on_next()
        answers.append(fit(plan.request, card, plan.basis, library=library, evidence=evidence))
    rows, listed = plan.image_rows, None
    if rows:
        by = {"library": library, "evidence": evidence, "on_next": on_next}
        listed = answer_images(rows, plan.request, cards, plan.basis, **by)
    return PlanAnswer(plan, tuple(answers), estimate(plan.request), listed)
