"""The queue and its worker: a real child process that works, dies, hangs or sends nonsense."""

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest

from cache.exchange.lines import line_of, read_runs
from cache.history.location import HistoryRefused
from cache.history.store import Store
from cache.jobs.lock import device_lock
from cache.jobs.owner import Owner
from cache.jobs.queue import STOPPED, Jobs, close_orphans
from cache.jobs.worker_process import Cancelled
from cache.machine.attached import cards
from cache.machine.device import Device, environment_of
from cache.predictions import predictions_for
from cache.records import Measured
from planner.errors import InvalidArgument, PlannerError
from planner.request import GenerationRequest
from planner.units import GIB
from tests.conftest import ROOT
from tests.worker.scripted import GOOD, PHASES

REQUEST = GenerationRequest(width=64, height=64, steps=2)
CPU = Device()


def eventually(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_a_finished_run_is_kept_with_its_environment(jobs_with, store):
    jobs = jobs_with("good")
    seen = []
    view = jobs.wait(jobs.submit(REQUEST, CPU), seen.append, poll_s=0.001)
    assert view.state == "ok"
    assert [name for name, _ in view.phases] == ["starting", *PHASES]
    (run,) = store.measurements()
    assert run.measurement_id == view.measurement_id
    assert run.measured == GOOD
    assert (run.environment.cuda, run.environment.cudnn) == ("13.0", "91002")
    fractions = [view.fraction for view in seen]
    assert fractions == sorted(fractions)
    assert all(0 <= fraction <= 1 for fraction in fractions) and fractions[-1] == 1


def test_a_job_knows_how_long_runs_of_its_device_took(jobs_with, store):
    jobs = jobs_with("hang-in:warm-up")
    assert jobs.estimate(REQUEST, CPU) is None and not jobs.is_measured(REQUEST, CPU)
    timed = replace(GOOD, total_seconds=3600.0, seconds_per_step=1000.0, load_seconds=900.0, stages=())
    store.save_measurement(REQUEST, environment_of(CPU), timed)
    expected = jobs.estimate(REQUEST, CPU)
    assert jobs.is_measured(REQUEST, CPU) and expected.total_s == pytest.approx(4500)
    job_id = jobs.submit(REQUEST, CPU, force=True)
    eventually(lambda: jobs.view(job_id).phase == "warm-up")
    view = jobs.view(job_id)
    assert view.estimate == expected
    assert 4400 < view.left.seconds < 4500 and 0 < view.fraction < 0.1
    assert view.left_text == "about 1 h 15 min left"


def test_the_worker_stays_for_the_next_job(jobs_with, store):
    jobs = jobs_with("good")
    jobs.wait(jobs.submit(REQUEST, CPU))
    pid = jobs.worker_pid
    jobs.wait(jobs.submit(replace(REQUEST, steps=3), CPU))
    assert jobs.worker_pid == pid
    assert {run.environment.cuda for run in store.measurements()} == {"13.0"}


def test_another_model_gets_another_worker(jobs_with):
    jobs = jobs_with("good")
    jobs.wait(jobs.submit(REQUEST, CPU))
    pid = jobs.worker_pid
    jobs.wait(jobs.submit(replace(REQUEST, safety_checker=False), CPU))
    assert jobs.worker_pid != pid
    assert not psutil.pid_exists(pid)


def test_a_worker_with_a_limit_serves_only_jobs_with_that_limit(jobs_with, store, nvml):
    jobs, card = jobs_with("good"), cards()[0]
    pids = []
    for steps, capacity in enumerate((8 * GIB, 8 * GIB, None, 8 * GIB, 12 * GIB), 1):
        view = jobs.wait(jobs.submit(replace(REQUEST, steps=steps), Device(card, capacity)))
        assert store.measurement(view.measurement_id).environment.emulated_bytes == capacity
        # As the worker was told.
        assert store.measurement(view.measurement_id).measured.free_before_bytes == capacity
        pids.append(jobs.worker_pid)
    assert pids[0] == pids[1]
    assert len(set(pids)) == 4
    assert [pid for pid in pids if psutil.pid_exists(pid)] == pids[-1:]


def test_the_same_request_at_another_capacity_is_another_job(jobs_with, store, nvml):
    jobs, card = jobs_with("hang-in:unet"), cards()[0]
    first, second, again = (jobs.submit(REQUEST, Device(card, capacity)) for capacity in (8 * GIB, 12 * GIB, 8 * GIB))
    assert first == again != second
    [environment_id] = {store.job(first)["environment_id"]}
    assert environment_id != store.job(second)["environment_id"]


def test_a_run_at_a_capacity_answers_only_at_that_capacity(jobs_with, nvml):
    jobs, card = jobs_with("good"), cards()[0]
    states = [
        jobs.wait(jobs.submit(REQUEST, Device(card, capacity))).state
        for capacity in (None, 8 * GIB, 8 * GIB, 12 * GIB, None)
    ]
    assert states == ["ok", "ok", "cached", "ok", "cached"]


def test_a_capacity_that_cannot_be_emulated_starts_nothing(jobs_with, store, nvml):
    jobs = jobs_with("good")
    with pytest.raises(InvalidArgument, match="capacity must be below the GPU's memory"):
        jobs.submit(REQUEST, Device(cards()[0], 80 * GIB))
    with pytest.raises(InvalidArgument, match="capacity needs a GPU"):
        jobs.submit(REQUEST, Device(emulated_bytes=8 * GIB))
    assert store.open_jobs() == [] and jobs.worker_pid is None


def test_a_known_request_is_answered_at_once_unless_forced(jobs_with, store):
    jobs = jobs_with("good")
    first = jobs.wait(jobs.submit(REQUEST, CPU))
    # A prediction takes longer than the answer, and is not made.
    again = jobs.wait(jobs.submit(REQUEST, CPU, predict=lambda: pytest.fail("the history knows it")))
    assert (again.state, again.measurement_id) == ("cached", first.measurement_id)
    assert len(store.measurements()) == 1
    told = predictions_for(REQUEST, CPU)
    forced = jobs.wait(jobs.submit(REQUEST, CPU, predict=lambda: told, force=True))
    assert forced.state == "ok"
    assert [run.predictions for run in store.measurements()] == [told, ()]


FAILURES = {
    "raises": "RuntimeError: CUDA error: an illegal memory access was encountered",
    "exits": "the worker ended with exit code 3: last words",
    "segfault": "the worker was ended by SIGSEGV",
    "killed": "the worker was ended by SIGKILL, as the system does when memory runs out",
    "garbage": "the worker sent a line that is no message: 'Segmentation fault (core dumped)'",
    "wrong-message": "the worker sent a line that is no message",
    "endless-line": "the worker sent a line that is no message: 'xxx",
    "bad-result": "the worker sent a result that is none (Measured has other fields)",
    "wrong-outcome": "the worker sent a result that is none (the result has no outcome or no stages)",
    "wrong-step": "the worker sent a line that is no message: ",
    "wrong-facts": "the worker sent a line that is no message: ",
    "closes-its-pipe": "the worker closed its pipe and did not end",
    "flood": "the run took longer than",
    "hang": "the worker said nothing for 1 s and was ended",
}


@pytest.mark.parametrize(("script", "reason"), FAILURES.items())
def test_a_failure_leaves_a_row_and_the_next_job_runs_in_a_fresh_worker(jobs_with, store, tmp_path, script, reason):
    short = {"hang": {"silence_s": 1}, "flood": {"limit_s": 2}}.get(script, {})
    jobs = jobs_with(script, once=tmp_path / "once", **short)
    failed = jobs.wait(jobs.submit(REQUEST, CPU))
    assert failed.state == "failed"
    assert failed.reason.startswith(reason)
    (run,) = store.measurements()
    assert (run.measured.outcome, run.measured.ended_in) == ("failed", "unet")
    assert jobs.wait(jobs.submit(REQUEST, CPU)).state == "ok"
    assert [run.measured.outcome for run in store.measurements()] == ["ok", "failed"]


def test_out_of_memory_is_a_result_and_ends_the_worker(jobs_with, store, tmp_path, nvml):
    jobs, device = jobs_with("out-of-memory", once=tmp_path / "once"), Device(cards()[0])
    view = jobs.wait(jobs.submit(REQUEST, device))
    assert (view.state, view.reason) == ("out-of-memory", "CUDA out of memory")
    assert jobs.worker_pid is None
    assert store.measurements()[0].measured.ended_in == "unet"
    assert jobs.wait(jobs.submit(REQUEST, device)).state == "cached"
    assert jobs.wait(jobs.submit(REQUEST, device, force=True)).state == "ok"


def test_a_rehearsal_without_memory_is_tried_again(jobs_with, tmp_path):
    jobs = jobs_with("out-of-memory", once=tmp_path / "once")
    assert [jobs.wait(jobs.submit(REQUEST, CPU)).state for _ in range(3)] == ["out-of-memory", "ok", "cached"]


@pytest.mark.parametrize("phase", PHASES)
def test_cancel_works_in_every_phase(jobs_with, store, tmp_path, phase):
    jobs = jobs_with(f"hang-in:{phase}", once=tmp_path / "once")
    job_id = jobs.submit(REQUEST, CPU)
    eventually(lambda: jobs.view(job_id).phase == phase)
    pid = jobs.worker_pid
    jobs.cancel(job_id)
    view = jobs.wait(job_id)
    assert (view.state, view.reason) == ("cancelled", "cancelled")
    assert not psutil.pid_exists(pid)
    assert store.measurements()[0].measured == Measured(outcome="cancelled", reason="cancelled", ended_in=phase)
    assert jobs.wait(jobs.submit(REQUEST, CPU)).state == "ok"


@pytest.mark.parametrize("phase", PHASES)
def test_a_worker_killed_in_any_phase_leaves_a_row(jobs_with, store, tmp_path, phase):
    jobs = jobs_with(f"hang-in:{phase}", once=tmp_path / "once")
    job_id = jobs.submit(REQUEST, CPU)
    eventually(lambda: jobs.view(job_id).phase == phase)
    os.kill(jobs.worker_pid, 9)
    assert jobs.wait(job_id).state == "failed"
    assert store.measurements()[0].measured.ended_in == phase
    assert jobs.wait(jobs.submit(REQUEST, CPU)).state == "ok"


def test_jobs_wait_their_turn_and_a_waiting_one_can_be_cancelled(jobs_with):
    jobs = jobs_with("hang-in:unet")
    first = jobs.submit(REQUEST, CPU)
    second = jobs.submit(replace(REQUEST, steps=3), CPU)
    eventually(lambda: jobs.view(first).phase == "unet")
    assert (jobs.view(second).state, jobs.view(second).ahead) == ("queued", 1)
    assert [view.job_id for view in jobs.active()] == [first, second]
    jobs.cancel(second)
    # At once, though the first one still runs.
    assert jobs.view(second).state == "cancelled"
    assert jobs.store.job(second)["state"] == "cancelled"
    assert jobs.view(first).phase == "unet"
    jobs.cancel(first)
    assert jobs.wait(first).state == "cancelled"
    assert jobs.active() == []


def test_a_second_press_joins_the_run_under_way(jobs_with):
    jobs = jobs_with("hang-in:unet")
    first = jobs.submit(REQUEST, CPU)
    assert jobs.submit(REQUEST, CPU, force=True) == first
    assert jobs.submit(replace(REQUEST, steps=3), CPU) != first
    jobs.cancel(first)
    assert jobs.submit(REQUEST, CPU) != first


def test_a_closed_queue_takes_no_job(jobs_with):
    jobs = jobs_with("good")
    jobs.close()
    with pytest.raises(PlannerError, match="this queue was closed"):
        jobs.submit(REQUEST, CPU)


def test_a_run_with_retries_ends_its_worker(jobs_with, store):
    jobs = jobs_with("retries")
    view = jobs.wait(jobs.submit(REQUEST, CPU))
    assert (view.state, view.measured.num_alloc_retries) == ("ok", 3)
    assert jobs.worker_pid is None
    assert len(store.measurements()) == 1


def test_a_device_too_full_for_the_worker_itself_is_out_of_memory(jobs_with, store):
    jobs = jobs_with("device-full")
    view = jobs.wait(jobs.submit(REQUEST, CPU))
    assert (view.state, view.reason) == ("out-of-memory", "CUDA error: out of memory")
    assert store.measurements()[0].measured.ended_in == "loading"


def test_children_of_a_worker_end_with_it(jobs_with):
    jobs = jobs_with("child")
    job_id = jobs.submit(REQUEST, CPU)
    eventually(lambda: jobs.view(job_id).phase == "unet")
    eventually(lambda: psutil.Process(jobs.worker_pid).children())
    (child,) = psutil.Process(jobs.worker_pid).children()
    began = time.monotonic()
    jobs.cancel(job_id)
    jobs.wait(job_id)
    eventually(lambda: not child.is_running() or child.status() == "zombie")
    assert time.monotonic() - began < 15


def test_an_idle_worker_is_released(jobs_with):
    jobs = jobs_with("good", idle_s=0.3)
    jobs.wait(jobs.submit(REQUEST, CPU))
    pid = jobs.worker_pid
    assert pid
    eventually(lambda: jobs.worker_pid is None and not psutil.pid_exists(pid))
    assert jobs.wait(jobs.submit(REQUEST, CPU, force=True)).state == "ok"


def test_release_does_not_end_a_running_job(jobs_with, tmp_path):
    jobs = jobs_with("hang-in:unet", once=tmp_path / "once")
    job_id = jobs.submit(REQUEST, CPU)
    eventually(lambda: jobs.view(job_id).phase == "unet")
    assert not jobs.release()
    jobs.cancel(job_id)
    jobs.wait(job_id)
    jobs.wait(jobs.submit(REQUEST, CPU))
    assert jobs.worker_pid
    assert jobs.release()
    assert jobs.worker_pid is None


def test_a_worker_that_died_while_idle_is_replaced(jobs_with):
    jobs = jobs_with("good")
    jobs.wait(jobs.submit(REQUEST, CPU))
    os.kill(jobs.worker_pid, 9)
    eventually(lambda: jobs.worker_pid is None)
    assert jobs.wait(jobs.submit(REQUEST, CPU, force=True)).state == "ok"


def test_closing_ends_the_worker_and_closes_the_jobs(jobs_with, store):
    jobs = jobs_with("hang-in:unet")
    job_id = jobs.submit(REQUEST, CPU)
    eventually(lambda: jobs.view(job_id).phase == "unet")
    pid = jobs.worker_pid
    jobs.close()
    assert not psutil.pid_exists(pid)
    assert store.job(job_id)["state"] == "cancelled"
    assert store.job(job_id)["reason"] == STOPPED
    assert store.open_jobs() == []


def test_the_worker_ends_when_its_parent_is_gone():
    code = (
        "import os, sys, threading; from cache.jobs.worker_process import WorkerProcess;"
        "worker = WorkerProcess([sys.executable, '-m', 'tests.worker.scripted', 'hang'], os.environ);"
        "print(worker.pid, flush=True);"
        "worker.run({}, lambda m: print(m, flush=True) if m.get('step') == 2 else None, threading.Event(), 60, 60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    parent.stdout.readline()
    assert psutil.pid_exists(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    eventually(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie")


def test_a_job_of_a_dead_planner_is_closed_with_a_row(store, own_history):
    code = (
        "import os, sys; from pathlib import Path; from cache.jobs.owner import Owner;"
        "owner = Owner.claim(Path(sys.argv[1])); print(owner.name, flush=True); sys.stdin.readline(); os._exit(1)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    other = subprocess.Popen([sys.executable, "-c", code, str(own_history)], cwd=ROOT, text=True, **pipes)
    name = other.stdout.readline().strip()
    store.add_job("other's", REQUEST, environment_of(CPU), name)
    close_orphans(store)
    assert [row["id"] for row in store.open_jobs()] == ["other's"]
    other.communicate("die\n")
    close_orphans(store)
    close_orphans(store)
    assert store.job("other's")["state"] == "cancelled"
    (run,) = store.measurements()
    assert run.measured.reason == "the planner ended before this job began"
    assert run.measurement_id == store.job("other's")["measurement_id"]
    assert not list(own_history.parent.glob("*.owner-*"))


def test_a_queue_leaves_no_file_behind(jobs_with, own_history):
    jobs = jobs_with("good")
    (file,) = own_history.parent.glob("*.owner-*")
    assert Owner.is_alive(own_history, file.name.rpartition("-")[2])
    jobs.close()
    assert not file.exists()


def test_one_measurement_at_a_time_on_a_device_across_processes(jobs_with):
    code = (
        "import sys, threading; from cache.machine.device import Device; from cache.jobs.lock import device_lock;\n"
        "with device_lock(Device(), lambda: None, threading.Event()):\n"
        "    print('held', flush=True); sys.stdin.readline()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    other = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, **pipes)
    assert other.stdout.readline() == "held\n"
    jobs = jobs_with("good")
    job_id = jobs.submit(REQUEST, CPU)
    eventually(lambda: jobs.view(job_id).phase == "waiting")
    other.communicate("go\n")
    view = jobs.wait(job_id)
    assert view.state == "ok"
    assert view.phases[0][0] == "waiting"


def test_a_job_that_waits_for_the_device_can_be_cancelled():
    cancelled = threading.Event()
    with device_lock(CPU, lambda: None, threading.Event()):
        cancelled.set()
        with pytest.raises(Cancelled), device_lock(CPU, lambda: None, cancelled):
            pytest.fail("two hold the device")


def test_a_history_that_fails_does_not_end_the_queue(jobs_with, store, monkeypatch):
    jobs = jobs_with("good")

    def broken(*_, **__):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "end_job", broken)
        view = jobs.wait(jobs.submit(REQUEST, CPU))
        assert view.reason == "the history could not keep this run: disk full"
        assert view.measurement_id is None
        assert view.measured.peak_allocated_bytes == GOOD.peak_allocated_bytes
    assert jobs.wait(jobs.submit(REQUEST, CPU)).state == "ok"


@pytest.mark.parametrize(
    ("request_", "model_dir", "message"),
    [
        (GenerationRequest(width=1024), None, "device cpu rehearses at most 512x512 pixels in all"),
        (replace(REQUEST, attention="xformers"), None, "attention must be sdpa or eager on the CPU"),
        (REQUEST, "/nowhere", "model_dir must be a folder with model_index.json"),
    ],
)
def test_a_request_that_cannot_run_is_refused(jobs_with, store, request_, model_dir, message):
    jobs = jobs_with("good")
    with pytest.raises(InvalidArgument, match=message):
        jobs.submit(request_, CPU, model_dir=model_dir)
    assert store.open_jobs() == []


def test_a_model_folder_is_keyed_by_its_content(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    before = environment_of(CPU, model_dir=str(tmp_path)).weights
    assert before.startswith("local:")
    assert environment_of(CPU, model_dir=str(tmp_path)).weights == before
    (tmp_path / "unet.safetensors").write_bytes(b"x")
    assert environment_of(CPU, model_dir=str(tmp_path)).weights != before


def test_two_queues_share_one_history(jobs_with, own_history):
    first, second = jobs_with("good"), Jobs(Store(own_history))
    try:
        view = first.wait(first.submit(REQUEST, CPU))
        again = second.wait(second.submit(REQUEST, CPU))
    finally:
        second.close()
    assert (again.state, again.measurement_id) == ("cached", view.measurement_id)


def test_a_run_that_could_not_be_kept_can_be_imported(jobs_with, store, monkeypatch, nvml):
    told = []
    jobs = jobs_with("good", on_unkept=lambda *of: told.append(of))

    def full(*_, **__):
        raise HistoryRefused(store.path, "written", "database or disk is full", "free space on its disk")

    with monkeypatch.context() as patch:
        patch.setattr(store, "end_job", full)
        # The next run counts them again.
        patch.setattr(store, "save_model_facts", full)
        view = jobs.wait(jobs.submit(REQUEST, Device(cards()[0])))
    assert (view.state, view.measurement_id) == ("ok", None)
    assert view.reason.endswith("cannot be written (database or disk is full) - free space on its disk")
    [(run, reason)] = told
    assert run == view.unkept and reason in view.reason
    assert (run.measured, run.environment.cuda) == (replace(GOOD, stages=GOOD.stages), "13.0")
    [back] = read_runs([line_of(run).encode()])
    assert store.import_measurements([back]).added == 1
    # A kept run has nothing to keep.
    assert jobs.wait(jobs.submit(replace(REQUEST, steps=3), CPU)).unkept is None


def test_a_job_that_cannot_be_noted_is_refused(jobs_with, store, monkeypatch):
    jobs = jobs_with("good")

    def locked(*_, **__):
        raise HistoryRefused(store.path, "written", "database is locked", "try again")

    with monkeypatch.context() as patch:
        patch.setattr(store, "add_job", locked)
        with pytest.raises(HistoryRefused, match="is locked"):
            jobs.submit(REQUEST, CPU)
    assert jobs.active() == [] and jobs.worker_pid is None
    assert jobs.wait(jobs.submit(REQUEST, CPU)).state == "ok"


def test_a_queue_that_cannot_begin_leaves_nothing_behind(store, own_history, monkeypatch):
    def locked(*_, **__):
        raise HistoryRefused(store.path, "read", "database is locked", "try again")

    monkeypatch.setattr(store, "open_jobs", locked)
    with pytest.raises(HistoryRefused):
        Jobs(store)
    assert not list(own_history.parent.glob("*.owner-*"))


def test_model_facts_that_cannot_be_kept_do_not_end_a_run(store, monkeypatch):
    def full(*_, **__):
        raise HistoryRefused(store.path, "written", "database or disk is full", "free space")

    monkeypatch.setattr(store, "save_model_facts", full)
    jobs = Jobs(store)
    try:
        job = SimpleNamespace(weights="synthetic")
        jobs._on_message(job, {"type": "facts", "counts": {"unet": [1, 2]}})
    finally:
        jobs.close()


def test_the_worker_starts_with_the_allocator_of_its_request(jobs_with, store, monkeypatch):
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    jobs = jobs_with("says-allocator")
    said = []
    for allocator in ("default", "expandable"):
        view = jobs.wait(jobs.submit(replace(REQUEST, allocator=allocator), CPU))
        said.append(view.reason.partition("PYTORCH_ALLOC_CONF=")[2])
    assert said == ["None", "expandable_segments:True"]
    newest, oldest = (run.environment.allocator_settings for run in store.measurements())
    assert (newest, oldest) == ("PYTORCH_ALLOC_CONF=expandable_segments:True", "")
