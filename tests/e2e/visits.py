"""List the pages, each with what a visitor can open in it, for the tests that walk through all of them."""

from typing import NamedTuple

from cache.history.store import Store
from cache.records import Prediction
from planner.cards.lookup import card_named
from planner.fit import fit
from planner.request import GenerationRequest
from tests.conftest import make_environment, make_measured

_BIG = "width=2048&height=2048&gpu=T4&gpu=RTX+4060&gpu=A100-40GB"
PAGES = {
    "plan": "/?width=1024&height=1024&batch=4&gpu=T4&gpu=A10&gpu=A100-40GB",
    "make it fit": f"/?{_BIG}",
    "sizes and map": f"/?{_BIG}&tab=Sizes+and+map",
    "why": "/?width=1024&height=1024&batch=4&gpu=T4&gpu=A10&gpu=A100-40GB&tab=Why",
    "several images": "/?gpu=T4&gpu=A100-40GB&images=4096x4096,512x512&tab=Several+images",
    "export": f"/?{_BIG}&tab=Export",
    "many GPUs": "/?gpu=T4&gpu=L4&gpu=A10&gpu=RTX+4060&gpu=RTX+4090&gpu=A100-40GB&gpu=H200",
    "bad link": "/?task=txt2img&width=500&steps=99999&tab=Nonsense",
    "verify": "/Verify?width=128&height=128",
    "history": "/History?run={first}",
    "history compared": "/History?run={first}&run={second}",
    "accuracy": "/Accuracy",
    "embedded": f"/?{_BIG}&embed=true",
}


class Runs(NamedTuple):
    """The ids of the runs in the history behind the pages."""

    first: str
    second: str


def fill(store: Store) -> Runs:
    """Store two runs of one request."""
    request = GenerationRequest()
    predictions = tuple(Prediction.of(fit(request, card_named("T4"), basis)) for basis in ("dry-run", "formula"))
    environment = make_environment(card="Made-up card")
    first = store.save_measurement(request, environment, make_measured(), predictions=predictions)
    slower = make_measured(peak_allocated_bytes=3_470_000_000, seconds_per_step=0.17)
    newer = make_environment(card="Made-up card", torch="2.14.0")
    return Runs(first, store.save_measurement(request, newer, slower, predictions=predictions))
