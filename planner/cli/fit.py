"""The command ``fit``: which GPUs run this request, and by how much."""

import click

from planner.answer import EXIT_CODES
from planner.cli.arguments import (
    GroupedCommand,
    cards_of,
    evidence_for,
    format_options,
    plan_options,
    request_options,
)
from planner.cli.output import library_here, print_json, say
from planner.plan import Plan, answer_plan
from planner.report.markdown import fit_markdown, fit_notes
from planner.report.text import fit_text, plan_object

_EXAMPLES = """\b
Examples:
  will-it-fit fit --width 1024 --height 1024 --gpu T4 --gpu A10
  will-it-fit fit --batch 4 --gpu-memory 16GiB --compute-capability 8.9
  will-it-fit fit --gpu attached --workers 2 --format md

\b
Exit codes: 0 fits, 11 tight, 10 no, 12 unknown; the worst GPU decides.
"""


@click.command("fit", cls=GroupedCommand, epilog=_EXAMPLES)
@request_options
@plan_options("gpu_memory", "compute_capability", "workers", "basis", "published")
@format_options
def fit_command(plan: Plan, as_format: str) -> int:
    """Say which GPUs run this request, and by how much."""
    cards = cards_of(plan)
    library, evidence = None, None
    if plan.uses_library:
        library = library_here(is_silent=plan.basis == "measured")
    if plan.uses_evidence:
        evidence, notice = evidence_for(cards, library, with_reference=plan.published)
        if notice:
            say(f"{notice}; the answer stands without it")
    found = answer_plan(plan, cards, library=library, evidence=evidence)
    if as_format == "json":
        print_json(plan_object(found))
    elif as_format == "md":
        # Only Markdown names the versions. Their module imports numpy, which a formula's answer does not need.
        from cache.machine.versions import planned_for

        print(fit_markdown(plan.request, found.answers, planned_for(), plan.command(cards)))
    else:
        print(fit_text(plan.request, found.answers))
    if as_format != "md":
        # The Markdown text includes the notes.
        for note in fit_notes(plan.request, found.answers):
            say(note)
    return EXIT_CODES[found.verdict]
