"""The terminal shell: read arguments, call, print. stdout is data, stderr is prose and progress.

Nothing heavy is imported here; a command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

from planner.answer import BASES, EXIT_CODES, SCHEMA, worst
from planner.cards.lookup import (
    CATALOGUE,
    DEFAULT_CARDS,
    SLICES,
    Card,
    card_named,
    card_row,
    described_card,
    shared_card,
)
from planner.errors import InvalidArgument, PlannerError
from planner.fit import fit
from planner.formula import estimate
from planner.report.markdown import FORMATS, fit_command, fit_markdown, fit_notes
from planner.report.text import cards_text, fit_object, fit_text
from planner.request import MAX_PROMPT_TOKENS, OFFLOADS, TASKS, GenerationRequest, parse_finite, parse_whole

if TYPE_CHECKING:
    from planner.calibration.evidence import Evidence
    from planner.programs.library import Library

USAGE_ERROR = 2
# What a disk answers that takes no more.
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def say(text: str) -> None:
    """Prose, on stderr."""
    print(text, file=sys.stderr)


def print_json(value: Any) -> None:
    """Data, on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _request_arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("request")
    group.add_argument("--task", default="img2img", metavar="|".join(TASKS), help="pipeline to call (img2img)")
    group.add_argument("--width", default="512", help="pixels (512)")
    group.add_argument("--height", default="512", help="pixels (512)")
    group.add_argument("--batch", default="1", help="requests served together (1)")
    prompt = group.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="a prompt, of which only the number of tokens counts")
    prompt.add_argument(
        "--prompt-tokens",
        default=str(MAX_PROMPT_TOKENS),
        metavar="N",
        help="CLIP tokens of the prompt, start and end included (77)",
    )
    group.add_argument("--guidance-scale", default="7.5", metavar="X", help="above 1 doubles the UNet batch (7.5)")
    group.add_argument("--steps", default="50", help="denoising steps (50)")
    group.add_argument("--no-safety-checker", dest="safety_checker", action="store_false", help="load none")
    group.add_argument("--vae-tiling", action="store_true", help="pipe.vae.enable_tiling()")
    group.add_argument("--vae-slicing", action="store_true", help="pipe.vae.enable_slicing()")
    group.add_argument("--attention-slicing", action="store_true", help="pipe.enable_attention_slicing()")
    group.add_argument("--channels-last", action="store_true", help="UNet and VAE in torch.channels_last")
    group.add_argument(
        "--offload", default="none", metavar="|".join(OFFLOADS), help="model: enable_model_cpu_offload() (none)"
    )
    return parser


def _json_argument() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout; sizes are bytes")
    return parser


def _add_card_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gpu",
        action="append",
        metavar="NAME",
        help="a card of the catalogue, a MIG slice such as 'A100-40GB 3g.20gb', or attached; repeatable "
        "(T4, A10, A100)",
    )
    parser.add_argument("--gpu-memory", metavar="SIZE", help="usable memory of a card not in the catalogue: 16GiB")
    parser.add_argument("--compute-capability", metavar="X.Y", help="its compute capability: 7.5")
    parser.add_argument("--workers", default="1", metavar="N", help="processes that share each card, evenly (1)")


def _parser() -> argparse.ArgumentParser:
    # No abbreviations: a script must not change its meaning when an option is added.
    parser = argparse.ArgumentParser(
        prog="python -m planner",
        description="Which GPUs run this Stable Diffusion v1.5 request, by how much, and how we know.",
        epilog="exit codes: fit 0 fits, 11 tight, 10 no, 12 unknown; verify 0 ran to the end, 11 with allocator "
        "retries, 10 out of memory, 12 failed or cancelled, 130 a stopped sweep; estimators 12 without a run; 2 usage "
        "error",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    request, as_json = _request_arguments(), _json_argument()

    def command(name: str, run: Callable[..., int], help_text: str, *parents: argparse.ArgumentParser):
        added = commands.add_parser(name, help=help_text, description=help_text, parents=parents, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    fits = command("fit", run_fit, "which cards run this request, and by how much", request, as_json)
    _add_card_arguments(fits)
    fits.add_argument("--format", metavar="|".join(FORMATS), help="md: Markdown, for a ticket; json: as --json (table)")
    fits.add_argument("--no-reference", action="store_true", help="leave the published runs that ship out of it")
    fits.add_argument("--basis", default="best", metavar="|".join(BASES), help="what to base the answer on (best)")

    sizes = command(
        "sizes", _later("sizes.run_sizes"), "the largest sizes and batch that fit, by the dry run", request, as_json
    )
    _add_card_arguments(sizes)

    verify = command(
        "verify", _later("verify.verify"), "run the request for real and keep what it took", request, as_json
    )
    verify.add_argument("--weights", metavar="synthetic|hub", help="hub downloads the pinned revision (synthetic)")
    verify.add_argument("--model-dir", metavar="DIR", help="real weights from a local folder, safetensors only")
    verify.add_argument(
        "--device", metavar="N|UUID|cpu", help="an attached card (the freest); cpu rehearses the path without a GPU"
    )
    verify.add_argument(
        "--capacity",
        metavar="SIZE",
        help="16GiB: run as if the card had no more, its CUDA context included. That emulates the capacity of a "
        "smaller card, not its kernels (the whole card)",
    )
    verify.add_argument("--force", action="store_true", help="measure again even if the answer is known")
    verify.add_argument(
        "--workspaces",
        metavar="FILE",
        help="measure, and write what the allocator's history says as JSON: the workspace of each convolution beside "
        "the predicted one, and each allocation that only the run or only the dry run has (needs a GPU)",
    )
    verify.add_argument(
        "--sweep",
        metavar="FILE|grid",
        help="many requests in one go: a JSON array of objects, each with what differs from this request (- reads "
        "stdin), or the built-in grid of 100; the same command goes on where it was stopped. Suggested: --steps 5, "
        "more take time and move no peak",
    )

    estimators = command(
        "estimators",
        _later("estimators.run_estimators"),
        "how far off other tools' formulas, the published one and the dry run are on every measured run",
        as_json,
    )
    estimators.add_argument("--format", metavar="|".join(FORMATS), help="md: Markdown; json: as --json (table)")
    estimators.add_argument("--no-reference", action="store_true", help="leave the published runs that ship out of it")

    command("gpus", run_gpus, "the catalogue of cards, with sources in --json", as_json)
    accuracy = command(
        "accuracy",
        _later("accuracy.accuracy"),
        "how wrong predictions were on each GPU that was measured, with runs and sources",
        as_json,
    )
    accuracy.add_argument(
        "--gpu", action="append", metavar="NAME", help="a GPU of the catalogue, or attached; repeatable (all measured)"
    )
    accuracy.add_argument("--gpu-memory", metavar="SIZE", help="with --compute-capability, one not in the catalogue")
    accuracy.add_argument("--compute-capability", metavar="X.Y", help="its compute capability: 7.5")
    accuracy.add_argument("--format", metavar="|".join(FORMATS), help="md: Markdown; json: as --json (table)")
    accuracy.add_argument("--no-reference", action="store_true", help="leave out the published runs that ship")
    accuracy.set_defaults(workers="1")

    programs = command(
        "compile", _later("history.compile_programs"), "compile memory programs for the installed versions"
    )
    programs.add_argument("--force", action="store_true", help="compile again even where there is one")
    command(
        "doctor",
        _later("history.doctor"),
        "GPU, driver, versions, history, model: what is wrong, what to do",
        as_json,
    )

    history = commands.add_parser("history", help="measured runs", description="measured runs", allow_abbrev=False)
    actions = history.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, module: str, help_text: str) -> argparse.ArgumentParser:
        added = actions.add_parser(name, help=help_text, description=help_text, parents=[as_json], allow_abbrev=False)
        added.set_defaults(run=_later(f"{module}.history_{name}"))
        return added

    listing = action("list", "history", "all runs, newest first")
    listing.add_argument("--reference", action="store_true", help="the published runs that ship with the planner")
    show = action("show", "history", "one run in full")
    show.add_argument("id", help="a run's id, or the beginning of it")
    delete = action("delete", "history", "remove one run")
    delete.add_argument("id", help="a run's id, or the beginning of it")
    delete.add_argument("--yes", action="store_true", help="do not ask")
    export = action("export", "exchange", "write all runs to a file, one a line, oldest first")
    export.add_argument("file", metavar="FILE", help="where to; - is stdout")
    imports = action("import", "exchange", "bring in the runs of a file, all or none; those known stay as they are")
    imports.add_argument("file", metavar="FILE", help="where from; - is stdin")
    recovering = action("recover", "recover", "save what can be read of a damaged history")
    recovering.add_argument("file", metavar="FILE", help="a file that history list and doctor name, or another history")
    recovering.add_argument("--discard", action="store_true", help="save nothing, and mention the file no more")
    return parser


def _later(path: str) -> Callable[[argparse.Namespace], int]:
    """A command of another module, imported only when it runs."""

    def run(arguments: argparse.Namespace) -> int:
        module, _, name = path.partition(".")
        return getattr(import_module(f"planner.cli.{module}"), name)(arguments)

    return run


def request_from(arguments: argparse.Namespace) -> GenerationRequest:
    """The request of the command line.

    Raises:
        InvalidArgument: a value breaks its rule.
    """
    tokens = parse_whole("prompt_tokens", arguments.prompt_tokens)
    if arguments.prompt is not None:
        from cache.tokens import count_tokens

        counted = count_tokens(arguments.prompt)
        tokens = min(counted, MAX_PROMPT_TOKENS)
        cut = f", cut to {MAX_PROMPT_TOKENS}" if counted > tokens else ""
        say(f"the prompt is {counted} tokens{cut}; the pipeline pads it to {MAX_PROMPT_TOKENS}")
    request = GenerationRequest(
        task=arguments.task,
        width=parse_whole("width", arguments.width),
        height=parse_whole("height", arguments.height),
        batch=parse_whole("batch", arguments.batch),
        prompt_tokens=tokens,
        guidance_scale=parse_finite("guidance_scale", arguments.guidance_scale),
        steps=parse_whole("steps", arguments.steps),
        safety_checker=arguments.safety_checker,
        vae_tiling=arguments.vae_tiling,
        vae_slicing=arguments.vae_slicing,
        attention_slicing=arguments.attention_slicing,
        channels_last=arguments.channels_last,
        offload=arguments.offload,
    )
    if request.is_rounded:
        size = f"{request.effective_width}x{request.effective_height}"
        say(f"img2img rounds {request.width}x{request.height} down to {size}")
    return request


def _cards_from(arguments: argparse.Namespace) -> list[Card]:
    """The cards of the command line, each once, or the default ones.

    Raises:
        InvalidArgument: a value breaks its rule.
        UnknownCard: a name is not in the catalogue.
        NoGpu: the attached card is asked for, and there is none.
    """
    chosen = []
    for name in arguments.gpu or ():
        if name.casefold() == "attached":
            from cache.machine.attached import cards, cards_to_plan_on

            chosen += cards_to_plan_on(cards())
        else:
            chosen.append(card_named(name))
    if (arguments.gpu_memory is None) != (arguments.compute_capability is None):
        missing = "--gpu-memory" if arguments.gpu_memory is None else "--compute-capability"
        other = "--compute-capability" if missing == "--gpu-memory" else "--gpu-memory"
        example = "--gpu-memory 16GiB --compute-capability 7.5"
        raise InvalidArgument(missing, f"must be given with {other}", None, f"for example {example}")
    try:
        if arguments.gpu_memory is not None:
            chosen.append(described_card(arguments.gpu_memory, arguments.compute_capability))
        workers = parse_whole("workers", arguments.workers)
        # A card named twice, or by two of its names, is one card.
        cards = list(dict.fromkeys(chosen)) or [card_named(name) for name in DEFAULT_CARDS]
        return [shared_card(card, workers) for card in cards]
    except InvalidArgument as error:
        # As they were typed: nothing but the flag has this name.
        flag = f"--{error.argument.replace('_', '-')}"
        raise InvalidArgument(flag, error.rule, error.value, error.nearest) from None


def _evidence_for(
    cards: Sequence[Card], library: Library | None, *, with_reference: bool
) -> tuple[Evidence | None, str | None]:
    """Runs that may speak of these cards, None where there are none, and what is wrong with the history, or None."""
    from cache.history.location import HistoryError, anything_measured

    try:
        if not anything_measured((card.compute_capability for card in cards), with_reference=with_reference):
            return None, None
    except HistoryError as error:
        return None, str(error)
    from cache.history.observations import gather

    return gather(library, with_reference=with_reference)


def _format_from(arguments: argparse.Namespace) -> str:
    """How a command is to print: one of `FORMATS`; ``--json`` is the short way to say json."""
    chosen = arguments.format or ("json" if arguments.json else FORMATS[0])
    if chosen not in FORMATS:
        raise InvalidArgument("--format", f"must be one of {', '.join(FORMATS)}", chosen)
    if arguments.json and chosen != "json":
        raise InvalidArgument("--format", "must be json where --json is given", chosen, "leave one of them out")
    return chosen


def run_fit(arguments: argparse.Namespace) -> int:
    """``fit``: answers for each card; the worst verdict is the exit code."""
    from cache.programs import find, repair_in_background

    as_format = _format_from(arguments)
    request, cards = request_from(arguments), _cards_from(arguments)
    library, evidence = None, None
    if arguments.basis != "formula":
        library, notice = find()
        if notice and arguments.basis != "measured":
            is_on_its_way = repair_in_background()
            say(f"{notice}; that has begun in the background" if is_on_its_way else notice)
    if arguments.basis in ("best", "calibrated", "measured"):
        evidence, notice = _evidence_for(cards, library, with_reference=not arguments.no_reference)
        if notice:
            say(f"{notice}; the answer stands without it")
    answers = [fit(request, card, arguments.basis, library=library, evidence=evidence) for card in cards]
    if as_format == "json":
        print_json(fit_object(request, answers, estimate(request)))
    elif as_format == "md":
        from cache.machine.versions import planned_for

        command = fit_command(request, cards, arguments.basis, with_reference=not arguments.no_reference)
        print(fit_markdown(request, answers, planned_for(), command))
    else:
        print(fit_text(request, answers))
    if as_format != "md":
        # Markdown has them in itself.
        for note in fit_notes(request, answers):
            say(note)
    return EXIT_CODES[worst(answer.verdict for answer in answers)]


def run_gpus(arguments: argparse.Namespace) -> int:
    """``gpus``: the catalogue."""
    if arguments.json:
        print_json(
            {
                "schema": SCHEMA,
                "gpus": [card_row(card) for card in CATALOGUE],
                "mig_slices": [card_row(card) for card in SLICES],
            }
        )
    else:
        print(cards_text(CATALOGUE))
        for note in dict.fromkeys(note for card in CATALOGUE for note in card.notes):
            say(f"verify no: {note}")
        say(f"MIG slices, by name: {', '.join(card.name for card in SLICES)}")
    return 0


def _checked_text(argv: Sequence[str]) -> list[str]:
    for text in argv:
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise InvalidArgument("argument", "must be text in UTF-8", text)
    return list(argv)


def _forget_stdout() -> None:
    # Python would try once more, and complain, while closing it.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stop_on_closed_pipe() -> NoReturn:
    # The reader is gone (`... | head`).
    _forget_stdout()
    sys.exit(141)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A gate must not fail because a terminal cannot show a sign.
            stream.reconfigure(errors="replace")
    try:
        arguments = _parser().parse_args(_checked_text(sys.argv[1:] if argv is None else argv))
        code = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except PlannerError as error:
        say(f"error: {error}")
        return USAGE_ERROR
    except BrokenPipeError:
        _stop_on_closed_pipe()
    except OSError as error:
        # Files have names, and their errors are said where they are written; stdout has none.
        if error.filename is not None or error.errno not in _UNWRITABLE:
            raise
        _forget_stdout()
        say(f"error: stdout cannot be written ({error.strerror}) - free space there, or send it elsewhere")
        return USAGE_ERROR
