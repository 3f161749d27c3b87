"""Installed versions and torch's build, read from metadata: nothing is imported."""

import importlib.metadata
import importlib.util
import platform
import re
from functools import cache
from pathlib import Path

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate")


@cache
def installed() -> dict[str, str]:
    """Version of each library that decides memory, and of Python.

    Raises:
        importlib.metadata.PackageNotFoundError: one is not installed.
    """
    return {name: importlib.metadata.version(name) for name in LIBRARIES} | {"python": platform.python_version()}


@cache
def torch_cuda() -> str | None:
    """The CUDA version torch was built for, or None for a CPU build; read from torch/version.py as text."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = (Path(spec.origin).parent / "version.py").read_text()
    match = re.search(r"^cuda\b[^=\n]*=\s*'([0-9.]+)'", text, re.MULTILINE)
    return match[1] if match else None
