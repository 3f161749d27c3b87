"""How wrong predictions were on one GPU, told in one sentence, and the command that prints it."""

import json

import pytest

from cache.history.observations import observation_of
from cache.history.reference import sources
from planner.accuracy.by_gpu import (
    CONDITIONS,
    Gpu,
    by_gpu,
    circumstances,
    confirmed,
    gpu_of,
    measured_gpus,
    median_words,
    off_words,
    work_of,
)
from planner.accuracy.grading import grade
from planner.cards.lookup import CATALOGUE, SLICES, card_named, described_card, emulated_card, shared_card
from planner.cli import main as cli
from planner.report.accuracy import run_row
from planner.request import GenerationRequest
from planner.units import GIB
from tests.accuracy import graded_runs
from tests.unit.measured import evidence_of, history, run_of


@pytest.fixture(scope="module")
def graded():
    return graded_runs()


def told(graded, name: str):
    return by_gpu(graded, gpu_of(card_named(name)))


def test_a_measured_gpu_is_told_by_its_whole_pipelines(graded):
    t4 = told(graded, "tesla t4")
    assert t4.is_measured
    assert t4.sentence() == "T4: 5 runs of whole pipelines, median 0.04 %, worst −17.4 % (img2img 1800×1200)"
    assert "5 of 5 measured peaks lie in the interval of the answer without that run" in t4.further_sentences()
    assert any("torch 2.0.x (3)" in line and "torch 2.8.0 (2)" in line for line in t4.further_sentences())


def test_reserved_peaks_are_never_in_a_median_of_allocated_ones(graded):
    a100 = told(graded, "A100")
    assert a100.allocated and a100.reserved
    assert {one.peak for one in a100.allocated.runs} == {"allocated"}
    assert {one.peak for one in a100.reserved.runs} == {"reserved"}
    first, _, second = a100.sentence().partition("; ")
    assert first.startswith("A100-40GB: 3 runs of whole pipelines, median 0.01 %")
    assert second.startswith("4 more with the reserved peak alone, median 4.67 %")
    assert told(graded, "A10").sentence().startswith("A10: 3 runs of whole pipelines with the reserved peak alone")


def test_halves_of_the_vae_are_told_apart(graded):
    ada = told(graded, "RTX 4090")
    assert ada.halves and len(ada.halves.runs) == 13
    assert all(one.is_whole for one in ada.whole_runs) and len(ada.whole_runs) == 3
    assert ada.sentence().startswith("RTX 4090: 3 runs of whole pipelines")
    assert any(line.startswith("apart from these, 13 runs of halves") for line in ada.further_sentences())


def test_halves_alone_do_not_make_a_gpu_measured(graded):
    halves = [one for one in graded if not one.is_whole]
    ada = told(halves, "RTX 4090")
    assert not ada.is_measured and "not measured" in ada.sentence()
    assert ada.halves and len(ada.halves.runs) == 13


@pytest.mark.parametrize(
    ("name", "nearness", "nearest"),
    [
        ("A10G", "compute capability", ["A10"]),
        ("L4", "compute capability", ["RTX 4090", "RTX 4060 Laptop"]),
        ("A100-80GB", "compute capability", ["A100-40GB"]),
        ("A100-40GB 3g.20gb", "compute capability", ["A100-40GB"]),
        ("V100-16GB", "major compute capability", ["T4"]),
        ("H100", None, []),
    ],
)
def test_a_gpu_without_runs_has_the_nearest_evidence(graded, name, nearness, nearest):
    found = told(graded, name)
    assert not found.is_measured and found.nearness == nearness
    assert [near.gpu.name for near in found.nearest] == nearest
    assert found.sentence().startswith(f"{found.gpu.name}: not measured")
    for near in nearest:
        assert f"{near} (" in found.sentence()
    assert len(found.runs_to_show) == sum(len(near.whole_runs) for near in found.nearest)


def test_the_nearest_of_the_same_architecture_come_before_the_same_major_number(graded):
    """Compute capability 8.7 has no run: its architecture's are nearer than Ada's, which are 8.x as well."""
    found = by_gpu(graded, Gpu("Orin", "Orin", (8, 7)))
    assert found.nearness == "architecture"
    assert [near.gpu.name for near in found.nearest] == ["A100-40GB", "A10"]


def test_where_nothing_is_near_the_assumption_is_named(graded):
    h100 = told(graded, "H100")
    assert h100.sentence() == (
        "H100-80GB: not measured, nor is any GPU of compute capability 9.x; assumed: kernels are taken to need what "
        "those of capability 8 need"
    )
    assert "assumed - compute capability 7.0" in "\n".join(told(graded, "V100").further_sentences())
    assert told([], "T4").sentence() == "T4: not measured, nor is any GPU of compute capability 7.x"


def test_every_gpu_of_the_catalogue_has_a_sentence(graded):
    for card in (*CATALOGUE, *SLICES):
        sentence = by_gpu(graded, gpu_of(card)).sentence()
        assert sentence.startswith(f"{card.name}: ") and ("not measured" in sentence) != ("whole pipeline" in sentence)


def test_described_shared_and_emulated_gpus(graded):
    described = by_gpu(graded, gpu_of(described_card("16GiB", "7.5")))
    assert not described.is_measured and [near.gpu.name for near in described.nearest] == ["T4"]
    whole = told(graded, "T4").sentence()
    assert by_gpu(graded, gpu_of(shared_card(card_named("T4"), 3))).sentence() == whole
    emulated = by_gpu(graded, gpu_of(emulated_card(card_named("T4"), 8 * GIB)))
    assert emulated.is_measured and emulated.gpu.model == "T4"


def test_own_runs_count_and_a_gpu_beyond_the_catalogue_is_found():
    runs = history(6, 1, fraction=0.6, absurd=0)
    found = grade(evidence_of([*runs, run_of(GenerationRequest(), 99, kind="out-of-memory")]))
    (gpu,) = measured_gpus(found)
    own = by_gpu(found, gpu)
    assert own.allocated and len(own.allocated.runs) == 6
    assert own.allocated.median_error < 0.1 and own.allocated.worst in found
    other = by_gpu(found, Gpu("unheard of", "unheard of", gpu.capability))
    assert not other.is_measured and [near.gpu for near in other.nearest] == [gpu]


def test_one_run_is_told_without_a_median(graded):
    one = [run for run in graded if run.observation.model == "T4"][:1]
    assert told(one, "T4").sentence() == f"T4: 1 run of a whole pipeline, off by 0.00 % ({work_of(one[0])})"


def test_errors_are_told_with_the_digits_that_show_them():
    assert [off_words(error) for error in (-0.1737, 0.0004, -0.00001, 0.1, -0.0999)] == [
        "−17.4 %",
        "+0.04 %",
        "0.00 %",
        "+10.0 %",
        "−9.99 %",
    ]
    assert median_words(-0.0234) == "2.34 %" and median_words(0.0) == "0.00 %"


def test_a_run_says_what_must_be_known_beside_its_error(graded):
    by_work = {(one.observation.card_name, work_of(one)): one for one in graded}
    laptop = by_work["RTX 4060 Laptop", "img2img 2048×2048, model offload"]
    assert circumstances(laptop) == ["attention xformers", "by the dry run it fills 7.60 GiB"]
    assert circumstances(by_work["A10", "txt2img 512×512, batch 2"])[0] == "reserved"
    assert circumstances(by_work["T4", "txt2img 512×512"]) == []


def on(graded, capability, *, is_whole=True):
    return next(one for one in confirmed(graded, is_whole=is_whole) if one.capability == capability)


def test_conditions_are_confirmed_by_counted_runs(graded):
    turing = on(graded, (7, 5))
    assert turing.words("confirmed") == ["one plain image (2 of 2)", "several images (2 of 2)"]
    assert turing.words("disagrees") == ["large images (0 of 1, worst −17.4 %)"]
    assert "channels_last" in turing.words("not measured")
    assert turing.sentence().startswith("7.5 Turing (T4) - confirmed: one plain image (2 of 2), several images")
    assert on(graded, (8, 9)).conditions["model offload"].state == "confirmed"


def test_a_half_of_the_vae_in_tiles_is_no_whole_pipeline_in_tiles(graded):
    assert on(graded, (8, 9)).conditions["VAE tiling"].state == "not measured"
    assert "VAE tiling (5 of 5)" in on(graded, (8, 9), is_whole=False).words("confirmed")


def test_reserved_peaks_confirm_nothing_of_allocated_ones(graded):
    ampere = on(graded, (8, 0))
    assert ampere.conditions["one plain image"].state == "confirmed"
    assert "one plain image (1 of 1)" in ampere.words("confirmed")
    assert "one plain image by the reserved peak (0 of 1, worst +9.01 %)" in ampere.words("disagrees")
    assert "several images by the reserved peak (1 of 3, worst +3.35 %)" in on(graded, (8, 6)).words("disagrees")
    assert on(graded, (8, 6)).conditions["several images"].state == "disagrees"


def test_what_nobody_measured_is_in_the_table_and_every_run_is_counted(graded):
    rows = confirmed(graded, is_whole=True)
    assert {one.capability for one in rows} >= {card.compute_capability for card in CATALOGUE}
    hopper = next(one for one in rows if one.capability == (9, 0))
    assert hopper.gpus == () and {found.state for found in hopper.conditions.values()} == {"not measured"}
    assert hopper.sentence() == "9.0 Hopper: not measured" and hopper.words("not measured") == list(CONDITIONS)
    for is_whole in (True, False):
        counted = {
            run.observation.run_id
            for one in confirmed(graded, is_whole=is_whole)
            for found in one.conditions.values()
            for of in (found.allocated, found.reserved)
            if of
            for run in of.runs
        }
        assert counted == {one.observation.run_id for one in graded if one.is_whole == is_whole}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, {"one plain image"}),
        ({"batch": 4}, {"several images"}),
        ({"batch": 4, "vae_slicing": True}, {"several images", "VAE slicing"}),
        ({"vae_slicing": True}, {"one plain image"}),
        ({"width": 1024, "height": 1024}, {"one plain image"}),
        ({"width": 1032, "height": 1024}, {"large images"}),
        ({"vae_tiling": True, "offload": "model"}, {"VAE tiling", "model offload"}),
        ({"channels_last": True}, {"channels_last"}),
        ({"attention_slicing": True}, {"attention slicing"}),
    ],
)
def test_a_run_counts_for_each_condition_that_its_request_has(changes, names):
    request = GenerationRequest(**changes)
    assert {name for name, holds in CONDITIONS.items() if holds(request)} == names


def test_a_row_has_bytes_and_its_source(graded):
    one = next(one for one in graded if one.observation.model == "T4")
    row = run_row(one, sources()[one.observation.run_id])
    assert row["measured_bytes"] == one.measured_bytes and isinstance(row["measured_bytes"], int)
    assert "open-muse" in row["source"] and row["peak"] == "allocated"
    json.dumps(row)


def test_every_reference_run_has_a_source(graded):
    assert set(sources()) == {one.observation.run_id for one in graded}


# The command


@pytest.fixture(autouse=True)
def no_history(tmp_path, monkeypatch):
    monkeypatch.setenv("PLANNER_DB", str(tmp_path / "none.db"))


def test_the_command_prints_sentence_runs_and_sources(capsys, graded):
    assert cli.main(["accuracy", "--gpu", "t4"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(told(graded, "T4").sentence())
    assert out.count("huggingface/open-muse") == 3 and "by the dry run it fills 14.56 GiB" in out
    assert "confirmed by whole pipelines" in out and "negative if the prediction was too low" in err


def test_a_gpu_without_runs_exits_12_with_the_nearest(capsys, graded):
    assert cli.main(["accuracy", "--gpu", "T4", "--gpu", "A10G"]) == 12
    out = capsys.readouterr().out
    assert "A10G: not measured; nearest evidence: A10 (3 runs" in out
    assert "LambdaLabsML/lambda-diffusers" in out
    assert cli.main(["accuracy", "--gpu-memory", "16GiB", "--compute-capability", "8.6"]) == 12
    assert "nearest evidence: A10" in capsys.readouterr().out


def test_without_any_run_it_says_so(capsys):
    assert cli.main(["accuracy", "--no-reference"]) == 12
    assert capsys.readouterr().out.startswith("not measured: no run on a GPU is in the history")
    assert cli.main(["accuracy", "--no-reference", "--gpu", "T4", "--format", "md"]) == 12
    assert "**T4: not measured, nor is any GPU" in capsys.readouterr().out


def test_json_has_gpus_runs_and_what_is_confirmed(capsys, graded):
    assert cli.main(["accuracy", "--json", "--gpu", "A10G", "--gpu", "RTX 4090"]) == 12
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == 1
    a10g, ada = found["gpus"]
    assert (a10g["is_measured"], a10g["nearness"], a10g["nearest"][0]["name"]) == (False, "compute capability", "A10")
    assert (ada["allocated"]["runs"], ada["reserved"], ada["halves"]["runs"]) == (3, None, 13)
    assert len(found["runs"]) == 3 + 3 + 13
    ids = {run["id"] for run in found["runs"]}
    assert ada["allocated"]["worst_run"] in ids
    turing = next(one for one in found["confirmed"]["whole_pipelines"] if one["compute_capability"] == "7.5")
    assert turing["conditions"]["several images"]["allocated"]["within"] == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--gpu", "RTX 2071"], "unknown GPU 'RTX 2071' - nearest: 'RTX 2070'"),
        (["--format", "csv"], "--format must be one of table, json, md, got 'csv'"),
        (["--gpu-memory", "16GiB"], "--compute-capability must be given with --gpu-memory"),
    ],
)
def test_bad_arguments_are_usage_errors(capsys, argv, message):
    assert cli.main(["accuracy", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err


def test_own_runs_are_told_from_the_history(capsys, tmp_path, monkeypatch):
    from cache.history.store import Store
    from cache.machine.versions import installed
    from tests.conftest import make_environment
    from tests.unit.measured import REQUESTS, measured_of

    store = Store(tmp_path / "own.db")
    monkeypatch.setenv("PLANNER_DB", str(store.path))
    for number in range(3):
        run = run_of(REQUESTS[number], fraction=1.0)
        store.save_measurement(REQUESTS[number], make_environment(**installed()), measured_of(run))
    assert observation_of(store.measurements()[0]) is not None
    assert cli.main(["accuracy", "--no-reference", "--gpu", "T4"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("T4: 3 runs of whole pipelines") and "history" in out


def test_the_command_needs_no_torch(tmp_path):
    from tests.hiding import installed_beyond, python_without

    done = python_without(
        installed_beyond("requirements-plan.txt"), tmp_path, "-m", "planner", "accuracy", "--gpu", "T4"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("T4: 5 runs of whole pipelines")
