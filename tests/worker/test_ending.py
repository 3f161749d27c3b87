"""A planner that ends or is killed: its worker goes, its rows are closed, and its jobs can be queued again."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import psutil
import pytest

from cache import logs
from cache.history.store import Store
from cache.jobs import host_memory
from cache.jobs.ending import close_all
from cache.jobs.limits import QueueFull
from cache.jobs.lock import device_lock
from cache.jobs.owner import Owner, _started
from cache.jobs.queue import STOPPED, close_orphans, tidy
from cache.machine.attached import cards
from cache.machine.device import Device
from cache.settings import ALL
from planner.errors import InvalidArgument, PlannerError
from tests.conftest import ROOT, make_environment
from tests.worker.test_jobs import CPU, REQUEST, eventually

# A planner with many jobs, of which the first runs; it says so, and then waits for what becomes of it.
PLANNER = """
import signal, sys, time
# Whoever started the tests may ignore these, as nohup does, and what is ignored stays so in a child.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from dataclasses import replace
from cache.history.store import Store
from cache.jobs.ending import signals_as_exit
from cache.jobs.queue import Jobs
from tests.worker.test_jobs import CPU, REQUEST
command = [sys.executable, "-m", "tests.worker.scripted", sys.argv[1]]
jobs = Jobs(Store(), worker_command=lambda kind: command)
ids = [jobs.submit(replace(REQUEST, steps=2 + n), CPU) for n in range(int(sys.argv[2]))]
while jobs.view(ids[0]).phase != "unet":
    time.sleep(0.02)
with signals_as_exit():
    print(jobs.worker_pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def planner(own_history, monkeypatch):
    """Start planners with jobs in processes of their own, and return each with the id of its worker."""
    monkeypatch.setenv("PLANNER_MAX_WAITING", "100")
    monkeypatch.setenv("PLANNER_LOG", "off")
    started = []

    def start(script: str, count: int) -> tuple[subprocess.Popen[str], psutil.Process]:
        command = [sys.executable, "-c", PLANNER, script, str(count)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        worker = psutil.Process(int(process.stdout.readline()))
        started.append((process, worker))
        return process, worker

    yield start
    for process, worker in started:
        process.kill()
        process.wait()
        process.stdout.close()
        if worker.is_running():
            worker.kill()


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_worker_and_closes_every_row_before_the_process_goes(planner, own_history, number):
    process, worker = planner("hang", 60)
    process.send_signal(number)
    assert process.wait(timeout=60) in (128 + number, 1, -number)
    assert is_gone(worker)
    store = Store(own_history)
    assert store.open_jobs() == []
    runs = store.measurements()
    assert [(run.measured.outcome, run.measured.reason) for run in runs] == [("cancelled", STOPPED)] * 60
    assert {run.measured.ended_in for run in runs} == {"unet", None}
    # All of them can be queued again, the one that ran as well.
    assert len(store.stopped_jobs()) == 60
    assert not list(own_history.parent.glob("*.owner-*"))


def test_a_verify_in_the_terminal_closes_its_row_on_sigterm(own_history, tmp_path):
    code = (
        "import sys; from cache.jobs.queue import Jobs; from planner.cli.main import main;"
        "command = [sys.executable, '-m', 'tests.worker.scripted', 'hang'];"
        "Jobs.__init__.__kwdefaults__['worker_command'] = lambda kind: command;"
        "sys.exit(main(['verify', '--device', 'cpu', '--width', '64', '--height', '64']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while "UNet" not in process.stderr.readline():
        assert process.poll() is None
    [worker] = psutil.Process(process.pid).children()
    process.terminate()
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    assert is_gone(worker)
    [run] = Store(own_history).measurements()
    assert (run.measured.outcome, run.measured.reason) == ("cancelled", STOPPED)


def test_the_next_start_closes_rows_and_ends_a_stopped_worker_of_a_killed_planner(planner, own_history):
    process, worker = planner("hang", 3)
    worker.suspend()
    process.kill()
    process.wait()
    time.sleep(0.3)
    # Nobody has told it yet.
    assert worker.status() == psutil.STATUS_STOPPED
    assert len(Store(own_history).open_jobs()) == 3
    tidy()
    eventually(lambda: is_gone(worker))
    store = Store(own_history)
    assert store.open_jobs() == [] and not list(own_history.parent.glob("*.owner-*"))
    assert [run.measured.outcome for run in store.measurements()] == ["cancelled", "cancelled", "failed"]
    assert len(store.stopped_jobs()) == 3


@pytest.mark.parametrize("noted", [None, "other", "start", "pid", "garbage"])
def test_a_process_is_ended_only_if_it_is_the_one_that_was_noted(store, own_history, noted):
    other = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        started = _started(other.pid)
        note = {
            None: "",
            "other": json.dumps({"pid": os.getpid(), "started": started}),
            "start": json.dumps({"pid": other.pid, "started": f"{started}1"}),
            "pid": json.dumps({"pid": 1, "started": started}),
            "garbage": "\0[" * 100,
        }[noted]
        file = own_history.with_name(f"{own_history.name}.owner-dead")
        file.write_text(note)
        close_orphans(store)
        assert not file.exists()
        time.sleep(0.2)
        assert other.poll() is None
        file.write_text(json.dumps({"pid": other.pid, "started": started}))
        close_orphans(store)
        assert other.wait(timeout=10) == -signal.SIGKILL
    finally:
        other.kill()
        other.wait()


def test_a_living_owner_keeps_its_worker(jobs_with, store):
    jobs = jobs_with("hang-in:unet")
    job_id = jobs.submit(REQUEST, CPU)
    eventually(lambda: jobs.view(job_id).phase == "unet")
    close_orphans(store)
    assert jobs.worker_pid and psutil.pid_exists(jobs.worker_pid) and store.open_jobs()


def test_a_worker_that_ignores_sigterm_is_killed_after_a_grace(jobs_with):
    jobs = jobs_with("ignores-sigterm")
    job_id = jobs.submit(REQUEST, CPU)
    eventually(lambda: jobs.view(job_id).step == 2)
    time.sleep(0.3)
    worker = psutil.Process(jobs.worker_pid)
    worker.terminate()
    time.sleep(0.3)
    assert worker.is_running()
    jobs.cancel(job_id)
    assert jobs.wait(job_id).state == "cancelled" and is_gone(worker)


def test_close_all_closes_what_is_open_and_may_be_called_again(jobs_with, store):
    jobs = jobs_with("hang-in:unet")
    job_id = jobs.submit(REQUEST, CPU)
    close_all()
    close_all()
    assert store.job(job_id)["reason"] == STOPPED and store.open_jobs() == []
    with pytest.raises(PlannerError, match="was closed"):
        jobs.submit(REQUEST, CPU)


def test_stopped_jobs_are_queued_again_as_they_were(jobs_with, store, nvml):
    first = jobs_with("hang-in:unet")
    devices = (Device(), Device(cards()[0]), Device(cards()[0], 8 << 30))
    for device in devices:
        first.submit(REQUEST, device)
    first.close()
    jobs = jobs_with("good")
    stopped = store.stopped_jobs()
    assert [job.environment.emulated_bytes for job in stopped] == [None, None, 8 << 30]
    views = [jobs.wait(jobs.queue_again(job)) for job in stopped]
    assert [(view.state, view.request, view.device) for view in views] == [("ok", REQUEST, one) for one in devices]
    assert store.stopped_jobs() == []


def test_a_stopped_job_without_its_gpu_or_folder_stays_on_the_list(jobs_with, store, nvml):
    jobs = jobs_with("good")
    for name, changes in (("gpu", {"uuid_hash": "another"}), ("folder", {"weights": "local:123"})):
        store.add_job(name, REQUEST, make_environment(**changes), "gone")
    close_orphans(store)
    gpu, folder = store.stopped_jobs()
    with pytest.raises(PlannerError, match="its GPU, Tesla T4, is not here"):
        jobs.queue_again(gpu)
    with pytest.raises(PlannerError, match="--model-dir"):
        jobs.queue_again(folder)
    assert len(store.stopped_jobs()) == 2 and store.open_jobs() == []


def test_only_so_many_runs_may_wait(jobs_with, store, monkeypatch):
    monkeypatch.setenv("PLANNER_MAX_WAITING", "5")
    jobs = jobs_with("hang-in:unet")
    running = jobs.submit(REQUEST, CPU, asker="a")
    eventually(lambda: jobs.view(running).phase == "unet")

    def submit(steps: int, asker: str | None) -> str:
        return jobs.submit(replace(REQUEST, steps=steps), CPU, asker=asker)

    waiting = [submit(steps, "a") for steps in (3, 4, 5)]
    with pytest.raises(QueueFull, match=r"3 runs of yours may wait .*\(PLANNER_MAX_WAITING_EACH\) - cancel one") as own:
        jobs.submit(replace(REQUEST, steps=6), CPU, asker="a", predict=lambda: pytest.fail("it was refused"))
    assert own.value.is_own
    # The same request joins the one that waits, and another asker still has room.
    assert submit(5, "a") == waiting[-1]
    for steps in (7, 8):
        submit(steps, "b")
    with pytest.raises(QueueFull, match=r"the queue is full: 5 runs may wait .*\(PLANNER_MAX_WAITING\)"):
        submit(9, "b")
    assert len(store.open_jobs()) == 6
    jobs.cancel(waiting[0])
    with pytest.raises(QueueFull) as full:
        for steps in (10, 11):
            submit(steps, None)
    assert not full.value.is_own and len(store.open_jobs()) == 6


@pytest.mark.parametrize(
    ("setting", "request_", "message"),
    [
        (
            "PLANNER_MAX_STEPS=5",
            replace(REQUEST, steps=6),
            r"steps must be at most 5 here \(PLANNER_MAX_STEPS\), got 6",
        ),
        (
            "PLANNER_MAX_PIXELS=4096",
            replace(REQUEST, batch=2),
            r"at most 4096 pixels here \(PLANNER_MAX_PIXELS\), got 8192",
        ),
    ],
)
def test_a_request_beyond_a_limit_starts_nothing(jobs_with, store, monkeypatch, setting, request_, message):
    name, _, value = setting.partition("=")
    monkeypatch.setenv(name, value)
    jobs = jobs_with("good")
    with pytest.raises(InvalidArgument, match=message):
        jobs.submit(request_, CPU)
    assert store.open_jobs() == [] and jobs.worker_pid is None
    assert jobs.wait(jobs.submit(REQUEST, CPU)).state == "ok"


def test_a_run_beyond_its_time_is_ended_with_a_row(jobs_with, store, tmp_path, monkeypatch):
    monkeypatch.setenv("PLANNER_MAX_SECONDS", "2")
    jobs = jobs_with("hang", once=tmp_path / "once")
    view = jobs.wait(jobs.submit(REQUEST, CPU))
    assert view.reason == "the run took longer than 2 s and was ended; PLANNER_MAX_SECONDS sets the limit"
    assert [run.measured.outcome for run in store.measurements()] == ["failed"]
    assert jobs.wait(jobs.submit(REQUEST, CPU)).state == "ok"


@pytest.mark.parametrize("setting", ALL, ids=lambda setting: setting.name)
@pytest.mark.parametrize("value", ["0", "-1", "ten", "1e3", "9" * 30, "٣"])
def test_a_wrong_setting_is_a_message(monkeypatch, setting, value):
    monkeypatch.setenv(setting.name, value)
    with pytest.raises(InvalidArgument, match=f"^{setting.name} must be a whole number of at least {setting.low}"):
        _ = setting.value
    monkeypatch.setenv(setting.name, " ")
    assert setting.value == setting.default


def test_a_result_that_comes_twice_is_not_the_next_jobs(jobs_with, store):
    jobs = jobs_with("twice")
    jobs.wait(jobs.submit(REQUEST, CPU))
    eventually(lambda: not jobs._worker._lines.empty())
    view = jobs.wait(jobs.submit(replace(REQUEST, steps=3), CPU))
    assert view.state == "failed" and view.reason.startswith("the worker spoke unasked: ")


# Memory of the host.


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({"proc/self/cgroup": "0::/a/b\n", "cgroup/a/b/memory.events": "low 0\noom 4\noom_kill 3\n"}, 3),
        ({"proc/self/cgroup": "0::/\n", "cgroup/memory.events": "oom_kill 0\n"}, 0),
        (
            {
                "proc/self/cgroup": "11:memory:/x\n1:cpu,cpuacct:/x\n",
                "cgroup/memory/x/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
            },
            2,
        ),
        ({"proc/self/cgroup": "0::/a\n"}, None),
        ({"proc/self/cgroup": "0::/a\n", "cgroup/a/memory.events": "nonsense\n"}, None),
        ({}, None),
    ],
)
def test_kills_for_memory_are_read_from_the_control_group(tmp_path, files, count):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert host_memory.killed_for_memory(tmp_path / "proc", tmp_path / "cgroup") == count


@pytest.mark.parametrize(
    ("counts", "on_gpu", "outcome"),
    [
        ((3, 4), False, "out-of-memory"),
        ((3, 4), True, "failed"),
        ((3, 3), False, "failed"),
        ((None, 4), False, "failed"),
    ],
)
def test_a_worker_killed_for_memory_is_out_of_memory_where_that_is_known(
    jobs_with, store, monkeypatch, tmp_path, nvml, counts, on_gpu, outcome
):
    told = iter(counts)
    monkeypatch.setattr("cache.jobs.worker_process.killed_for_memory", lambda: next(told))
    jobs = jobs_with("killed", once=tmp_path / "once")
    view = jobs.wait(jobs.submit(REQUEST, Device(cards()[0]) if on_gpu else CPU))
    assert view.state == outcome
    is_known = None not in counts and counts[1] > counts[0]
    words = "the host's memory ran out" if is_known else "the worker was ended by SIGKILL, as the system does when"
    assert view.reason.startswith(words)


# The lock of a device.


def test_the_lock_is_in_a_folder_of_this_user_alone(tmp_path, monkeypatch):
    folder = tmp_path / "state"
    monkeypatch.setenv("PLANNER_STATE", str(folder))
    with device_lock(CPU, lambda: None, threading.Event()):
        [file] = folder.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700 and file.stat().st_mode & 0o777 == 0o600
        assert file.name.endswith("-cpu.lock")
    # One that others could write into is closed to them first.
    folder.chmod(0o777)
    with device_lock(CPU, lambda: None, threading.Event()):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_link_in_the_place_of_the_folder_or_the_lock_is_refused(tmp_path, monkeypatch):
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "link").symlink_to(target)
    monkeypatch.setenv("PLANNER_STATE", str(tmp_path / "link"))
    with (
        pytest.raises(PlannerError, match=r"cannot be written .* set PLANNER_STATE"),
        device_lock(CPU, lambda: None, threading.Event()),
    ):
        pytest.fail("it followed the link")
    monkeypatch.setenv("PLANNER_STATE", str(target))
    with device_lock(CPU, lambda: None, threading.Event()):
        [file] = target.iterdir()
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PlannerError, match="cannot be written"), device_lock(CPU, lambda: None, threading.Event()):
        pytest.fail("it followed the link")


def test_an_owner_whose_file_was_removed_before_it_was_locked_takes_another(own_history, monkeypatch):
    names = []
    flock = __import__("fcntl").flock

    def removing(descriptor, how):
        if not names:
            [file] = own_history.parent.glob("*.owner-*")
            names.append(file.name)
            file.unlink()
        flock(descriptor, how)

    monkeypatch.setattr("cache.jobs.owner.fcntl.flock", removing)
    owner = Owner.claim(own_history)
    monkeypatch.undo()
    assert Owner.is_alive(own_history, owner.name) and not names[0].endswith(owner.name)
    owner.leave()


# The log.


def test_a_jobs_life_is_read_from_the_log_by_its_id(jobs_with, tmp_path, monkeypatch):
    path = tmp_path / "log" / "planner.log"
    path.parent.mkdir()
    monkeypatch.setenv("PLANNER_LOG", str(path))
    jobs = jobs_with("good")
    job_id = jobs.submit(REQUEST, CPU)
    jobs.wait(job_id)
    jobs.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    own = [line for line in lines if line.get("job") == job_id]
    events = [line["event"] for line in own]
    assert events[:2] == ["job-queued", "job-started"] and events[-1] == "job-ended"
    assert [line["phase"] for line in own if line["event"] == "job-phase"][:3] == ["starting", "loading", "warm-up"]
    assert (own[-1]["outcome"], own[-1]["level"]) == ("ok", "info") and own[-1]["run"]
    assert {line["of"] for line in lines} == {"jobs"} and all(line["at"] and line["pid"] for line in lines)
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_log_rotates_and_keeps_whole_lines_of_several_processes(tmp_path, monkeypatch):
    path = tmp_path / "planner.log"
    code = (
        "import sys; from cache import logs; logs.MOST_BYTES = 20_000; logs.setup(); log = logs.get('test');"
        "[log.event('tick', number=n, text='x' * 100) for n in range(150)]"
    )
    monkeypatch.setenv("PLANNER_LOG", str(path))
    started = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(3)]
    assert [process.wait() for process in started] == [0, 0, 0]
    files = sorted(tmp_path.glob("planner.log*"))
    assert [file.name for file in files] == [
        "planner.log",
        "planner.log.1",
        "planner.log.2",
        "planner.log.3",
        "planner.log.lock",
    ]
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert all(line["event"] == "tick" for line in lines)
    assert all(file.stat().st_size <= 20_000 for file in files) and sum(file.stat().st_size for file in files) > 60_000


@pytest.mark.parametrize("where", ["stderr", "/dev/null", "nowhere/planner.log"])
def test_a_log_that_cannot_be_written_goes_to_stderr(where):
    code = "from cache import logs; logs.setup(); logs.get('test').event('tick', prompt=None, text='x' * 9000)"
    environment = os.environ | {"PLANNER_LOG": where}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["event"] for line in lines] == (["tick"] if where == "stderr" else ["log-refused", "tick"])
    assert len(lines[-1]["text"]) <= logs.MOST_OF_A_FIELD and done.stdout == ""
