"""Compare a recording that is made from the program itself with the program."""

from cache.allocations import difference, predicted, recorded
from planner.programs.assemble import events_of
from planner.programs.files import shipped
from planner.replay.kernels import KernelPolicy
from planner.request import GenerationRequest

AMPERE = KernelPolicy.of((8, 0))


def recording(sizes: list[int]) -> list[dict]:
    """Make torch's record of each allocation and its free, and of a small one that is not compared."""
    entries = []
    for size in sizes:
        entries += [{"action": "alloc", "size": size}, {"action": "free_completed", "size": size}]
    return [*entries, {"action": "alloc", "size": 512}, {"action": "segment_alloc", "size": 1 << 21}]


def test_a_run_equal_to_the_program_has_no_differences():
    expected = [size for size, _ in predicted(events_of(shipped(), GenerationRequest(steps=2), "all"), AMPERE)]
    assert len(expected) > 1000 and AMPERE.cublas_bytes in expected
    found = difference(recorded(recording(expected)), expected)
    assert (found.only_real, found.only_predicted, found.share) == ([], [], 1.0)


def test_differences_have_size_and_count():
    found = difference([4 << 20, 4 << 20, 8 << 20], [4 << 20, 2 << 20])
    assert found.only_real == [(8 << 20, 1), (4 << 20, 1)]
    assert found.only_predicted == [(2 << 20, 1)]
    assert found.share == 1 / 3
