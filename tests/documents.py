"""Write what documents show of the program's output anew: ``make documents``.

Three kinds of text are written by a command, so that a test can hold them to it: the tables of docs/accuracy.md between
the marks of `tests.accuracy`, blocks between a comment that names their command and one that ends them, and the output
below each ``fit`` and ``sizes`` command of a console block in any document.
"""

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from planner.cli import main as cli
from tests import accuracy
from tests.conftest import ROOT

PAGES = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))
DOCUMENT = accuracy.DOCUMENT
BLOCK = re.compile(
    r"(?P<begin><!-- printed by: python -m planner (?P<command>[^\n]+) -->\n)(?P<text>.*?)<!-- end -->", re.S
)
CONSOLE = re.compile(r"(?<=```console\n).*?(?=```)", re.S)
COMMAND = re.compile(r"^\$ (?P<line>[^\n]*)\n(?P<output>(?:(?!\$ )[^\n]*\n)*)", re.M)
CALL = re.compile(r"(?:\.venv/bin/)?python -m planner (?P<arguments>.+)")
# Commands whose output depends on nothing but the planner. Others depend on the machine or on the history.
REPEATABLE = ("fit", "sizes")


class Session(NamedTuple):
    """A planner command of a console block, and the output that the document shows below it."""

    page: str
    argv: tuple[str, ...]
    output: str

    @property
    def is_repeatable(self) -> bool:
        """Tell whether the output must be what the command prints today."""
        return self.argv[0] in REPEATABLE


@contextlib.contextmanager
def empty_history() -> Iterator[None]:
    """Let PLANNER_DB name a history without runs."""
    before = os.environ.get("PLANNER_DB")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PLANNER_DB"] = str(Path(folder) / "planner.db")
        try:
            yield
        finally:
            del os.environ["PLANNER_DB"]
            if before is not None:
                os.environ["PLANNER_DB"] = before


def printed(command: str) -> str:
    """Run a planner command on an empty history and give what it prints on stdout.

    Raises:
        ValueError: it does not exit with 0.
    """
    output = io.StringIO()
    with empty_history(), contextlib.redirect_stdout(output):
        code = cli.main(shlex.split(command))
    if code:
        raise ValueError(f"{command} ended with exit code {code}")
    return output.getvalue()


def shown(argv: tuple[str, ...]) -> str:
    """Run a planner command on an empty history and give its stdout and then its stderr, whatever its exit code."""
    output, prose = io.StringIO(), io.StringIO()
    with empty_history(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(prose):
        cli.main(argv)
    return output.getvalue() + prose.getvalue()


def session_of(page: str, found: re.Match[str]) -> Session | None:
    """Read a match of `COMMAND`; None for another program's command."""
    call = CALL.fullmatch(found["line"])
    return Session(page, tuple(shlex.split(call["arguments"])), found["output"]) if call else None


def sessions() -> list[Session]:
    """List the planner commands in the console blocks of all documents."""
    return [
        session
        for path in PAGES
        for block in CONSOLE.findall(path.read_text())
        for found in COMMAND.finditer(block)
        if (session := session_of(path.relative_to(ROOT).as_posix(), found))
    ]


def _with_output(found: re.Match[str]) -> str:
    session = session_of("", found)
    if session is None or not session.is_repeatable or not session.output:
        return found[0]
    return f"$ {found['line']}\n{shown(session.argv)}"


def renewed(document: str) -> str:
    """Give the document with what its commands print today."""
    document = BLOCK.sub(lambda block: f"{block['begin']}\n{printed(block['command'])}\n<!-- end -->", document)
    return CONSOLE.sub(lambda block: COMMAND.sub(_with_output, block[0]), document)


def main() -> int:
    """Write the documents and say which of them changed."""
    before = {path: path.read_text() for path in PAGES}
    accuracy.write(accuracy.written(accuracy.graded_runs()))
    for path, text in before.items():
        path.write_text(renewed(path.read_text()))
        print(f"{path.relative_to(ROOT)}: {'unchanged' if path.read_text() == text else 'written anew'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
