"""The README shows what the program prints."""

import ast
import re
import shlex
import subprocess

import pytest

from planner.cards.lookup import CATALOGUE, card_named
from planner.cli import main as cli
from planner.formula import estimate
from planner.programs.files import shipped
from planner.programs.library import AREAS
from planner.replay.timeline import timeline_of
from planner.request import GenerationRequest
from planner.units import gib
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```console\n(.*?)```", README, re.DOTALL)


def sessions() -> list[tuple[list[str], str]]:
    """Every planner command in the README, with what stands below it."""
    found = []
    for block in BLOCKS:
        for part in block.split("$ ")[1:]:
            command, _, output = part.partition("\n")
            argv = shlex.split(command)
            if argv[:3] == ["python", "-m", "planner"]:
                found.append((argv[3:], output))
    return found


def test_there_are_sessions_to_check():
    assert len([output for argv, output in sessions() if argv[0] == "fit" and output]) >= 3


@pytest.mark.parametrize(
    ("argv", "output"), [s for s in sessions() if s[0][0] in ("fit", "sizes")], ids=lambda value: str(value)[:30]
)
def test_fit_and_sizes_print_what_the_readme_shows(argv, output, capsys):
    cli.main(argv)
    out, err = capsys.readouterr()
    assert out + err == output


@pytest.mark.parametrize("argv", [argv for argv, _ in sessions()], ids=" ".join)
def test_every_command_in_the_readme_exists(argv):
    assert cli._parser().parse_args(argv).run


@pytest.mark.parametrize(
    "command",
    [
        "fit",
        "sizes",
        "verify",
        "gpus",
        "compile",
        "accuracy",
        "doctor",
        "estimators",
        *(f"history {action}" for action in ("list", "show", "export", "import", "delete", "recover")),
    ],
)
def test_every_command_is_in_the_readme(command):
    assert f"python -m planner {command}" in README


def test_the_numbers_in_the_text_are_the_programs():
    large = timeline_of(GenerationRequest(width=1024, height=1024), card_named("A10"), shipped())
    scratch = next(part for part in large.parts if part.name == "of the running kernel")
    assert f"at 1024×1024 that is {gib(scratch.size_bytes)} of the peak" in README
    assert f"The order of the {large.events:,} events" in README
    total = estimate(GenerationRequest(width=2048, height=2048)).total_bytes
    assert f"says that all three fit, with {gib(total)}" in README
    tight = timeline_of(GenerationRequest(width=2048, height=2048), card_named("T4"), shipped()).run
    assert (tight.outcome, tight.fallbacks) == ("ok", 0) and tight.num_alloc_retries > 0
    assert len(AREAS) == 12 and "one of twelve areas" in README


def test_every_make_target_in_the_readme_exists():
    for target in re.findall(r"\$ make ([\w-]+)", README):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == 0, target


def test_the_readme_shows_pictures_that_are_there():
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).is_file()


def test_the_changelog_counts_the_catalogue():
    assert f"lists {len(CATALOGUE)} cards" in (ROOT / "CHANGELOG.md").read_text()


def test_every_requirement_is_bounded():
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (ROOT / name).read_text().splitlines():
            if line and not line.startswith(("#", "-r")):
                assert "==" in line or ("<" in line and ">=" in line), line


def test_the_architecture_names_every_room_with_its_own_sentence():
    text = (ROOT / "docs/architecture.md").read_text()
    rooms = [
        path.parent for folder in ("planner", "cache", "pages/shared") for path in (ROOT / folder).glob("*/__init__.py")
    ]
    assert len(rooms) > 20
    for room in rooms:
        name = room.relative_to(ROOT).as_posix()
        assert f"`{name}`" in text
        sentence, *_ = str(ast.get_docstring(ast.parse((room / "__init__.py").read_text()))).split("\n\n")
        if f"| `{name}` |" in text:
            assert f"| `{name}` | {sentence} |" in text


def test_the_files_that_the_architecture_names_are_there():
    text = (ROOT / "docs/architecture.md").read_text()
    for name in re.findall(r"(?:planner|cache|pages)/[\w/]+\.py", text):
        assert (ROOT / name).is_file(), name
