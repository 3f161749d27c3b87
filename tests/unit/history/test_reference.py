import pytest

from cache.exchange.lines import NotARun, lines_of, measurement_of
from cache.history import reference
from cache.history.location import REFERENCE_RUNS
from cache.history.reference import reference_runs
from planner.request import GenerationRequest
from planner.units import MIB
from tests.reference_rows import ROWS, WHOLE, rows, whole_pipelines


@pytest.mark.parametrize(("name", "made"), [("published", rows), ("pipelines", whole_pipelines)])
def test_the_file_is_what_its_generator_prints(name, made):
    assert (REFERENCE_RUNS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines() == list(lines_of(made()))


def test_every_expressible_row_is_there_once():
    runs = reference_runs()
    assert len(runs) == 37 == len({run.measurement_id for run in runs})
    assert {run.origin for run in runs} == {"reference"}
    assert [run.scope for run in runs].count("pipeline") == 24
    left_out = [row["id"] for row in (*ROWS, *WHOLE) if not any(row["id"] in run.source for run in runs)]
    assert left_out == [row["id"] for row in ROWS if row["offload"] == "enable_sequential_cpu_offload"]


def test_rows_say_what_was_published():
    runs = reference_runs()
    # One file follows the other, in the order of their names.
    first, last = runs[len(WHOLE)], runs[-1]
    assert (first.scope, first.request.task, first.request.width) == ("vae.encode", "img2img", 512)
    assert first.measured.peak_allocated_bytes == round(384.28173828125 * MIB)
    assert first.measured.peak_reserved_bytes == round(534.4 * MIB)
    assert first.source.endswith(", m223, m224")
    assert (first.environment.torch, first.environment.cuda) == ("2.7.1", "12.8")
    assert last.request == GenerationRequest(task="txt2img", steps=30, offload="model")
    assert (last.environment.card, last.environment.compute_capability) == ("NVIDIA GeForce GTX 1070", "6.1")
    assert (last.measured.peak_reserved_bytes, last.measured.num_alloc_retries) == (None, None)
    assert sum(run.request.vae_tiling for run in reference_runs()) == 5


def test_a_damaged_file_is_a_message(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text("\n{")
    monkeypatch.setattr(reference, "REFERENCE_RUNS", tmp_path)
    with pytest.raises(NotARun, match="line 2 must be JSON"):
        reference_runs.__wrapped__()


def test_whole_pipelines_say_what_was_published():
    by_id = {run.source.rpartition(", ")[2]: run for run in reference_runs()}
    large, offloaded, reserved = by_id["m028"], by_id["m002"], by_id["m112"]
    assert large.request == GenerationRequest(task="txt2img", batch=32, steps=12, safety_checker=False)
    assert (large.measured.peak_allocated_bytes, large.environment.torch) == (17_222_561_280, "2.0.x")
    assert (offloaded.request.offload, offloaded.environment.attention) == ("model", "xformers")
    assert offloaded.measured.peak_allocated_bytes == round(6906.06591796875 * MIB)
    assert (reserved.measured.peak_allocated_bytes, reserved.measured.peak_reserved_bytes) == (None, 4_300_000_000)
    assert (reserved.environment.torch, reserved.environment.cuda) == ("1.14.0a0", "11.8")
    colab = by_id["m007"].environment
    assert (colab.torch, colab.cuda, colab.cudnn) == ("2.8.0", "12.6", "91002")
    assert (by_id["m007"].request.width, by_id["m007"].request.guidance_scale) == (1800, 5.0)


def test_only_a_reference_run_may_lack_its_allocated_peak():
    [line] = [line for line in lines_of(whole_pipelines()) if ", m112" in line]
    assert measurement_of(line, 1, "reference").measured.peak_reserved_bytes
    with pytest.raises(NotARun, match="peak_allocated_bytes must be given"):
        measurement_of(line, 1, "imported")
