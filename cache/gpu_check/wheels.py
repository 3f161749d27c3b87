"""Which wheels of a folder the running Python lacks: ``python -m cache.gpu_check.wheels FOLDER`` prints their paths.

A torch that is there is what is to be measured, so neither it nor what comes with it is ever replaced. Of diffusers,
transformers and accelerate the wheel's version is wanted; anything else is wanted only where it is missing. The
standard library must do here, for this runs before anything is installed.
"""

import re
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# Those that decide memory, of which another version than the wheel's would answer another question.
PINNED = frozenset({"diffusers", "transformers", "accelerate"})
_OF_TORCH = re.compile(r"torch|torch(vision|audio)|triton|pytorch-triton|nvidia-(?!ml-py$).+")


def canonical(name: str) -> str:
    """Spell a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def lacking(wheels: Iterable[Path]) -> list[Path]:
    """Choose the wheels to install, one of each package.

    Raises:
        ValueError: a file has no wheel's name.
    """
    wanted: dict[str, Path] = {}
    for path in sorted(wheels):
        name, _, rest = path.name.partition("-")
        number = rest.partition("-")[0]
        if not number:
            raise ValueError(f"{path.name} is no wheel's name")
        name = canonical(name)
        if _OF_TORCH.fullmatch(name):
            continue
        try:
            installed = version(name)
        except PackageNotFoundError:
            installed = None
        if installed is None or (name in PINNED and installed != number):
            wanted[name] = path
    return list(wanted.values())


if __name__ == "__main__":
    for found in lacking(Path(sys.argv[1]).glob("*.whl")):
        print(found)
