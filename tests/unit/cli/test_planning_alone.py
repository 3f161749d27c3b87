"""Planning needs the shipped programs and requirements-plan.txt alone, without torch and its libraries."""

import json

import pytest

from planner.cards.lookup import card_named
from planner.fit import fit
from planner.programs.files import shipped
from planner.request import GenerationRequest
from tests.conftest import ROOT
from tests.hiding import installed_beyond, python_without, required

HEAVY = ("torch", "diffusers", "transformers", "accelerate", "peft")
ABSENT = installed_beyond("requirements-plan.txt")
NOT_INSTALLED = "torch, diffusers, transformers and accelerate are not installed"
VERSIONS = ", ".join(f"{name} {version}" for name, version in shipped().versions.items())

# Each page as a cold visitor opens it; what it shows goes to stdout.
OPEN_PAGES = """
import json, sys
from streamlit.testing.v1 import AppTest
from pages.shared.server.app import ROUTES
seen = {}
for page in sys.argv[1:]:
    at = AppTest.from_file("streamlit_app.py", default_timeout=60)
    if page != "streamlit_app.py":
        at.switch_page(page)
    at.run()
    told = [*at.warning, *at.info, *at.error, *at.exception, *at.caption]
    disabled = [button.disabled for button in at.button if button.key == "verify"]
    seen[page] = [len(at.exception), "\\n".join(one.value for one in told), disabled]
print(json.dumps(seen))
"""


def without_torch(folder, *arguments: str):
    return python_without(ABSENT, folder, *arguments)


def planner(folder, *arguments: str):
    return without_torch(folder, "-m", "planner", *arguments)


def test_planning_requirements_are_part_of_all_requirements():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert "-r requirements-plan.txt" in lines
    assert {canonical.partition("==")[0] for canonical in lines if "==" in canonical} == set(HEAVY)
    needed = required("requirements-plan.txt")
    assert "numpy" in needed and not needed & set(HEAVY)
    # What is hidden below is what planning must do without, and nothing that it needs.
    assert set(HEAVY) <= ABSENT and "pytest" in ABSENT and not ABSENT & {"numpy", "streamlit", "pandas", "psutil"}
    # 'make' installs anew where either list changed.
    assert "/.installed: requirements.txt requirements-plan.txt pyproject.toml |" in (ROOT / "Makefile").read_text()


def test_hidden_libraries_cannot_be_found(tmp_path):
    code = (
        "import importlib.metadata as m, importlib.util as u; print(u.find_spec('torch'), end=' '); m.version('torch')"
    )
    done = without_torch(tmp_path, "-c", code)
    assert done.stdout == "None " and "PackageNotFoundError" in done.stderr
    assert (
        "ModuleNotFoundError: No module named 'diffusers'" in without_torch(tmp_path, "-c", "import diffusers").stderr
    )


def test_fit_answers_as_with_torch(tmp_path):
    done = planner(tmp_path, "fit", "--gpu", "T4", "--width", "2048", "--height", "2048", "--json")
    assert (done.returncode, done.stderr.count("Traceback")) == (11, 0)
    [row] = json.loads(done.stdout)["gpus"]
    request = GenerationRequest(width=2048, height=2048)
    assert row["need_bytes"] == fit(request, card_named("T4"), library=shipped()).need_bytes
    assert "not for the installed" not in done.stderr


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("fit --format md", f"Stable Diffusion v1.5 with {VERSIONS}"),
        ("fit --prompt cat", "the prompt is 3 tokens"),
        ("fit --basis formula", "formula"),
        ("sizes", "the smallest of these GPUs"),
        ("gpus", "A100-40GB"),
        ("history list", "no run was measured yet"),
        ("history list --reference", "Tesla P100"),
        ("history export -", ""),
        ("doctor", f"· Libraries: {NOT_INSTALLED}: planning works without"),
    ],
)
def test_planning_works_without_the_libraries(tmp_path, command, said):
    done = planner(tmp_path, *command.split())
    assert done.returncode == 0, done.stderr
    assert said in done.stdout + done.stderr


def test_doctor_says_what_to_do_and_what_is_planned_with(tmp_path):
    checks = {check["name"]: check for check in json.loads(planner(tmp_path, "doctor", "--json").stdout)["checks"]}
    assert "pip install -r requirements.txt" in checks["Libraries"]["advice"]
    assert checks["Memory programs"]["state"] == "ok" and VERSIONS in checks["Memory programs"]["found"]
    assert checks["History"]["state"] == "ok"


@pytest.mark.parametrize(
    "command", ["verify", "verify --device cpu", "verify --sweep grid", "compile", "compile --force"]
)
def test_measuring_commands_say_what_to_install(tmp_path, command):
    done = planner(tmp_path, *command.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {NOT_INSTALLED} - 'pip install -r requirements.txt', which 'make run' does in .venv, installs what "
        "measuring and compiling need; planning works without\n"
    )


def test_one_missing_library_is_named_alone(tmp_path):
    done = python_without(["accelerate"], tmp_path, "-m", "planner", "verify", "--device", "cpu")
    assert done.returncode == 2 and done.stderr.startswith("error: accelerate is not installed - ")
    assert planner_lacking(tmp_path, "accelerate").returncode == 0


def planner_lacking(folder, name: str, *command: str):
    return python_without([name], folder, "-m", "planner", *(command or ("fit",)))


def test_every_page_opens_and_verify_says_what_to_install(tmp_path):
    names = ["streamlit_app.py", *sorted(f"pages/{path.name}" for path in (ROOT / "pages").glob("*.py"))]
    done = without_torch(tmp_path, "-c", OPEN_PAGES, *names)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert list(seen) == names and len(names) == 4
    for page, (exceptions, told, _) in seen.items():
        assert not exceptions and "Traceback" not in told, page
        assert (NOT_INSTALLED.capitalize() in told or NOT_INSTALLED in told) == (page == "pages/1_Verify.py"), page
    _, told, disabled = seen["pages/1_Verify.py"]
    assert disabled == [True]
    assert "pip install -r requirements.txt" in told and "Rehearse" not in told


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("numpy", "fit"),
        ("numpy", "sizes"),
        ("platformdirs", "fit"),
        ("psutil", "doctor"),
        ("nvidia-ml-py", "doctor"),
        ("sqlite-utils", "history list"),
        ("instant-clip-tokenizer", "fit --prompt cat"),
    ],
)
def test_a_python_that_lacks_a_planning_library_says_what_to_run(tmp_path, name, command):
    module = {"nvidia-ml-py": "pynvml"}.get(name, name.replace("-", "_"))
    done = planner_lacking(tmp_path, name, *command.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: this Python has no {module} - 'pip install -r requirements-plan.txt' installs what planning needs, or "
        "'make run' sets up .venv, for '.venv/bin/python -m planner'\n"
    )
