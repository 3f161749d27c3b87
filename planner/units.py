"""Convert between bytes, which the code uses, and GiB, which screens show.

No other module makes or reads a GiB.
"""

import re

from planner.errors import InvalidArgument

KIB = 1024
MIB = 1024**2
GIB = 1024**3

_SIZES = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB}


def gib(size_bytes: int, digits: int = 2) -> str:
    """Write the size in GiB.

    >>> gib(1_610_612_736)
    '1.50 GiB'
    """
    return f"{size_bytes / GIB:.{digits}f} GiB"


def short_gib(size_bytes: int) -> str:
    """Write a size that somebody chose in GiB, with two digits at most.

    >>> short_gib(17_179_869_184), short_gib(15_634_661_376)
    ('16 GiB', '14.56 GiB')
    """
    return f"{size_bytes / GIB:.2f}".rstrip("0").rstrip(".") + " GiB"


def exact_size(size_bytes: int) -> str:
    """Write the size without rounding, in the largest unit that allows it.

    `parse_bytes` reads it back.

    >>> exact_size(17_179_869_184), exact_size(1_610_612_736), exact_size(15_634_661_377)
    ('16GiB', '1536MiB', '15634661377B')
    """
    unit = next(name for name, unit_bytes in reversed(_SIZES.items()) if size_bytes % unit_bytes == 0)
    return f"{size_bytes // _SIZES[unit]}{unit}"


def signed_gib(size_bytes: int, digits: int = 2) -> str:
    """Write the size in GiB with its sign, also a plus, as for a headroom.

    >>> signed_gib(-536_870_912)
    '−0.50 GiB'
    """
    shown = f"{abs(size_bytes) / GIB:.{digits}f} GiB"
    return f"{'−' if size_bytes < 0 else '+'}{shown}"


def signed_percent(share: float, digits: int = 2) -> str:
    """Write a share as a percentage with its sign, U+2212 as in `signed_gib`.

    >>> signed_percent(-0.174), signed_percent(0.0251, 1), signed_percent(-0.00001)
    ('−17.40%', '+2.5%', '+0.00%')
    """
    # Adding zero turns a share that was rounded to -0.0 into 0.0.
    return f"{round(share, digits + 2) + 0.0:+.{digits}%}".replace("-", "−")


def gib_value(size_bytes: int) -> float:
    """Convert bytes to a number of GiB, for the axis of a chart or the column of a table."""
    return size_bytes / GIB


def gib_to_bytes(size_gib: float) -> int:
    """Convert a size in GiB, as data sheets state it, to the nearest whole number of bytes."""
    return round(size_gib * GIB)


def parse_bytes(argument: str, text: str) -> int:
    """Read a size in bytes from text such as ``16GiB``, ``512 MiB`` or ``1073741824B``.

    Raises:
        InvalidArgument: the text is not a positive number with a binary unit. ``GB`` is refused: it means
            10^9 to some readers and 2^30 to others, and the planner must not guess.
    """
    match = re.fullmatch(r"\s*([0-9]{1,6}(?:\.[0-9]{1,6})?|[0-9]{1,15})\s*([A-Za-z]+)\s*", text)
    if match is None or match[2] not in _SIZES:
        number = match[1] if match else "16"
        raise InvalidArgument(argument, "must be a number with B, KiB, MiB or GiB", text, f"for example {number}GiB")
    size_bytes = round(float(match[1]) * _SIZES[match[2]])
    if not 64 * MIB <= size_bytes <= 4096 * GIB:
        raise InvalidArgument(argument, "must be between 64MiB and 4096GiB", text)
    return size_bytes
