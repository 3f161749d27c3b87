"""Read and write libraries of memory programs: a line of JSON and a file of int32 numbers.

Both are plain, so that a recompiled library can be compared byte for byte.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from planner.errors import NoProgram
from planner.programs.library import Call, Library, Routine

T = TypeVar("T")

FORMAT = 2
SHIPPED = Path(__file__).with_name("sd15")


def save(library: Library, path: Path) -> None:
    """Write the library as ``path.json`` and ``path.bin``.

    Where the disk is full, neither file is changed.

    Raises:
        OSError: they cannot be written.
    """
    header, numbers = encode(library)
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = {".bin": numbers, ".json": header.encode()}
    parts = {suffix: path.with_suffix(f"{suffix}.{os.getpid()}") for suffix in contents}
    try:
        for suffix, content in contents.items():
            parts[suffix].write_bytes(content)
        for suffix, part in parts.items():
            os.replace(part, path.with_suffix(suffix))
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def encode(library: Library) -> tuple[str, bytes]:
    """Encode the library as (JSON, little-endian int32 numbers)."""
    arrays: list[np.ndarray] = []
    places: dict[bytes, int] = {}
    start = 0

    def put(array: np.ndarray) -> list[int]:
        # Routines that differ in name alone share their numbers.
        nonlocal start
        flat = np.ascontiguousarray(array, dtype="<i4").ravel()
        content = flat.tobytes()
        if content not in places:
            places[content] = start
            arrays.append(flat)
            start += len(flat)
        return [places[content], *array.shape]

    routines = {
        name: {
            "ops": put(routine.ops),
            "sizes": put(routine.sizes),
            "kernels": put(routine.kernels),
            "calls": [list(call) for call in routine.calls],
        }
        for name, routine in sorted(library.routines.items())
    }
    weights = {name: put(tensors) for name, tensors in library.weights.items()}
    header = {
        "format": FORMAT,
        "versions": dict(library.versions),
        "modules": list(library.modules),
        "weights": weights,
        "routines": routines,
    }
    numbers = np.concatenate(arrays).tobytes()
    # A header that is paired with another library's numbers must be refused.
    header["sha256"] = hashlib.sha256(numbers).hexdigest()
    return json.dumps(header, separators=(",", ":")) + "\n", numbers


def decode(header_text: str, numbers: bytes, source: str) -> Library:
    """Decode the library that `encode` wrote.

    Raises:
        NoProgram: it was written in another format, or is damaged.
    """
    try:
        header = json.loads(header_text)
    except ValueError:
        header = {}
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise NoProgram(f"{source} is no memory program of format {FORMAT} - 'python -m planner compile'")
    if header.get("sha256") != hashlib.sha256(numbers).hexdigest():
        raise NoProgram(f"{source} is damaged: its numbers are not those of its header - 'python -m planner compile'")
    flat = np.frombuffer(numbers, dtype="<i4")

    def get(place: Sequence[int]) -> np.ndarray:
        begin, *shape = place
        return flat[begin : begin + int(np.prod(shape))].reshape(shape)

    def routine(value: dict[str, Any]) -> Routine:
        calls = tuple(Call(*call) for call in value["calls"])
        return Routine(*(get(value[name]) for name in ("ops", "sizes", "kernels")), calls)

    return Library(
        header["versions"],
        _Lazy(header["routines"], routine),
        tuple(header["modules"]),
        _Lazy(header["weights"], get),
        source,
        header["sha256"],
    )


class _Lazy(Mapping[str, T]):
    """Make each value as it is asked for: a request needs a few dozen of thousands of routines."""

    def __init__(self, described: Mapping[str, Any], make: Callable[[Any], T]):
        self._described, self._make = described, make
        self._made: dict[str, T] = {}

    def __getitem__(self, name: str) -> T:
        if name not in self._made:
            self._made[name] = self._make(self._described[name])
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._described)

    def __len__(self) -> int:
        return len(self._described)


@cache
def shipped() -> Library:
    """Read the library that ships with the planner, compiled for the pinned versions.

    Raises:
        NoProgram: its files are missing, or of another format.
    """
    try:
        return read(SHIPPED)
    except OSError as error:
        raise NoProgram(f"the shipped memory programs cannot be read ({error}) - 'python -m planner compile'") from None


def read(path: Path) -> Library:
    """Read the library that `save` wrote.

    Raises:
        NoProgram: it was written in another format.
        OSError: its files cannot be read.
    """
    return decode(path.with_suffix(".json").read_text(), path.with_suffix(".bin").read_bytes(), str(path))
