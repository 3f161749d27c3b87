"""Define the errors that a user can cause. Any other error is a bug and keeps its traceback."""

from typing import Any


class PlannerError(Exception):
    """Report an error that a user can cause.

    The CLI prints it and exits 2, and a page shows it in place.
    """


class InvalidArgument(PlannerError, ValueError):
    """Report an argument that breaks its rule.

    The message reads ``<argument> <rule>, got <value> (<nearest>)``, lower case, on one line.
    """

    def __init__(self, argument: str, rule: str, value: Any, nearest: str | None = None):
        self.argument, self.rule, self.value, self.nearest = argument, rule, value, nearest
        # Python refuses to write out whole numbers of thousands of digits.
        is_endless = type(value) is int and value.bit_length() > 4096
        shown = f"a whole number of {value.bit_length()} bits" if is_endless else repr(value)
        if len(shown) > 80:
            shown = f"{shown[:77]}..."
        super().__init__(f"{argument} {rule}, got {shown}" + (f" ({nearest})" if nearest else ""))

    def __reduce__(self):
        # Streamlit's cache pickles its values, and by default an exception is rebuilt from its message alone.
        return type(self), (self.argument, self.rule, self.value, self.nearest)


class UnknownCard(PlannerError, LookupError):
    """Report a name that the catalogue does not have.

    `parts` are the GPUs named where one argument lists several.
    """

    def __init__(self, name: str, nearest: str | None, parts: tuple[str, ...] = ()):
        self.name, self.nearest, self.parts = name, nearest, parts
        guess = f" - nearest: {nearest!r};" if nearest else " -"
        if parts:
            each = " ".join(f"--gpu {part!r}" if " " in part else f"--gpu {part}" for part in parts)
            guess = f" - name each GPU by itself: {each};"
        super().__init__(f"unknown GPU {name!r}{guess} 'python -m planner gpus' lists them all")

    def __reduce__(self):
        return type(self), (self.name, self.nearest, self.parts)


class NoGpu(PlannerError):
    """Report that no attached GPU can be used: `reason` says why, and `advice` what to do next."""

    def __init__(self, reason: str, advice: str):
        self.reason, self.advice = reason, advice
        super().__init__(f"{reason} - {advice}")

    def __reduce__(self):
        return type(self), (self.reason, self.advice)


class CannotWrite(PlannerError):
    """Report a file that cannot be written.

    The message has its path, the reason in the system's words, and what to do next.
    """

    def __init__(self, path: object, why: str, advice: str):
        self.path, self.why, self.advice = str(path), why, advice
        super().__init__(f"{path} cannot be written ({why}) - {advice}")

    def __reduce__(self):
        return type(self), (self.path, self.why, self.advice)


class NoProgram(PlannerError):
    """Report that no memory program covers the request.

    The message says why, and what to do next.
    """
