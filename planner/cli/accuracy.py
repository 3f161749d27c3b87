"""``accuracy`` on the terminal: how wrong predictions were on each GPU, the runs with sources, what they confirm."""

import argparse
from collections.abc import Sequence

from cache.history.observations import gather
from cache.history.reference import sources
from planner.accuracy.by_gpu import Gpu, by_gpu, gpu_of, measured_gpus
from planner.accuracy.grading import Graded, grade
from planner.answer import EXIT_CODES
from planner.cli.arguments import cards_from, format_from
from planner.cli.output import library_here, print_json, say
from planner.errors import NoProgram
from planner.report.accuracy import NOTES, accuracy_markdown, accuracy_object, accuracy_text


def _asked(arguments: argparse.Namespace, graded: Sequence[Graded]) -> list[Gpu]:
    """Read the GPUs of the command line, or take every one that was measured."""
    if arguments.gpu or arguments.gpu_memory is not None or arguments.compute_capability is not None:
        return list(dict.fromkeys(gpu_of(card) for card in cards_from(arguments)))
    return measured_gpus(graded)


def accuracy(arguments: argparse.Namespace) -> int:
    """``accuracy``: exit 12 where a GPU that was asked for, or all of them, have no run of a whole pipeline.

    Raises:
        NoProgram: there are no memory programs, so that no run can be graded.
    """
    as_format = format_from(arguments)
    # A wrong name is said at once: grading takes seconds.
    _asked(arguments, ())
    library = library_here()
    if library is None:
        raise NoProgram("there are no memory programs to grade runs by")
    evidence, notice = gather(library, with_reference=not arguments.no_reference)
    if notice:
        say(f"{notice}; the answer stands without it")
    graded = grade(evidence, library=library)
    told = [by_gpu(graded, gpu) for gpu in _asked(arguments, graded)]
    if as_format == "json":
        print_json(accuracy_object(graded, told, sources()))
    else:
        write = accuracy_markdown if as_format == "md" else accuracy_text
        print(write(graded, told, sources()))
        if as_format != "md":
            for note in NOTES:
                say(note)
    return 0 if told and all(one.is_measured for one in told) else EXIT_CODES["unknown"]
