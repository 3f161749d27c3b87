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


def first_lines(name: str) -> list[tuple[int, str]]:
    """The first line of the docstring of each function and method of a module, with its place."""
    nodes = [
        node
        for node in ast.walk(ast.parse(FILES[name].read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    return [(node.lineno, text.splitlines()[0]) for node in nodes if (text := ast.get_docstring(node))]


def test_docstrings_open_with_a_verb():
    found = [f"{name}:{place}: {line}" for name in FILES for place, line in first_lines(name) if NO_VERB.match(line)]
    assert found == []


def test_first_lines_are_short():
    found = [f"{name}:{place}: {line}" for name in FILES for place, line in first_lines(name) if len(line) > LONGEST]
    assert found == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_in_docstrings_run(name):
    ran = doctest.testmod(import_module(name))
    assert ran.attempted and not ran.failed
