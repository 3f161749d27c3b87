"""Check this machine: what works, what is wrong, and what to do about it."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cache.history.location import HistoryError
from cache.history.store import Store
from cache.machine.attached import cards, why_not_usable
from cache.machine.versions import INSTALL, installed, missing, planned_for, torch_cuda
from cache.programs import find
from planner.components import MODEL_ID, MODEL_REVISION, SD_V15
from planner.errors import NoGpu
from planner.programs.files import shipped
from planner.replay.fast_replay import engine
from planner.units import gib


@dataclass(frozen=True)
class Check:
    """Hold the result of one check; `advice` says what to do if `state` is not ok."""

    name: str
    state: Literal["ok", "note", "problem"]
    found: str
    advice: str | None = None


def _gpu_checks() -> list[Check]:
    try:
        found = cards()
    except NoGpu as error:
        # A machine without a driver or a GPU is not broken: it plans for others. A driver that does not answer is.
        is_missing = "no NVIDIA driver" in error.reason or "lists no GPU" in error.reason
        return [Check("GPU", "note" if is_missing else "problem", error.reason, error.advice)]
    checks = []
    for card in found:
        text = f"{card.name}, {gib(card.free_bytes)} free of {gib(card.total_bytes)}, driver {card.driver}"
        holders = ", ".join(f"{holder.name} ({holder.pid})" for holder in card.holders)
        if holders:
            text += f", held by {holders}"
        problem = why_not_usable(card)
        if problem:
            checks.append(Check(f"GPU {card.index}", "problem", f"{text}; {problem.reason}", problem.advice))
        else:
            checks.append(Check(f"GPU {card.index}", "ok", text))
    return checks


def _library_checks() -> list[Check]:
    lacking = missing()
    if lacking:
        found = f"{lacking.reason}: planning works without, verify and compile need them"
        return [Check("Libraries", "note", found, INSTALL)]
    versions = installed()
    cuda = torch_cuda()
    build = f"built for CUDA {cuda}" if cuda else "a CPU build"
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    return [Check("Libraries", "ok", f"{text}; torch is {build}")]


def _history_checks() -> list[Check]:
    try:
        return _checks_of(Store())
    except HistoryError as error:
        reason, _, advice = str(error).partition(" - ")
        return [Check("History", "problem", reason, advice)]


def _checks_of(store: Store) -> list[Check]:
    count = len(store.measurements())
    checks = [Check("History", "ok", f"{store.path}, {count} measured run{'' if count == 1 else 's'}")]
    for path in store.damaged_files():
        command = f"python -m planner history recover {shlex.quote(str(path))}"
        advice = f"'{command}' saves the runs that can be read; with --discard the file is no longer mentioned"
        checks.append(Check("Damaged history", "note", f"{path} was set aside", advice))
    facts = store.model_facts(MODEL_ID, planned_for())
    if facts is None:
        text = f"not counted yet with these versions; the {SD_V15.source} are used"
        checks.append(Check("Model facts", "note", text, "the first verify counts them"))
    else:
        different = [name for name, count in facts.parameters.items() if count != SD_V15.parameters[name]]
        if different:
            text = f"{', '.join(different)} differ from the {SD_V15.source}"
            checks.append(Check("Model facts", "problem", text, "the planner is made for SD v1.5: check the versions"))
        else:
            checks.append(Check("Model facts", "ok", f"{facts.source}, equal to the {SD_V15.source}"))
    return checks


def _program_check() -> Check:
    library, notice = find()
    if notice:
        reason, _, advice = notice.partition("; ")
        return Check("Memory programs", "problem", reason, advice)
    versions = library.versions if library else {}
    made = "shipped" if library is shipped() else "compiled here"
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    return Check("Memory programs", "ok", f"{made}, for {text}")


def _replay_check() -> Check:
    said = engine()
    if said.startswith("readable"):
        advice = "python -m pip install -r requirements-plan.txt; answers are the same, ten times slower in searches"
        return Check("Replay", "note", said, advice)
    return Check("Replay", "ok", said)


def _model_check() -> Check:
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    folder = home / "hub" / f"models--{MODEL_ID.replace('/', '--')}" / "snapshots" / MODEL_REVISION
    if folder.is_dir():
        return Check("Model", "ok", f"real weights at {folder}")
    return Check(
        "Model",
        "note",
        f"no real weights at {folder}",
        "verify needs none of them: it uses synthetic weights of the same shapes; '--weights hub' downloads real ones",
    )


def checks() -> list[Check]:
    """Check everything that planning and measuring depend on."""
    return [*_gpu_checks(), *_library_checks(), _program_check(), _replay_check(), *_history_checks(), _model_check()]
