"""The real architecture with synthetic weights, in the real worker, on the CPU."""

import json
from functools import partial

import pytest

from cache.doctor import checks
from cache.exchange.lines import lines_of, read_runs
from cache.history.store import Store
from cache.jobs.queue import Jobs
from cache.machine.device import Device
from cache.machine.versions import installed
from cache.predictions import predictions_for
from planner.cli.main import main
from planner.components import MODEL_ID, SD_V15
from planner.request import GenerationRequest

REQUEST = GenerationRequest(width=64, height=72, steps=2)


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """Run five requests in one worker: both tasks, guidance and batch, options, and a repeat."""
    store = Store(tmp_path_factory.mktemp("rehearsed") / "planner.db")
    jobs = Jobs(store)
    requests = {
        "img2img": REQUEST,
        "txt2img": GenerationRequest(task="txt2img", width=64, height=72, steps=2),
        "unguided": GenerationRequest(width=64, height=72, steps=2, guidance_scale=1.0),
        "batch": GenerationRequest(width=64, height=72, steps=2, batch=2),
        "options": GenerationRequest(
            task="txt2img", width=64, height=72, steps=1, vae_tiling=True, vae_slicing=True, hires=1.25
        ),
    }
    runs, views, pids = {}, {}, set()
    try:
        for name, request in requests.items():
            job_id = jobs.submit(request, Device(), predict=partial(predictions_for, request, Device()))
            views[name] = jobs.wait(job_id)
            pids.add(jobs.worker_pid)
            runs[name] = store.measurement(views[name].measurement_id)
    finally:
        jobs.close()
    return store, runs, views, pids


def test_every_run_ends_well_in_one_resident_worker(rehearsed):
    _, runs, views, pids = rehearsed
    assert {name: run.measured.outcome for name, run in runs.items()} == dict.fromkeys(runs, "ok")
    assert len(pids) == 1
    loads = [sum(seconds for phase, seconds in view.phases if phase == "loading") for view in views.values()]
    assert loads[0] > 0 and loads[1:] == [0, 0, 0, 0]


def test_stages_follow_the_pipeline(rehearsed):
    _, runs, _, _ = rehearsed
    stages = {name: [stage.stage for stage in run.measured.stages] for name, run in runs.items()}
    assert stages["img2img"] == ["text_encoder", "vae_encoder", "unet", "vae_decoder", "safety_checker"]
    assert stages["txt2img"] == ["text_encoder", "unet", "vae_decoder", "safety_checker"]


def test_weights_take_the_bytes_of_the_parameters(rehearsed):
    _, runs, _, _ = rehearsed
    parameters = sum(SD_V15.parameters.values()) * 2
    for run in runs.values():
        # Buffers come on top: position ids and a scalar or two.
        assert 0 <= run.measured.weights_bytes - parameters < 100_000


def test_a_stage_holds_at_least_the_weights(rehearsed):
    _, runs, _, _ = rehearsed
    for run in runs.values():
        peaks = [stage.peak_allocated_bytes for stage in run.measured.stages]
        assert min(peaks) >= run.measured.weights_bytes
        assert run.measured.peak_allocated_bytes == max(peaks)


def test_guidance_and_batch_take_more_in_the_unet(rehearsed):
    _, runs, _, _ = rehearsed
    activations = {
        name: stage.peak_allocated_bytes - run.measured.weights_bytes
        for name, run in runs.items()
        for stage in run.measured.stages
        if stage.stage == "unet"
    }
    assert activations["unguided"] < activations["img2img"] < activations["batch"]


def test_a_cpu_run_has_no_cuda_numbers_and_no_verdict(rehearsed):
    _, runs, _, _ = rehearsed
    run = runs["img2img"]
    assert (run.environment.device_kind, run.environment.dtype) == ("cpu", "bfloat16")
    assert run.measured.peak_reserved_bytes is run.measured.context_bytes is run.measured.num_alloc_retries is None
    assert run.predictions[0].verdict == "unknown"
    assert run.measured.seconds_per_step > 0


def test_a_run_can_be_imported_elsewhere(rehearsed, tmp_path):
    measured = rehearsed[0].measurements()
    lines = (line.encode() for line in lines_of(measured))
    assert Store(tmp_path / "other.db").import_measurements(read_runs(lines)) == (len(measured), 0)


def test_progress_names_every_phase(rehearsed):
    _, _, views, _ = rehearsed
    names = [name for name, _ in views["img2img"].phases]
    assert names == [
        "starting",
        "loading",
        "warm-up",
        "text_encoder",
        "vae_encoder",
        "unet",
        "vae_decoder",
        "reading back",
        "safety_checker",
        "reading back",
    ]


def test_parameter_counts_equal_the_published_ones(rehearsed, monkeypatch):
    store, _, _, _ = rehearsed
    assert dict(store.model_facts(MODEL_ID, installed()).parameters) == dict(SD_V15.parameters)
    monkeypatch.setenv("PLANNER_DB", str(store.path))
    facts = next(check for check in checks() if check.name == "Model facts")
    assert facts.state == "ok" and "equal to the published counts" in facts.found


def test_the_command_answers_from_the_same_history(rehearsed, monkeypatch, capsys):
    store, runs, _, _ = rehearsed
    monkeypatch.setenv("PLANNER_DB", str(store.path))
    argv = ["verify", "--device", "cpu", "--width", "64", "--height", "72", "--steps", "2"]
    assert main([*argv, "--json"]) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert answer["cached"] is True
    assert answer["measurement"]["id"] == runs["img2img"].measurement_id
    assert "--force measures again" in err
    assert main(argv) == 0
    out, _ = capsys.readouterr()
    assert "It says nothing about a GPU" in out and "Peak allocated" in out


def test_the_command_measures_with_progress_and_keeps_the_run(own_history, capsys):
    argv = ["verify", "--device", "cpu", "--width", "64", "--height", "64", "--steps", "1", "--no-safety-checker"]
    argv.append("--channels-last")
    assert main([*argv, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["cached"] is False
    for phase in ("loading: unet", "warm-up", "VAE decoder"):
        assert phase in err
    assert len(Store(own_history).measurements()) == 1


def verify_folder(folder, capsys) -> tuple[int, str]:
    argv = ["verify", "--device", "cpu", "--width", "64", "--height", "64", "--steps", "2", "--no-safety-checker"]
    code = main([*argv, "--model-dir", str(folder)])
    return code, capsys.readouterr().out


def test_a_local_folder_of_safetensors_runs(small_pipeline, tmp_path, capsys, own_history):
    small_pipeline.save_pretrained(tmp_path, safe_serialization=True)
    code, out = verify_folder(tmp_path, capsys)
    assert code == 0, out
    (run,) = Store(own_history).measurements()
    assert run.environment.weights.startswith("local:")
    assert run.measured.weights_bytes < 20_000_000
    # What was counted in that folder is not taken for Stable Diffusion v1.5.
    assert Store(own_history).model_facts(MODEL_ID, installed()) is None


def test_a_folder_with_pickled_weights_is_refused(small_pipeline, tmp_path, capsys, own_history):
    small_pipeline.save_pretrained(tmp_path, safe_serialization=True)
    for path in tmp_path.rglob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    code, out = verify_folder(tmp_path, capsys)
    assert code == 12
    assert "safetensors" in out
    assert Store(own_history).measurements()[0].measured.outcome == "failed"
