"""Start the command line: ``python -m planner`` or ``will-it-fit``."""

import importlib.util
import sys
from typing import NoReturn

_OURS = ("planner", "cache", "pages")


def advice_for(error: ModuleNotFoundError) -> str | None:
    """Say what to run where a library is missing; None where the error is of another kind."""
    name = (error.name or "").partition(".")[0]
    if not name or name in _OURS or name in sys.stdlib_module_names or importlib.util.find_spec(name):
        return None
    return (
        f"error: this Python has no {name} - 'pip install -r requirements-plan.txt' installs what planning needs, or "
        "'make run' sets up .venv, for '.venv/bin/python -m planner'"
    )


def start() -> NoReturn:
    """Run the command line, as ``python -m planner`` and as ``will-it-fit``."""
    try:
        # A command imports what it needs when it runs, so that either line may find a library missing.
        from planner.cli.main import main

        sys.exit(main())
    except ModuleNotFoundError as error:
        advice = advice_for(error)
        if advice is None:
            raise
        print(advice, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    start()
