"""The images' files, settings and commands, as the Dockerfile has them, started here without Docker.

The folder has the copied files only, and Python finds no other copy of the project. The plan image's libraries are
those of its list: all others are hidden. Paths, the port and the address are replaced, because a test listens on
127.0.0.1 and nowhere else.
"""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import expect

from cache.history.store import Store
from planner.request import GenerationRequest
from tests.browser import free_port
from tests.conftest import make_environment, make_measured
from tests.container import STAGES, build_folder
from tests.hiding import hiding, installed_beyond

# `docker stop` kills what has not ended by then.
GRACE_S = 10
# An editable install is on Python's path; the image has no such copy of the project.
NO_OTHER_COPY = """
sys.path[:] = [path for path in sys.path if not os.path.isdir(os.path.join(path, "planner"))]
"""


class Container:
    """A folder for each place of the image, and its commands with the image's environment."""

    def __init__(self, target: str, folder: Path, *, without: str = "\0", **settings: str):
        self.stage = STAGES[target]
        self.app, self.data, self.tmp, hook = (folder / name for name in ("app", "data", "tmp", "hook"))
        for each in (self.app, self.data, self.tmp, hook):
            each.mkdir()
        build_folder(self.app, STAGES["code"], without=without)
        places = {"/data": str(self.data), "/tmp": str(self.tmp)}
        image = {
            name: re.sub(r"^/(data|tmp)", lambda found: places[found[0]], value)
            for name, value in self.stage.env.items()
        }
        assert image["STREAMLIT_SERVER_ADDRESS"] == "0.0.0.0"
        self.port = free_port()
        image |= {"STREAMLIT_SERVER_ADDRESS": "127.0.0.1", "STREAMLIT_SERVER_PORT": str(self.port)}
        hidden = installed_beyond("requirements-plan.txt") if target == "plan" else set()
        path = hiding(hidden, hook)
        with (hook / "sitecustomize.py").open("a") as code:
            code.write(NO_OTHER_COPY)
        self.environment = {"PATH": os.environ["PATH"], "TMPDIR": str(self.tmp)} | path | image | settings
        self.log = folder / "log"

    def start(self) -> subprocess.Popen:
        """Start what CMD says."""
        with self.log.open("w") as output:
            return subprocess.Popen(
                self._own(self.stage.command), cwd=self.app, env=self.environment, stdout=output, stderr=output
            )

    def is_healthy(self) -> bool:
        """Run what HEALTHCHECK says."""
        command = self._own(self.stage.health)
        done = subprocess.run(command, cwd=self.app, env=self.environment, capture_output=True, timeout=20, check=False)
        return done.returncode == 0

    @staticmethod
    def _own(command: list[str]) -> list[str]:
        assert command[0] == "python"
        return [sys.executable, *command[1:]]


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize(("target", "base"), [("plan", ""), ("gpu", "/team/fit")], ids=["plan", "gpu below a path"])
def test_it_starts_answers_and_ends_as_the_dockerfile_says(target, base, browser, tmp_path):
    container = Container(target, tmp_path, STREAMLIT_SERVER_BASE_URL_PATH=base)
    history = Store(container.data / "planner.db")
    history.save_measurement(GenerationRequest(), make_environment(), make_measured())
    copied = files(container.app)
    assert not container.is_healthy()
    process = container.start()
    try:
        deadline = time.monotonic() + 60
        while not container.is_healthy():
            assert process.poll() is None and time.monotonic() < deadline, container.log.read_text()
            time.sleep(0.2)
        address = f"http://127.0.0.1:{container.port}{base}"
        with urllib.request.urlopen(f"{address}/api/fit?gpu=T4", timeout=30) as answer:
            assert [row["name"] for row in json.load(answer)["gpus"]] == ["T4"]
        with urllib.request.urlopen(f"{address}/", timeout=30) as answer:
            assert b'<div id="root">' in answer.read()

        page = browser.new_page()
        page.goto(f"{address}/History")
        expect(page.get_by_text("1 of 1 run")).to_be_visible()
        for name in ("Plan", "Accuracy", "Verify"):
            page.goto(f"{address}/{'' if name == 'Plan' else name}")
            expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()
        # The plan image says that it runs nothing.
        expect(page.get_by_text("Nothing can be run here")).to_have_count(1 if target == "plan" else 0)
        expect(page.get_by_role("button", name="Notebook for a Colab T4")).to_be_visible()

        # A page stays open: its connection must not hold the end up.
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=GRACE_S)
        page.close()
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in container.log.read_text()
    assert not container.is_healthy()
    assert [run.request for run in Store(history.path).measurements()] == [GenerationRequest()]
    with sqlite3.connect(history.path) as db:
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)
    db.close()
    # A read-only container has only its data and /tmp to write to, and the app leaves no home folder behind.
    assert files(container.app) == copied
    assert {name.partition("/")[0] for name in files(container.tmp)} <= {"torchinductor_root", "will-it-fit"}
    # The replay is compiled for the next start too.
    assert any(name.startswith("numba/") for name in files(container.data))


@pytest.mark.parametrize("forgotten", ["cache/", "planner/programs/", "streamlit_app.py"])
def test_a_file_that_is_not_copied_ends_the_start(forgotten, tmp_path):
    container = Container("plan", tmp_path, without=forgotten)
    process = container.start()
    try:
        assert process.wait(timeout=60) != 0
    finally:
        process.kill()
        process.wait()
    assert not container.is_healthy()
