"""The worst patterns of prose stay out, and the examples in docstrings run. It is no judge of style beyond that."""

import ast
import doctest
import re
from importlib import import_module

import pytest

from tests.unit.test_imports import FILES

# A clause without a verb has to be read twice: "What a run took", "Whether it fits".
NO_VERB = re.compile(r"(What|Whether|That|Which|Who|How|Those|Something|Anything|Nothing|So (many|much))\b")
LONGEST = 100
EXAMPLES = [name for name, path in FILES.items() if re.search(r"^\s+>>> ", path.read_text(), re.MULTILINE)]


ALL = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
FUNCTIONS = ALL[2:]


def first_lines(name: str, kinds: tuple[type, ...]) -> list[tuple[int, str]]:
    """The first line of each docstring of these kinds in a module, with its place."""
    nodes = [node for node in ast.walk(ast.parse(FILES[name].read_text())) if isinstance(node, kinds)]
    texts = ((getattr(node, "lineno", 1), ast.get_docstring(node)) for node in nodes)
    return [(place, text.splitlines()[0]) for place, text in texts if text]


def test_docstrings_are_no_riddles():
    found = [
        f"{name}:{place}: {line}" for name in FILES for place, line in first_lines(name, ALL) if NO_VERB.match(line)
    ]
    assert found == []


def test_first_lines_are_short():
    found = [
        f"{name}:{place}: {line}"
        for name in FILES
        for place, line in first_lines(name, FUNCTIONS)
        if len(line) > LONGEST
    ]
    assert found == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_in_docstrings_run(name):
    ran = doctest.testmod(import_module(name))
    assert ran.attempted and not ran.failed
