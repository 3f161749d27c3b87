from statistics import median

import pytest

from tests.conftest import ROOT
from tests.published import PIPELINE, VAE, Error, pipeline_errors, table, vae_errors


@pytest.fixture(scope="module")
def errors() -> list[Error]:
    return vae_errors()


def of(errors: list[Error], statistic: str, *, tiled: bool | None = None) -> list[Error]:
    return [
        error
        for error in errors
        if statistic in error.row["statistic"] and (tiled is None or ("tiling" in error.row["vae_options"]) == tiled)
    ]


def test_there_are_rows_to_compare():
    assert len(VAE) == 26 and len(PIPELINE) == 6


def test_allocated_peaks_of_whole_images_are_within_a_thousandth(errors):
    found = of(errors, "allocated", tiled=False)
    assert len(found) == 8
    for error in found:
        assert abs(error.relative) < 0.001, error


def test_allocated_peaks_of_tiled_images_are_within_two_hundredths(errors):
    found = of(errors, "allocated", tiled=True)
    assert len(found) == 5
    for error in found:
        assert abs(error.relative) < 0.02, error


def test_reserved_peaks_are_within_a_hundredth(errors):
    found = [abs(error.relative) for error in of(errors, "reserved")]
    assert len(found) == 13
    assert median(found) < 0.003
    assert max(found) < 0.01


def test_a_whole_pipeline_on_cards_without_tensor_cores():
    """One peak was published for a P100 and a GTX 1070: float32 conversions explain it within a thousandth."""
    resident = [error for error in pipeline_errors() if error.row["offload"] == "none"]
    assert len(resident) == 2
    for error in resident:
        assert abs(error.relative) < 0.001, error


def test_the_readme_shows_every_comparison():
    assert table() in (ROOT / "README.md").read_text()
