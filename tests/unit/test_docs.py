"""The README shows what the program prints."""

import re
import shlex
import subprocess

import pytest

from planner import cli
from planner.gpus import CATALOGUE
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
    ("argv", "output"), [s for s in sessions() if s[0][0] == "fit"], ids=lambda value: str(value)[:30]
)
def test_fit_prints_what_the_readme_shows(argv, output, capsys):
    cli.main(argv)
    out, err = capsys.readouterr()
    assert out + err == output


@pytest.mark.parametrize("argv", [argv for argv, _ in sessions()], ids=" ".join)
def test_every_command_in_the_readme_exists(argv):
    assert cli._parser().parse_args(argv).run


@pytest.mark.parametrize(
    "command", ["fit", "verify", "gpus", "doctor", "history list", "history show", "history delete"]
)
def test_every_command_is_in_the_readme(command):
    assert f"python -m planner {command}" in README


def test_every_make_target_in_the_readme_exists():
    for target in re.findall(r"\$ make (\w+)", README):
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
