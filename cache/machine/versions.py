"""Installed and missing libraries, and torch's build, read from metadata: no library is imported."""

import contextlib
import importlib.metadata
import importlib.util
import platform
import re
from functools import cache
from pathlib import Path

from planner.components import LIBRARIES
from planner.errors import NoProgram, PlannerError
from planner.programs.files import shipped

# This installs all libraries; planning alone needs requirements-plan.txt.
INSTALL = (
    "'pip install -r requirements.txt', which 'make run' does in .venv, installs what measuring and compiling need"
)


class NotInstalled(PlannerError):
    """The libraries `names`, which measuring and compiling need, are not installed."""

    def __init__(self, names: tuple[str, ...]):
        self.names = names
        super().__init__(f"{self.reason} - {INSTALL}; planning works without")

    @property
    def reason(self) -> str:
        """Name the missing libraries, without advice."""
        return f"{_listed(self.names)} {'is' if len(self.names) == 1 else 'are'} not installed"

    def __reduce__(self):
        return type(self), (self.names,)


def _listed(names: tuple[str, ...]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


@cache
def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def missing() -> NotInstalled | None:
    """Find the libraries that measuring and compiling need and that are not installed.

    Returns:
        The error that names them, or None if all are installed.
    """
    names = tuple(name for name in LIBRARIES if name not in _versions())
    return NotInstalled(names) if names else None


def check_installed() -> None:
    """Check that the libraries that measuring and compiling need are installed.

    Raises:
        NotInstalled: at least one is not installed.
    """
    lacking = missing()
    if lacking:
        raise lacking


@cache
def installed() -> dict[str, str]:
    """Return the version of each library that affects memory, and of Python.

    Raises:
        NotInstalled: at least one is not installed.
    """
    check_installed()
    return _versions() | {"python": platform.python_version()}


@cache
def planned_for() -> dict[str, str]:
    """Return the versions that predictions are for.

    They are the installed ones, or if libraries are missing those of the shipped programs.
    """
    if missing() is None:
        return installed()
    try:
        made_for = shipped().versions
    except NoProgram:
        # The formula still answers, and it depends on no version.
        made_for = {}
    return {name: made_for.get(name, "unknown") for name in LIBRARIES} | {"python": platform.python_version()}


@cache
def torch_cuda() -> str | None:
    """Read the CUDA version that torch was built for, None for a CPU build.

    The file torch/version.py is read as text.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = (Path(spec.origin).parent / "version.py").read_text()
    match = re.search(r"^cuda\b[^=\n]*=\s*'([0-9.]+)'", text, re.MULTILINE)
    return match[1] if match else None
