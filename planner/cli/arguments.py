"""Options that several commands share: each decorator adds some, and passes their values to the command.

Names, help and defaults of the options of a request and of a plan are those of their fields.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from cache.history.location import HistoryError, anything_measured
from cache.tokens import count_tokens
from planner.cards.lookup import CATALOGUE, SLICES, Card
from planner.cli.output import say
from planner.errors import InvalidArgument
from planner.fields import GROUPS, Choice, Field, Number, Switch, Whole
from planner.plan import ATTACHED, GPU_KEY, PLAN_FIELDS, Plan
from planner.report.markdown import FORMATS
from planner.request import DEFAULT, FIELDS, MAX_PROMPT_TOKENS, GenerationRequest, field_named

# At run time these imports would bring numpy, which a formula's answer does not need.
if TYPE_CHECKING:
    from planner.calibration.evidence import Evidence
    from planner.programs.library import Library

Command = Callable[..., int]

# The option that leaves out reference runs is older than the name of its field.
_FLAGS = {"published": "--no-reference"}
# These are the help texts of options that switch something off; a field's own help describes it when it is on.
_OFF_HELP = {"safety_checker": "Load no safety checker.", "published": "Leave out the reference runs that ship."}
# Errors of these fields use the names of their options; those of other fields use the field's own name.
_SAID_AS_OPTIONS = (GPU_KEY, "gpu_memory", "compute_capability", "workers")


class GroupedCommand(click.Command):
    """List the pipeline's options in `--help` under the headings of their groups, after all other options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for the command's own options and one for each group."""
        group_of = {field.name: field.group for field in FIELDS}
        sections: dict[str, list[tuple[str, str]]] = {"Options": [], **{group: [] for group in GROUPS}}
        for option in self.get_params(ctx):
            if (record := option.get_help_record(ctx)) is not None:
                sections[group_of.get(option.name or "") or "Options"].append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def _metavar(field: Field) -> str:
    if isinstance(field, Choice):
        return "|".join(field.choices)
    return {Whole: "N", Number: "X"}.get(type(field), "TEXT")


def _completing(words: Sequence[str]) -> Callable[..., list[CompletionItem]]:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        start = incomplete.casefold()
        return [CompletionItem(word) for word in words if word.casefold().startswith(start)]

    return complete


def _option(field: Field, metavar: str | None = None) -> Callable[[Command], Command]:
    """Make the option of a field: its value is text, or for a switch whether it was given."""
    flag = _FLAGS.get(field.name, field.flag)
    if isinstance(field, Switch):
        text = _OFF_HELP.get(field.name, f"Switch off: {field.plain_help}") if field.default else field.plain_help
        return click.option(flag, field.name, is_flag=True, default=False, help=text)
    words = field.choices if isinstance(field, Choice) else ()
    shown = f"{field.default:g}" if isinstance(field, Number) else field.default
    return click.option(
        flag,
        field.name,
        metavar=metavar or _metavar(field),
        help=f"{field.plain_help} [default: {shown}]" if shown != "" else field.plain_help,
        shell_complete=_completing(words),
    )


def _value(field: Field, given: Any) -> Any:
    """Read the value of an option, or use the field's default."""
    if isinstance(field, Switch):
        return field.default is not given
    return field.default if given is None else field.parse(given)


def _tokens(prompt: str | None, prompt_tokens: str | None) -> int:
    """Read the number of tokens, or count the tokens of a prompt."""
    if prompt is None:
        return _value(field_named("prompt_tokens"), prompt_tokens)
    if prompt_tokens is not None:
        raise InvalidArgument("--prompt", "must not be given with --prompt-tokens", prompt, "leave one of them out")
    counted = count_tokens(prompt)
    tokens = min(counted, MAX_PROMPT_TOKENS)
    cut = f", cut to {MAX_PROMPT_TOKENS}" if counted > tokens else ""
    say(f"the prompt is {counted} tokens{cut}; the pipeline pads it to {MAX_PROMPT_TOKENS}")
    return tokens


def request_options(command: Command) -> Command:
    """Add the options of a request, and pass it to the command as `request`.

    The decorated command raises InvalidArgument if a value breaks its rule.
    """

    @wraps(command)
    def run(*, prompt: str | None, **given: Any) -> int:
        texts = {field.name: given.pop(field.name) for field in FIELDS}
        values = {field.name: _value(field, texts[field.name]) for field in FIELDS if field.name != "prompt_tokens"}
        tokens = _tokens(prompt, texts["prompt_tokens"])
        request = GenerationRequest.from_dict(values | {"prompt_tokens": tokens})
        if request.is_rounded:
            size = f"{request.effective_width}x{request.effective_height}"
            say(f"img2img rounds {request.width}x{request.height} down to {size}")
        return command(request=request, **given)

    with_options: Command = run
    for field in reversed(FIELDS):
        with_options = _option(field)(with_options)
        if field.name == "prompt_tokens":
            prompt = click.option("--prompt", metavar="TEXT", help="A prompt; only the number of its tokens matters.")
            with_options = prompt(with_options)
    return with_options


def plan_options(*names: str) -> Callable[[Command], Command]:
    """Add ``--gpu`` and the options of the fields `names`, and pass the plan on as `plan`.

    The decorated command raises InvalidArgument if a value breaks its rule, and UnknownCard.
    """
    fields = [field for field in PLAN_FIELDS if field.name in names]

    def decorated(command: Command) -> Command:
        @wraps(command)
        def run(*, gpu: tuple[str, ...], request: GenerationRequest = DEFAULT, **given: Any) -> int:
            texts = {field.name: given.pop(field.name) for field in fields}
            plan = said_as_options(
                lambda: Plan(
                    request=request,
                    gpus=gpu or None,
                    **{field.name: _value(field, texts[field.name]) for field in fields},
                )
            )
            return command(plan=plan, **given)

        metavars = {"gpu_memory": "SIZE", "compute_capability": "X.Y"}
        with_options: Command = run
        for field in reversed(fields):
            with_options = _option(field, metavars.get(field.name))(with_options)
        known = [card.name for card in (*CATALOGUE, *SLICES)]
        return click.option(
            "--gpu",
            multiple=True,
            metavar="NAME",
            help="A GPU of the catalogue, a MIG slice such as 'A100-40GB 3g.20gb', or attached; may be repeated.",
            shell_complete=_completing([*known, ATTACHED]),
        )(with_options)

    return decorated


def said_as_options(make: Callable[[], Any]) -> Any:
    """Call `make`, and put the names of options into errors of fields that choose GPUs."""
    try:
        return make()
    except InvalidArgument as error:
        if error.argument not in _SAID_AS_OPTIONS:
            raise
        raise InvalidArgument(
            _as_options(error.argument), _as_options(error.rule), error.value, _as_options(error.nearest or "") or None
        ) from None


def _as_options(text: str) -> str:
    for name in _SAID_AS_OPTIONS[1:]:
        text = text.replace(name, f"--{name.replace('_', '-')}")
    return text


def cards_of(plan: Plan) -> list[Card]:
    """List the plan's GPUs, including this machine's own if the plan asks for them.

    Raises:
        InvalidArgument: the description of a GPU breaks its rule.
        NoGpu: the machine's own GPUs are asked for, and it has none.
    """

    def attached() -> Sequence[Card]:
        # Only a plan of this machine's GPUs needs psutil and the driver's library, which take 15 ms.
        from cache.machine.attached import plannable

        return plannable()

    return said_as_options(lambda: plan.cards(attached))


def evidence_for(
    cards: Sequence[Card], library: Library | None, *, with_reference: bool
) -> tuple[Evidence | None, str | None]:
    """Gather the runs on GPUs like these, and a notice about a history that cannot be used.

    Either is None if there is none.
    """
    try:
        if not anything_measured((card.compute_capability for card in cards), with_reference=with_reference):
            return None, None
    except HistoryError as error:
        return None, str(error)
    # The observations bring numpy and the formats of runs, which a plan without measured runs does not need.
    from cache.history.observations import gather

    return gather(library, with_reference=with_reference)


def json_option(command: Command) -> Command:
    """Add ``--json``, and pass on whether it was chosen as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout; sizes are bytes.")(command)


def format_options(command: Command) -> Command:
    """Add ``--json`` and ``--format``, and pass on one of `FORMATS` as `as_format`.

    The decorated command raises InvalidArgument for another format, or if both options contradict each other.
    """

    @wraps(command)
    def run(*, as_json: bool, chosen: str | None, **given: Any) -> int:
        as_format = chosen or ("json" if as_json else FORMATS[0])
        if as_format not in FORMATS:
            raise InvalidArgument("--format", f"must be one of {', '.join(FORMATS)}", as_format)
        if as_json and as_format != "json":
            raise InvalidArgument("--format", "must be json where --json is given", as_format, "leave one of them out")
        return command(as_format=as_format, **given)

    return click.option(
        "--format",
        "chosen",
        metavar="|".join(FORMATS),
        help=f"md: Markdown, for a ticket; json: as --json. [default: {FORMATS[0]}]",
        shell_complete=_completing(FORMATS),
    )(json_option(run))


def reference_option(command: Command) -> Command:
    """Add ``--no-reference``, and pass on whether reference runs count as `with_reference`."""

    @wraps(command)
    def run(*, no_reference: bool, **given: Any) -> int:
        return command(with_reference=not no_reference, **given)

    return click.option("--no-reference", is_flag=True, help=_OFF_HELP["published"])(run)
