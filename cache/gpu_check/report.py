"""Write the summary of a check: where predictions and measurements disagree, and what was not reached."""

import statistics
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cache.allocations import recording_report
from cache.gpu_check import plan
from cache.gpu_check.files import Folder
from cache.gpu_check.plan import Experiment
from cache.machine.device import Device
from cache.outcomes import verdict_of
from cache.predictions import predictions_for
from cache.records import Measurement
from planner.cards.card import Card, emulated_name
from planner.cards.lookup import emulated_card
from planner.components import STAGE_NAMES
from planner.errors import NoProgram
from planner.fit import fit
from planner.programs.files import shipped
from planner.programs.library import Library
from planner.units import MIB, gib, signed_percent

# Repeated runs of one benchmark differ by 0.25 % (`planner.replay.assumptions.RUN_TO_RUN`); twice that is a
# disagreement.
AGREES_WITHIN = 0.005
# A convolution's workspace may differ by so much, since cuDNN aligns the sizes that it asks for.
WORKSPACE_WITHIN_BYTES = MIB
# A table of convolutions has at most so many rows.
MOST_CONVOLUTIONS = 40


@dataclass(frozen=True)
class Tests:
    """Hold the counts of tests/gpu, or the reason why they were not run."""

    reason: str | None = None
    tests: int = 0
    failed: tuple[str, ...] = ()
    skipped: int = 0

    def text(self) -> str:
        """Write the outcome in words."""
        if self.reason:
            return self.reason
        passed = self.tests - len(self.failed) - self.skipped
        return f"{passed} passed, {len(self.failed)} failed, {self.skipped} skipped"


@dataclass(frozen=True)
class Compared:
    """Hold a run with its dry run on this device; sizes are bytes, None without a prediction.

    Errors are ``predicted / measured - 1``.
    """

    run: Measurement
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    verdict: str = "unknown"

    @property
    def allocated_error(self) -> float | None:
        """Return the signed error of the allocated peak, or None."""
        return self._error(self.allocated_bytes, self.run.measured.peak_allocated_bytes)

    @property
    def reserved_error(self) -> float | None:
        """Return the signed error of the reserved peak, or None."""
        return self._error(self.reserved_bytes, self.run.measured.peak_reserved_bytes)

    def _error(self, predicted_bytes: int | None, measured_bytes: int | None) -> float | None:
        if self.run.measured.outcome != "ok" or predicted_bytes is None or not measured_bytes:
            return None
        return predicted_bytes / measured_bytes - 1

    @property
    def is_verdict_wrong(self) -> bool:
        """Tell whether the verdict was wrong: out of memory after `fits`, or finished after `no`."""
        happened = verdict_of(self.run)
        return (self.verdict, happened) in {("fits", "no"), ("fits", "tight"), ("no", "fits"), ("no", "tight")}


@dataclass
class Report:
    """Collect the facts of a check besides its runs, and write summary.md and differences.json."""

    folder: Folder
    device: Device
    card: Card | None
    library: Library | None = None
    # This is the reason why runs cannot be compared while there is no library.
    no_programs: str | None = None
    tests: Tests | None = None
    cannot: list[tuple[Experiment, str]] = field(default_factory=list)
    not_reached: list[Experiment] = field(default_factory=list)
    not_reached_because: str = "the time was too short"
    reached_end: bool = False
    unkept: list[Measurement] = field(default_factory=list)
    # These experiments ended in an error of the check itself, with its message.
    crashed: list[tuple[Experiment, str]] = field(default_factory=list)
    estimated_seconds: float | None = None
    estimated_chosen_seconds: float | None = None
    seconds: float | None = None
    _compared: dict[str, Compared] = field(default_factory=dict)
    _differences: dict[str, dict[str, Any]] = field(default_factory=dict)

    def write(self, runs: Sequence[Measurement]) -> None:
        """Write both files anew from these runs."""
        compared = [self._of(run) for run in runs]
        differences = [found for run in runs if (found := self._difference(run))]
        self.folder.write_json("differences.json", differences)
        self.folder.write("summary.md", self._text(compared, differences))

    def tests_found(self) -> Tests:
        """Read the counts in pytest's file, or say why there is none."""
        try:
            suite = ElementTree.parse(self.folder.tests).getroot()
        except (OSError, ElementTree.ParseError):
            return self.tests or Tests(reason="not reached")
        cases = list(suite.iter("testcase"))
        failed = [
            f"{case.get('classname')}::{case.get('name')}"
            for case in cases
            if case.find("failure") is not None or case.find("error") is not None
        ]
        skipped = sum(case.find("skipped") is not None for case in cases)
        return Tests(tests=len(cases), failed=tuple(failed), skipped=skipped)

    # These methods compare each run once.

    def _of(self, run: Measurement) -> Compared:
        if self.library is None:
            return Compared(run)
        known = self._compared.get(run.measurement_id)
        if known is None:
            known = self._compared[run.measurement_id] = self._compare(run, self.library)
        return known

    def _compare(self, run: Measurement, library: Library) -> Compared:
        if self.card is None and run.environment.device_kind == "cpu":
            said = next((one for one in predictions_for(run.request, Device(), library=library)), None)
            return Compared(run, said.peak_allocated_bytes if said and said.basis == "dry-run" else None)
        if self.card is None or self.device.key != run.environment.uuid_hash:
            # The run is from another GPU, so this one's memory is no prediction for it.
            return Compared(run)
        emulated = run.environment.emulated_bytes
        card = self.card if emulated is None else emulated_card(self.card, emulated)
        answer = fit(run.request, card, "dry-run", library=library)
        # If memory is short, the peaks are those at this capacity, and not with more memory.
        capped = answer.capped_allocated_bytes is not None
        return Compared(
            run,
            answer.capped_allocated_bytes if capped else answer.peak_allocated_bytes,
            answer.capped_reserved_bytes if capped else answer.peak_reserved_bytes,
            answer.verdict,
        )

    def _difference(self, run: Measurement) -> dict[str, Any] | None:
        if self.library is None or not self.folder.has_recording(run.measurement_id):
            return None
        if run.measurement_id not in self._differences:
            recording = self.folder.recording(run.measurement_id)
            if recording is None:
                return None
            found: dict[str, Any] = {"measurement_id": run.measurement_id, "name": _name(run)}
            try:
                found |= recording_report(recording, self.library, run)
            except NoProgram as error:
                found["reason"] = str(error)
            self._differences[run.measurement_id] = found
        return self._differences[run.measurement_id]

    # These methods write the sections of the summary.

    def _text(self, compared: Sequence[Compared], differences: Sequence[dict[str, Any]]) -> str:
        sections = [
            self._head(compared),
            self._disagreements(compared),
            self._allocations(differences),
            self._workspaces(differences),
            self._seconds(compared),
            self._contexts(compared),
            self._failures(compared),
            self._tests(),
            self._missing(),
            self._import(),
        ]
        return "\n\n".join(filter(None, sections)) + "\n"

    def _head(self, compared: Sequence[Compared]) -> str:
        name = self.device.card.name if self.device.card else "CPU rehearsal"
        runs = [one.run for one in compared]
        lines = [f"# GPU check: {name}", ""]
        if self.card is None:
            lines += [
                "A rehearsal on the CPU: live tensors only, no kernels' workspace. It says nothing about a GPU.",
                "",
            ]
        if runs:
            at = runs[-1].environment
            cudnn = f", CUDA {at.cuda}, cuDNN {at.cudnn}, driver {at.driver}" if at.cudnn else ""
            versions = f"torch {at.torch}, diffusers {at.diffusers}, transformers {at.transformers}, Python {at.python}"
            lines.append(f"- With {versions}{cudnn}, {at.dtype}, {at.weights} weights.")
        pinned = dict(shipped().versions)
        if self.library is not None and dict(self.library.versions) != pinned:
            lines.append(f"- Programs were compiled here for torch {self.library.versions['torch']}: the shipped ones "
                         f"are for {pinned['torch']}. Seconds were measured beside that compile.")  # fmt: skip
        counts = f"{_count(len(runs))} in runs.jsonl"
        if self.seconds is not None:
            counts += f"; this start took {self.seconds / 60:.1f} min"
        lines.append(f"- {counts}.")
        if self.estimated_seconds is not None and self.estimated_chosen_seconds is not None:
            lines.append(
                f"- Estimated on this device: {self.estimated_chosen_seconds / 60:.1f} min for the chosen experiments, "
                f"{self.estimated_seconds / 60:.1f} min with the whole grid, tests/gpu apart."
            )
        return "\n".join(lines)

    def _disagreements(self, compared: Sequence[Compared]) -> str:
        title = "## Where prediction and measurement disagree"
        if self.library is None:
            why_not = self.no_programs or "there are no memory programs"
            return (
                f"{title}\n\nNothing was compared: {why_not}. Start the check again with the same folder, or "
                "import the runs where there are such programs."
            )
        if not compared:
            return f"{title}\n\nNo run has ended yet."
        known = [(one, error) for one in compared if (error := one.allocated_error) is not None]
        lines = [title, ""]
        if known:
            within = sum(abs(error) <= AGREES_WITHIN for _, error in known)
            worst, error = max(known, key=lambda pair: abs(pair[1]))
            median = statistics.median(abs(error) for _, error in known)
            lines.append(
                f"{_count(len(known))} finished, {within} of them with an allocated peak predicted within "
                f"{AGREES_WITHIN:.1%}; the median is off by {median:.2%}. The worst is {_name(worst.run)}: predicted "
                f"{gib(worst.allocated_bytes or 0)}, measured {gib(worst.run.measured.peak_allocated_bytes or 0)}, "
                f"{signed_percent(error)}."
            )
        wrong = [one for one in compared if one.is_verdict_wrong]
        lines += [f"- **{_name(one.run)}**: predicted `{one.verdict}`, but it {_happened(one.run)}." for one in wrong]
        if self.card is not None and not wrong:
            lines.append("No verdict was wrong.")
        rows = sorted(compared, key=lambda one: -abs(one.allocated_error or 0.0))
        header = ("request", "outcome", "dry run", "allocated", "predicted", "off by")
        reserved = ("reserved", "predicted", "off by") if self.card else ()
        cells = [
            (
                _name(one.run),
                _happened(one.run),
                one.verdict,
                _size(one.run.measured.peak_allocated_bytes),
                _size(one.allocated_bytes),
                _percent(one.allocated_error),
                *(
                    (
                        _size(one.run.measured.peak_reserved_bytes),
                        _size(one.reserved_bytes),
                        _percent(one.reserved_error),
                    )
                    if self.card
                    else ()
                ),
            )
            for one in rows
        ]
        return "\n".join([*lines, "", _table((*header, *reserved), cells, right=range(3, 9))])

    def _allocations(self, differences: Sequence[dict[str, Any]]) -> str:
        if not differences:
            return ""
        rows = []
        for one in sorted(differences, key=lambda one: one.get("share", 0.0)):
            if "reason" in one:
                rows.append((one["name"], "-", "-", one["reason"], ""))
                continue
            rows.append(
                (
                    one["name"],
                    f"{one['matched']:,} of {one['real']:,}",
                    f"{one['share']:.2%}",
                    _only(one["only_real"]),
                    _only(one["only_predicted"]),
                )
            )
        header = ("request", "predicted", "share", "only measured, largest", "only predicted, largest")
        note = "Allocations above 1 MiB are compared one by one; differences.json has all of them and their modules."
        return "\n".join(["## Allocation by allocation", "", note, "", _table(header, rows, right=(1, 2))])

    def _workspaces(self, differences: Sequence[dict[str, Any]]) -> str:
        title = "## Workspace of each convolution"
        if self.card is None:
            return f"{title}\n\nNot measured: on the CPU no kernel's workspace comes from an allocator with a history."
        recorded = [(one["name"], row) for one in differences for row in one.get("convolutions", ())]
        if not recorded:
            return ""
        off = [
            (name, row)
            for name, row in recorded
            if abs(row["workspace_bytes"] - row["predicted_bytes"]) > WORKSPACE_WITHIN_BYTES
        ]
        off.sort(key=lambda pair: -abs(pair[1]["workspace_bytes"] - pair[1]["predicted_bytes"]))
        lines = [title, "", f"{len(recorded) - len(off)} of {len(recorded)} recorded shapes took what was predicted, "
                 f"within {WORKSPACE_WITHIN_BYTES // MIB} MiB."]  # fmt: skip
        rows = [
            (
                name,
                row["module"],
                f"{_shape(row['input_shape'])} → {_shape(row['output_shape'])}",
                "channels_last" if row["channels_last"] else "NCHW",
                f"{row['calls']}",
                _mib(row["workspace_bytes"]),
                _mib(row["predicted_bytes"]),
                ", ".join(map(_mib, row["refused"])) or "-",
            )
            for name, row in off[:MOST_CONVOLUTIONS]
        ]
        if rows:
            header = (
                "request",
                "convolution",
                "shapes",
                "layout",
                "calls",
                "took, MiB",
                "predicted, MiB",
                "refused, MiB",
            )
            lines += ["", _table(header, rows, right=(4, 5, 6, 7))]
        if len(off) > MOST_CONVOLUTIONS:
            lines += ["", f"{len(off) - MOST_CONVOLUTIONS} more are in differences.json."]
        return "\n".join(lines)

    def _seconds(self, compared: Sequence[Compared]) -> str:
        ran = [one.run for one in compared if one.run.measured.outcome == "ok"]
        if not ran:
            return ""
        header = ("request", *STAGE_NAMES.values(), "a step", "in all", "loading")
        rows = []
        for run in ran:
            measured = run.measured
            stages = {stage.stage: stage.seconds for stage in measured.stages}
            rows.append(
                (
                    _name(run),
                    *(_seconds(stages.get(stage)) for stage in STAGE_NAMES),
                    _seconds(measured.seconds_per_step),
                    _seconds(measured.total_seconds),
                    _seconds(measured.load_seconds),
                )
            )
        return "\n".join(["## Seconds by stage", "", _table(header, rows, right=range(1, len(header)))])

    def _contexts(self, compared: Sequence[Compared]) -> str:
        if self.card is None:
            return ""
        found = [one.run.measured.context_bytes for one in compared if one.run.measured.context_bytes is not None]
        if not found:
            return "## CUDA context\n\nThe driver did not report the size of the CUDA context."
        low, high = self.card.context_low_bytes, self.card.context_bytes
        return (
            f"## CUDA context\n\nMeasured {gib(min(found))} to {gib(max(found))}, median "
            f"{gib(round(statistics.median(found)))}, over {_count(len(found))}; planned with "
            f"{gib(low)} to {gib(high)}."
        )

    def _failures(self, compared: Sequence[Compared]) -> str:
        failed = [one.run for one in compared if one.run.measured.outcome == "failed"]
        if not failed and not self.unkept and not self.crashed:
            return ""
        lines = [f"- {_name(run)}: {_first_line(run.measured.reason)}" for run in failed]
        lines += [f"- {plan.name_of(one)}: {reason}" for one, reason in self.crashed]
        if self.unkept:
            lines.append(
                f"- {_count(len(self.unkept))} could not be kept in history.db; runs.jsonl has them all the same"
            )
        return "\n".join(["## Failed", "", "The next start tries these again, after all others.", "", *lines])

    def _tests(self) -> str:
        found = self.tests_found()
        lines = ["## tests/gpu", "", f"{found.text()}."]
        return "\n".join([*lines, *(f"- failed: {name}" for name in found.failed)])

    def _missing(self) -> str:
        lines = []
        if self.not_reached:
            chosen = [one for one in self.not_reached if plan.is_chosen(one)]
            lines += [f"{len(self.not_reached)} experiments were not reached: {self.not_reached_because}; the same "
                      "command with the same folder goes on from here.", ""]  # fmt: skip
            lines += [f"- {plan.name_of(one)}: {one.why}" for one in chosen]
            if len(chosen) < len(self.not_reached):
                lines.append(f"- {len(self.not_reached) - len(chosen)} more of the grid of `verify --sweep`")
        if self.cannot:
            where = "on the CPU" if self.card is None else "on this GPU"
            lines += ["", f"These cannot run {where}:", ""] if lines else [f"These cannot run {where}:", ""]
            lines += [f"- {plan.name_of(one)} ({one.why}): {reason}" for one, reason in self.cannot]
        if self.card is None:
            lines += ["- reserved peaks, the CUDA context, allocator retries and workspaces: the CPU has none of them"]
        if self.reached_end:
            lines += ["", "Everything that can be run here was reached."]
        return "\n".join(["## What is missing", "", *lines]) if lines else ""

    def _import(self) -> str:
        return (
            "## Use it\n\n```console\n$ python -m planner history import runs.jsonl\n```\n\nbrings the runs into the "
            "planner of any machine, where they count as measured runs. `differences.json` and `recordings/` help to "
            "correct the dry run."
        )


def _count(runs: int) -> str:
    return f"{runs} run{'' if runs == 1 else 's'}"


def _name(run: Measurement) -> str:
    return emulated_name(run.request.describe(), run.environment.emulated_bytes)


def _happened(run: Measurement) -> str:
    measured = run.measured
    if measured.outcome == "ok":
        retries = measured.num_alloc_retries
        return f"ran with {retries} retr{'y' if retries == 1 else 'ies'}" if retries else "ran"
    where = f" in {STAGE_NAMES.get(measured.ended_in, measured.ended_in)}" if measured.ended_in else ""
    return f"was out of memory{where}" if measured.outcome == "out-of-memory" else f"failed{where}"


def _first_line(text: str | None) -> str:
    return (text or "no reason was given").partition("\n")[0][:300]


def _size(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else gib(size_bytes)


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / MIB:,.1f}"


def _percent(error: float | None) -> str:
    return "-" if error is None else signed_percent(error)


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.3f}"


def _shape(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape))


def _only(sizes: Sequence[dict[str, Any]]) -> str:
    """Write the three largest sizes that only one side has, each with its first module."""
    shown = []
    for one in sizes[:3]:
        module = f" in {one['modules'][0]}" if one["modules"] and one["modules"][0] else ""
        shown.append(f"{one['count']} × {_mib(one['size_bytes'])} MiB{module}")
    return "; ".join(shown) or "-"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    """Write a table in Markdown; columns in `right` are flush right."""
    flush = set(right)
    line = "|".join("---:" if index in flush else "---" for index in range(len(header)))
    body = [f"| {' | '.join(cell.replace('|', '¦') for cell in row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(header)} |", f"|{line}|", *body])
