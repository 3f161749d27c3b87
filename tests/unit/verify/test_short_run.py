from dataclasses import replace

import pytest

from pages.shared.verify.short_run import short_run
from planner.programs.files import shipped
from planner.replay.dry_run import live_peaks
from planner.replay.kernels import KernelPolicy
from planner.replay.peaks import peaks_of
from planner.request import TASKS, GenerationRequest


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("side", [128, 1024])
def test_the_short_run_has_the_peaks_of_the_request_and_no_fewer_steps_have(task, side, batch):
    asked = GenerationRequest(task=task, width=side, height=side, batch=batch)
    shorter = short_run(shipped(), asked)
    assert shorter is not None and shorter.steps < asked.steps
    assert replace(shorter, steps=asked.steps) == asked
    for capability in ((7, 5), (8, 0)):
        policy = KernelPolicy.of(capability)
        assert peaks_of(shipped(), shorter.replay_form(), policy) == peaks_of(shipped(), asked.replay_form(), policy)
    assert live_peaks(shipped(), replace(shorter, steps=shorter.steps - 1)) != live_peaks(shipped(), asked)
    # Its run answers for the request on Plan as well.
    assert shorter.allocation_form() == asked.allocation_form()


def test_a_request_of_few_steps_has_no_shorter_run():
    asked = GenerationRequest()
    shorter = short_run(shipped(), asked)
    for steps in range(1, shorter.steps + 1):
        assert short_run(shipped(), replace(asked, steps=steps)) is None
    assert short_run(shipped(), replace(asked, steps=shorter.steps + 1)) == shorter
