"""Other tools' formulas as published, and the table of how far off they are."""

import json
from dataclasses import replace
from statistics import median

import pytest

from planner.accuracy.estimator_table import (
    BY_BATCH,
    BY_TILING,
    NAMES,
    ComparedRun,
    _section,
    compare,
    comparison_markdown,
    notes,
    percent,
)
from planner.accuracy.estimators import (
    ESTIMATORS,
    comfyui_unet,
    comfyui_vae_decode,
    forge_unet,
    gguf_parser_unet,
    invokeai_vae_decode,
    invokeai_vae_encode,
    invokeai_vae_tiled,
    systemrequirements_total,
    unsloth_activation,
    weights_bytes,
)
from planner.accuracy.grading import grade
from planner.cli.main import main
from planner.components import SD_V15
from planner.formula import estimate
from planner.replay.assumptions import RUN_TO_RUN
from planner.request import GenerationRequest
from planner.units import GIB, MIB
from tests.documents import BLOCK, DOCUMENT, printed, renewed
from tests.hiding import installed_beyond, python_without
from tests.unit.measured import evidence_of, history, run_of

BY_KEY = {one.key: one for one in ESTIMATORS}
TXT2IMG = GenerationRequest(task="txt2img", safety_checker=False)
BATCHES = (1, 2, 4, 8, 16, 32)

# Peaks allocated that open-muse published for txt2img 512x512 without a safety checker, at BATCHES, in MiB.
MEASURED = (2679, 3094, 4119, 6170, 10270, 16425)
# The table of whole pipelines that a review of these tools' sources printed, in per cent of MEASURED.
EXPECTED = {
    "accelerate": (-9, -21, -41, -60, -76, -85),
    "invokeai": (17, 1, -24, -49, -69, -81),
    "comfyui": (17, 1, -24, -46, -55, -56),
    "forge": (17, 1, -19, -25, -29, -24),
    "gguf-parser": (38, 20, -10, -40, -64, -77),
    "memtracker": (-10, -9, -13, -17, -20, -13),
    "unsloth": (129, 164, 198, 232, 259, 324),
    "systemrequirements": (129, 231, 347, 464, 558, 710),
}

# The same review's table of VAE decode, one image, in MiB; Forge has ComfyUI's formula.
SIDES = (512, 768, 1024, 1536, 2048)
DECODE = {
    "invokeai": (1100, 2475, 4400, 9900, 17600),
    "comfyui": (1089, 2450, 4356, 9801, 17424),
    "forge": (1089, 2450, 4356, 9801, 17424),
    "gguf-parser": (1664, 3744, 6656, 14976, 26624),
    "memtracker": (384, 864, 1536, 3456, 6145),
}


def square(side: int, **changes) -> GenerationRequest:
    return GenerationRequest(width=side, height=side, **changes)


@pytest.mark.parametrize("key", EXPECTED)
def test_whole_pipelines_are_off_by_what_the_review_found(key):
    requests = [replace(TXT2IMG, batch=batch) for batch in BATCHES]
    found = [
        round(100 * (BY_KEY[key].pipeline(request) / MIB / size - 1))
        for request, size in zip(requests, MEASURED, strict=True)
    ]
    assert tuple(found) == EXPECTED[key]


def test_every_estimator_is_in_the_reviews_tables():
    assert set(EXPECTED) == set(BY_KEY)
    assert set(DECODE) == {key for key, one in BY_KEY.items() if one.vae_decode(GenerationRequest())}


@pytest.mark.parametrize("key", DECODE)
def test_vae_decode_is_what_the_review_found(key):
    # The review's table has 6,145 for MemTracker at 2048, where its own formula gives 6,144.
    for side, expected in zip(SIDES, DECODE[key], strict=True):
        assert abs(BY_KEY[key].vae_decode(square(side)) / MIB - expected) <= 1


def test_vae_encode_is_what_the_review_found():
    reserved = {512: 534, 768: 1194, 1024: 2118}
    for key, low, high in (("invokeai", 3, 4), ("comfyui", 65, 67), ("forge", 65, 67)):
        for side, size in reserved.items():
            assert low <= round(100 * (BY_KEY[key].vae_encode(square(side)) / MIB / size - 1)) <= high
    for key in set(BY_KEY) - {"invokeai", "comfyui", "forge"}:
        assert BY_KEY[key].vae_encode(square(512)) is None


def test_single_formulas():
    """Each by hand, from the published line."""
    assert invokeai_vae_decode(512, 512) == 512 * 512 * 2 * 2200
    assert invokeai_vae_decode(512, 512, 4) == 512 * 512 * 4 * 2200 + 250 * MIB
    assert invokeai_vae_encode(512, 512, 4) == 512 * 512 * 4 * 1100 + 250 * MIB
    assert invokeai_vae_tiled(2200) == 1.25 * invokeai_vae_decode(512, 512)
    assert comfyui_unet(64, 64, 2) == pytest.approx(2 * 64 * 64 * 2 * 0.01 * MIB)
    assert comfyui_unet(64, 64, 2, is_fused=False) == pytest.approx(2 * 64 * 64 * 0.15 * MIB)
    assert comfyui_vae_decode(64, 64) == 2178 * 512 * 512 * 2
    assert forge_unet(64, 64, 2) == pytest.approx(327.68 * MIB)
    assert forge_unet(64, 64, 2, is_fused=False) == pytest.approx(1.65 / 1.28 * 327.68 * MIB)
    assert gguf_parser_unet(512, 512) / MIB == pytest.approx(559.9, abs=0.1)
    assert unsloth_activation(512, 512, 1) == 2048 * MIB == unsloth_activation(64, 64, 1)
    assert unsloth_activation(512, 512, 1, 0.25) == 1024 * MIB
    assert systemrequirements_total(512, 1024, 3) == 26 * GIB


def test_weights_are_those_that_the_request_loads():
    without = weights_bytes(TXT2IMG)
    assert without / MIB == pytest.approx(1639.4 + 159.6 + 234.7, abs=0.1)
    with_checker = weights_bytes(replace(TXT2IMG, safety_checker=True))
    assert with_checker - without == SD_V15.weights_bytes("safety_checker")
    for one in ESTIMATORS:
        more = one.pipeline(replace(TXT2IMG, safety_checker=True)) - one.pipeline(TXT2IMG)
        times = {"accelerate": 1.2, "systemrequirements": 0}.get(one.key, 1)
        assert more == pytest.approx(times * (with_checker - without), abs=1)


def grows(key: str, **changes) -> bool:
    # So large that the UNet's term is not below the VAE's.
    base = replace(TXT2IMG, batch=16, guidance_scale=1.0)
    return BY_KEY[key].pipeline(replace(base, **changes)) > BY_KEY[key].pipeline(base)


def test_batch_and_guidance_count_where_the_tool_counts_them():
    assert {key for key in BY_KEY if grows(key, batch=32)} == {
        "comfyui",
        "forge",
        "memtracker",
        "unsloth",
        "systemrequirements",
    }
    assert {key for key in BY_KEY if grows(key, guidance_scale=7.5)} == {"comfyui", "forge"}
    assert {key for key in BY_KEY if grows(key, attention_slicing=True)} == {"comfyui", "forge"}


def test_tiles_count_where_the_tool_has_a_formula_for_them():
    tiled = square(2048, vae_tiling=True)
    assert BY_KEY["invokeai"].vae_decode(tiled) == 1.25 * BY_KEY["invokeai"].vae_decode(square(512))
    assert BY_KEY["invokeai"].vae_encode(tiled) == 1.25 * BY_KEY["invokeai"].vae_encode(square(512))
    assert BY_KEY["gguf-parser"].vae_decode(tiled) == BY_KEY["gguf-parser"].vae_decode(square(512))
    for key in ("comfyui", "forge", "memtracker"):
        assert BY_KEY[key].vae_decode(tiled) is BY_KEY[key].vae_encode(tiled) is BY_KEY[key].pipeline(tiled) is None
    # Sliced, the VAE decodes one image at a time.
    sliced = replace(TXT2IMG, batch=8, vae_slicing=True)
    assert BY_KEY["memtracker"].vae_decode(sliced) == BY_KEY["memtracker"].vae_decode(TXT2IMG)


def test_the_size_is_that_which_the_pipeline_works_on():
    for one in ESTIMATORS:
        assert one.pipeline(square(519)) == one.pipeline(square(512))


def test_errors_are_written_with_their_sign():
    assert [percent(error) for error in (None, -0.00001, 0.0025, -0.0994, 0.0995, -0.8708, 19.09)] == [
        "-",
        "0.00%",
        "+0.25%",
        "−9.94%",
        "+10%",
        "−87%",
        "+1909%",
    ]


def compared(request: GenerationRequest, measured: int, said: int | None) -> ComparedRun:
    run = run_of(request, factor=1.0)
    predicted: dict[str, int | None] = dict.fromkeys(NAMES)
    return ComparedRun(run, "allocated", measured, predicted | {"forge": said})


def test_a_line_is_the_errors_of_its_runs():
    runs = [
        compared(GenerationRequest(), 1000, 1200),
        compared(GenerationRequest(batch=2), 1000, 998),
        compared(GenerationRequest(batch=4), 1000, 900),
        compared(GenerationRequest(batch=5), 1000, 500),
        compared(GenerationRequest(batch=6), 1000, None),
    ]
    section = _section("pipeline", runs, BY_BATCH)
    assert section.columns == {"batch 1": 1, "batch 2-4": 2, "batch 5+": 2}
    # Estimators without any formula for these runs have no line.
    [line] = section.lines
    assert (line.key, line.count) == ("forge", 4)
    assert line.groups == pytest.approx({"batch 1": 0.2, "batch 2-4": -0.051, "batch 5+": -0.5})
    assert line.median_error == pytest.approx(0.15) and line.bias == pytest.approx(-0.051)
    assert line.worst == -0.5
    # A prediction 0.2 % below is as good as a run's repetition.
    assert RUN_TO_RUN == 0.0025 and line.too_little == 2


@pytest.mark.parametrize("columns", [BY_BATCH, BY_TILING])
def test_every_request_is_in_one_group(columns):
    for batch in range(1, 129):
        for tiling in (False, True):
            request = GenerationRequest(batch=batch, vae_tiling=tiling)
            assert sum(column.holds(request) for column in columns) == 1


def test_runs_that_cannot_be_compared_are_counted_with_the_reason():
    whole = history(5, 1, fraction=1.0, absurd=0)
    others = [
        run_of(replace(TXT2IMG, offload="model"), 91),
        run_of(TXT2IMG, 92, kind="out-of-memory"),
        run_of(TXT2IMG, 93, kind="limited"),
        run_of(TXT2IMG, 94, attention="eager"),
    ]
    evidence = evidence_of([*whole, *others])
    comparison = compare(grade(evidence), evidence.observations)
    [section] = comparison.sections
    assert [run.observation.run_id for run in section.runs] == [run.run_id for run in whole]
    assert section.counts == {"allocated": 5, "reserved": 0}
    reasons = sorted(comparison.left_out.items())
    assert [count for _, count in reasons] == [1, 1, 1, 1]
    assert [reason.partition(",")[0] for reason, _ in reasons] == [
        "allocator retries",
        "attention other than sdpa or xformers",
        "model offload",
        "out of memory",
    ]
    assert sum(note.startswith("left out: 1 with ") for note in notes(comparison)) == 4


def test_a_run_of_which_only_the_reserved_peak_is_known_is_compared_by_it():
    run = run_of(TXT2IMG, fraction=1.0, peak_allocated_bytes=None, stages={}, attention="xformers")
    evidence = evidence_of([run])
    [section] = compare(grade(evidence), evidence.observations).sections
    assert section.counts == {"allocated": 0, "reserved": 1}
    [one] = section.runs
    assert one.measured_bytes == run.peak_reserved_bytes
    assert one.predicted["dry-run"] == one.measured_bytes
    assert one.predicted["formula"] == estimate(TXT2IMG).total_bytes


def test_ours_is_compared_by_what_the_bases_predict():
    runs = history(6, 2, fraction=0.5, absurd=0)
    evidence = evidence_of(runs)
    graded = grade(evidence)
    [section] = compare(graded, evidence.observations).sections
    lines = {line.key: line for line in section.lines}
    for basis in ("dry-run", "formula"):
        errors = [one.error(basis) for one in graded]
        assert lines[basis].median_error == median(map(abs, errors))
        assert lines[basis].worst == max(errors, key=abs)
    assert set(lines) == set(NAMES)


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(["estimators", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_prints_a_table_for_each_kind_of_run(capsys):
    code, out, err = run(capsys)
    assert code == 0
    titles = ["Whole pipelines", "VAE decode alone", "VAE decode alone", "VAE encode alone", "VAE encode alone"]
    assert [line.partition(":")[0] for line in out.splitlines() if ": " in line] == titles
    assert "says too little" in out and "batch 2-4" in out and "tiled" in out
    assert "the adding of weights to the larger phase is ours" in err
    assert "left out: " in err and "model offload" in err


def test_the_json_has_every_run_and_every_error(capsys):
    code, out, _ = run(capsys, "--json")
    found = json.loads(out)
    assert code == 0 and found["schema"] == 1
    assert set(found) == {"schema", "too_little_below", "sections", "left_out", "estimators", "notes"}
    assert {one["key"] for one in found["estimators"]} == set(BY_KEY)
    assert all(one["source"] and one["claims"] for one in found["estimators"])
    whole = found["sections"][0]
    assert whole["scope"] == "pipeline" and sum(whole["groups"].values()) == len(whole["runs"])
    assert whole["allocated_runs"] + whole["reserved_runs"] == len(whole["runs"])
    for section in found["sections"]:
        for line in section["estimators"]:
            errors = [
                run["predicted_bytes"][line["key"]] / run["measured_bytes"] - 1
                for run in section["runs"]
                if run["predicted_bytes"][line["key"]] is not None
            ]
            assert line["runs"] == len(errors)
            assert line["median_absolute_error"] == median(map(abs, errors))
            assert line["too_little_runs"] == sum(error < found["too_little_below"] for error in errors)
    assert run(capsys, "--format", "json")[1] == out


def test_no_run_is_exit_12_with_a_sentence(capsys):
    code, out, err = run(capsys, "--no-reference")
    assert (code, out) == (12, "")
    assert err.startswith("there is no measured run on a GPU to compare with: 'python -m planner verify'")
    assert "--no-reference" in err
    code, out, _ = run(capsys, "--no-reference", "--json")
    assert code == 12 and json.loads(out)["sections"] == []


def test_a_format_that_does_not_exist_is_refused(capsys):
    assert run(capsys, "--format", "pdf") == (2, "", "error: --format must be one of table, json, md, got 'pdf'\n")


def test_it_works_without_torch(tmp_path):
    done = python_without(installed_beyond("requirements-plan.txt"), tmp_path, "-m", "planner", "estimators", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sections"][0]["scope"] == "pipeline"


def test_the_document_shows_what_the_commands_print_today():
    document = DOCUMENT.read_text()
    assert "estimators --format md" in [block["command"] for block in BLOCK.finditer(document)]
    assert renewed(document) == document, "run 'make documents'"
    assert len(ESTIMATORS) == 8 and "Eight other tools" in document


def test_markdown_is_the_tables_the_notes_and_the_sources():
    text = printed("estimators --format md")
    for one in ESTIMATORS:
        assert f"| {one.name} | {one.claims} |" in text
    assert "- The adding of weights to the larger phase is ours" in text
    evidence = evidence_of(history(4, 1, fraction=1.0, absurd=0))
    own = comparison_markdown(compare(grade(evidence), evidence.observations))
    assert own.startswith("**Whole pipelines**: 4 runs on T4, by the peak allocated.")


def test_a_document_with_a_command_that_fails_is_not_written():
    with pytest.raises(ValueError, match="exit code 12"):
        printed("estimators --no-reference")
