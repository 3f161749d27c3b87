"""Compare names of cards as drivers, clouds and people write them.

Two names mean the same card if only case, spaces, hyphens, underscores and the maker's brands differ. A name never
matches a part of another: "A10" is not "A100", and "4070" is not "4070 Ti".
"""

import re
from collections.abc import Mapping
from difflib import get_close_matches

_LONGEST = 100


def normalised(name: str) -> str:
    """Bring a name into the form in which names are compared.

    >>> normalised("NVIDIA GeForce RTX 2080 Ti"), normalised("rtx2080ti"), normalised("NVIDIA A100-SXM4-80GB")
    ('rtx2080ti', 'rtx2080ti', 'a100sxm4 80gb')
    """
    text = re.sub(r"[\s_-]+", " ", name.casefold()).strip()
    # A space between two numbers keeps them apart; any other space is dropped.
    text = re.sub(r"(?<![0-9]) | (?![0-9])", "", text).removesuffix("gpu")
    return re.sub(r"^(nvidia)?(geforce|tesla|quadro)?", "", text)


def _series(key: str) -> tuple[str, str]:
    """Split off the letters and the number that a name begins with, without RTX and GTX."""
    letters, number = re.findall(r"^([^0-9]*)([0-9]*)", key)[0]
    return re.sub(r"^[rg]tx", "", letters) if number else letters, number


def _is_near(number: str, other: str) -> bool:
    """Tell whether two numbers differ in a single digit near their end.

    It is one of the last two digits, and never the first of several.
    """
    if len(number) != len(other):
        return False
    differing = [place for place, pair in enumerate(zip(number, other, strict=True)) if pair[0] != pair[1]]
    return len(differing) == 1 and differing[0] >= max(len(number) > 1, len(number) - 2)


def nearest(name: str, names: Mapping[str, str]) -> str | None:
    """Suggest the name that a wrong name may mean, or None if no name is similar.

    `names` maps normalised names to names. Similar names have the same letters and number, or the same letters and a
    number with one other digit at its end: RTX 2071 suggests RTX 2070, and RTX 9070 suggests nothing.
    """
    key = normalised(name[:_LONGEST])
    letters, number = _series(key)
    alike = [(_series(known)[1], known) for known in names if _series(known)[0] == letters or not number]
    same = [known for other, known in alike if other == number]
    near = [known for other, known in alike if _is_near(number, other)]
    close = get_close_matches(key, same, n=1, cutoff=0.6) or get_close_matches(key, near, n=1, cutoff=0.5)
    return names[close[0]] if close else None
