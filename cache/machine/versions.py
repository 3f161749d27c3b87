"""Installed versions, what is not installed, and torch's build, read from metadata: nothing is imported."""

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

# What brings in all of them; planning alone needs requirements-plan.txt.
INSTALL = "'pip install -r requirements.txt', which 'make run' does in .venv, installs what measures and compiles"


class NotInstalled(PlannerError):
    """Libraries that measuring and compiling need are not installed: `names` are which."""

    def __init__(self, names: tuple[str, ...]):
        self.names = names
        super().__init__(f"{self.reason} - {INSTALL}; planning needs none of it")

    @property
    def reason(self) -> str:
        """What is wrong, without what to do."""
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
    """Which of the libraries that measure and compile are not installed, or None where all are."""
    names = tuple(name for name in LIBRARIES if name not in _versions())
    return NotInstalled(names) if names else None


def check_installed() -> None:
    """Refuse to go on where a library that measures and compiles is missing.

    Raises:
        NotInstalled: one is not installed, or more.
    """
    lacking = missing()
    if lacking:
        raise lacking


@cache
def installed() -> dict[str, str]:
    """Version of each library that decides memory, and of Python.

    Raises:
        NotInstalled: one is not installed, or more.
    """
    check_installed()
    return _versions() | {"python": platform.python_version()}


@cache
def planned_for() -> dict[str, str]:
    """Versions that predictions are made for: the installed ones, without them those of the shipped programs."""
    if missing() is None:
        return installed()
    try:
        made_for = shipped().versions
    except NoProgram:
        # The formula, which is for no version, still answers.
        made_for = {}
    return {name: made_for.get(name, "unknown") for name in LIBRARIES} | {"python": platform.python_version()}


@cache
def torch_cuda() -> str | None:
    """The CUDA version torch was built for, or None for a CPU build; read from torch/version.py as text."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = (Path(spec.origin).parent / "version.py").read_text()
    match = re.search(r"^cuda\b[^=\n]*=\s*'([0-9.]+)'", text, re.MULTILINE)
    return match[1] if match else None
