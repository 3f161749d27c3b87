"""Define the errors that a user can cause. Any other error is a bug and keeps its traceback."""

from typing import Any

# A value of a user is repeated up to this length, which is enough to recognise it.
MOST_OF_A_VALUE = 80
# No message of ours is so long. A longer one repeats something that a user gave.
MOST_OF_A_MESSAGE = 1500


def shown(value: Any) -> str:
    """Write a value for an error, at most `MOST_OF_A_VALUE` characters of it."""
    # Python refuses to write out whole numbers of thousands of digits.
    if type(value) is int and value.bit_length() > 4096:
        return f"a whole number of {value.bit_length()} bits"
    # The beginning of a long text is all that is shown, so the rest is not written out either.
    text = repr(value[:MOST_OF_A_VALUE] if isinstance(value, (str, bytes)) else value)
    is_cut = len(text) > MOST_OF_A_VALUE
    return f"{text[: MOST_OF_A_VALUE - 3]}..." if is_cut else text


def shortened(text: str, most: int = MOST_OF_A_MESSAGE) -> str:
    """Cut the middle out of a text that is longer than `most`: its end says what to do."""
    if len(text) <= most:
        return text
    end = most // 3
    return f"{text[: most - end - 5]} ... {text[len(text) - end :]}"


class PlannerError(Exception):
    """Report an error that a user can cause.

    The CLI prints it and exits 2, and a page shows it in place. A message that repeats a very long value is shortened.
    """

    def __init__(self, message: str = ""):
        super().__init__(shortened(message))


class InvalidArgument(PlannerError, ValueError):
    """Report an argument that breaks its rule.

    The message reads ``<argument> <rule>, got <value> (<nearest>)``, lower case, on one line.
    """

    def __init__(self, argument: str, rule: str, value: Any, nearest: str | None = None):
        self.argument, self.rule, self.value, self.nearest = argument, rule, value, nearest
        super().__init__(f"{argument} {rule}, got {shown(value)}" + (f" ({nearest})" if nearest else ""))

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
            each = shortened(" ".join(f"--gpu {part!r}" if " " in part else f"--gpu {part}" for part in parts), 400)
            guess = f" - name each GPU by itself: {each};"
        super().__init__(f"unknown GPU {shown(name)}{guess} 'python -m planner gpus' lists them all")

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


class NoKernelRule(NoProgram):
    """Report that no rule says what a GPU's kernels take for this data type."""
