"""Write to the terminal: data on stdout, prose and progress on stderr."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

# At run time this import would bring numpy to every command.
if TYPE_CHECKING:
    from planner.programs.library import Library


def say(text: str) -> None:
    """Print prose on stderr."""
    print(text, file=sys.stderr)


def print_json(value: Any) -> None:
    """Print data as JSON on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def library_here(*, is_silent: bool = False) -> Library | None:
    """Find the memory programs for the installed versions, and say if other programs answer.

    If so, a compile begins in the background. With `is_silent` neither happens, for answers that need no program.
    """
    # Every command imports this module. The programs bring numpy, and so more than double the time of a short command.
    from cache.programs import find, repair_in_background

    library, notice = find()
    if notice and not is_silent:
        say(f"{notice}; a compile has begun in the background" if repair_in_background() else notice)
    return library
