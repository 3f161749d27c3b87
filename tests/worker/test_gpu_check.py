"""The GPU check: complete, interrupted and started again; with scripted workers, a faked GPU, and for real."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from itertools import pairwise
from pathlib import Path

import pytest

from cache import programs
from cache.exchange.lines import lines_in, read_runs
from cache.gpu_check import check, plan
from cache.gpu_check.command import main
from cache.gpu_check.report import Report
from cache.gpu_check.wheels import lacking
from cache.history.store import Store
from cache.jobs.queue import Jobs
from planner.cli.main import main as planner_main
from planner.components import LIBRARIES
from planner.programs.files import shipped
from planner.programs.library import Library
from planner.units import GIB
from tests.conftest import ROOT

FILES = {"environment.json", "runs.jsonl", "differences.json", "summary.md", "progress.log"}

# Python runs a module of this name in every process that can find it, before anything else.
SCRIPTED_FROM_THE_START = """
import sys
from cache.jobs.queue import Jobs
command = [sys.executable, "-m", "tests.worker.scripted", {script!r}]
Jobs.__init__.__kwdefaults__["worker_command"] = lambda kind: command
"""


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def scripted(monkeypatch):
    """Let workers of this process follow a script."""

    def follow(script: str, once=None) -> None:
        command = [sys.executable, "-m", "tests.worker.scripted", script, *([str(once)] if once else [])]
        monkeypatch.setitem(Jobs.__init__.__kwdefaults__, "worker_command", lambda kind: command)

    return follow


@pytest.fixture
def started(tmp_path, out):
    """Start the check as a process whose workers follow a script, and end it after the test."""
    begun = []

    def start(script: str, *argv: str) -> subprocess.Popen:
        folder = tmp_path / "site"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(SCRIPTED_FROM_THE_START.format(script=script))
        child = subprocess.Popen(
            [sys.executable, "-m", "cache.gpu_check", str(out), "--device", "cpu", "--minutes", "5", *argv],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        begun.append(child)
        return child

    yield start
    for child in begun:
        child.kill()
        child.wait()
        child.stderr.close()


def runs_in(out: Path):
    with (out / "runs.jsonl").open("rb") as file:
        return read_runs(lines_in(file))


def log_of(out: Path) -> str:
    return (out / "progress.log").read_text()


def wait_for_the_second(out: Path) -> None:
    """Wait until the history says that the second experiment runs."""
    deadline = time.monotonic() + 120
    while not (out / "progress.log").exists() or log_of(out).count("begin: ") < 2:
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)
    while not Store(out / "history.db").open_jobs():
        assert time.monotonic() < deadline, "it was never noted"
        time.sleep(0.05)


# To its end


def test_a_rehearsal_runs_all_that_a_cpu_can_and_names_the_rest(scripted, out, capsys, own_history):
    scripted("cpu:good")
    assert main([str(out), "--device", "cpu", "--minutes", "5"]) == 0
    assert {path.name for path in out.iterdir()} >= FILES
    runs = runs_in(out)
    planned = plan.candidates(check.Device())
    assert len(runs) == len(planned) - 3
    summary = (out / "summary.md").read_text()
    assert "Everything that can be run here was reached." in summary
    for reason in (
        "device cpu rehearses at most",
        "attention must be sdpa or eager on the CPU",
        "capacity needs a GPU",
    ):
        assert reason in summary
    assert "the CPU has none of them" in summary and "It says nothing about a GPU" in summary
    # The user's own history is not touched; an import brings the runs there.
    assert not own_history.exists() and os.environ["PLANNER_DB"] == str(own_history)
    assert planner_main(["history", "import", str(out / "runs.jsonl")]) == 0
    assert len(Store(own_history).measurements()) == len(runs)
    # Where tests/gpu skip for want of a GPU, that is what is said.
    assert "## tests/gpu" in summary and "0 failed" in summary and " skipped" in summary
    environment = json.loads((out / "environment.json").read_text())
    assert environment["card"] is None and environment["versions"]["torch"]


def test_a_second_start_runs_nothing_twice(scripted, out):
    scripted("cpu:good")
    argv = [str(out), "--device", "cpu", "--minutes", "5", "--limit", "3"]
    assert main(argv) == 0
    assert "experiments were not reached: --limit 3 was reached" in (out / "summary.md").read_text()
    first = [run.measurement_id for run in runs_in(out)]
    assert main(argv) == 0
    again = [run.measurement_id for run in runs_in(out)]
    assert len(first) == 3 and len(again) == 6 and again[:3] == first
    assert len({run.request.request_id for run in runs_in(out)}) == 6
    assert "3 of them known from before" in log_of(out)


# With a GPU that is faked at the driver


@pytest.fixture
def t4(nvml, cuda_build):
    return nvml


def test_each_run_on_a_gpu_is_compared_with_its_dry_run(scripted, t4, out):
    scripted("good")
    assert main([str(out), "--minutes", "5", "--limit", "4"]) == 0
    runs = runs_in(out)
    assert {run.environment.card for run in runs} == {"Tesla T4"}
    assert {one.basis for run in runs for one in run.predictions} == {"dry-run", "formula"}
    puzzle = next(run for run in runs if run.request.width == 1800)
    assert (puzzle.request.task, puzzle.request.height) == ("img2img", 1200)
    differences = json.loads((out / "differences.json").read_text())
    assert len(differences) == 4
    found = next(one for one in differences if one["measurement_id"] == puzzle.measurement_id)
    assert found["only_real"][0] == {"size_bytes": 6 << 20, "count": 1, "modules": ["vae.decoder.conv_in"]}
    (convolution,) = found["convolutions"]
    assert convolution["workspace_bytes"] == 5 << 20
    # 4 channels padded to 8 and 512, at 64x64, and the filter, in float16.
    assert convolution["predicted_bytes"] == 2 * (8 * 64 * 64 + 512 * 64 * 64 + 512 * 4 * 9)
    summary = (out / "summary.md").read_text()
    assert "| img2img 1800×1200, batch 1, guided (UNet batch 2), 3 steps | ran | tight | 0.00 GiB |" in summary
    assert "8 GiB emulated: short of memory" in summary
    assert "capacity must be below the GPU's memory of 14.56 GiB" in summary
    environment = json.loads((out / "environment.json").read_text())
    assert environment["card"]["name"] == "Tesla T4" and environment["as_run"]["cudnn"] == "91002"


def test_runs_of_another_gpu_are_not_compared(scripted, t4, out):
    scripted("good")
    assert main([str(out), "--minutes", "5", "--limit", "1"]) == 0
    t4.uuids = ["GPU-99999999-cccc"]
    assert main([str(out), "--minutes", "5", "--limit", "1"]) == 0
    table = [line for line in (out / "summary.md").read_text().splitlines() if " | ran | " in line]
    assert sorted(line.split(" | ")[2] for line in table) == ["fits", "unknown"]


def test_out_of_memory_is_reported_as_a_result(scripted, t4, out):
    scripted("out-of-memory")
    assert main([str(out), "--minutes", "5", "--limit", "1"]) == 0
    summary = (out / "summary.md").read_text()
    assert "predicted `fits`, but it was out of memory in UNet" in summary
    assert [run.measured.outcome for run in runs_in(out)] == ["out-of-memory"]


@pytest.mark.parametrize("script", ["segfault", "raises", "exits"])
def test_an_experiment_that_breaks_its_worker_does_not_end_the_check(scripted, out, tmp_path, script):
    scripted(f"cpu:{script}", tmp_path / "once")
    argv = [str(out), "--device", "cpu", "--minutes", "5", "--limit", "2"]
    assert main(argv) == 0
    assert sorted(run.measured.outcome for run in runs_in(out)) == ["failed", "ok"]
    assert "## Failed" in (out / "summary.md").read_text()
    failed = next(run for run in runs_in(out) if run.measured.outcome == "failed")
    # What failed is tried again after all others, and then no longer counts as failed.
    assert main([*argv[:-1], "20"]) == 0
    assert [run.measured.outcome for run in runs_in(out)].count("failed") == 0
    assert runs_in(out)[-1].request == failed.request
    assert "## Failed" not in (out / "summary.md").read_text()


def test_an_error_of_the_check_does_not_stop_the_others(scripted, out, monkeypatch):
    scripted("cpu:good")
    real, calls = check.predictions_for, []

    def breaks_once(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 1:
            raise ZeroDivisionError("a bug")
        return real(*arguments, **options)

    monkeypatch.setattr(check, "predictions_for", breaks_once)
    assert main([str(out), "--device", "cpu", "--minutes", "5", "--limit", "2"]) == 0
    assert len(runs_in(out)) == 1
    assert "ZeroDivisionError: a bug" in (out / "summary.md").read_text() and "Traceback" in log_of(out)


# Cut off


def test_a_killed_check_leaves_results_and_goes_on(started, scripted, out, own_history):
    child = started("cpu:then-hang-in:unet")
    wait_for_the_second(out)
    child.send_signal(signal.SIGKILL)
    child.wait(timeout=30)
    assert [run.measured.outcome for run in runs_in(out)] == ["ok"]
    assert planner_main(["history", "import", str(out / "runs.jsonl")]) == 0
    assert "## Where prediction and measurement disagree" in (out / "summary.md").read_text()
    json.loads((out / "differences.json").read_text())
    scripted("cpu:good")
    assert main([str(out), "--device", "cpu", "--minutes", "5", "--limit", "20"]) == 0
    runs = runs_in(out)
    assert {run.measured.outcome for run in runs} == {"ok"} and "1 of them known from before" in log_of(out)
    # The one that was cut off comes last: if it brought the machine down, the others are there.
    assert runs[-1].request == plan.candidates(check.Device())[1].request
    assert planner_main(["history", "import", str(out / "runs.jsonl")]) == 0
    assert len(Store(own_history).measurements()) == len(runs)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_a_summary_and_without_a_worker(started, out, number):
    child = started("cpu:then-hang-in:unet")
    wait_for_the_second(out)
    child.send_signal(number)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 128 + number, said
    assert f"stopped by {number.name}; the same command goes on from there" in said
    summary = (out / "summary.md").read_text()
    assert "experiments were not reached" in summary and "1 run in runs.jsonl" in summary
    assert len(runs_in(out)) == 1


def test_the_time_ends_a_run_that_hangs(scripted, out):
    scripted("cpu:hang-in:unet")
    assert main([str(out), "--device", "cpu", "--minutes", "0.1"]) == 0
    assert "cut off after" in log_of(out) and "the time is used up" in log_of(out)
    assert runs_in(out) == []
    assert "No run has ended yet." in (out / "summary.md").read_text()


def test_experiments_too_long_for_the_time_are_skipped(scripted, out, monkeypatch):
    scripted("cpu:good")
    long = plan.candidates(check.Device())[1]
    real = plan.seconds_of
    monkeypatch.setattr(plan, "seconds_of", lambda one, card: 1e6 if one == long else real(one, card))
    assert main([str(out), "--device", "cpu", "--minutes", "5", "--limit", "4"]) == 0
    runs = runs_in(out)
    assert len(runs) == 4 and long.request not in [run.request for run in runs]
    assert f"- {plan.name_of(long)}: {long.why}" in (out / "summary.md").read_text()


# Another torch


@pytest.fixture
def other_versions(monkeypatch):
    """Pretend that an older torch is installed than the programs are for."""
    versions = dict(programs.installed()) | {"torch": "2.11.0"}
    monkeypatch.setattr("cache.programs.installed", lambda: versions)
    return {name: versions[name].partition("+")[0] for name in LIBRARIES}


def test_programs_for_another_torch_are_compiled_beside_the_runs(scripted, t4, out, other_versions, monkeypatch):
    """Replace the compile by a child that keeps the shipped program under the other versions after a run."""
    scripted("good")
    compiles = (
        "import os, pathlib, time; from cache.history.store import Store\n"
        "from planner.programs.files import shipped\n"
        "from planner.programs.library import Library\n"
        f"log = pathlib.Path({str(out)!r}, 'progress.log')\n"
        "while 'ok after' not in log.read_text(): time.sleep(0.05)\n"
        "old = shipped()\n"
        f"Store().save_program(Library({other_versions!r}, old.routines, old.modules, old.weights))"
    )
    monkeypatch.setattr(check, "COMPILE", (sys.executable, "-c", compiles))
    assert main([str(out), "--minutes", "5", "--limit", "2"]) == 0
    log = log_of(out)
    assert "compiling programs for torch 2.11.0" in log and log.index("compiling") < log.index("ok after")
    runs = runs_in(out)
    assert runs[0].predictions == ()
    summary = (out / "summary.md").read_text()
    assert "Programs were compiled here for torch 2.11.0: the shipped ones are for" in summary
    assert "| fits | 0.00 GiB |" in summary
    assert len(json.loads((out / "differences.json").read_text())) == 2


def test_a_failed_compile_is_reported_without_comparisons(scripted, t4, out, other_versions, monkeypatch):
    scripted("good")
    monkeypatch.setattr(check, "COMPILE", (sys.executable, "-c", "raise SystemExit(2)"))
    assert main([str(out), "--minutes", "5", "--limit", "1"]) == 0
    summary = (out / "summary.md").read_text()
    assert "Nothing was compared: the installed versions could not be compiled" in summary
    assert len(runs_in(out)) == 1 and json.loads((out / "differences.json").read_text()) == []


# What is asked for


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["{out}", "--minutes", "0"], "error: minutes must be between 0.1 and 600, got 0.0 (nearest: 0.1)\n"),
        (["{out}", "--minutes", "x"], "error: minutes must be a finite number, got 'x'\n"),
        (["{out}", "--limit", "0"], "error: limit must be at least 1, got 0 (nearest: 1)\n"),
        (["{out}", "--weights", "none"], "error: weights must be one of synthetic, hub, got 'none'\n"),
        ([], "error: OUT must be given, got None (for example /tmp/gpu-check)\n"),
        ([""], "error: OUT must be given, got '' (for example /tmp/gpu-check)\n"),
        (["/dev/null", "--device", "cpu"], "error: OUT must be a folder that can be written, got '/dev/null'"),
        (["--estimate", "T5"], "error: unknown GPU 'T5'"),
    ],
)
def test_a_usage_error_is_one_line(argv, message, out, capsys):
    assert main([text.replace("{out}", str(out)) for text in argv]) == 2
    said = capsys.readouterr().err
    assert said.startswith(message) and said.count("\n") == 1
    assert not out.exists()


def test_without_a_gpu_it_says_so(no_driver, out, capsys):
    assert main([str(out)]) == 2
    assert "no NVIDIA driver is on this machine" in capsys.readouterr().err


def test_the_plan_of_a_gpu_is_printed_with_its_time(capsys):
    assert main(["--estimate", "T4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("img2img 512×512") and lines[3].startswith("img2img 1800×1200")
    assert lines[-1].startswith("T4: ") and "tests/gpu about" in lines[-1]


# The plan


def on(name: str):
    from cache.machine.attached import AttachedCard
    from planner.cards.lookup import card_named

    card = card_named(name)
    device = check.Device(
        AttachedCard(
            index=0,
            uuid="GPU-0",
            name=name,
            total_bytes=card.usable_bytes,
            free_bytes=card.usable_bytes,
            compute_capability=card.compute_capability,
            driver="580",
            mig=False,
        )
    )
    return card, plan.candidates(device)


def test_each_request_is_planned_once_and_every_kind_is_among_the_chosen():
    _, found = on("H100-80GB")
    assert len({(one.request.request_id, one.capacity_bytes) for one in found}) == len(found)
    chosen = [one for one in found if plan.is_chosen(one)]
    requests = [one.request for one in chosen]
    assert {one.batch for one in requests} >= {1, 2, 4, 8, 16, 32}
    assert {one.width for one in requests} >= {256, 512, 768, 1024, 1536, 2048, 1800, 520}
    assert {one.task for one in requests} == {"img2img", "txt2img", "inpaint"}
    for option in ("vae_tiling", "vae_slicing", "attention_slicing", "channels_last"):
        assert any(getattr(one, option) for one in requests), option
    assert {one.offload for one in requests} == {"none", "model", "sequential"}
    assert any(not one.safety_checker for one in requests)
    assert {one.dtype for one in requests} == {"float16", "bfloat16", "float32"}
    assert {one.attention for one in requests} == {"sdpa", "eager"}
    for option in ("controlnets", "lora_rank"):
        assert any(getattr(one, option) for one in requests), option
    assert any(one.hires > 1 for one in requests) and any(one.allocator == "expandable" for one in requests)
    assert any(one.ip_adapter == "base" for one in requests)
    assert {one.capacity_bytes for one in chosen} == {None, 8 * GIB, 16 * GIB, 24 * GIB}
    assert any(one.records and one.request.width == 1800 for one in chosen)
    # The built-in sweep fills the rest of the time.
    assert len(found) - len(chosen) > 50


def test_tight_experiments_come_late_and_the_grid_last():
    card, found = on("T4")
    found = [one for one in found if one.capacity_bytes is None or one.capacity_bytes < card.usable_bytes]
    verdicts = {one: plan.verdict_on(one, card, shipped()) for one in found}
    assert {"fits", "tight"} <= set(verdicts.values())
    ordered = plan.experiments(found, verdicts)
    assert sorted(map(plan.name_of, ordered)) == sorted(map(plan.name_of, found))
    chosen = [one for one in ordered if plan.is_chosen(one)]
    assert ordered[: len(chosen)] == chosen
    whole = [verdicts[one] for one in chosen if one.capacity_bytes is None]
    assert whole == sorted(whole, key=["fits", "tight", "no"].index)
    # Few workers: one for each model of what fits.
    groups = [one.group for one in chosen if one.capacity_bytes is None and verdicts[one] == "fits"]
    assert sum(a != b for a, b in pairwise(groups)) == len(set(groups)) - 1


@pytest.mark.parametrize(
    ("name", "task", "batch", "seconds"),
    # Denoising loops of huggingface/diffusers, docs/optimization/torch2.0.md: seconds of a guided step.
    [("T4", "txt2img", 1, 0.144), ("T4", "txt2img", 4, 0.559), ("A100-40GB", "img2img", 1, 0.0446)],
)
def test_estimated_seconds_are_near_published_ones(name, task, batch, seconds):
    card, _ = on(name)
    one = plan.Experiment(
        request=plan.GenerationRequest(task=task, batch=batch, steps=50), why="", records=False, capacity_bytes=None
    )
    more = plan.Experiment(
        request=plan.GenerationRequest(task=task, batch=batch, steps=51), why="", records=False, capacity_bytes=None
    )
    assert plan.seconds_of(more, card) - plan.seconds_of(one, card) == pytest.approx(seconds, rel=0.1)


# The script for a machine with a torch of its own


def wheel(folder: Path, name: str, number: str) -> Path:
    """Make a wheel of one module that has the package's name."""
    path = folder / f"{name}-{number}-py3-none-any.whl"
    info = f"{name}-{number}.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}/__init__.py", f"number = {number!r}\n")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    return path


def test_only_missing_wheels_are_chosen_and_never_torch(tmp_path):
    names = ["torch-99.0", "triton-9.0", "nvidia_cudnn_cu13-9.0", "nvidia_ml_py-0.1", "numpy-0.1", "absent_one-1.0"]
    names += ["diffusers-0.1"]
    for name in names:
        wheel(tmp_path, *name.split("-"))
    found = lacking(tmp_path.glob("*.whl"))
    # Of diffusers the wheel's version is wanted; numpy and nvidia-ml-py are there.
    assert [path.name.split("-")[0] for path in found] == ["absent_one", "diffusers"]
    (tmp_path / "nonsense.whl").touch()
    with pytest.raises(ValueError, match=r"nonsense\.whl is no wheel's name"):
        lacking(tmp_path.glob("*.whl"))


def test_the_script_keeps_the_installed_torch(tmp_path, out):
    site, wheels = tmp_path / "site", tmp_path / "wheels of mine"
    site.mkdir()
    wheels.mkdir()
    (site / "sitecustomize.py").write_text(SCRIPTED_FROM_THE_START.format(script="cpu:good"))
    wheel(wheels, "absent_one", "1.0")
    wheel(wheels, "torch", "99.0")
    environment = os.environ | {
        "PYTHON": sys.executable,
        "WHEELS": str(wheels),
        "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]),
    }
    done = subprocess.run(
        ["bash", str(ROOT / "gpu_check.sh"), str(out), "--device", "cpu", "--limit", "1"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(runs_in(out)) == 1
    assert {path.name for path in (out / "libs").iterdir()} == {"absent_one", "absent_one-1.0.dist-info"}


def test_the_script_says_what_is_missing(tmp_path):
    script = str(ROOT / "gpu_check.sh")
    done = subprocess.run(["bash", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "OUT must be given first" in done.stderr
    bare = subprocess.run(
        ["bash", script, str(tmp_path / "out")],
        env=os.environ | {"PYTHON": shutil.which("python3", path="/usr/bin:/bin") or sys.executable, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    if "has no torch" not in bare.stderr:
        pytest.skip("the system's own Python has torch")
    assert bare.returncode == 2


# For real


# The machine may be busy with other tests.
@pytest.mark.timeout(900)
def test_a_rehearsal_for_real(out):
    """Run one request in the real worker, and compare its allocations with the dry run's."""
    done = subprocess.run(
        [sys.executable, "-m", "cache.gpu_check", str(out), "--minutes", "14", "--device", "cpu", "--limit", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (run,) = runs_in(out)
    assert run.measured.outcome == "ok" and run.predictions[0].basis == "dry-run"
    (found,) = json.loads((out / "differences.json").read_text())
    assert found["share"] > 0.99 and found["of"] == "storages"
    assert "1 run finished, 1 of them" in (out / "summary.md").read_text()


def test_a_report_keeps_what_it_compared(scripted, out, monkeypatch):
    """Write the summary twice, and expect one comparison of each run."""
    scripted("cpu:good")
    compared = []
    real = Report._compare
    monkeypatch.setattr(Report, "_compare", lambda self, run, library: compared.append(run) or real(self, run, library))
    assert main([str(out), "--device", "cpu", "--minutes", "5", "--limit", "3"]) == 0
    assert len(compared) == 3 and isinstance(shipped(), Library)


# verify --workspaces


def test_verify_writes_the_workspace_of_each_convolution(scripted, t4, tmp_path, capsys):
    scripted("good")
    path = tmp_path / "convolutions.json"
    assert planner_main(["verify", "--device", "0", "--workspaces", str(path)]) == 0
    assert f"{path} has the workspace of 1 convolutions" in capsys.readouterr().err
    found = json.loads(path.read_text())
    (convolution,) = found["convolutions"]
    assert (convolution["module"], convolution["workspace_bytes"]) == ("vae.decoder.conv_in", 5 << 20)
    assert convolution["predicted_bytes"] > 0 and found["schema"] == 1
    assert found["measurement"]["request"]["width"] == 512
    # An answer from the history would have no workspaces, so it is measured again.
    path.unlink()
    assert planner_main(["verify", "--device", "0", "--workspaces", str(path)]) == 0 and path.exists()


def test_a_run_that_recorded_nothing_writes_nothing(scripted, t4, tmp_path, capsys):
    scripted("killed")
    path = tmp_path / "convolutions.json"
    assert planner_main(["verify", "--device", "0", "--workspaces", str(path)]) == 12
    assert "was not written: the run recorded nothing and its outcome is failed" in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--device", "cpu"], "error: workspaces needs a GPU: on the CPU no kernel's workspace comes from"),
        (["--device", "0", "--sweep", "grid"], "error: workspaces must not be given with --sweep: it is for one"),
    ],
)
def test_workspaces_are_refused_before_anything_runs(t4, tmp_path, capsys, own_history, argv, message):
    assert planner_main(["verify", "--workspaces", str(tmp_path / "file.json"), *argv]) == 2
    assert capsys.readouterr().err.startswith(message) and not own_history.exists()


def test_a_file_of_workspaces_needs_its_folder(t4, capsys, own_history):
    assert planner_main(["verify", "--device", "0", "--workspaces", "/nowhere/file.json"]) == 2
    rule = "workspaces must be a file in a folder that exists"
    said = f"error: {rule}, got '/nowhere/file.json' (No such file or directory)\n"
    assert capsys.readouterr().err == said and not own_history.exists()


# The notebook

NOTEBOOK = ROOT / "notebooks" / "verify_on_colab.ipynb"

# In a process of its own, for the libraries that run notebooks warn of each other.
RUN_NOTEBOOK = """
import sys
import nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=840, kernel_name="python3", resources={"metadata": {"path": sys.argv[2]}}).execute()
nbformat.write(notebook, sys.argv[3])
"""


@pytest.mark.timeout(900)
def test_the_notebook_runs_from_top_to_bottom_as_a_rehearsal(tmp_path, out, own_history):
    executed = tmp_path / "executed.ipynb"
    done = subprocess.run(
        [sys.executable, "-c", RUN_NOTEBOOK, str(NOTEBOOK), str(NOTEBOOK.parent), str(executed)],
        env=os.environ | {"DEVICE": "cpu", "MINUTES": "14", "LIMIT": "1", "OUT": str(out), "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [run.measured.outcome for run in runs_in(out)] == ["ok"]
    text = executed.read_text()
    assert "stays; installed: nothing" in text and "1 run finished, 1 of them" in text
    with zipfile.ZipFile(tmp_path / "gpu-check.zip") as file:
        names = set(file.namelist())
        (tmp_path / "runs.jsonl").write_bytes(file.read("runs.jsonl"))
    assert names >= FILES and not any(name.startswith("history") for name in names)
    assert planner_main(["history", "import", str(tmp_path / "runs.jsonl")]) == 0
    assert len(Store(own_history).measurements()) == 1


def test_the_notebook_has_no_output_and_keeps_torch():
    kept = json.loads(NOTEBOOK.read_text())
    code = [cell for cell in kept["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert kept["metadata"]["colab"]["gpuType"] == "T4"
    text = "".join("".join(cell["source"]) for cell in code)
    assert '"torch", "streamlit"' in text and 'f"torch=={torch}"' in text
    # The project has no fixed address, so none is named.
    assert "http" not in text
