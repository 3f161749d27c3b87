"""Test every page, run by Streamlit without a browser."""

import re
import time

import pytest

from cache.history.store import Store
from cache.machine.device import Device, environment_of
from cache.records import Prediction
from planner.cards.lookup import card_named
from planner.fit import fit
from planner.request import GenerationRequest
from tests.conftest import damage, make_environment, make_measured
from tests.ui.conftest import PAGES, answered, texts

VERIFY, HISTORY, ACCURACY = "pages/1_Verify.py", "pages/2_History.py", "pages/3_Accuracy.py"
SMALL = {"width": "64", "height": "64", "steps": "2"}
FORMULA, DRY_RUN = (
    Prediction.of(fit(GenerationRequest(), card_named("T4"), basis)) for basis in ("formula", "dry-run")
)


@pytest.mark.parametrize("page", PAGES)
def test_every_page_opens_by_its_link(open_page, no_driver, page):
    at = open_page(page)
    assert not at.exception
    assert (
        at.title[0].value
        == {"streamlit_app.py": "Plan", VERIFY: "Verify", HISTORY: "History", ACCURACY: "Accuracy"}[page]
    )


@pytest.mark.parametrize("page", PAGES)
def test_every_page_says_that_a_damaged_history_was_set_aside(open_page, own_history, page):
    damage(own_history)
    at = open_page(page)
    assert not at.exception
    assert "was set aside as" in texts(at.warning)


@pytest.mark.parametrize("page", PAGES)
def test_every_page_works_without_a_history(open_page, monkeypatch, tmp_path, page):
    monkeypatch.setenv("PLANNER_DB", str(tmp_path))
    at = open_page(page)
    assert not at.exception
    assert "cannot be opened" in texts(at.warning)


def test_plan_shows_the_formula_with_its_numbers(open_page):
    shown = texts(open_page(tab="Why").markdown)
    assert "base = 1.99 GiB" in shown
    assert "64*64*745*2*3 + 64*64*77*2" in shown
    assert "(2,132,470,614 + max(6,324,224, 18,939,904, 6,324,224)) * 1.2" in shown


def test_a_link_reproduces_a_plan(open_page):
    params = {"task": "txt2img", "width": "1024", "height": "768", "batch": "4", "guidance_scale": "1.0"}
    at = open_page(**params, vae_tiling="true", offload="model", gpu=["T4", "RTX 4060"])
    assert not at.exception and not at.warning[1:]
    asked = "txt2img 1024×768, batch 4, unguided (UNet batch 4), 50 steps, vae tiling, model offload"
    assert answered(at).endswith(f"{asked}.")
    assert len(at.metric) == 2
    assert at.number_input(key="width").value == 1024
    assert at.multiselect(key="gpu").value == ["T4", "RTX 4060"]


@pytest.mark.parametrize("page", ["streamlit_app.py", VERIFY])
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"width": "99999"}, "width must be between 64 and 8192, got 99999 (nearest: 8192); 512 is shown instead"),
        ({"width": "wide"}, "width must be a whole number, got 'wide'; 512 is shown instead"),
        ({"task": "txt2txt"}, "task must be one of img2img, txt2img, inpaint, got 'txt2txt'"),
        ({"vae_tiling": "perhaps"}, "vae_tiling must be true or false, got 'perhaps'; false is shown instead"),
        ({"guidance_scale": "nan"}, "guidance_scale must be a finite number, got nan; 7.5 is shown instead"),
        ({"gpu": ["T5"]}, "unknown GPU 'T5' - nearest: 'T4'"),
        (
            {"basis": "guess"},
            "basis must be one of best, measured, calibrated, dry-run, formula, got 'guess' "
            "(did you mean best?); best is shown instead",
        ),
    ],
)
def test_a_link_with_a_bad_value_says_so(open_page, page, params, message):
    at = open_page(page, **params)
    assert not at.exception
    assert message in texts(at.warning)
    assert at.number_input(key="width").value == 512


def test_text_in_a_link_is_shown_as_text(open_page):
    at = open_page(task="[free GPUs](https://example.org)", gpu=["![x](https://example.org/x.png) :red[y] $z$"])
    shown = at.warning[0].value
    assert r"\[free GPUs\]\(https\:" in shown
    assert r"\!\[x\]\(https\:" in shown and r"\:red\[y\] \$z\$" in shown
    assert "task must be one of" in texts(at.warning)


def test_a_deleted_history_is_created_again(open_page, own_history):
    open_page(HISTORY)
    for path in own_history.parent.glob("planner.db*"):
        path.unlink()
    for page in PAGES:
        assert not open_page(page).exception
    assert own_history.exists()


def test_an_alias_in_a_link_names_its_gpu(open_page):
    at = open_page(gpu=["A100"])
    assert at.multiselect(key="gpu").value == ["A100-40GB"]
    assert len(at.metric) == 1


def test_a_size_that_txt2img_refuses_is_an_error(open_page):
    at = open_page(task="txt2img", width="504", batch="3")
    at.number_input(key="width").set_value(500).run()
    assert not at.exception
    assert texts(at.error) == "Width must be a multiple of 8, got 500 (nearest: 496 or 504)."
    assert not at.metric
    assert at.number_input(key="batch").value == 3
    at.number_input(key="width").set_value(496).run()
    assert not at.error and at.metric


def test_img2img_says_that_it_rounds(open_page):
    at = open_page(width="515")
    assert "img2img runs at 512×512" in texts(at.caption)


def test_without_gpus_plan_says_what_to_do(open_page):
    at = open_page()
    at.multiselect(key="gpu").set_value([]).run()
    assert not at.exception
    assert "Choose at least one GPU" in texts(at.info)


def test_the_formula_names_what_it_does_not_count(open_page):
    at = open_page(batch="4", basis="formula")
    assert "batch 4: the formula has no batch" in texts(at.warning)
    at = open_page(batch="4", tab="Why")
    assert not at.warning
    assert "batch 4: the formula has no batch" in "\n".join(texts(one.markdown) for one in at.expander)


def _signed(error: float) -> str:
    return f"{error:+.0%}".replace("-", "−").replace("%", " %")


def test_plan_shows_the_errors_of_both_methods(open_page, own_history):
    assert "The history has no run on a GPU yet" in texts(open_page(tab="Why").caption)
    store = Store(own_history)
    for kind in ("cuda", "cpu"):
        store.save_measurement(
            GenerationRequest(),
            make_environment(device_kind=kind),
            make_measured(),
            predictions=(DRY_RUN, FORMULA),
        )
    off = make_measured().peak_allocated_bytes
    dry_run, formula = (of.peak_allocated_bytes / off - 1 for of in (DRY_RUN, FORMULA))
    shown = texts(open_page(tab="Why").caption)
    assert f"dry run (1 run) {_signed(dry_run)} in the median" in shown
    assert f"formula (1 run) {_signed(formula)} in the median" in shown


def test_the_plan_is_kept_on_the_way_to_verify_and_back(open_page):
    at = open_page(width="1024", batch="4")
    at.switch_page(VERIFY).run()
    assert (at.number_input(key="width").value, at.number_input(key="batch").value) == (1024, 4)
    at.switch_page(HISTORY).run()
    assert at.query_params["width"] in ("1024", ["1024"])
    at.switch_page("streamlit_app.py").run()
    assert at.number_input(key="width").value == 1024


def test_the_basis_is_kept_on_the_way_to_verify_and_back(open_page):
    at = open_page(width="1024", basis="formula")
    at.switch_page(VERIFY).run()
    assert at.query_params["basis"] in ("formula", ["formula"])
    at.switch_page("streamlit_app.py").run()
    assert at.segmented_control(key="basis").value == "formula"
    assert at.number_input(key="width").value == 1024


def test_verify_without_a_gpu_says_why_and_what_to_do(open_page, no_driver):
    at = open_page(VERIFY, width="256")
    assert "No GPU to measure here" in texts(at.info)
    assert "python -m planner history export runs.jsonl" in texts(at.caption)
    assert texts(at.code).splitlines() == [
        "python -m planner verify --width 256",
        "python -m planner verify --width 256 --device cpu",
    ]
    assert texts(open_page(VERIFY, width="1024").code) == "python -m planner verify --width 1024"


def test_verify_shows_free_memory_and_processes(open_page, nvml, cuda_build):
    from types import SimpleNamespace

    nvml.processes = [SimpleNamespace(pid=2**22 + 1, usedGpuMemory=2**30)]
    at = open_page(VERIFY)
    assert "Tesla T4" in texts(at.markdown)
    assert f"In use by another container or user ({2**22 + 1}, 1.00 GiB)" in texts(at.caption)
    assert not at.error


def test_verify_says_why_torch_cannot_use_a_gpu(open_page, nvml, cuda_build):
    nvml.driver = "550.54.15"
    at = open_page(VERIFY)
    assert "driver 550.54.15 is too old for torch's CUDA 13.0: install driver 580 or newer" in texts(at.error)


def finish(at):
    """Run the page until its job has ended, as the polling fragment does in a browser."""
    deadline = time.monotonic() + 20
    while any(button.label == "Cancel" for button in at.button):
        assert time.monotonic() < deadline
        time.sleep(0.1)
        at.run()
    return at


def test_verify_compares_the_result_with_the_prediction(open_page, no_driver, scripted, own_history):
    scripted("good")
    at = open_page(VERIFY, **SMALL)
    at.button(key="verify").click().run()
    finish(at)
    assert not at.exception
    assert "**Completed**" in texts(at.markdown)
    assert "Compared with the dry run and the formula" in texts(at.markdown)
    assert "The dry run's allocated peak is" in texts(at.caption)
    assert "The formula's allocated peak is" in texts(at.caption)
    assert len(Store(own_history).measurements()) == 1
    at.button(key="verify").click().run()
    assert "This result is from the history" in texts(at.info)
    at.checkbox(key="force").check().run()
    at.button(key="verify").click().run()
    finish(at)
    assert len(Store(own_history).measurements()) == 2


def test_a_failed_run_is_shown_with_its_reason(open_page, no_driver, scripted):
    scripted("segfault")
    at = open_page(VERIFY, **SMALL)
    at.button(key="verify").click().run()
    finish(at)
    assert not at.exception
    assert "the worker was ended by SIGSEGV" in texts(at.error)
    assert "**Failed in the UNet**" in texts(at.markdown)


def test_a_job_survives_a_reload_and_can_be_cancelled(open_page, no_driver, scripted):
    scripted("hang-in:unet")
    at = open_page(VERIFY, **SMALL)
    at.button(key="verify").click().run()
    job = at.query_params["job"]
    again = open_page(VERIFY, job=job)
    cancel = next(button for button in again.button if button.label == "Cancel")
    cancel.click().run()
    finish(again)
    # It waits for the CPU while another planner measures there.
    words = r"\*\*Cancelled (in the UNet|while \w+)"
    assert re.search(words, texts(again.markdown))
    assert re.search(words, texts(finish(at.run()).markdown))


def shown_buttons(at) -> list[str]:
    return [button.label for button in at.button]


def test_cancel_replaces_verify_while_a_run_is_on(open_page, no_driver, scripted):
    scripted("hang-in:unet")
    at = open_page(VERIFY, **SMALL | {"steps": "8"})
    assert {"Verify", "Verify 6 steps (same peak)"} <= set(shown_buttons(at))
    at.button(key="verify").click().run()
    assert "Cancel" in shown_buttons(at)
    assert not [label for label in shown_buttons(at) if label.startswith("Verify")]
    # The box about no GPU has served its purpose.
    assert not at.info
    next(button for button in at.button if button.label == "Cancel").click().run()
    finish(at)
    assert "Verify" in shown_buttons(at) and not at.info


def test_the_short_run_has_the_fewest_steps_with_the_same_peak(open_page, no_driver, scripted, own_history):
    scripted("good")
    at = open_page(VERIFY, width="64", height="64", steps="50")
    assert "6 steps reach the same peaks as 50" in texts(at.caption)
    at.button(key="verify-short").click().run()
    finish(at)
    [run] = Store(own_history).measurements()
    assert run.request.steps == 6 and at.number_input(key="steps").value == 50
    assert "Verify 6 steps (same peak)" not in shown_buttons(open_page(VERIFY, width="64", height="64", steps="6"))


def test_verify_says_how_long_a_run_takes(open_page, no_driver, own_history):
    at = open_page(VERIFY, **SMALL)
    assert "No run here yet to estimate the time from; the first step will tell." in texts(at.caption)
    environment = environment_of(Device())
    timed = make_measured(total_seconds=100.0, seconds_per_step=25.0, load_seconds=20.0, stages=())
    Store(own_history).save_measurement(GenerationRequest(width=64, height=64, steps=3), environment, timed)
    assert "About 3 min, scaled from a run of" in texts(open_page(VERIFY, **SMALL, batch="2").caption)
    at = open_page(VERIFY, width="64", height="64", steps="3")
    assert "This request was measured before: **Verify** shows that run at once." in texts(at.caption)
    at.checkbox(key="force").check().run()
    assert "About 2 min, at the pace of such a run on" in texts(at.caption)


def test_a_result_leads_on_to_history_and_accuracy(open_page, no_driver, scripted, own_history):
    scripted("good")
    at = open_page(VERIFY, **SMALL)
    at.button(key="verify").click().run()
    finish(at)
    [run] = Store(own_history).measurements()
    links = {one.proto.label: one.proto for one in at.get("page_link")}
    assert run.measurement_id in links["This run in History"].query_string
    assert links["Errors of all runs in Accuracy"].page == "Accuracy"


def test_a_rehearsal_offers_no_capacity_and_no_other_weights(open_page, nvml, cuda_build):
    at = open_page(VERIFY, **SMALL)
    assert [one.label for one in at.expander if "capacity" in one.label] == ["Emulate a smaller capacity"]
    assert at.segmented_control(key="weights").options == ["synthetic", "hub (downloads 2.7 GB)"]
    at.segmented_control(key="device").set_value("CPU rehearsal").run()
    assert not at.exception
    assert not [one.label for one in at.expander if "capacity" in one.label]
    assert "weights" not in [one.key for one in at.segmented_control]
    without_checker = open_page(VERIFY, **SMALL, safety_checker="false")
    assert without_checker.segmented_control(key="weights").options[1] == "hub (downloads 2.1 GB)"


def test_verify_refuses_what_the_cpu_cannot_rehearse(open_page, no_driver):
    at = open_page(VERIFY, width="1024", height="1024")
    assert "Device cpu rehearses at most 512x512 pixels in all" in texts(at.info)
    assert at.button(key="verify").disabled
    at.number_input(key="width").set_value(128).run()
    at.number_input(key="height").set_value(128).run()
    assert not at.button(key="verify").disabled


def capacity_folded(at) -> bool:
    [one] = [one for one in at.expander if one.label == "Emulate a smaller capacity"]
    return not one.proto.expanded


def test_verify_runs_at_an_emulated_capacity_and_says_so(open_page, nvml, cuda_build, scripted, own_history):
    scripted("retries")
    at = open_page(VERIFY, **SMALL)
    assert capacity_folded(at)
    at.text_input(key="capacity").set_value(" 8 GiB ").run()
    assert not at.exception and not at.error and not capacity_folded(at)
    assert texts(at.code) == "python -m planner verify --width 64 --height 64 --steps 2 --capacity 8GiB"
    at.button(key="verify").click().run()
    finish(at)
    assert "**Completed** on Tesla T4, 8 GiB emulated" in texts(at.markdown)
    assert "emulated capacity" in texts(at.markdown)
    [run] = Store(own_history).measurements()
    assert run.environment.emulated_bytes == run.measured.free_before_bytes == 8 * 2**30
    # For the whole card it is no answer.
    at.text_input(key="capacity").set_value("").run()
    assert not capacity_folded(at)
    at.button(key="verify").click().run()
    finish(at)
    assert [run.environment.emulated_bytes for run in Store(own_history).measurements()] == [None, 8 * 2**30]
    assert "**Completed** on Tesla T4\n" in f"{texts(at.markdown)}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8GB", "Capacity must be a number with B, KiB, MiB or GiB, got '8GB' (for example 8GiB)."),
        ("0.5GiB", "Capacity must be at least 1 GiB, got '0.5 GiB' (nearest: 1 GiB)."),
        ("16GiB", "Capacity must be below the GPU's memory of 14.56 GiB, got '16 GiB' (leave it out to use the whole"),
    ],
)
def test_a_capacity_that_cannot_be_emulated_is_an_error(open_page, nvml, cuda_build, text, message):
    at = open_page(VERIFY, capacity=text)
    assert not at.exception
    [folded] = [one for one in at.expander if one.label == "Emulate a smaller capacity"]
    assert message in texts(folded.error)
    assert at.text_input(key="capacity").value == text
    assert at.button(key="verify").disabled
    at.text_input(key="capacity").set_value("").run()
    assert not at.error and not at.button(key="verify").disabled


def test_a_capacity_without_a_gpu_stays_in_the_commands(open_page, no_driver):
    at = open_page(VERIFY, **SMALL, capacity="16GiB")
    assert "Capacity needs a GPU: on the CPU there is no CUDA allocator to limit" in texts(at.error)
    assert at.button(key="verify").disabled
    assert texts(at.code) == "python -m planner verify --width 64 --height 64 --steps 2 --capacity 16GiB"


def test_a_link_to_a_job_of_another_server_shows_its_run(open_page, no_driver, own_history):
    store = Store(own_history)
    environment = make_environment()
    store.add_job("old", GenerationRequest(), environment, "1:0")
    store.end_job("old", GenerationRequest(), environment, make_measured(), predictions=(DRY_RUN, FORMULA))
    assert "Completed" in texts(open_page(VERIFY, job="old").markdown)
    assert "not in the history" in texts(open_page(VERIFY, job="never").warning)
    store.delete_measurement(store.job("old")["measurement_id"])
    assert "was deleted from the history" in texts(open_page(VERIFY, job="old").info)
    store.add_job("other", GenerationRequest(), environment, "another")
    assert "belongs to another planner" in texts(open_page(VERIFY, job="other").info)
