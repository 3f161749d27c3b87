"""Verify offers to queue the runs again that ended with a planner, within the limits of the queue."""

from dataclasses import replace

import pytest

from cache.history.store import Store
from cache.jobs.queue import close_orphans
from cache.machine.device import Device, environment_of
from pages.shared.frame import session
from planner.request import GenerationRequest

VERIFY = "pages/1_Verify.py"
REQUEST = GenerationRequest(width=64, height=64, steps=2)


@pytest.fixture
def stopped(own_history) -> Store:
    store = Store(own_history)
    for number in range(5):
        store.add_job(f"job-{number}", replace(REQUEST, steps=2 + number), environment_of(Device()), "gone")
    close_orphans(store)
    return store


def test_a_press_queues_as_many_as_may_wait_and_keeps_the_rest(open_page, no_driver, scripted, stopped):
    scripted("hang-in:unet")
    at = open_page(VERIFY)
    at.button("queue-again").click().run()
    # One may run already, and three of a session may wait.
    assert any("3 runs of yours may wait" in error.value for error in at.error)
    assert len(stopped.open_jobs()) + len(stopped.stopped_jobs()) == 5
    assert len(stopped.open_jobs()) in (3, 4)
    assert at.run().button("queue-again").label == f"Queue {len(stopped.stopped_jobs())} runs again".replace(
        "1 runs", "1 run"
    )
    session.jobs().close()


def test_runs_that_are_given_up_are_offered_no_more(open_page, no_driver, stopped):
    at = open_page(VERIFY)
    assert at.button("queue-again").label == "Queue 5 runs again"
    at.button("give-up").click().run()
    assert not at.exception and stopped.stopped_jobs() == [] and stopped.open_jobs() == []
    assert [button.key for button in at.button if button.key == "queue-again"] == []
