import io
import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

import planner
from cache.exchange.lines import read_runs
from cache.history.store import Store
from cache.jobs.queue import Jobs
from planner.cards.lookup import CATALOGUE, SLICES, card_named
from planner.cli.main import COMMANDS, HISTORY_COMMANDS, commands, history, main
from planner.components import STAGES
from planner.fields import GROUPS
from planner.formula import estimate
from planner.request import FIELDS, GenerationRequest
from tests.conftest import ROOT, make_environment, make_measured

ANSWER_KEYS = {
    "name",
    "verdict",
    "basis",
    "usable_bytes",
    "need_bytes",
    "minimum_bytes",
    "headroom_bytes",
    "peak_allocated_bytes",
    "minimum_allocated_bytes",
    "peak_reserved_bytes",
    "context_bytes",
    "interval_bytes",
    "stack",
    "peak_stage",
    "stages",
    "worst_need_bytes",
    "capped_allocated_bytes",
    "capped_reserved_bytes",
    "after_call",
    "copies",
    "assumptions",
    "evidence",
    "reason",
    "notes",
}


def run(capsys, *argv: str) -> tuple[int, str, str]:
    code = main(argv)
    out, err = capsys.readouterr()
    return code, out, err


def test_copies_divide_the_whole_gpu_and_a_shared_context_counts_once(capsys):
    for workers in ("1", "3"):
        _, out, err = run(capsys, "fit", "--gpu", "A10", "--workers", workers, "--json")
        [gpu] = json.loads(out)["gpus"]
        need, context = gpu["worst_need_bytes"], gpu["context_bytes"]
        usable = card_named("A10").usable_bytes
        separate, shared = gpu["copies"]["separate"], gpu["copies"]["shared_context"]
        assert separate * need <= usable < (separate + 1) * need
        one = need - context
        assert context + shared * one <= usable < context + (shared + 1) * one
        assert (f"{separate} copies of this fit A10" in err) == (workers == "3")


def test_the_pass_that_peaks_is_in_the_json_of_hires_alone(capsys):
    for options, expected in (([], None), (["--task", "txt2img", "--hires", "2"], 2)):
        _, out, _ = run(capsys, "fit", "--gpu", "A10", "--json", *options)
        assert json.loads(out)["gpus"][0].get("peak_pass") == expected


@pytest.mark.parametrize("command", ["fit", "sizes", "verify"])
def test_help_lists_the_options_of_the_pipeline_in_their_groups(capsys, command):
    _, out, _ = run(capsys, command, "--help")
    places = [out.index(f"\n{heading}:\n") for heading in ("Options", *GROUPS)]
    assert places == sorted(places)
    for field in FIELDS:
        place = places[GROUPS.index(field.group) + 1] if field.group else places[0]
        assert place < re.search(rf"\n  {field.flag}\b", out).start(), field.name


def test_fit_json_follows_the_contract(capsys):
    code, out, _ = run(capsys, "fit", "--width", "512", "--height", "512", "--json")
    answer = json.loads(out)
    assert code == 0
    assert set(answer) == {"schema", "request", "gpus", "formula"}
    assert answer["schema"] == 1
    assert answer["request"] == GenerationRequest().to_dict()
    assert [gpu["name"] for gpu in answer["gpus"]] == ["T4", "A10", "A100-40GB"]
    for gpu in answer["gpus"]:
        assert set(gpu) == ANSWER_KEYS
        assert set(gpu["stages"]) == set(STAGES)
        assert gpu["headroom_bytes"] == gpu["usable_bytes"] - gpu["need_bytes"]
        sizes = [value for key, value in gpu.items() if key.endswith("_bytes") and type(value) is not list]
        # What is capped by the GPU's memory has a size only where the answer is tight.
        assert (gpu["capped_allocated_bytes"], gpu["capped_reserved_bytes"]) == (None, None)
        assert all(type(s) is int for s in [*sizes, *gpu["interval_bytes"], *gpu["stages"].values()] if s is not None)
        assert gpu["worst_need_bytes"] == gpu["need_bytes"]
        after = gpu["after_call"]
        assert set(after) == {"allocated_bytes", "cached_bytes", "releasable_bytes", "context_bytes"}
        assert all(type(size) is int and size > 0 for size in after.values())
        assert after["context_bytes"] == gpu["context_bytes"] and after["releasable_bytes"] <= after["cached_bytes"]
        assert after["allocated_bytes"] + after["cached_bytes"] <= gpu["peak_reserved_bytes"]
        assert (gpu["assumptions"], gpu["reason"]) == ([], None)
    assert answer["formula"]["total_bytes"] == estimate(GenerationRequest()).total_bytes
    assert all(type(size) is int for size in answer["formula"].values())


def test_fit_prints_a_table_to_stdout_and_prose_to_stderr(capsys):
    code, out, err = run(capsys, "fit", "--channels-last", "--gpu", "RTX 4060")
    assert code == 0
    assert "RTX 4060" in out and "✓ fits" in out and "dry-run" in out
    assert "assumed - channels_last" in err
    assert "taken for granted - float16; fused attention" in err
    assert "assumed" not in out and "taken for granted" not in out
    code, out, err = run(capsys, "fit", "--batch", "4", "--gpu", "RTX 4060", "--basis", "formula")
    assert code == 0
    assert "+5." in out and "formula" in out
    assert "not in the formula - batch 4" in err
    assert "not in the formula" not in out


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (("--gpu", "T4"), 0),
        (("--gpu-memory", "1GiB", "--compute-capability", "7.5"), 10),
        (("--gpu", "T4", "--gpu-memory", "1GiB", "--compute-capability", "7.5"), 10),
        (("--basis", "dry-run"), 0),
        (("--basis", "measured"), 12),
        (("--width", "2048", "--height", "2048", "--gpu", "T4"), 11),
        (("--width", "2048", "--height", "2048", "--gpu", "RTX 4060"), 10),
        (("--basis", "formula"), 0),
    ],
)
def test_the_exit_code_is_the_worst_verdict(capsys, argv, code):
    assert run(capsys, "fit", *argv)[0] == code
    assert run(capsys, "fit", *argv, "--json")[0] == code


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--width", "500", "--task", "txt2img"), "width must be a multiple of 8, got 500 (nearest: 496 or 504)"),
        (("--gpu", "RTX 4090 Ti"), "unknown GPU 'RTX 4090 Ti' - nearest: 'RTX 4090'"),
        (("--width", "512" + " " * 30 + "junk"), "width must be a whole number"),
        (("--prompt", "\udcff"), "argument must be text in UTF-8"),
        (("--gpu-memory", "16GiB", "--compute-capability", "9" * 5000 + ".0"), "--compute-capability must be a ver"),
        (("--width", "abc"), "width must be a whole number, got 'abc'"),
        (("--width", "5_12"), "width must be a whole number, got '5_12'"),
        (("--guidance-scale", "nan"), "guidance_scale must be a finite number, got nan"),
        (("--basis", "guess"), "basis must be one of best, measured"),
        (("--gpu-memory", "16GB", "--compute-capability", "7.5"), "--gpu-memory must be a number with B, KiB"),
        (("--gpu-memory", "16GiB"), "--compute-capability must be given with --gpu-memory"),
        (("--compute-capability", "7.5"), "--gpu-memory must be given with --compute-capability"),
        (("--workers", "0"), "--workers must be between 1 and 64, got 0 (nearest: 1)"),
        (("--workers", "two"), "--workers must be a whole number, got 'two'"),
        (("--batch", "1000"), "batch must be between 1 and 128, got 1000 (nearest: 128)"),
    ],
)
def test_bad_input_exits_2_with_one_line_and_no_data(capsys, argv, message):
    code, out, err = run(capsys, "fit", *argv)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ") and message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("argv", [(), ("fitt",), ("fit", "--widht", "512"), ("fit", "--wid", "512"), ("history",)])
def test_unknown_words_are_usage_errors(capsys, argv):
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "") and err


def test_the_attached_card_is_judged_by_its_free_memory(capsys, nvml):
    code, out, _ = run(capsys, "fit", "--gpu", "attached", "--json")
    (gpu,) = json.loads(out)["gpus"]
    assert (code, gpu["name"], gpu["usable_bytes"]) == (0, "Tesla T4 (attached)", 14_000_000_000)
    nvml.free[0] = 1_000_000_000
    assert run(capsys, "fit", "--gpu", "attached")[0] == 10


def test_a_missing_attached_card_gives_the_reason(capsys, no_driver):
    code, out, err = run(capsys, "fit", "--gpu", "attached")
    assert (code, out) == (2, "")
    assert "no NVIDIA driver" in err and "--device cpu" in err


def test_a_prompt_is_counted_in_tokens(capsys):
    _, out, err = run(capsys, "fit", "--prompt", "a cat", "--json")
    assert json.loads(out)["request"]["prompt_tokens"] == 4
    assert "the prompt is 4 tokens; the pipeline pads it to 77" in err
    _, out, err = run(capsys, "fit", "--prompt", "cat " * 100, "--json")
    assert json.loads(out)["request"]["prompt_tokens"] == 77
    assert "102 tokens, cut to 77" in err


def test_img2img_says_that_it_rounds(capsys):
    _, out, err = run(capsys, "fit", "--width", "515")
    assert "512×512" in out
    assert "img2img rounds 515x512 down to 512x512" in err


def test_gpus_lists_the_catalogue(capsys):
    code, out, _ = run(capsys, "gpus")
    assert code == 0 and "RTX 5090" in out and "AWS g4dn" in out
    listed = json.loads(run(capsys, "gpus", "--json")[1])
    assert (len(listed["gpus"]), len(listed["mig_slices"])) == (len(CATALOGUE), len(SLICES))
    assert len(CATALOGUE) >= 50
    rows = listed["gpus"] + listed["mig_slices"]
    assert all(row["source"] and type(row["usable_bytes"]) is int for row in rows)


@pytest.mark.parametrize("command", ["fit", "sizes"])
def test_a_card_too_old_for_torch_has_a_note(capsys, command):
    argv = [command, "--gpu", "V100", "--gpu", "t4", "--gpu", "p100"]
    note = "V100-16GB, P100: can be planned for and not verified"
    _, out, err = run(capsys, *argv)
    assert note in err and note not in out
    old, new, older = json.loads(run(capsys, *argv, "--json")[1])["gpus"]
    assert old["notes"] == older["notes"] and old["notes"][0].startswith("can be planned for") and new["notes"] == []
    if command == "fit":
        assert f"- {note}" in run(capsys, *argv, "--format", "md")[1]
    assert "T4: can be" not in err


def test_a_list_of_cards_gets_advice_to_repeat_the_flag(capsys):
    code, _, err = run(capsys, "fit", "--gpu", "T4,A10")
    assert code == 2 and "name each GPU by itself: --gpu T4 --gpu A10" in err


def test_gpus_names_slices_below_the_table(capsys):
    _, out, err = run(capsys, "gpus")
    assert "1g.5gb" not in out and "A100-40GB 1g.5gb" in err


def test_workers_share_each_card(capsys):
    code, out, _ = run(capsys, "fit", "--gpu", "T4", "--gpu", "A100 3g.20gb", "--workers", "3", "--json")
    t4, mig = json.loads(out)["gpus"]
    assert (t4["name"], mig["name"]) == ("T4, 1 of 3 workers", "A100-40GB 3g.20gb, 1 of 3 workers")
    assert t4["usable_bytes"] == card_named("T4").usable_bytes // 3
    whole = json.loads(run(capsys, "fit", "--gpu", "T4", "--json")[1])["gpus"][0]
    assert (t4["need_bytes"], t4["context_bytes"]) == (whole["need_bytes"], whole["context_bytes"])
    assert code == 0
    assert run(capsys, "fit", "--gpu", "T4", "--workers", "6")[0] == 10


def test_an_empty_history_says_what_to_do(capsys):
    code, out, err = run(capsys, "history", "list")
    assert (code, out) == (0, "")
    assert "python -m planner verify" in err
    assert json.loads(run(capsys, "history", "list", "--json")[1]) == {"schema": 1, "measurements": []}


def test_history_lists_shows_and_deletes(capsys, own_history):
    store = Store(own_history)
    run_id = store.save_measurement(GenerationRequest(), make_environment(), make_measured())
    code, out, _ = run(capsys, "history", "list")
    assert code == 0 and run_id[:8] in out and "Tesla T4" in out and "3.26 GiB" in out
    code, out, _ = run(capsys, "history", "show", run_id[:8])
    assert code == 0 and run_id in out and "0 allocator retries" in out
    shown = json.loads(run(capsys, "history", "show", run_id, "--json")[1])["measurement"]
    assert shown["peak_allocated_bytes"] == 3_500_000_000
    assert [stage["stage"] for stage in shown["stages"]] == ["unet", "vae_decoder"]
    code, _, err = run(capsys, "history", "delete", run_id[:8])
    assert code == 2 and "add --yes" in err
    assert store.measurement(run_id)
    assert run(capsys, "history", "delete", run_id[:8], "--yes")[0] == 0
    assert store.measurements() == []


@pytest.mark.parametrize("run_id", ["", "nope", "'; drop table measurements; --"])
def test_an_unknown_run_is_refused(capsys, own_history, run_id):
    Store(own_history).save_measurement(GenerationRequest(), make_environment(), make_measured())
    code, _, err = run(capsys, "history", "show", run_id)
    assert code == 2 and "id must be the id of a run" in err
    assert len(Store(own_history).measurements()) == 1


def test_an_ambiguous_id_is_refused(capsys, own_history, monkeypatch):
    ids = iter(["aaaa-1", "aaaa-2"])
    monkeypatch.setattr("cache.history.store.uuid.uuid4", lambda: next(ids))
    store = Store(own_history)
    for _ in range(2):
        store.save_measurement(GenerationRequest(), make_environment(), make_measured())
    code, _, err = run(capsys, "history", "show", "aaaa")
    assert code == 2 and "must name one run, this begins 2" in err


def test_a_damaged_history_is_set_aside_with_a_message(capsys, own_history):
    Store(own_history)
    own_history.write_bytes(own_history.read_bytes()[:100] + b"no longer a database " * 100)
    code, _, err = run(capsys, "history", "list")
    assert code == 0 and "the history was damaged and is now" in err
    _, out, _ = run(capsys, "doctor")
    assert "Damaged history" in out


def test_a_history_that_cannot_be_opened_is_a_message(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PLANNER_DB", str(tmp_path))
    code, _, err = run(capsys, "history", "list")
    assert code == 2 and "cannot be opened" in err and "set PLANNER_DB" in err


@pytest.mark.parametrize("name", ["/", "", "x" * 300])
def test_a_plan_needs_no_usable_history(capsys, monkeypatch, tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    path = name if name == "/" else str(folder / name)
    monkeypatch.setenv("PLANNER_DB", path)
    code, out, err = run(capsys, "fit", "--gpu", "T4")
    assert code == 0 and "dry-run" in out
    assert f"the history {path} cannot be opened" in err and err.count("the answer stands without it") == 1
    code, out, _ = run(capsys, "doctor")
    assert code == 1 and f"✕ History: the history {path} cannot be opened" in out
    assert [one.name for one in tmp_path.iterdir()] == ["folder"] and not list(folder.iterdir())


def test_verify_without_a_gpu_says_why_and_what_next(capsys, no_driver):
    code, out, err = run(capsys, "verify")
    assert (code, out) == (2, "")
    assert "no NVIDIA driver is on this machine" in err
    assert "--device cpu" in err and "history export FILE" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--device", "cpu", "--width", "1024", "--height", "1024"), "device cpu rehearses at most 512x512"),
        (("--device", "cpu", "--attention", "xformers"), "attention must be sdpa or eager on the CPU"),
        (("--device", "cpu", "--weights", "real"), "weights must be one of synthetic, hub, got 'real'"),
        (("--device", "cpu", "--model-dir", "/nowhere"), "model_dir must be a folder with model_index.json"),
        (("--device", "cpu", "--width", "10"), "width must be between 64 and 8192"),
        (
            ("--device", "cpu", "--capacity", "16GiB"),
            "capacity needs a GPU: on the CPU there is no CUDA allocator to limit, got '16 GiB' (leave it out to",
        ),
        (("--device", "cpu", "--capacity", "16GB"), "capacity must be a number with B, KiB, MiB or GiB, got '16GB'"),
        (("--device", "cpu", "--capacity", "16GiB", "--sweep", "grid"), "capacity needs a GPU"),
        (
            ("--device", "cpu", "--model-dir", "/nowhere", "--weights", "hub"),
            "weights must not be given with --model-dir, got 'hub' (leave one of them out)",
        ),
        (("--device", "cpu", "--model-dir", "/nowhere", "--weights", "synthetic"), "weights must not be given with"),
        (
            ("--device", "cpu", "--sweep", "grid", "--width", "640"),
            "width must not be given with --sweep grid, which varies it, got 640 (leave it out, or name a file",
        ),
        (("--device", "cpu", "--sweep", "grid", "--vae-tiling"), "vae_tiling must not be given with --sweep grid"),
    ],
)
def test_verify_checks_before_it_starts_anything(capsys, own_history, argv, message):
    code, out, err = run(capsys, "verify", *argv)
    assert (code, out) == (2, "")
    assert message in err
    assert not own_history.exists()


def test_doctor_names_each_thing_and_what_to_do(capsys, no_driver):
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    for word in (
        "· GPU: no NVIDIA driver",
        "✓ Libraries: torch 2.13.0",
        "✓ Memory programs: shipped",
        "✓ History:",
        "· Model facts",
        "· Model:",
    ):
        assert word in out
    checks = json.loads(run(capsys, "doctor", "--json")[1])["checks"]
    assert all(check["advice"] for check in checks if check["state"] != "ok")


@pytest.mark.parametrize("argv", [("fit", "--json"), ("gpus",), ("fit", "--gpu", "nope")])
def test_fit_and_gpus_import_nothing_heavy(argv):
    code = (
        "import sys; from planner.cli.main import main; main(sys.argv[1:]);"
        "heavy = {'torch', 'pandas', 'streamlit', 'sqlite_utils', 'diffusers', 'altair'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_an_ascii_terminal_still_gets_the_verdict(encoding):
    environment = {"PYTHONIOENCODING": encoding, "PATH": ""}
    command = [sys.executable, "-m", "planner", "fit"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    assert b"fits" in done.stdout


def test_a_run_that_cannot_be_kept_is_printed(capsys, monkeypatch, nvml, cuda_build):
    command = [sys.executable, "-m", "tests.worker.scripted", "good"]
    monkeypatch.setitem(Jobs.__init__.__kwdefaults__, "worker_command", lambda kind: command)

    def broken(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(Store, "end_job", broken)
    code, out, err = run(capsys, "verify", "--width", "64", "--height", "64")
    assert code == 2 and "not kept:\nrun " in err
    assert "error: the history could not keep this run: disk full; the line on stdout is the run" in err
    # Once there is room it is taken in, whole.
    [run_] = read_runs(out.encode().splitlines())
    assert run_.measured.peak_allocated_bytes == 1000
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(out.encode())))
    assert run(capsys, "history", "import", "-")[2] == "imported 1 run, 0 were known\n"


def test_a_closed_pipe_is_not_a_crash():
    command = f"{sys.executable} -m planner gpus --json | head -c 10"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("fti",), "error: no command 'fti' (did you mean fit?); 'python -m planner --help' lists them all"),
        (
            ("fit", "--widht", "512"),
            "error: no option '--widht' (did you mean --width?); 'python -m planner fit --help'",
        ),
        (("history", "shwo", "1"), "error: no command 'shwo' (did you mean show?); 'python -m planner history --help'"),
        (("history", "show"), "error: missing argument 'ID'; 'python -m planner history show --help' lists"),
        (("fit", "--json=yes"), "error: option '--json' does not take a value"),
        (("gpus", "T4"), "error: got unexpected extra argument (T4)"),
    ],
)
def test_a_usage_error_is_one_line_with_a_way_out(capsys, argv, said):
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert err.startswith(said) and err.count("\n") == 1


@pytest.mark.parametrize("argv", [(), ("history",)])
def test_without_a_command_help_is_printed_with_exit_code_2(capsys, argv):
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "") and "Commands:" in err


def test_the_version_is_the_packages(capsys):
    code, out, _ = run(capsys, "--version")
    assert (code, out) == (0, f"Will It Fit {planner.__version__}\n")
    script = Path(sys.executable).with_name("will-it-fit")
    ran = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60)
    assert ran.stdout == out, ran.stderr


@pytest.mark.parametrize(("group", "table"), [(commands, COMMANDS), (history, HISTORY_COMMANDS)])
def test_the_table_of_commands_has_their_own_help(group, table):
    """Compare the two: the table is separate, so that help imports no command."""
    for name, (_, text) in table.items():
        command = group.get_command(click.Context(group), name)
        assert command.name == name
        assert (command.help or "").split("\n")[0] == text, name


def test_a_shell_completes_commands_options_and_values(monkeypatch, capsys):
    def completed(line: str) -> list[str]:
        monkeypatch.setenv("_WILL_IT_FIT_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", f"will-it-fit {line}")
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" "))))
        monkeypatch.setattr(sys, "argv", ["will-it-fit"])
        assert main() == 0
        return [text.partition(",")[2] for text in capsys.readouterr().out.splitlines()]

    assert completed("acc") == ["accuracy"]
    assert completed("fit --vae-t") == ["--vae-tiling"]
    assert completed("fit --offload m") == ["model"]
    assert "RTX 4090" in completed("fit --gpu rtx")
    assert completed("history ex") == ["export"]


def test_a_prompt_and_its_tokens_are_not_given_together(capsys):
    code, _, err = run(capsys, "fit", "--prompt", "a cat", "--prompt-tokens", "5")
    assert code == 2 and err.startswith("error: --prompt must not be given with --prompt-tokens")
