"""The command line: find a command, run it, and turn errors into one line and an exit code.

stdout is data, stderr is prose and progress. A command's module is imported only when that command runs, since most
of them import libraries that `fit` does not need.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import click
from click.shell_completion import shell_complete

from planner import __version__
from planner.cli.output import say
from planner.errors import InvalidArgument, PlannerError, shortened, shown
from planner.fields import did_you_mean

USAGE_ERROR = 2
PROGRAM = "will-it-fit"
# The lines that docs/use.md gives for a shell's start-up file set this variable.
_COMPLETE = "_WILL_IT_FIT_COMPLETE"
# A disk that is full, failing or read-only answers with one of these.
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)

# Each command has the function of this package that runs it, and one line of help.
COMMANDS = {
    "fit": ("fit:fit_command", "Say which GPUs run this request, and by how much."),
    "sizes": (
        "sizes:sizes_command",
        "Find the largest sizes and batch that fit each GPU, and the smallest GPU for the request.",
    ),
    "verify": ("verify:verify_command", "Run the request for real and keep the peaks, or answer from the history."),
    "gpus": ("gpus:gpus_command", "List the GPUs of the catalogue, with sources in --json."),
    "accuracy": (
        "accuracy:accuracy_command",
        "Say how wrong predictions were on each GPU that was measured, with runs and sources.",
    ),
    "estimators": (
        "estimators:estimators_command",
        "Compare other tools' formulas, the published one and the dry run by their errors.",
    ),
    "history": ("main:history", "List, show, delete, export, back up, import or recover measured runs."),
    "compile": (
        "machine:compile_command",
        "Compile memory programs for the installed versions, unless there are some already.",
    ),
    "doctor": ("machine:doctor_command", "Check GPU, driver, versions, history and model, and say what to do."),
}
HISTORY_COMMANDS = {
    "list": ("history:list_command", "List all runs of the history, newest first, or the reference runs."),
    "show": ("history:show_command", "Show one run in full; ID is its id, or the beginning of it."),
    "delete": ("history:delete_command", "Remove one run, after asking; ID is its id, or the beginning of it."),
    "export": (
        "exchange:export_command",
        "Write own and imported runs to FILE, one a line, oldest first; - is stdout.",
    ),
    "backup": (
        "exchange:backup_command",
        "Copy the whole history to FILE, also while it is in use; PLANNER_DB=FILE then opens the copy.",
    ),
    "import": (
        "exchange:import_command",
        "Bring in the runs of FILE, all of them or none; known ones stay as they are. - is stdin.",
    ),
    "recover": ("recover:recover_command", "Save the runs of a damaged history that are certainly unchanged."),
}

_EXAMPLES = """\b
Examples:
  will-it-fit fit --width 1024 --height 1024 --gpu T4 --gpu A10
  will-it-fit fit --task txt2img --batch 4 --gpu "RTX 4090" --json
  will-it-fit sizes --gpu attached
  will-it-fit verify --device cpu --width 256 --height 256 --steps 2

\b
Exit codes:
  fit      0 fits, 11 tight, 10 no, 12 unknown; the worst GPU decides
  verify   0 ran to the end, 11 with allocator retries, 10 out of memory,
           12 failed or cancelled, 130 a stopped sweep
  accuracy, estimators   12 without a measured run
  any      2 usage error
"""


class _LateCommands(click.Group):
    """Import each command of a group when it runs."""

    def __init__(self, places: Mapping[str, tuple[str, str]], **settings):
        super().__init__(**settings)
        self._places = places

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._places:
            return None
        module, _, name = self._places[cmd_name][0].partition(":")
        return history if name == "history" else getattr(import_module(f"planner.cli.{module}"), name)

    def resolve_command(self, ctx: click.Context, args: list[str]):
        if args and args[0] not in self._places and not args[0].startswith("-"):
            raise click.UsageError(_unknown("command", args[0], list(self._places)), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self._places.items()])


def _unknown(kind: str, name: str, known: list[str]) -> str:
    meant = did_you_mean(name, known)
    return f"no {kind} {shown(name)}" + (f" ({meant})" if meant else "")


_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
history = _LateCommands(
    HISTORY_COMMANDS,
    name="history",
    help="List, show, delete, export, back up, import or recover measured runs.",
    no_args_is_help=True,
)
commands = _LateCommands(
    COMMANDS,
    name=PROGRAM,
    help="Say which GPUs run this Stable Diffusion v1.5 request, by how much, and how we know.",
    epilog=_EXAMPLES,
    no_args_is_help=True,
    context_settings=_SETTINGS,
)
commands = click.version_option(__version__, "--version", prog_name="Will It Fit", message="%(prog)s %(version)s")(
    commands
)


def _checked_text(argv: Sequence[str]) -> list[str]:
    for text in argv:
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise InvalidArgument("argument", "must be text in UTF-8", text)
    return list(argv)


def _forget_stdout() -> None:
    # Otherwise Python would try to write again, and complain, while it closes stdout.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stop_on_closed_pipe() -> NoReturn:
    # The reader of the pipe has ended, as in `... | head`.
    _forget_stdout()
    sys.exit(141)


def _usage_problem(error: click.UsageError) -> str:
    """Write in one line what is wrong with the command line, and where its options are listed."""
    path = error.ctx.command_path if error.ctx else program()
    if isinstance(error, click.NoSuchOption):
        options = [name for option in error.ctx.command.params for name in option.opts] if error.ctx else []
        problem = _unknown("option", error.option_name, options)
    else:
        problem = shortened(error.format_message().rstrip("."), 400)
        problem = problem[:1].lower() + problem[1:]
    return f"error: {problem}; '{path} --help' lists them all"


def program() -> str:
    """Return the name by which the program was started."""
    return PROGRAM if Path(sys.argv[0]).name == PROGRAM else "python -m planner"


def _run(argv: list[str]) -> int:
    try:
        with commands.make_context(program(), argv) as context:
            return commands.invoke(context) or 0
    except click.exceptions.Exit as done:
        # click raises this after --help and --version.
        return done.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        # The help is printed with an exit code that is none of a verdict's.
        say(error.format_message())
        return USAGE_ERROR
    except click.UsageError as error:
        say(_usage_problem(error))
        return USAGE_ERROR


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A script that reads the exit code must not fail because a terminal cannot show a sign.
            stream.reconfigure(errors="replace")
    if argv is None and (instruction := os.environ.get(_COMPLETE)):
        return shell_complete(commands, {}, PROGRAM, _COMPLETE, instruction)
    try:
        code = _run(_checked_text(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except PlannerError as error:
        say(f"error: {error}")
        return USAGE_ERROR
    except BrokenPipeError:
        _stop_on_closed_pipe()
    except OSError as error:
        # stdout has no file name. Errors with a file name are handled where that file is written.
        if error.filename is not None or error.errno not in _UNWRITABLE:
            raise
        _forget_stdout()
        say(f"error: stdout cannot be written ({error.strerror}) - free space there, or send it elsewhere")
        return USAGE_ERROR
