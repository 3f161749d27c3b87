"""Who may import what: pages -> pages/shared -> cache -> planner, and torch only where a pipeline runs."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

TORCH = {"torch", "diffusers", "transformers", "accelerate", "tokenizers"}
STORE = {"sqlite3", "sqlite_utils"}
UI = {"streamlit", "altair", "pandas"}
OURS = {"planner", "cache", "pages", "tests"}

RUNS_TORCH = {
    "cache/worker.py",
    "cache/pipelines.py",
    "cache/measure.py",
    "cache/probes.py",
    "planner/modules.py",
    "planner/recorder.py",
    "planner/trace.py",
    "planner/frames.py",
    "planner/compiler.py",
}
# Shells: the CLI may reach the history inside its commands.
SHELLS = {
    "planner/cli.py",
    "planner/cli_history.py",
    "planner/cli_verify.py",
    "planner/cli_exchange.py",
    "planner/cli_sizes.py",
    "planner/cli_estimators.py",
    "planner/cli_recover.py",
}

FOLDERS = ("planner", "cache", "pages")
PATHS = [ROOT / "streamlit_app.py", *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]
FILES = sorted(path.relative_to(ROOT).as_posix() for path in PATHS)


def imported(path: Path, *, module_level_only: bool = False) -> Iterator[str]:
    """Names of imported modules, in full."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if module_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module)


def tops(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


def test_there_are_files_to_check():
    assert len(FILES) > 25


@pytest.mark.parametrize("file", [f for f in FILES if f.startswith("planner/") and f not in SHELLS | RUNS_TORCH])
def test_the_core_imports_the_standard_library_and_numpy(file):
    assert tops(ROOT / file) - set(sys.stdlib_module_names) <= {"planner", "numpy"}
    assert not tops(ROOT / file) & STORE


@pytest.mark.parametrize("file", [f for f in FILES if f.startswith("cache/")])
def test_the_cache_knows_no_page(file):
    assert not tops(ROOT / file) & (UI | {"pages", "tests"})


@pytest.mark.parametrize("file", [f for f in FILES if f not in RUNS_TORCH])
def test_torch_is_imported_only_where_a_pipeline_runs(file):
    assert not tops(ROOT / file) & TORCH


@pytest.mark.parametrize("file", [f for f in FILES if f not in RUNS_TORCH])
def test_nothing_else_imports_what_imports_torch(file):
    heavy = {name.removesuffix(".py").replace("/", ".") for name in RUNS_TORCH}
    assert not heavy & set(imported(ROOT / file))


@pytest.mark.parametrize("file", [f for f in FILES if f.startswith("pages/") or f == "streamlit_app.py"])
def test_pages_reach_the_database_only_through_the_store(file):
    # The launcher imports sqlite_utils to have it loaded before the first visitor.
    allowed = {"sqlite_utils"} if file == "pages/shared/serve.py" else set()
    assert not (tops(ROOT / file) & STORE) - allowed
    assert "tests" not in tops(ROOT / file)


def test_the_worker_starts_before_torch_is_there():
    assert not {name.partition(".")[0] for name in imported(ROOT / "cache/worker.py", module_level_only=True)} & TORCH


ALL = sorted(
    path.relative_to(ROOT).as_posix() for folder in (*FOLDERS, "tests") for path in (ROOT / folder).rglob("*.py")
)


def modules_in(path: Path) -> set[str]:
    """Names of imported modules, with those of what is imported from a package, which may be modules too."""
    found = set(imported(path))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def runs_as_main(path: Path) -> bool:
    return any(
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        for node in ast.parse(path.read_text()).body
    )


def name_of(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MAINS = {name_of(file): file for file in ALL if runs_as_main(ROOT / file)}
IMPORTS = {name_of(file): modules_in(ROOT / file) for file in ALL}


def reached_from(module: str) -> set[str]:
    """Modules of ours that this one imports at any level, itself only where a circle leads back to it."""
    found: set[str] = set()
    todo = [module]
    while todo:
        new = (IMPORTS[todo.pop()] & IMPORTS.keys()) - found
        found |= new
        todo += new
    return found


def test_modules_run_as_main_are_found():
    assert {"cache.worker", "planner.__main__", "planner.compiler", "pages.shared.serve"} <= MAINS.keys()
    # As `python -m cache.worker` reaches its backend.
    assert "cache.measure" in reached_from("cache.worker")


@pytest.mark.parametrize("main", MAINS)
def test_a_module_that_runs_as_main_is_not_imported_a_second_time(main):
    """It would exist twice: an exception that the one raises is not the one that the other catches."""
    assert main not in reached_from(main)


@pytest.mark.parametrize("main", [main for main in MAINS if not main.startswith("tests.")])
def test_nothing_that_ships_imports_a_module_that_runs_as_main(main):
    assert [name for name, modules in IMPORTS.items() if main in modules and not name.startswith("tests.")] == []
