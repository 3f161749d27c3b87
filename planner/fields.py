"""Kinds of fields: the rule of a value, how text becomes one and back, and the words that explain it.

`planner.request` lists the fields of a request with them, and `planner.plan` the other fields of a plan. The command
line, the address, the page's controls, the history's columns and the import checks read those two lists.
"""

import dataclasses
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, get_args

from planner.errors import InvalidArgument

# What a field changes: peak memory, the time of a run alone, or the published formula alone.
Changes = Literal["memory", "time", "formula"]
# How much a measured run tells of a request that differs from it in the field.
Evidence = Literal["full", "half", "none"]
# What an option of the pipeline is about, in the order in which pages and help list them; a call's arguments have none.
Group = Literal["Pipeline", "Precision and layout", "Memory savers", "Allocator"]
GROUPS: tuple[Group, ...] = get_args(Group)


def parse_whole(argument: str, text: str) -> int:
    """Read a whole number that a person typed; of more than 100 digits, the first 100.

    Raises:
        InvalidArgument: the text is not a whole number.
    """
    found = re.fullmatch(r"\s*([+-]?)([0-9]+)\s*", text)
    if found is None:
        raise InvalidArgument(argument, "must be a whole number", text)
    # A number that long is out of every range and no message shows it whole, and Python refuses to convert thousands.
    return int(found[1] + (found[2].lstrip("0")[:100] or "0"))


def parse_finite(argument: str, text: str) -> float:
    """Read a number that a person typed.

    Raises:
        InvalidArgument: the text is not a number.
    """
    try:
        return float(text)
    except ValueError:
        raise InvalidArgument(argument, "must be a finite number", text) from None


def parse_truth(argument: str, text: str) -> bool:
    """Read ``true`` or ``false``, in any case.

    Raises:
        InvalidArgument: the text is neither.
    """
    if text.lower() not in ("true", "false"):
        raise InvalidArgument(argument, "must be true or false", text)
    return text.lower() == "true"


def did_you_mean(name: str, known: tuple[str, ...] | list[str], cutoff: float = 0.6) -> str | None:
    """Suggest the known name nearest to `name`, as a question; None where none is near."""
    close = get_close_matches(name, known, n=1, cutoff=cutoff)
    return f"did you mean {close[0]}?" if close else None


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a plan: its default, its rule and its words.

    `help` is shown on the command line and beside the page's control, in Markdown. `call` is the line of code that
    switches the field on, where diffusers has one. `evidence` is about options of the pipeline: whether runs that
    differ in one count in full, half, or not at all. `said` is how `words` says a value, and `group` what an option is
    about. A field that `is_later` came after the first release: a request that has it at its default keeps the id that
    it had before, and a file of runs may leave it out.
    """

    default: Any
    label: str
    help: str
    changes: Changes = "memory"
    evidence: Evidence = "none"
    call: str = ""
    said: str = ""
    group: Group | None = None
    is_vae: bool = False
    is_later: bool = False
    # Filled in from the attribute that the field stands for.
    name: str = ""

    @property
    def flag(self) -> str:
        """Give the option's name on the command line: ``--guidance-scale``."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def plain_help(self) -> str:
        """Give the help without Markdown, for a terminal."""
        return self.help.replace("`", "")

    def checked(self, value: Any) -> Any:
        """Return the value in its normal form.

        Raises:
            InvalidArgument: the value breaks the field's rule.
        """
        raise NotImplementedError

    def parse(self, text: str) -> Any:
        """Read the value from text, as an address or a command line has it; its range is not checked.

        Raises:
            InvalidArgument: the text has the wrong form.
        """
        raise NotImplementedError

    def text(self, value: Any) -> str:
        """Write the value so that `parse` reads it."""
        return str(value)

    def arguments(self, value: Any) -> str:
        """Write the value as a command line has it; empty for the default."""
        return "" if value == self.default else f"{self.flag} {self.text(value)}"

    def code(self, value: Any) -> str:
        """Give the line of code that sets the value, by `call`; empty where diffusers has none."""
        return self.call.format(value)

    def words(self, value: Any) -> str:
        """Say a value that is not the default in a word or two, as an option of the pipeline: ``vae tiling``."""
        if value == self.default:
            return ""
        return self.said.format(value) if self.said else f"{value} {self.name.replace('_', ' ')}"


@dataclass(frozen=True, kw_only=True)
class Choice(Field):
    """One of a few words."""

    choices: tuple[str, ...]

    def checked(self, value: Any) -> Any:
        """Return the word; see `Field.checked`."""
        if value not in self.choices:
            nearest = did_you_mean(str(value).lower(), self.choices, cutoff=0.4)
            raise InvalidArgument(self.name, f"must be one of {', '.join(self.choices)}", value, nearest)
        return value

    def parse(self, text: str) -> Any:
        """Take the text as it is: the rule is that of `checked`."""
        return text


@dataclass(frozen=True, kw_only=True)
class Whole(Field):
    """A whole number in a range; a page's control moves by `step`."""

    low: int
    high: int
    step: int = 1

    def checked(self, value: Any) -> Any:
        """Return the number; see `Field.checked`."""
        # bool is an int in Python; True is no width.
        if type(value) is not int:
            raise InvalidArgument(self.name, "must be a whole number", value)
        if not self.low <= value <= self.high:
            nearest = self.low if value < self.low else self.high
            raise InvalidArgument(
                self.name, f"must be between {self.low} and {self.high}", value, f"nearest: {nearest}"
            )
        return value

    def parse(self, text: str) -> Any:
        """Read a whole number; see `Field.parse`."""
        return parse_whole(self.name, text)


@dataclass(frozen=True, kw_only=True)
class Number(Field):
    """A finite number in a range; a page's control moves by `step`."""

    low: float
    high: float
    step: float

    def checked(self, value: Any) -> Any:
        """Return the number as a float; see `Field.checked`."""
        if type(value) not in (int, float) or not math.isfinite(value):
            raise InvalidArgument(self.name, "must be a finite number", value)
        if not self.low <= value <= self.high:
            nearest = self.low if value < self.low else self.high
            rule = f"must be between {self.low:g} and {self.high:g}"
            raise InvalidArgument(self.name, rule, value, f"nearest: {nearest:g}")
        # Adding zero makes -0.0 the 0.0 that it is equal to, and so one request.
        return float(value) + 0.0

    def parse(self, text: str) -> Any:
        """Read a number; see `Field.parse`."""
        return parse_finite(self.name, text)

    def arguments(self, value: Any) -> str:
        """Write the number without a needless ``.0``; see `Field.arguments`."""
        return super().arguments(value).removesuffix(".0")


@dataclass(frozen=True, kw_only=True)
class Switch(Field):
    """On or off."""

    def checked(self, value: Any) -> Any:
        """Return the truth value; see `Field.checked`."""
        if type(value) is not bool:
            raise InvalidArgument(self.name, "must be true or false", value)
        return value

    def parse(self, text: str) -> Any:
        """Read ``true`` or ``false``; see `Field.parse`."""
        return parse_truth(self.name, text)

    def text(self, value: Any) -> str:
        """Write ``true`` or ``false``."""
        return str(value).lower()

    @property
    def flag(self) -> str:
        """Give the option that leaves the default: ``--vae-tiling`` or ``--no-safety-checker``."""
        name = self.name.replace("_", "-")
        return f"--no-{name}" if self.default else f"--{name}"

    def arguments(self, value: Any) -> str:
        """Write the flag where the value is not the default."""
        return "" if value == self.default else self.flag

    def words(self, value: Any) -> str:
        """Say what is on that is off by default, or the reverse; see `Field.words`."""
        name = self.said or self.name.replace("_", " ")
        return "" if value == self.default else name if value else f"no {name}"


@dataclass(frozen=True, kw_only=True)
class Text(Field):
    """Text as a person typed it; what it means is checked where it is used."""

    def checked(self, value: Any) -> Any:
        """Return the text; see `Field.checked`."""
        if type(value) is not str:
            raise InvalidArgument(self.name, "must be text", value)
        return value

    def parse(self, text: str) -> Any:
        """Take the text as it is."""
        return text


def row(field: Field) -> Any:
    """Make the default of the dataclass attribute that this field explains."""
    return dataclasses.field(default=field.default, metadata={"field": field})


def named_fields(attributes: Iterable[dataclasses.Field]) -> tuple[Field, ...]:
    """List the fields behind the attributes that `row` made, in their order, with names."""
    return tuple(
        replace(attribute.metadata["field"], name=attribute.name)
        for attribute in attributes
        if "field" in attribute.metadata
    )
