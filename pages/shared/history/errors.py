"""Say how far off the predictions of a run were.

They are those kept with the run, or those that Accuracy makes of a reference run.
"""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from cache.history.reference import reference_runs
from cache.predictions import peak_error
from cache.records import Measurement
from pages.shared.frame import session
from planner.accuracy.grading import Uncorrected, uncorrected
from planner.calibration.evidence import Evidence


# One for each set of memory programs: the evidence changes with every run, and these predictions do not.
@st.cache_resource(show_spinner=False, max_entries=2)
def _predicted(digest: str, _evidence: Evidence) -> Mapping[str, Uncorrected]:
    ids = {run.measurement_id for run in reference_runs()}
    found = _evidence.with_curves([one for one in _evidence.observations if one.run_id in ids])
    return {run.observation.run_id: uncorrected(run) for run in found}


def reference_predictions() -> Mapping[str, Uncorrected]:
    """Return the predictions of each reference run by its id; none while there are no memory programs."""
    library = session.library()[0]
    if library is None:
        return {}
    return _predicted(library.digest, session.evidence(with_published=True).evidence)


def errors_of(run: Measurement) -> dict[str, float]:
    """Return how far off each basis was on this run's peak, ``predicted / measured - 1``.

    The peak of a reference run of which only the reserved peak was published is that one.
    """
    if run.origin == "reference":
        predicted = reference_predictions().get(run.measurement_id)
        return {} if predicted is None else {basis: predicted.error(basis) for basis in ("dry-run", "formula")}
    found = {one.basis: peak_error(run, one) for one in run.predictions}
    return {basis: error for basis, error in found.items() if error is not None}
