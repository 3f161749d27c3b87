"""The server closes what dead planners left as it starts, and its own jobs before it ends."""

import os
import signal
import subprocess
import sys
import urllib.request

import psutil

from cache.history.store import Store
from cache.jobs.queue import STOPPED
from planner.request import GenerationRequest
from tests.browser import free_port
from tests.conftest import ROOT, make_environment
from tests.worker.test_jobs import eventually

# The app as `streamlit run` starts it, with a queue in its process as the Verify page makes one.
SERVER = """
import sys, threading
from dataclasses import replace
from streamlit.web import cli
from cache.history.store import Store
from cache.jobs.queue import Jobs
from tests.worker.test_jobs import CPU, REQUEST, eventually

def measure():
    sys.stdin.readline()
    command = [sys.executable, "-m", "tests.worker.scripted", "hang"]
    jobs = Jobs(Store(), worker_command=lambda kind: command)
    ids = [jobs.submit(replace(REQUEST, steps=2 + n), CPU) for n in range(5)]
    eventually(lambda: jobs.view(ids[0]).phase == "unet")
    print("worker", jobs.worker_pid, flush=True)
    threading.Event().wait()

threading.Thread(target=measure, daemon=True).start()
sys.argv = ["streamlit", "run", "streamlit_app.py"]
cli.main()
"""


def test_a_server_closes_orphans_as_it_starts_and_its_own_jobs_on_sigterm(own_history):
    store = Store(own_history)
    store.add_job("orphan", GenerationRequest(), make_environment(), "gone")
    port = free_port()
    settings = {"ADDRESS": "127.0.0.1", "PORT": str(port), "HEADLESS": "true"}
    environment = os.environ | {f"STREAMLIT_SERVER_{name}": value for name, value in settings.items()}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    server = subprocess.Popen([sys.executable, "-c", SERVER], cwd=ROOT, env=environment, text=True, **pipes)

    def is_up() -> bool:
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2).status == 200
        except OSError:
            assert server.poll() is None
            return False

    try:
        eventually(is_up, 60)
        # Nobody has opened a page.
        eventually(lambda: store.job("orphan")["state"] == "cancelled")
        server.stdin.write("go\n")
        server.stdin.flush()
        pid = next(int(line.split()[1]) for line in server.stdout if line.startswith("worker "))
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=30)
    finally:
        server.kill()
        server.communicate()
    assert not psutil.pid_exists(pid)
    assert store.open_jobs() == []
    reasons = [run.measured.reason for run in store.measurements()]
    assert reasons == [STOPPED] * 5 + ["the planner ended before this job began"]
    assert len(store.stopped_jobs()) == 6
