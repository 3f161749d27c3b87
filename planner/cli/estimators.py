"""The command ``estimators``: the errors of other tools' formulas and of ours on every measured run."""

from __future__ import annotations

import click

from cache.history.observations import gather
from planner.accuracy.estimator_table import (
    Comparison,
    about,
    cells,
    compare,
    comparison_markdown,
    comparison_object,
    header,
    notes,
)
from planner.accuracy.grading import grade
from planner.answer import EXIT_CODES
from planner.cli.arguments import format_options, reference_option
from planner.cli.output import library_here, print_json, say
from planner.report.text import text_table


def comparison_text(comparison: Comparison) -> str:
    """Write each section as a title, a sentence and a table."""
    parts = []
    for section in comparison.sections:
        names = header(section)
        table = text_table(names, [cells(section, line) for line in section.lines], right=range(1, len(names)))
        parts.append(f"{section.title}: {about(section)}\n\n{table}")
    return "\n\n".join(parts)


def nothing_to_compare(comparison: Comparison, *, with_reference: bool) -> str:
    """Write in one sentence why there is no table, and what to do about it."""
    left = ", ".join(f"{count} left out with {reason}" for reason, count in comparison.left_out.items())
    found = f" ({left})" if left else ""
    reference = "" if with_reference else ", and without --no-reference the reference runs count"
    return (
        f"there is no measured run on a GPU to compare with{found}: 'python -m planner verify' measures one{reference}"
    )


@click.command("estimators")
@reference_option
@format_options
def estimators_command(with_reference: bool, as_format: str) -> int:
    """Compare other tools' formulas, the published one and the dry run by their errors.

    Every measured run counts. The exit code is 12 if there is no run to compare with.
    """
    library = library_here()
    evidence, notice = gather(library, with_reference=with_reference)
    if notice:
        say(f"{notice}; the tables stand without it")
    comparison = compare(grade(evidence, library=library), evidence.observations)
    if as_format == "json":
        print_json(comparison_object(comparison))
    if not comparison.sections:
        say(nothing_to_compare(comparison, with_reference=with_reference))
        return EXIT_CODES["unknown"]
    if as_format == "md":
        # The Markdown text includes the notes.
        print(comparison_markdown(comparison))
    elif as_format != "json":
        print(comparison_text(comparison))
        for note in notes(comparison):
            say(note)
    return 0
