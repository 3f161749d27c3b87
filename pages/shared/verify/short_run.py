"""Find the shortest run that shows the same peaks as the request."""

from dataclasses import replace
from functools import lru_cache

from planner.components import MAX_TRACED_STEPS
from planner.programs.library import Library
from planner.replay.dry_run import live_peaks
from planner.request import GenerationRequest


@lru_cache(maxsize=256)
def short_run(library: Library, request: GenerationRequest) -> GenerationRequest | None:
    """Return the request with the fewest steps that reach its peaks, or None if it has no more itself.

    The dry run of each number of steps is compared in every stage, by the living tensors: these are the same on every
    GPU and on the CPU. Fewer steps need a little less, for the scheduler keeps fewer noise predictions.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    peaks = live_peaks(library, request)
    # All numbers of steps from `MAX_TRACED_STEPS` on have the same program.
    for steps in range(1, min(request.steps, MAX_TRACED_STEPS + 1)):
        shorter = replace(request, steps=steps)
        if live_peaks(library, shorter) == peaks:
            return shorter
    return None
