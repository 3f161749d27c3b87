import pytest

from cache import reference
from cache.exchange import NotARun, lines_of
from cache.location import REFERENCE_RUNS
from cache.reference import reference_runs
from planner.request import GenerationRequest
from planner.units import MIB
from tests.reference_rows import ROWS, rows


def test_the_file_is_what_its_generator_prints():
    assert (REFERENCE_RUNS / "published.jsonl").read_text(encoding="utf-8").splitlines() == list(lines_of(rows()))


def test_every_expressible_row_is_there_once():
    runs = reference_runs()
    assert len(runs) == 17 == len({run.measurement_id for run in runs})
    assert {run.origin for run in runs} == {"reference"}
    assert [run.scope for run in runs].count("pipeline") == 4
    left_out = [row["id"] for row in ROWS if not any(row["id"] in run.source for run in runs)]
    assert left_out == [row["id"] for row in ROWS if row["offload"] == "enable_sequential_cpu_offload"]


def test_rows_say_what_was_published():
    first, *_, last = reference_runs()
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
