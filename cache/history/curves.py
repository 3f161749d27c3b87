"""Keep the curves of measured requests in the history: replaying ten thousand runs again would take minutes."""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

from cache.history.location import BUSY_TIMEOUT_S, address
from planner.calibration.runs import Observation
from planner.calibration.workspace_curve import VERSION, Curve, curve_of
from planner.errors import NoKernelRule, NoProgram
from planner.programs.library import Library
from planner.replay.kernels import KernelPolicy

# Takes how many curves are made, and of how many.
Report = Callable[[int, int], None]


def _key(library: Library, observation: Observation) -> str:
    """Compute a key that is the same for all runs with the same curve.

    Raises:
        NoKernelRule: no rule covers the kernels of the run's data type on its GPU.
    """
    policy = KernelPolicy.of(observation.capability, observation.request.dtype)
    request = observation.request.allocation_form().to_record()
    content = [VERSION, library.digest, repr(policy), observation.scope, request]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class CurveStore:
    """Curves by request and GPU, from memory, from the history's file, or from dry runs made now.

    Where `path` is None, or the file cannot be read or written, they are kept in memory only, which costs only time.
    """

    def __init__(self, library: Library | None, path: Path | None):
        self.library = library
        self.path = path if library and library.digest else None
        self._known: dict[str, Curve] = {}

    def curves_of(self, observations: Sequence[Observation], report: Report | None = None) -> Mapping[str, Curve]:
        """Give the curve of each run by its id; runs for which no program was compiled are left out."""
        library = self.library
        if library is None:
            return {}
        keys: dict[str, str] = {}
        for one in observations:
            with suppress(NoKernelRule):
                keys[one.run_id] = _key(library, one)
        known = self._known
        lacking = {key: one for one in observations if (key := keys.get(one.run_id)) and key not in known}
        self._read(list(lacking))
        made: dict[str, Curve] = {}
        todo = [(key, one) for key, one in lacking.items() if key not in self._known]
        for done, (key, one) in enumerate(todo):
            if report:
                report(done, len(todo))
            try:
                policy = KernelPolicy.of(one.capability, one.request.dtype)
                made[key] = curve_of(library, one.request.allocation_form(), policy, one.scope)
            except NoProgram:
                continue
        self._known |= made
        self._write(made)
        return {run_id: self._known[key] for run_id, key in keys.items() if key in self._known}

    def _read(self, keys: list[str]) -> None:
        if not keys or self.path is None:
            return
        query = "select id, numbers from curves where id in (select value from json_each(?))"
        try:
            with closing(sqlite3.connect(address(self.path, "ro"), uri=True, timeout=BUSY_TIMEOUT_S)) as db:
                rows = db.execute(query, [json.dumps(keys)]).fetchall()
        except sqlite3.Error:
            return
        for key, numbers in rows:
            try:
                self._known[key] = Curve.from_dict(json.loads(numbers))
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
                # The row is not as it was written, so the curve is made again.
                continue

    def _write(self, made: Mapping[str, Curve]) -> None:
        if not made or self.path is None:
            return
        rows = [(key, json.dumps(curve.to_dict(), separators=(",", ":"))) for key, curve in made.items()]
        try:
            # A lock is not worth waiting for, since the curve can be made again.
            with closing(sqlite3.connect(address(self.path, "rw"), uri=True, timeout=1)) as db, db:
                db.executemany("insert or replace into curves (id, numbers) values (?, ?)", rows)
        except sqlite3.Error:
            return
