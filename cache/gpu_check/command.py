"""The command line of the check: its options, the folder of its results, and its exit codes."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cache.gpu_check import plan
from cache.gpu_check.check import Check
from cache.gpu_check.files import Folder
from cache.machine.attached import AttachedCard, usable_card
from cache.machine.device import Device, Weights
from cache.machine.versions import check_installed
from planner.cards.lookup import card_named
from planner.errors import InvalidArgument, PlannerError
from planner.fields import parse_finite, parse_whole
from planner.programs.files import shipped
from planner.report.text import text_table

USAGE_ERROR = 2
LEAST_MINUTES, MOST_MINUTES = 0.1, 600.0


class Stopped(BaseException):
    """A signal asked the check to end; results are written first."""

    def __init__(self, number: int):
        self.number = number
        super().__init__(signal.Signals(number).name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cache.gpu_check",
        description="Run the most informative requests on this GPU within a time budget, and say where predictions and "
        "measurements disagree. Started again with the same folder it goes on where it was stopped.",
        epilog="exit codes: 0 the end or the time was reached, 2 usage error or no GPU, 130 and 143 stopped",
        allow_abbrev=False,
    )
    parser.add_argument("out", metavar="OUT", nargs="?", help="the folder for results")
    parser.add_argument("--minutes", default="8", metavar="N", help="time budget, of this start (8)")
    parser.add_argument("--device", metavar="cuda|cpu|N|UUID", help="the freest GPU (cuda); cpu rehearses without one")
    parser.add_argument("--weights", default="synthetic", metavar="synthetic|hub", help="as for verify (synthetic)")
    parser.add_argument("--limit", metavar="N", help="end after so many experiments, without tests/gpu")
    parser.add_argument("--estimate", metavar="GPU", help="print the plan for a GPU of the catalogue, and run nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check and return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.estimate is not None:
            print(estimate_text(arguments.estimate))
            return 0
        return _check(arguments)
    except PlannerError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR


def _minutes(text: str) -> float:
    minutes = parse_finite("minutes", text)
    if not LEAST_MINUTES <= minutes <= MOST_MINUTES:
        nearest = LEAST_MINUTES if minutes < LEAST_MINUTES else MOST_MINUTES
        rule = f"must be between {LEAST_MINUTES:g} and {MOST_MINUTES:g}"
        raise InvalidArgument("minutes", rule, minutes, f"nearest: {nearest:g}")
    return minutes


def _check(arguments: argparse.Namespace) -> int:
    if not arguments.out:
        raise InvalidArgument("OUT", "must be given", arguments.out, "for example /tmp/gpu-check")
    minutes = _minutes(arguments.minutes)
    limit = None if arguments.limit is None else parse_whole("limit", arguments.limit)
    if limit is not None and limit < 1:
        raise InvalidArgument("limit", "must be at least 1", limit, "nearest: 1")
    weights: dict[str, Weights] = {"synthetic": "synthetic", "hub": "hub"}
    if arguments.weights not in weights:
        raise InvalidArgument("weights", "must be one of synthetic, hub", arguments.weights)
    check_installed()
    named = None if arguments.device == "cuda" else arguments.device
    device = Device(None if named == "cpu" else usable_card(named))
    folder = Folder(Path(arguments.out))
    before = os.environ.get("PLANNER_DB")
    # Runs, compiled programs and locks all stay in the folder, and the user's own history is not changed.
    os.environ["PLANNER_DB"] = str(folder.history)
    restore = _on_signals(_stop)
    try:
        Check(folder, device, minutes * 60, weights[arguments.weights], limit, say=_say).run()
    except Stopped as stopped:
        folder.log(f"stopped by {stopped}; the same command goes on from there")
        _say(f"stopped by {stopped}; the same command goes on from there")
        return 128 + stopped.number
    finally:
        restore()
        if before is None:
            del os.environ["PLANNER_DB"]
        else:
            os.environ["PLANNER_DB"] = before
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _stop(number: int, _frame: Any) -> None:
    # A second signal must not interrupt the writing that the first one allows.
    for other in (signal.SIGTERM, signal.SIGINT):
        signal.signal(other, signal.SIG_IGN)
    raise Stopped(number)


def _on_signals(handler: Callable[[int, Any], None]) -> Callable[[], None]:
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, old in before.items():
            signal.signal(number, old)

    return restore


def estimate_text(name: str) -> str:
    """Write the plan for a card of the catalogue, with estimated seconds of each experiment.

    Raises:
        UnknownCard: the catalogue has no such card.
    """
    card = card_named(name)
    attached = AttachedCard(
        index=0,
        uuid="GPU-0",
        name=card.name,
        total_bytes=card.usable_bytes,
        free_bytes=card.usable_bytes,
        compute_capability=card.compute_capability,
        driver="0",
        mig=False,
    )
    library = shipped()
    candidates = [
        one
        for one in plan.candidates(Device(attached))
        if one.capacity_bytes is None or one.capacity_bytes < card.usable_bytes
    ]
    verdicts = {one: plan.verdict_on(one, card, library) for one in candidates}
    ordered = plan.experiments(candidates, verdicts)
    seconds = list(plan.seconds_with_starts(ordered, [verdicts[one] for one in ordered], card))
    rows, total = [], 0.0
    for one, taken in zip(ordered, seconds, strict=True):
        total += taken
        if plan.is_chosen(one):
            rows.append((plan.name_of(one), verdicts[one], f"{taken:.0f}", f"{total / 60:.1f}"))
            chosen = total
    tests = plan.TESTS_SECONDS
    return "\n".join(
        [
            text_table(("request", "dry run", "seconds", "minutes in all"), rows, right=(2, 3)),
            "",
            f"{card.name}: {len(rows)} chosen experiments {chosen / 60:.1f} min; with the other "
            f"{len(ordered) - len(rows)} of the grid of verify --sweep {total / 60:.1f} min; tests/gpu about "
            f"{tests / 60:.1f} min more",
        ]
    )
