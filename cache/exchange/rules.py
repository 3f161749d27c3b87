"""Make rules for values that come from a file of somebody else: a rule takes a JSON value, and returns it or raises.

A rule does not know the path of its value; `Broken` collects the path as it is passed outwards.
"""

import json
import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import MISSING, fields
from difflib import get_close_matches
from typing import Any, Self

Rule = Callable[[Any], Any]

# Characters that move a terminal's cursor, reverse or break a line, and surrogates, which UTF-8 does not have.
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


ABSENT = _Absent()


class Broken(Exception):
    """A value breaks a rule; `path` is its place, such as ``stages[2].seconds``, and is empty for the whole."""

    def __init__(self, rule: str, value: Any, nearest: str | None = None):
        self.path, self.rule, self.value, self.nearest = "", rule, value, nearest
        super().__init__(rule)

    def inside(self, outer: str) -> Self:
        """Put a name before the path, and return itself."""
        dot = "." if self.path and not self.path.startswith("[") else ""
        self.path = f"{outer}{dot}{self.path}"
        return self

    @property
    def shown(self) -> str:
        """Write the value on one line of at most 80 characters.

        A list or an object is only named by its kind.
        """
        if isinstance(self.value, (list, dict)):
            return "a list" if isinstance(self.value, list) else "an object"
        shown = repr(self.value)
        return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise Broken("must not name a field twice", next(name for name in names if names.count(name) > 1))
    return made


def _no_constant(name: str) -> Any:
    raise Broken("must hold finite numbers only", name)


def load(text: str) -> Any:
    """Read the JSON value of a text.

    Raises:
        Broken: it is no JSON, names a field twice, holds NaN or an infinity, or is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except RecursionError:
        raise Broken("must not be nested so deeply", text) from None
    except ValueError as error:
        # A number of thousands of digits is a ValueError too, and no JSONDecodeError.
        why = "a number is too long"
        if isinstance(error, json.JSONDecodeError):
            line = f"line {error.lineno} " if error.lineno > 1 else ""
            why = f"{error.msg}, {line}column {error.colno}"
        raise Broken(f"must be JSON ({why})", text) from None


def whole(low: int, high: int) -> Rule:
    """Accept a whole number in this range, and not true or false."""

    def check(value: Any) -> int:
        if type(value) is int and low <= value <= high:
            return value
        raise Broken(f"must be a whole number between {low} and {high}", value)

    return check


def number(low: float, high: float) -> Rule:
    """Accept a finite number in this range, and return it as a float."""

    def check(value: Any) -> float:
        # Adding zero turns -0.0 into the equal 0.0.
        if type(value) in (int, float) and low <= value <= high:
            return float(value) + 0.0
        raise Broken(f"must be a number between {low:g} and {high:g}", value)

    return check


def truth(value: Any) -> bool:
    """Accept true or false, and no value that Python takes for one of them."""
    if type(value) is bool:
        return value
    raise Broken("must be true or false", value)


def scalar(value: Any) -> Any:
    """Accept text, a number of at most 64 bits, true, false or null, which the caller checks further."""
    if isinstance(value, (list, dict)):
        raise Broken("must be a single value", value)
    if type(value) is int and not -(2**63) <= value < 2**63:
        raise Broken("must be a number of at most 64 bits", value)
    return value


def text(longest: int) -> Rule:
    """Accept text of at most this many characters, without control characters."""

    def check(value: Any) -> str:
        if type(value) is not str or len(value) > longest:
            raise Broken(f"must be text of at most {longest} characters", value)
        # The first test is fast, and nearly all text passes it.
        if not value.isprintable() and UNSAFE.search(value):
            raise Broken("must be text without control characters", value)
        return value

    return check


def shaped(pattern: str, description: str) -> Rule:
    """Accept text that the whole pattern matches."""
    compiled = re.compile(pattern, re.ASCII)

    def check(value: Any) -> str:
        if type(value) is str and compiled.fullmatch(value):
            return value
        raise Broken(f"must be {description}", value)

    return check


def one_of(*choices: str) -> Rule:
    """Accept one of these words."""

    def check(value: Any) -> str:
        if type(value) is str and value in choices:
            return value
        close = get_close_matches(value[:80], choices, n=1) if type(value) is str else []
        hint = f"did you mean {close[0]}?" if close else None
        raise Broken(f"must be one of {', '.join(choices)}", value, hint)

    return check


def nullable(rule: Rule) -> Rule:
    """Accept null beside what the rule accepts."""
    return lambda value: None if value is None else rule(value)


def array(rule: Rule, unique: Callable[[Any], Hashable] | None = None) -> Rule:
    """Accept a list whose entries follow the rule, as a tuple.

    No two may have the same key by `unique`.
    """

    def check(value: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise Broken("must be a list", value)
        made, seen = [], set()
        for index, entry in enumerate(value):
            try:
                made.append(rule(entry))
            except Broken as broken:
                raise broken.inside(f"[{index}]") from None
            if unique is not None:
                key = unique(made[-1])
                if key in seen:
                    raise Broken("must not stand there twice", key).inside(f"[{index}]")
                seen.add(key)
        return tuple(made)

    return check


def table(rules: Mapping[str, Rule], optional: frozenset[str] = frozenset()) -> Rule:
    """Accept an object with these fields and no others; fields in `optional` may be missing."""
    needed = rules.keys() - optional

    def check(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise Broken("must be an object", value)
        unknown = next((name for name in value if name not in rules), None)
        if unknown is not None:
            close = get_close_matches(unknown[:80], rules, n=1)
            raise Broken("has an unknown field", unknown, f"did you mean {close[0]}?" if close else None)
        missing = next((name for name in rules if name in needed and name not in value), None)
        if missing is not None:
            raise Broken("must be given", ABSENT).inside(missing)
        made = {}
        for name, entry in value.items():
            try:
                made[name] = rules[name](entry)
            except Broken as broken:
                raise broken.inside(name) from None
        return made

    return check


def record(kind: Any, rules: Mapping[str, Rule]) -> Rule:
    """Accept an object with the fields of a dataclass.

    Fields whose default is None may be missing.
    """
    defaults = {field.name: (field.default, field.default_factory) for field in fields(kind)}
    assert defaults.keys() == rules.keys(), f"rules for {kind.__name__}: {defaults.keys() ^ rules.keys()}"
    check = table(rules, frozenset(name for name, default in defaults.items() if default == (None, MISSING)))
    return lambda value: kind(**check(value))
