"""Print the wheels of a folder that this Python lacks: ``python -m cache.gpu_check.wheels FOLDER``.

The installed torch is to be measured, so it and the packages that come with it are never replaced. diffusers,
transformers and accelerate are installed in the wheel's version, and any other package only if it is missing. This
module runs before anything is installed, so it uses the standard library alone.
"""

import re
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# These packages affect memory, so their versions must be those of the wheels.
PINNED = frozenset({"diffusers", "transformers", "accelerate"})
_OF_TORCH = re.compile(r"torch|torch(vision|audio)|triton|pytorch-triton|nvidia-(?!ml-py$).+")


def canonical(name: str) -> str:
    """Return a package's name in the form in which indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def lacking(wheels: Iterable[Path]) -> list[Path]:
    """Choose the wheels to install, one of each package.

    Raises:
        ValueError: the name of a file is not a wheel's.
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
