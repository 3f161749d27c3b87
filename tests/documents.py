"""Write the tables of README.md and docs/accuracy.md anew: ``make documents``.

Each stands between a marker that names its command and one that ends it, so that a test can hold it to the command.
"""

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path

from planner.cli import main as cli
from tests import accuracy
from tests.conftest import ROOT

DOCUMENT = ROOT / "docs" / "accuracy.md"
BLOCK = re.compile(
    r"(?P<begin><!-- printed by: python -m planner (?P<command>[^\n]+) -->\n)(?P<text>.*?)<!-- end -->", re.S
)


def printed(command: str) -> str:
    """Run a planner command on an empty history and give what it prints on stdout.

    Raises:
        ValueError: it does not exit with 0.
    """
    output, before = io.StringIO(), os.environ.get("PLANNER_DB")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(output):
        os.environ["PLANNER_DB"] = str(Path(folder) / "planner.db")
        try:
            code = cli.main(shlex.split(command))
        finally:
            del os.environ["PLANNER_DB"]
            if before is not None:
                os.environ["PLANNER_DB"] = before
    if code:
        raise ValueError(f"{command} ended with exit code {code}")
    return output.getvalue()


def renewed(document: str) -> str:
    """Give the document with what its commands print today."""
    return BLOCK.sub(lambda block: f"{block['begin']}\n{printed(block['command'])}\n<!-- end -->", document)


def main() -> int:
    """Write the documents and say which of them changed."""
    files = (ROOT / "README.md", DOCUMENT)
    before = [path.read_text() for path in files]
    accuracy.write(accuracy.written(accuracy.graded_runs()))
    DOCUMENT.write_text(renewed(DOCUMENT.read_text()))
    for path, text in zip(files, before, strict=True):
        print(f"{path.name}: {'unchanged' if path.read_text() == text else 'written anew'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
