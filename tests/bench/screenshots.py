"""``make screenshots``: save every page, light and dark, 1280, 1024 and 390 px wide, in the folder SCREENSHOTS.

The history behind them holds one real rehearsal and, marked as made up, the outcomes a GPU could have had.
"""

import os
import sys
import tempfile
from functools import partial
from pathlib import Path

from cache.history.reference import reference_runs
from cache.history.store import Store
from cache.jobs.queue import Jobs
from cache.machine.device import Device
from cache.machine.versions import installed
from cache.predictions import predictions_for
from cache.records import Measured, Prediction
from planner.cards.lookup import card_named
from planner.fit import fit
from planner.request import GenerationRequest
from tests.browser import chromium, device, server, settle, whole_page
from tests.conftest import make_environment, make_measured
from tests.unit.measured import history as made_up_runs
from tests.unit.measured import measured_of

SHOTS = {
    "plan": "/",
    "plan-tight-and-no": "/?width=2048&height=2048&gpu=T4&gpu=RTX+4060&gpu=A100-40GB",
    "plan-formula": "/?width=1024&height=1024&basis=formula",
    "plan-options": "/?width=2048&height=2048&batch=8&vae_tiling=true&gpu=T4&gpu=RTX+4060&gpu=L4&gpu=H200",
    "plan-sizes": "/?width=2048&height=2048&gpu=T4&gpu=RTX+4060&gpu=A100-40GB&tab=Sizes+and+map",
    "plan-why": "/?width=2048&height=2048&gpu=T4&gpu=RTX+4060&gpu=A100-40GB&tab=Why",
    "plan-images": "/?gpu=T4&gpu=A100-40GB&images=4096x4096,512x512&tab=Several+images",
    "plan-export": "/?width=2048&height=2048&gpu=T4&tab=Export",
    "plan-table": "/?gpu=T4&gpu=L4&gpu=A10&gpu=RTX+4060&gpu=RTX+4090&gpu=A100-40GB&gpu=H200",
    "plan-bad": "/?task=txt2img&width=500&steps=99999",
    "verify": "/Verify?width=128&height=128&steps=2",
    "verify-running": "/Verify?width=256&height=256&steps=100",
    "history": "/History?run={rehearsed}",
    "history-ok": "/History?run={ok}",
    "history-oom": "/History?run={oom}",
    "history-compared": "/History?run={ok}&run={again}&run={rehearsed}",
    "history-published": "/History?reference=true&run={published}",
    "accuracy": "/Accuracy",
    "accuracy-not-measured": "/Accuracy?gpu=A10G&gpu=H100-80GB",
    "accuracy-by-stage": "/Accuracy?published=false&by=Stage",
    "plan-calibrated": "/?width=1216&height=1216&gpu=T4&gpu=A10",
    "history-filtered": "/History?filter-card=Made-up+card&filter-outcome=ok&run={ok}&run={again}",
}


SCHEMES, WIDTHS = ("light", "dark"), (1280, 1024, 390)


def history(path: Path) -> tuple[Store, dict[str, str]]:
    """Make a history with a new rehearsal, and made-up rows for what this machine cannot measure."""
    store, jobs = Store(path), None
    request = GenerationRequest(width=128, height=128, steps=2)
    predictions = tuple(
        Prediction.of(fit(GenerationRequest(), card_named("T4"), basis)) for basis in ("dry-run", "formula")
    )
    made_up = make_environment(card="Made-up card")
    ok_id = store.save_measurement(GenerationRequest(), made_up, make_measured(), predictions=predictions)
    oom = Measured(
        outcome="out-of-memory", reason="CUDA out of memory. Tried to allocate 2.00 GiB", ended_in="vae_decoder"
    )
    again = make_measured(peak_allocated_bytes=3_470_000_000, seconds_per_step=0.17)
    newer = make_environment(card="Made-up card", torch="2.14.0")
    again_id = store.save_measurement(GenerationRequest(), newer, again, predictions=predictions)
    oom_id = store.save_measurement(GenerationRequest(width=2048, height=2048), made_up, oom, predictions=predictions)
    for number, run in enumerate(made_up_runs(12, seed=0, fraction=0.7, noise=0.004, absurd=0)):
        environment = make_environment(
            **installed() | {"card": "Made-up card", "cudnn": "91002" if number % 3 else "8907"}
        )
        store.save_measurement(run.request, environment, measured_of(run))
    jobs = Jobs(store)
    view = jobs.wait(jobs.submit(request, Device(), predict=partial(predictions_for, request, Device())))
    jobs.close()
    assert view.measurement_id is not None, view.reason
    published = next(run.measurement_id for run in reference_runs() if run.scope == "vae.decode")
    ids = {"rehearsed": view.measurement_id, "ok": ok_id, "again": again_id, "oom": oom_id, "published": published}
    return store, ids


def main() -> int:
    """Write the pictures, and print their folder."""
    folder = Path(os.environ.get("SCREENSHOTS", "screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        store, ids = history(Path(temporary) / "planner.db")
        with server(store.path) as address, chromium() as browser:
            for scheme in SCHEMES:
                for width in WIDTHS:
                    context = browser.new_context(**device(width), color_scheme=scheme)
                    page = context.new_page()
                    for name, path in SHOTS.items():
                        page.goto(address + path.format(**ids))
                        page.wait_for_selector("h1")
                        settle(page)
                        page.wait_for_timeout(1500)
                        if name == "verify-running":
                            page.get_by_role("button", name="Verify", exact=True).click()
                            page.get_by_role("button", name="Cancel").wait_for()
                            page.wait_for_timeout(7000)
                        whole_page(page, folder / f"{name}-{scheme}-{width}.png")
                        if name == "verify-running":
                            page.get_by_role("button", name="Cancel").click()
                            page.get_by_text("Cancelled").wait_for()
                    context.close()
    print(f"{len(SHOTS) * len(SCHEMES) * len(WIDTHS)} screenshots in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
