"""Who may import whom: one ordered list a package, no circle, and torch only where a pipeline runs."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Each part, a folder or a file, may import only those to the left of it.
ORDER = {
    "planner": "errors units components fields request cards answer formula programs tracing replay calibration fit "
    "alternatives plan accuracy report cli",
    "cache": "records outcomes tokens refusals settings places logs files machine exchange history programs "
    "predictions allocations worker jobs doctor gpu_check",
    "pages.shared": "frame guard controls plan history verify accuracy server",
}
# The packages themselves, likewise.
PACKAGES = ("planner", "cache", "pages.shared", "pages", "streamlit_app")
MOST_FILES = 16

TORCH = {"torch", "diffusers", "transformers", "accelerate", "tokenizers"}
STORE = {"sqlite3", "sqlite_utils"}
UI = {"streamlit", "altair", "pandas"}
# Both run in a process of their own, and nothing else imports them.
RUNS_TORCH = ("planner.tracing", "cache.worker")

FOLDERS = ("planner", "cache", "pages")
PATHS = [ROOT / "streamlit_app.py", *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix().removesuffix(".py").removesuffix("/__init__").replace("/", ".")


FILES = {name_of(path): path for path in sorted(PATHS)}
TESTS = {name_of(path): path for path in sorted((ROOT / "tests").rglob("*.py"))}


def imported(path: Path, *, module_level_only: bool = False) -> Iterator[str]:
    """Names of imported modules in full, at any level; of what comes from a package, its modules."""
    tree = ast.parse(path.read_text())
    for node in tree.body if module_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in FILES or whole in TESTS else str(node.module)


IMPORTS = {name: set(imported(path)) for name, path in (FILES | TESTS).items()}
# It starts the commands by their names, as strings.
IMPORTS["planner.cli.main"] |= {name for name in FILES if name.startswith("planner.cli.")} - {"planner.cli.main"}


def tops(name: str) -> set[str]:
    return {one.partition(".")[0] for one in IMPORTS[name]}


def package_of(name: str) -> str:
    return next((one for one in PACKAGES if name == one or name.startswith(f"{one}.")), "")


def part_of(name: str, package: str) -> str | None:
    return name.removeprefix(f"{package}.").partition(".")[0] if name.startswith(f"{package}.") else None


def is_within(name: str, *packages: str) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in packages)


def test_there_are_files_to_check():
    assert len(FILES) > 100 and {"planner.cli.main", "cache.worker.serve", "pages.1_Verify"} <= FILES.keys()


@pytest.mark.parametrize("package", ORDER)
def test_each_part_imports_only_those_before_it(package):
    order = ORDER[package].split()
    wrong = [
        (name, other)
        for name in FILES
        for other in IMPORTS[name] & FILES.keys()
        if (here := part_of(name, package)) and (there := part_of(other, package)) and here != "__main__"
        if order.index(there) > order.index(here)
    ]
    assert wrong == []


def test_packages_import_only_those_before_them():
    """The terminal is the one part of the planner that reaches for the history."""
    wrong = [
        (name, other)
        for name in FILES
        for other in IMPORTS[name] & FILES.keys()
        if PACKAGES.index(package_of(other)) > PACKAGES.index(package_of(name))
        and not (is_within(name, "planner.cli") and is_within(other, "cache"))
    ]
    assert wrong == []


def test_no_import_leads_back():
    """In no function either: a circle that is hidden from Python is one all the same."""
    done: set[str] = set()
    for name in FILES:
        todo, seen = [name], set()
        while todo:
            new = (IMPORTS[todo.pop()] & FILES.keys()) - seen - done
            assert name not in new, f"{name} imports itself by a circle"
            seen |= new
            todo += new
        done.add(name)


@pytest.mark.parametrize("folder", sorted({path.parent for path in PATHS} - {ROOT}), ids=lambda one: one.name)
def test_a_folder_can_be_taken_in_at_a_glance(folder):
    assert len(list(folder.glob("*.py"))) <= MOST_FILES
    described = (folder / "__init__.py").read_text() if (folder / "__init__.py").exists() else '"""'
    assert described.startswith('"""')


def test_the_core_imports_the_standard_library_and_numpy():
    core = [name for name in FILES if is_within(name, "planner") and not is_within(name, "planner.cli", *RUNS_TORCH)]
    known = {"planner", "numpy", *sys.stdlib_module_names} - STORE
    others = {name: tops(name) - known for name in core if tops(name) - known}
    # The compiled replay alone needs more, and every answer is found without it.
    assert others == {"planner.replay.compiled": {"numba"}}


def test_the_cache_knows_no_page():
    of_cache = [name for name in FILES if is_within(name, "cache")]
    assert [name for name in of_cache if tops(name) & (UI | {"pages", "tests"})] == []


def test_torch_is_imported_only_where_a_pipeline_runs():
    others = [name for name in FILES if not is_within(name, *RUNS_TORCH)]
    assert [name for name in others if tops(name) & TORCH] == []
    heavy = {name for name in FILES if is_within(name, *RUNS_TORCH)}
    assert [name for name in others if IMPORTS[name] & heavy] == []


def test_pages_reach_the_database_only_through_the_store():
    pages = [name for name in FILES if is_within(name, "pages", "streamlit_app")]
    assert [name for name in pages if tops(name) & {*STORE, "tests"}] == []


def test_the_worker_starts_before_torch_is_there():
    for name in ("cache.worker.__main__", "cache.worker.serve"):
        assert not {one.partition(".")[0] for one in imported(FILES[name], module_level_only=True)} & TORCH


def runs_as_main(path: Path) -> bool:
    return any(
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        for node in ast.parse(path.read_text()).body
    )


MAINS = [name for name, path in (FILES | TESTS).items() if runs_as_main(path)]


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
    assert {"cache.worker.__main__", "planner.__main__", "planner.tracing.compiler"} <= set(MAINS)
    # As `python -m cache.worker` reaches its backend.
    assert "cache.worker.measure" in reached_from("cache.worker.__main__")


@pytest.mark.parametrize("main", MAINS)
def test_a_module_that_runs_as_main_is_not_imported_a_second_time(main):
    """It would exist twice: an exception that the one raises is not the one that the other catches."""
    assert main not in reached_from(main)
    if main in FILES:
        assert [name for name in FILES if main in IMPORTS[name]] == []
