"""Errors that a user can cause. Anything else is a bug and keeps its traceback."""

from typing import Any


class PlannerError(Exception):
    """Base of every error that a user can cause: the CLI prints it and exits 2, a page shows it in place."""


class InvalidArgument(PlannerError, ValueError):
    """An argument breaks its rule.

    The message reads ``<argument> <rule>, got <value> (<nearest>)``, lower case, on one line.
    """

    def __init__(self, argument: str, rule: str, value: Any, nearest: str | None = None):
        self.argument, self.rule, self.value, self.nearest = argument, rule, value, nearest
        # Python does not write out whole numbers of thousands of digits.
        is_endless = type(value) is int and value.bit_length() > 4096
        shown = f"a whole number of {value.bit_length()} bits" if is_endless else repr(value)
        if len(shown) > 80:
            shown = f"{shown[:77]}..."
        super().__init__(f"{argument} {rule}, got {shown}" + (f" ({nearest})" if nearest else ""))

    def __reduce__(self):
        # Streamlit's cache pickles what it keeps, and an exception is rebuilt from its message unless told how.
        return type(self), (self.argument, self.rule, self.value, self.nearest)


class UnknownCard(PlannerError, LookupError):
    """No card of this name is in the catalogue; `parts` are the cards that a list in one argument names."""

    def __init__(self, name: str, nearest: str | None, parts: tuple[str, ...] = ()):
        self.name, self.nearest, self.parts = name, nearest, parts
        guess = f" - nearest: {nearest!r};" if nearest else " -"
        if parts:
            each = " ".join(f"--gpu {part!r}" if " " in part else f"--gpu {part}" for part in parts)
            guess = f" - name each card by itself: {each};"
        super().__init__(f"unknown card {name!r}{guess} 'python -m planner gpus' lists them all")

    def __reduce__(self):
        return type(self), (self.name, self.nearest, self.parts)


class NoGpu(PlannerError):
    """The attached GPU was asked for, and none can be used: `reason` says why, `advice` what to do next."""

    def __init__(self, reason: str, advice: str):
        self.reason, self.advice = reason, advice
        super().__init__(f"{reason} - {advice}")

    def __reduce__(self):
        return type(self), (self.reason, self.advice)


class CannotWrite(PlannerError):
    """A file cannot be written: which, why in the system's words, and the way out."""

    def __init__(self, path: object, why: str, advice: str):
        self.path, self.why, self.advice = str(path), why, advice
        super().__init__(f"{path} cannot be written ({why}) - {advice}")

    def __reduce__(self):
        return type(self), (self.path, self.why, self.advice)


class NoProgram(PlannerError):
    """There is no memory program for what is asked; the message says why and what to do."""
