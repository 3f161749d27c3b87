"""Installed and missing libraries, and the versions that predictions are for."""

import pickle

import pytest

from cache import programs
from cache.machine import versions
from cache.machine.attached import cards, why_not_usable
from cache.machine.versions import NotInstalled, installed, missing, planned_for
from planner.components import LIBRARIES
from planner.errors import NoProgram
from planner.programs.files import shipped


def forget() -> None:
    for function in (versions._versions, installed, planned_for):
        function.cache_clear()


@pytest.fixture
def lacks(monkeypatch):
    """Hide some of the libraries."""
    was = versions.importlib.metadata.version

    def lack(*names: str) -> None:
        def version(name: str) -> str:
            if name in names:
                raise versions.importlib.metadata.PackageNotFoundError(name)
            return was(name)

        monkeypatch.setattr("importlib.metadata.version", version)
        forget()

    yield lack
    monkeypatch.undo()
    forget()


def test_installed_versions_are_planned_for():
    assert missing() is None
    assert planned_for() == installed() and set(installed()) == {*LIBRARIES, "python"}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("torch",), "torch is not installed"),
        (("diffusers", "accelerate"), "diffusers and accelerate are not installed"),
        (LIBRARIES, "torch, diffusers, transformers and accelerate are not installed"),
    ],
)
def test_missing_libraries_are_named_and_shipped_versions_planned_for(lacks, names, said):
    lacks(*names)
    with pytest.raises(NotInstalled) as caught:
        installed()
    assert caught.value.names == names and caught.value.reason == said
    assert str(caught.value).startswith(f"{said} - 'pip install -r requirements.txt'")
    # Streamlit's cache pickles what it keeps.
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert {name: planned_for()[name] for name in LIBRARIES} == dict(shipped().versions)


def test_without_torch_the_shipped_programs_answer(lacks):
    lacks("torch")
    assert programs.find() == (shipped(), None)
    assert programs.last_failure() is None
    with pytest.raises(NotInstalled):
        programs.compile_installed(lambda done, what: None)


def test_without_torch_and_programs_the_formula_answers(lacks, monkeypatch):
    def gone():
        raise NoProgram("the shipped memory programs cannot be read - 'python -m planner compile'")

    lacks("torch")
    monkeypatch.setattr("cache.programs.shipped", gone)
    monkeypatch.setattr("cache.machine.versions.shipped", gone)
    library, notice = programs.find()
    assert library is None and "pip install -r requirements.txt" in notice and "the formula answers" in notice
    assert planned_for()["torch"] == "unknown"


def test_missing_torch_is_not_reported_as_a_cpu_build(lacks, nvml):
    lacks("torch")
    problem = why_not_usable(cards()[0])
    assert problem.reason == "Tesla T4: torch is not installed" and "pip install -r requirements.txt" in problem.advice
