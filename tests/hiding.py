"""A Python that lacks libraries: the same one, with a hook that hides them from imports and from metadata alike.

It stands in for an environment made from requirements-plan.txt alone, which would take minutes to install.
"""

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

# Python imports it as it starts, in every process below that one too.
HOOK = """
import os, re, sys
from importlib.machinery import PathFinder

hidden = set(os.environ["HIDDEN"].split())

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in hidden else super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, *context):
        found = super().find_distributions(*context)
        return (one for one in found if "dist:" + re.sub(r"[-_.]+", "-", one.name).lower() not in hidden)

sys.meta_path[:] = [Hiding if finder is PathFinder else finder for finder in sys.meta_path]
"""


def required(file: str) -> set[str]:
    """The distributions that a requirements file brings in, those that they require included."""
    found: set[str] = set()
    lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    todo = [Requirement(line) for line in lines if line and not line.startswith("-r")]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name in found:
            continue
        found.add(name)
        try:
            more = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            # Of another system or Python: a marker says so, or nothing here needs it.
            continue
        environment = {**default_environment(), "extra": ""}
        every = [Requirement(text) for text in more]
        todo += [one for one in every if one.marker is None or one.marker.evaluate(environment)]
    return found


def installed_beyond(file: str) -> set[str]:
    """The distributions that are installed here and that the requirements file does not bring in."""
    every = {canonicalize_name(one.name) for one in importlib.metadata.distributions()}
    # The planner itself is one of them where `make` installed its command.
    return every - required(file) - {"will-it-fit"}


def hiding(names: Iterable[str], folder: Path) -> dict[str, str]:
    """Put the hook into the folder and give the variables with which Python finds it and hides the distributions."""
    hidden = set(names)
    modules = {
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if {canonicalize_name(owner) for owner in owners} <= hidden
    }
    (folder / "sitecustomize.py").write_text(HOOK)
    return {"HIDDEN": " ".join([*modules, *(f"dist:{name}" for name in hidden)]), "PYTHONPATH": str(folder)}


def python_without(names: Iterable[str], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this Python with these arguments as if the distributions were not installed, with a history in the folder."""
    environment = os.environ | hiding(names, folder)
    environment["PYTHONPATH"] += os.pathsep + str(ROOT)
    environment["PLANNER_DB"] = str(folder / "planner.db")
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
