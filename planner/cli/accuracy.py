"""The command ``accuracy``: how wrong predictions were on each GPU, by which runs, and what they confirm."""

from collections.abc import Sequence

import click

from cache.history.observations import gather
from cache.history.reference import sources
from planner.accuracy.by_gpu import Gpu, by_gpu, gpu_of, measured_gpus
from planner.accuracy.grading import Graded, grade
from planner.answer import EXIT_CODES
from planner.cli.arguments import cards_of, format_options, plan_options
from planner.cli.output import library_here, print_json, say
from planner.errors import NoProgram
from planner.plan import Plan
from planner.report.accuracy import NOTES, accuracy_markdown, accuracy_object, accuracy_text


def _asked(plan: Plan, graded: Sequence[Graded]) -> list[Gpu]:
    """List the GPUs that the plan names, or all that were measured."""
    if plan.gpus or plan.gpu_memory:
        return list(dict.fromkeys(gpu_of(card) for card in cards_of(plan)))
    return measured_gpus(graded)


@click.command("accuracy", epilog="\b\nExample:\n  will-it-fit accuracy --gpu T4 --gpu A10")
@plan_options("gpu_memory", "compute_capability", "published")
@format_options
def accuracy_command(plan: Plan, as_format: str) -> int:
    """Say how wrong predictions were on each GPU that was measured, with runs and sources.

    The exit code is 12 if a GPU that was asked for has no run of a whole pipeline, or no GPU has any.
    """
    # Grading takes seconds, so a wrong name is reported before it.
    _asked(plan, ())
    library = library_here()
    if library is None:
        raise NoProgram("there are no memory programs to predict the runs with")
    evidence, notice = gather(library, with_reference=plan.published)
    if notice:
        say(f"{notice}; the answer stands without it")
    graded = grade(evidence, library=library)
    told = [by_gpu(graded, gpu) for gpu in _asked(plan, graded)]
    if as_format == "json":
        print_json(accuracy_object(graded, told, sources()))
    else:
        write = accuracy_markdown if as_format == "md" else accuracy_text
        print(write(graded, told, sources()))
        if as_format != "md":
            for note in NOTES:
                say(note)
    return 0 if told and all(one.is_measured for one in told) else EXIT_CODES["unknown"]
