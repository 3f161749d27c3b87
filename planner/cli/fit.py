"""``fit`` on the terminal: which GPUs run this request, and by how much."""

import argparse

from planner.answer import EXIT_CODES, worst
from planner.cli.arguments import cards_from, evidence_for, format_from, request_from
from planner.cli.output import library_here, print_json, say
from planner.fit import fit
from planner.formula import estimate
from planner.report.markdown import fit_command, fit_markdown, fit_notes
from planner.report.text import fit_object, fit_text


def run_fit(arguments: argparse.Namespace) -> int:
    """``fit``: answers for each card; the worst verdict is the exit code."""
    as_format = format_from(arguments)
    request, cards = request_from(arguments), cards_from(arguments)
    library, evidence = None, None
    if arguments.basis != "formula":
        library = library_here(is_silent=arguments.basis == "measured")
    if arguments.basis in ("best", "calibrated", "measured"):
        evidence, notice = evidence_for(cards, library, with_reference=not arguments.no_reference)
        if notice:
            say(f"{notice}; the answer stands without it")
    answers = [fit(request, card, arguments.basis, library=library, evidence=evidence) for card in cards]
    if as_format == "json":
        print_json(fit_object(request, answers, estimate(request)))
    elif as_format == "md":
        from cache.machine.versions import planned_for

        command = fit_command(request, cards, arguments.basis, with_reference=not arguments.no_reference)
        print(fit_markdown(request, answers, planned_for(), command))
    else:
        print(fit_text(request, answers))
    if as_format != "md":
        # Markdown has them in itself.
        for note in fit_notes(request, answers):
            say(note)
    return EXIT_CODES[worst(answer.verdict for answer in answers)]
