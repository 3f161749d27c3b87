"""``verify --sweep`` with the real queue and a scripted worker: how it runs, stops and goes on."""

import json
import sys

import pytest

from cache.history.store import Store
from cache.jobs.queue import Jobs
from planner.cli import verify as cli_verify
from planner.cli.main import main
from planner.units import GIB

SMALL = ("verify", "--device", "cpu", "--height", "64", "--steps", "2")
WIDTHS = (64, 72, 80)


@pytest.fixture
def scripted(monkeypatch):
    """Let workers follow a script, and list each worker that is started."""
    started = []

    def follow(script: str, once=None) -> list[str]:
        command = [sys.executable, "-m", "tests.worker.scripted", script, *([str(once)] if once else [])]
        monkeypatch.setitem(
            Jobs.__init__.__kwdefaults__, "worker_command", lambda kind: started.append(kind) or command
        )
        return started

    return follow


@pytest.fixture
def sweep(tmp_path, capsys):
    """Run a sweep of these entries, and return its exit code, stdout and stderr."""

    def run(entries, *argv: str) -> tuple[int, str, str]:
        path = tmp_path / "sweep.json"
        path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
        code = main([*SMALL, "--sweep", str(path), *argv])
        return code, *capsys.readouterr()

    return run


def of_widths(*widths: int) -> list[dict]:
    return [{"width": width} for width in widths]


def outcomes(path) -> list[str]:
    return [run.measured.outcome for run in reversed(Store(path).measurements())]


def test_each_request_is_measured_once_and_kept_with_its_predictions(scripted, sweep, own_history):
    started = scripted("good")
    code, out, err = sweep(of_widths(80, 64, 72))
    assert code == 0
    assert [line.split("64,")[0] for line in out.splitlines()[2:]] == [f"img2img {width}×" for width in WIDTHS]
    assert "cached" in out.splitlines()[0] and out.count("  no") == 3
    assert "[2/3] img2img 72×64, batch 1" in err and "UNet" in err and "ok: 0.00 GiB allocated" in err
    runs = Store(own_history).measurements()
    assert [[one.basis for one in run.predictions][:2] for run in runs] == [["dry-run", "formula"]] * 3
    # The model stays resident.
    assert started == ["cpu"]


def test_a_repeated_sweep_answers_from_the_history(scripted, sweep, own_history):
    scripted("good")
    sweep(of_widths(*WIDTHS))
    code, out, err = sweep(of_widths(*WIDTHS))
    assert code == 0 and out.count("  yes") == 3 and "ok (measured before)" in err
    assert len(outcomes(own_history)) == 3
    sweep(of_widths(*WIDTHS), "--force")
    assert len(outcomes(own_history)) == 6


def test_each_model_is_loaded_once(scripted, sweep):
    started = scripted("good")
    entries = [{"width": width, "channels_last": last} for width in WIDTHS for last in (True, False)]
    assert sweep(entries)[0] == 0
    assert len(started) == 2


@pytest.mark.parametrize(
    ("script", "outcome", "code"), [("out-of-memory", "out-of-memory", 10), ("raises", "failed", 12)]
)
def test_a_failed_run_does_not_stop_the_sweep(scripted, sweep, own_history, tmp_path, script, outcome, code):
    scripted("good")
    sweep(of_widths(64))
    scripted(script, tmp_path / "once")
    done, out, err = sweep(of_widths(*WIDTHS))
    assert done == code
    assert outcomes(own_history) == ["ok", outcome, "ok"]
    assert [line.split()[-1] for line in out.splitlines()[2:]] == ["yes", "no", "no"]
    assert f"{outcome}: " in err
    # Both are tried again: the memory of the host, which a rehearsal takes, may be free by then.
    assert sweep(of_widths(*WIDTHS))[0] == 0


def test_retries_make_the_exit_code_tight(scripted, sweep):
    scripted("retries")
    code, out, _ = sweep(of_widths(64))
    assert code == 11 and out.split()[-2:] == ["3", "no"]


def test_a_stopped_sweep_goes_on_where_it_was(scripted, sweep, own_history, tmp_path, monkeypatch):
    scripted("good")
    sweep(of_widths(64))
    scripted("hang-in:unet", tmp_path / "once")
    progress = cli_verify._Progress.__call__

    def ctrl_c(self, view) -> None:
        progress(self, view)
        if view.phase == "unet":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cli_verify._Progress, "__call__", ctrl_c)
        code, out, err = sweep(of_widths(*WIDTHS))
    assert code == 130
    assert err.endswith("stopped after 1 of 3; the same command goes on from there\n")
    assert out.count("img2img") == 1
    assert outcomes(own_history) == ["ok", "cancelled"]
    code, out, _ = sweep(of_widths(*WIDTHS))
    assert code == 0 and [line.split()[-1] for line in out.splitlines()[2:]] == ["yes", "no", "no"]


def test_json_has_every_run_and_what_was_skipped(scripted, sweep):
    scripted("good")
    sweep(of_widths(64))
    code, out, err = sweep([*of_widths(64, 72), {"width": 8192}, {"attention": "xformers"}], "--json")
    answer = json.loads(out)
    assert code == 0 and set(answer) == {"schema", "sweep", "skipped"}
    assert [(one["cached"], one["measurement"]["request"]["width"]) for one in answer["sweep"]] == [
        (True, 64),
        (False, 72),
    ]
    assert {one["request"]["width"]: one["reason"].split(" must")[0].split(" at")[0] for one in answer["skipped"]} == {
        8192: "device cpu rehearses",
        512: "attention",
    }
    assert "skipped 1 of 4: device cpu rehearses at most 512x512 pixels in all\n" in err
    assert "skipped 1 of 4: attention must be sdpa or eager on the CPU" in err


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("[{}, 1]", "error: sweep[1] must be an object, got 1\n"),
        ('[{"steps": 0}]', "error: sweep[0].steps must be between 1 and 1000, got 0 (nearest: 1)\n"),
        ('[{"width": 1024, "height": 1024}]', "error: device cpu rehearses at most 512x512 pixels in all"),
    ],
)
def test_a_bad_sweep_is_refused_before_anything_runs(sweep, own_history, entries, message):
    code, out, err = sweep(entries)
    assert (code, out) == (2, "") and err.startswith(message)
    assert not own_history.exists()


def test_a_missing_file_or_model_is_refused(capsys, own_history):
    assert main([*SMALL, "--sweep", "/nowhere/sweep.json"]) == 2
    assert "sweep must be a file that can be read, or -, got '/nowhere/sweep.json' (No such" in capsys.readouterr().err
    assert main([*SMALL, "--sweep", "grid", "--model-dir", "/nowhere"]) == 2
    assert "model_dir must be a folder with model_index.json" in capsys.readouterr().err
    assert not own_history.exists()


def test_a_history_that_cannot_be_written_stops_the_sweep(scripted, sweep, monkeypatch):
    scripted("good")

    def broken(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(Store, "end_job", broken)
    code, out, err = sweep(of_widths(*WIDTHS))
    assert (code, out.count("\n")) == (2, 1) and '"format":"will-it-fit/run"' in out
    assert "not kept" in err and "error: the history could not keep this run: disk full" in err
    assert "[2/3]" not in err


def test_a_card_takes_every_request_of_a_sweep(scripted, sweep, nvml, cuda_build):
    started = scripted("good")
    entries = [{"width": 2048, "height": 2048}, {"batch": 8, "offload": "model"}]
    code, out, err = sweep(entries, "--device", "0", "--json")
    answer = json.loads(out)
    assert (code, answer["skipped"], len(started)) == (0, [], 2)
    assert "skipped" not in err
    for one in answer["sweep"]:
        assert one["measurement"]["environment"]["card"] == "Tesla T4"
        assert one["measurement"]["predictions"][0]["basis"] == "dry-run"


def test_emulated_capacities_come_last_in_own_workers(scripted, sweep, nvml, cuda_build, own_history):
    started = scripted("good")
    at_8_gib = {"capacity_bytes": 8 * GIB}
    entries = [at_8_gib, {"width": 72}, {"width": 80, **at_8_gib}, {"width": 64}, {"capacity_bytes": 16 * GIB}]
    code, out, err = sweep(entries, "--device", "0")
    assert code == 0 and len(started) == 2
    rows = [line for line in out.splitlines() if line.startswith("img2img")]
    assert [", 8 GiB emulated" in row for row in rows] == [False, False, True, True]
    assert "[3/4] img2img 80×64" in err and "steps, 8 GiB emulated\n" in err
    assert "skipped 1 of 5: capacity must be below the GPU's memory of 14.56 GiB\n" in err
    runs = Store(own_history).measurements()
    assert [run.environment.emulated_bytes for run in runs] == [8 * GIB, 8 * GIB, None, None]
    # What was predicted is for that capacity.
    assert {one.basis for run in runs for one in run.predictions} == {"dry-run", "formula"}
    code, out, _ = sweep(entries, "--device", "0", "--json")
    answer = json.loads(out)
    assert [one["cached"] for one in answer["sweep"]] == [True] * 4
    assert [(one["capacity_bytes"], one["reason"][:21]) for one in answer["skipped"]] == [
        (16 * GIB, "capacity must be belo")
    ]


def test_a_capacity_for_the_whole_sweep(scripted, sweep, nvml, cuda_build, own_history):
    scripted("good")
    code, out, _ = sweep([{}, {"width": 64, "capacity_bytes": None}], "--device", "0", "--capacity", "8GiB")
    assert code == 0 and out.count(", 8 GiB emulated") == 1
    assert [run.environment.emulated_bytes for run in Store(own_history).measurements()] == [8 * GIB, None]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("512MiB", "error: capacity must be at least 1 GiB, got '0.5 GiB' (nearest: 1 GiB)\n"),
        ("16GiB", "error: capacity must be below the GPU's memory of 14.56 GiB, got '16 GiB' (leave it out"),
        ("16", "error: capacity must be a number with B, KiB, MiB or GiB, got '16' (for example 16GiB)\n"),
    ],
)
def test_an_impossible_capacity_is_a_usage_error(capsys, nvml, cuda_build, own_history, size, message):
    code = main(["verify", "--device", "0", "--capacity", size])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "") and err.startswith(message)
    assert not own_history.exists()


def test_a_run_at_a_capacity_is_named_by_it(scripted, capsys, nvml, cuda_build):
    scripted("retries")
    assert main(["verify", "--device", "0", "--width", "64", "--height", "64", "--capacity", "8GiB"]) == 11
    told = capsys.readouterr().out
    assert "on       Tesla T4, 8 GiB emulated, driver 580.65.06" in told
    assert "8 GiB emulated: torch refused more, the CUDA context included. Kernels and context are those of" in told
    main(["history", "list"])
    assert "Tesla T4, 8 GiB emulated" in capsys.readouterr().out
    main(["history", "list", "--json"])
    [run] = json.loads(capsys.readouterr().out)["measurements"]
    assert run["environment"]["emulated_bytes"] == 8 * GIB
    main(["history", "show", run["id"][:8]])
    assert capsys.readouterr().out == told
