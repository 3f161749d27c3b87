"""The terminal shell: read arguments, call, print. stdout is data, stderr is prose and progress.

Nothing heavy is imported here; a command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn

from planner.answer import BASES
from planner.cli.arguments import add_card_arguments, json_argument, request_arguments
from planner.cli.output import say
from planner.errors import InvalidArgument, PlannerError
from planner.report.markdown import FORMATS

USAGE_ERROR = 2
# What a disk answers that takes no more.
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def _parser() -> argparse.ArgumentParser:
    # No abbreviations: a script must not change its meaning when an option is added.
    parser = argparse.ArgumentParser(
        prog="python -m planner",
        description="Which GPUs run this Stable Diffusion v1.5 request, by how much, and how we know.",
        epilog="exit codes: fit 0 fits, 11 tight, 10 no, 12 unknown; verify 0 ran to the end, 11 with allocator "
        "retries, 10 out of memory, 12 failed or cancelled, 130 a stopped sweep; estimators and accuracy 12 without "
        "a run; 2 usage error",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    request, as_json = request_arguments(), json_argument()

    def command(name: str, run: Callable[..., int], help_text: str, *parents: argparse.ArgumentParser):
        added = commands.add_parser(name, help=help_text, description=help_text, parents=parents, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    fits = command("fit", _later("fit.run_fit"), "which cards run this request, and by how much", request, as_json)
    add_card_arguments(fits)
    fits.add_argument("--format", metavar="|".join(FORMATS), help="md: Markdown, for a ticket; json: as --json (table)")
    fits.add_argument("--no-reference", action="store_true", help="leave the published runs that ship out of it")
    fits.add_argument("--basis", default="best", metavar="|".join(BASES), help="what to base the answer on (best)")

    sizes = command(
        "sizes", _later("sizes.run_sizes"), "the largest sizes and batch that fit, by the dry run", request, as_json
    )
    add_card_arguments(sizes)

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

    command("gpus", _later("gpus.run_gpus"), "the catalogue of cards, with sources in --json", as_json)
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
    """Name a command as ``module.function`` of this package; it is imported only when it runs."""

    def run(arguments: argparse.Namespace) -> int:
        module, _, name = path.partition(".")
        return getattr(import_module(f"planner.cli.{module}"), name)(arguments)

    return run


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
