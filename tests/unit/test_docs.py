"""Hold the documents to the program: what it prints, its commands, its files, and the links between pages."""

import ast
import os
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import click
import pytest

from cache.exchange.lines import lines_of
from cache.history.reference import reference_runs
from cache.history.store import Store
from planner.cards.lookup import CATALOGUE, card_named
from planner.cli import main as cli
from planner.cli.history import measurement_text
from planner.formula import estimate
from planner.programs.files import shipped
from planner.programs.library import AREAS
from planner.replay.timeline import timeline_of
from planner.request import GenerationRequest
from planner.units import gib
from tests.conftest import ROOT
from tests.documents import CONSOLE, PAGES, sessions, shown
from tests.unit.exchange.test_lines import ON_CPU, changed, measurement_of

TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in PAGES}
TEMPLATES = {path.name: path.read_text() for path in sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))}
# The changelog has commands of releases that are gone.
OF_TODAY = {name: text for name, text in TEXTS.items() if name != "CHANGELOG.md"}
USE, HOW = TEXTS["docs/use.md"], TEXTS["docs/how-it-works.md"]
SESSIONS = sessions()
PRINTED = [one for one in SESSIONS if one.is_repeatable and one.output]
LINK = re.compile(r"(?<!`)\[[^]\n]*\]\((?P<target>[^)\s]+)\)")
INLINE = re.compile(r"`(?:\.venv/bin/)?python -m planner (?P<arguments>[^`]+)`")


def check_parses(argv: list[str]) -> None:
    """Parse a command line without running it."""
    group, name, *rest = cli.commands, *argv
    while isinstance(command := group.get_command(click.Context(group), name), click.Group):
        group, name, *rest = command, *rest
    assert command.make_context(name, rest), argv


def test_there_are_pages_and_sessions_to_check():
    assert {"README.md", "CONTRIBUTING.md", "docs/use.md", "docs/architecture.md"} <= TEXTS.keys()
    assert {"wrong-prediction.yml", "bug.yml", "idea.yml"} == TEMPLATES.keys()
    assert {one.page for one in PRINTED} >= {"README.md", "docs/use.md", "docs/how-it-works.md"}
    assert len(PRINTED) >= 6


@pytest.mark.parametrize("session", PRINTED, ids=lambda one: " ".join(one.argv))
def test_commands_print_what_the_documents_show(session):
    assert shown(session.argv) == session.output, "run 'make documents'"


@pytest.mark.parametrize("session", SESSIONS, ids=lambda one: " ".join(one.argv))
def test_every_command_in_a_console_block_exists(session):
    check_parses(session.argv)


@pytest.mark.parametrize("name", [*OF_TODAY, *TEMPLATES])
def test_every_command_in_the_text_exists(name):
    for arguments in INLINE.findall((OF_TODAY | TEMPLATES)[name]):
        check_parses(shlex.split(arguments))


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
def test_every_command_has_its_place_in_the_guide(command):
    assert any(" ".join(one.argv).startswith(command) for one in SESSIONS if one.page == "docs/use.md")


def test_the_rehearsal_is_printed_as_the_guide_shows():
    (output,) = (one.output for one in SESSIONS if one.argv[0] == "verify" and one.output)
    printed = measurement_text(replace(measurement_of(changed(**ON_CPU), 1), origin="own")).splitlines()
    lines = output.splitlines()
    assert [line.split()[0] for line in lines[:7]] == [line.split()[0] for line in printed[:7]]
    header = next(line for line in printed if line.startswith("peak")).split()
    assert next(line for line in lines if line.startswith("peak")).split()[:2] == header[:2]
    assert lines[-1] == printed[-1]


def test_runs_travel_as_the_format_shows(capsys, tmp_path, monkeypatch):
    """Exported from one history, imported into another, and imported there again."""
    shows = [one for one in SESSIONS if one.page == "docs/history-format.md" and one.output]
    count = int(re.findall(r"exported (\d+) runs", shows[0].output)[0])
    # As if they had been measured here.
    runs = [run for run in reference_runs() if run.scope == "pipeline"][:count]
    (tmp_path / "other.jsonl").write_text("\n".join(lines_of(runs)) + "\n")
    monkeypatch.chdir(tmp_path)
    Store(Path(os.environ["PLANNER_DB"]))
    assert cli.main(["history", "import", "other.jsonl"]) == 0
    capsys.readouterr()
    for index, one in enumerate(shows):
        if index == 1:
            monkeypatch.setenv("PLANNER_DB", str(tmp_path / "laptop.db"))
        assert cli.main(one.argv) == 0
        out, err = capsys.readouterr()
        assert out + err == one.output


def test_the_numbers_in_the_text_are_the_programs():
    large = timeline_of(GenerationRequest(width=1024, height=1024), card_named("A10"), shipped())
    scratch = next(part for part in large.parts if part.name == "of the running kernel")
    assert f"at 1024×1024 that is {gib(scratch.size_bytes)} of the peak" in HOW
    assert f"Its {large.events:,} events" in HOW
    total = estimate(GenerationRequest(width=2048, height=2048)).total_bytes
    assert f"that all three fit, with {gib(total)}" in USE
    assert f"that all three GPUs fit, with {gib(total)}" in TEXTS["README.md"]
    tight = timeline_of(GenerationRequest(width=2048, height=2048), card_named("T4"), shipped()).run
    assert (tight.outcome, tight.fallbacks) == ("ok", 0) and tight.num_alloc_retries > 0
    assert len(AREAS) == 12 and "one of twelve areas" in HOW


def test_the_catalogue_is_counted():
    assert f"the {len(CATALOGUE)} GPUs of the catalogue" in USE
    assert f"lists {len(CATALOGUE)} GPUs" in TEXTS["CHANGELOG.md"]


@pytest.mark.parametrize("name", OF_TODAY)
def test_every_make_target_exists(name):
    blocks = "\n".join(CONSOLE.findall(OF_TODAY[name]))
    for line in re.findall(r"^\$ make (.+)$", blocks, re.M) + re.findall(r"`make ([^`]+)`", OF_TODAY[name]):
        done = subprocess.run(["make", "-n", *line.split()], cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == 0, line


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)


def anchors(text: str) -> list[str]:
    """Names by which GitHub links to the headings of a page; a heading that comes again is numbered."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", without_code(text), re.M):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        again = sum(one == name or re.fullmatch(f"{re.escape(name)}-\\d+", one) is not None for one in found)
        found.append(f"{name}-{again}" if again else name)
    return found


def broken_links(name: str, text: str) -> list[str]:
    """List links of a page that lead to no file of the project, or to no heading of that page."""
    broken = []
    for target in LINK.findall(without_code(text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (ROOT / name).parent / path if path else ROOT / name
        is_wrong = not there.exists() or ROOT not in there.resolve().parents
        if is_wrong or (anchor and anchor not in anchors(text if not path else there.read_text())):
            broken.append(target)
    return broken


@pytest.mark.parametrize("name", TEXTS)
def test_links_and_pictures_lead_somewhere(name):
    assert broken_links(name, TEXTS[name]) == []


def test_broken_links_are_found():
    text = "# One `two`: three\n[a](docs/use.md) [b](#one-two-three) [c](#two) [d](docs/none.md) [e](docs/use.md#none)"
    assert broken_links("README.md", text) == ["#two", "docs/none.md", "docs/use.md#none"]


def test_every_document_is_linked_from_the_readme():
    linked = {(ROOT / target.partition("#")[0]).resolve() for target in LINK.findall(TEXTS["README.md"])}
    assert [name for name in TEXTS if name != "README.md" and ROOT / name not in linked] == []


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) < 80
    assert "call the command line as `.venv/bin/python -m planner`" in TEXTS["README.md"]


def pattern_of(node: ast.expr) -> str | None:
    """The text that a string or an f-string can become, as a regular expression; None where little of it is fixed."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    texts = [part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else None for part in parts]
    if sum(len(text or "") for text in texts) < 8:
        return None
    return "".join(".+" if text is None else re.escape(text) for text in texts)


def test_the_bench_prints_the_figures_of_the_document():
    """Figures are not measured here: their names are held to the strings of the bench."""
    patterns = {
        pattern
        for path in (ROOT / "tests/bench").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.JoinedStr, ast.Constant)) and (pattern := pattern_of(node))
    }
    table = TEXTS["docs/performance.md"].partition("```text\n")[2].partition("```")[0].splitlines()
    names = [re.split(r"  +", line)[0] for line in table[2:]]
    assert len(names) > 20
    assert [name for name in names if not any(re.fullmatch(pattern, name) for pattern in patterns)] == []


def test_every_requirement_is_bounded():
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (ROOT / name).read_text().splitlines():
            if line and not line.startswith(("#", "-r")):
                assert "==" in line or ("<" in line and ">=" in line), line


def test_the_architecture_names_every_folder_with_its_own_sentence():
    text = TEXTS["docs/architecture.md"]
    folders = [
        path.parent
        for package in ("planner", "cache", "pages/shared")
        for path in (ROOT / package).glob("*/__init__.py")
    ]
    assert len(folders) > 20
    for folder in folders:
        name = folder.relative_to(ROOT).as_posix()
        assert f"`{name}`" in text
        sentence, *_ = str(ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))).split("\n\n")
        if f"| `{name}` |" in text:
            assert f"| `{name}` | {sentence} |" in text


@pytest.mark.parametrize("name", OF_TODAY)
def test_files_that_documents_name_are_there(name):
    for path in re.findall(r"`((?:planner|cache|pages|tests|notebooks)/[\w/.]+)`", OF_TODAY[name]):
        # An example of a file to add.
        assert (ROOT / path).exists() or path == "pages/4_Name.py", path


def test_the_places_of_changes_have_what_they_name():
    rows = TEXTS["docs/architecture.md"].partition("## Where a change goes")[2].partition("\n## ")[0]
    named = re.findall(r"`([\w/]+\.py)`, `(\w+)`(?: and `(\w+)`)?", rows)
    assert len(named) >= 6
    for path, *symbols in named:
        text = (ROOT / path).read_text()
        for symbol in filter(None, symbols):
            assert re.search(rf"^(?:class|def) {symbol}\b", text, re.M), f"{path}, {symbol}"
