"""Read Dockerfile and .dockerignore as a build would, so that tests hold the real files and no copy of them."""

import json
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from tests.conftest import ROOT

DOCKERFILE = ROOT / "Dockerfile"
IGNORE = ROOT / ".dockerignore"
TARGETS = ("plan", "gpu")


@dataclass
class Stage:
    """One stage of the Dockerfile, with what it inherits from the stage that it begins from."""

    name: str
    parent: str
    env: dict[str, str] = field(default_factory=dict)
    # Instructions that the last one wins, such as USER and CMD, by their name.
    last: dict[str, str] = field(default_factory=dict)
    # Each instruction in its order, those of the stages before it included.
    steps: list[tuple[str, str]] = field(default_factory=list)

    @property
    def command(self) -> list[str]:
        """The start command. Only the exec form is JSON; the shell form raises ValueError."""
        return json.loads(self.last["CMD"])

    @property
    def health(self) -> list[str]:
        """The command of HEALTHCHECK, in exec form as well."""
        _, _, command = self.last["HEALTHCHECK"].partition("CMD ")
        return json.loads(command)


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Yield name and arguments of each instruction; a comment may stand inside a continued one."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    for line in joined.splitlines():
        name, _, arguments = line.strip().partition(" ")
        yield name.upper(), arguments.strip()


def stages(text: str) -> dict[str, Stage]:
    """Make the stages of a Dockerfile, by name and in order."""
    found: dict[str, Stage] = {}
    stage: Stage | None = None
    for name, arguments in instructions(text):
        if name == "FROM":
            parent, _, own = arguments.partition(" AS ")
            base = found.get(parent)
            stage = Stage(own, parent)
            if base is not None:
                stage.env, stage.last, stage.steps = dict(base.env), dict(base.last), list(base.steps)
            found[own] = stage
            continue
        if stage is None:
            # Before the first FROM there is only ARG.
            assert name == "ARG", name
            continue
        stage.last[name] = arguments
        stage.steps.append((name, arguments))
        if name == "ENV":
            stage.env |= dict(pair.split("=", 1) for pair in shlex.split(arguments))
    return found


def copied(stage: Stage) -> list[str]:
    """List the paths of the build context that the stage takes in, relative to the project."""
    sources: list[str] = []
    for name, arguments in stage.steps:
        if name == "COPY" and not arguments.startswith("--from="):
            *paths, target = arguments.split()
            for path in paths:
                # A folder's content goes into the folder that is named; a path must keep its name.
                is_kept = target == "./" if (ROOT / path).is_file() else target == f"./{path}"
                assert is_kept, f"COPY {arguments}"
                sources.append(path)
    return sources


def is_ignored(path: str, patterns: Iterable[str]) -> bool:
    """Tell whether .dockerignore keeps a file out: the last pattern that matches it or a folder above it decides."""
    parts = PurePosixPath(path).parts
    names = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    ignored = False
    for pattern in patterns:
        plain = pattern.removeprefix("!")
        if plain.startswith("**/"):
            hit = any(fnmatchcase(part, plain[3:]) for part in parts)
        else:
            # A star ends at a slash.
            hit = any(fnmatchcase(name, plain) and name.count("/") == plain.count("/") for name in names)
        if hit:
            ignored = not pattern.startswith("!")
    return ignored


def patterns(text: str) -> list[str]:
    """List the patterns of a .dockerignore."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def files_in_image(stage: Stage) -> list[str]:
    """List the project's files that the stage's COPY lines bring into it."""
    keeps_out = patterns(IGNORE.read_text())
    found: list[str] = []
    for source in copied(stage):
        there = ROOT / source
        every = [there] if there.is_file() else sorted(path for path in there.rglob("*") if path.is_file())
        names = [path.relative_to(ROOT).as_posix() for path in every]
        found += [name for name in names if not is_ignored(name, keeps_out)]
    return found


def build_folder(folder: Path, stage: Stage, *, without: str = "\0") -> Path:
    """Fill a folder as the image's /app, without the files whose path begins with `without`."""
    for name in files_in_image(stage):
        if not name.startswith(without):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


STAGES = stages(DOCKERFILE.read_text())
