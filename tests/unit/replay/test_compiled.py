"""Test that the compiled replay decides as the readable allocator does, and that no answer depends on it."""

import os
import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.alternatives.size_map import by_card
from planner.alternatives.sizes import largest_batch, largest_size
from planner.cards.lookup import card_named
from planner.fit import fit
from planner.programs.assemble import events_of
from planner.programs.files import shipped
from planner.programs.library import Op
from planner.replay import allocator, compiled, fast_replay
from planner.replay.fast_replay import UNLIMITED, Loaded, Script, loaded, play, play_readably, script, warm_up
from planner.replay.kernels import KernelPolicy
from planner.request import GenerationRequest
from planner.units import MIB
from tests.bench.planning import forget
from tests.conftest import ROOT
from tests.unit.alternatives.test_sizes import random_request

CAPABILITIES = ((6, 1), (7, 0), (7, 5), (8, 6), (9, 0))


def test_what_is_compiled_in_is_what_the_allocator_has():
    names = "MIN_BLOCK SMALL_SIZE MAX_UNSPLIT_BYTES SMALL_SEGMENT LARGE_SEGMENT MIN_LARGE_ALLOC ROUND_LARGE"
    for name in names.split():
        assert getattr(compiled, name) == getattr(allocator, name), name
    for op in (Op.BIRTH, Op.DEATH, Op.CONVOLUTION, Op.ATTENTION, Op.EMPTY_CACHE, Op.PRODUCT):
        assert getattr(compiled, op.name) == op, op


@st.composite
def scripts(draw) -> Script:
    """Draw a history of its own: births, deaths, kernels and flushes, with sizes at the edges of the rules."""
    edges = [512, MIB, 2 * MIB, 10 * MIB, 20 * MIB]
    near = st.tuples(st.sampled_from(edges), st.sampled_from([-513, -512, -1, 0, 1, 512, 513])).map(sum)
    sizes = st.one_of(near, st.integers(0, 64 * MIB)).map(lambda size: max(0, size))
    kinds, values, alive, born = [], [], [], 0
    scratch = draw(st.lists(sizes, min_size=1, max_size=4))
    for _ in range(draw(st.integers(1, 120))):
        kind = draw(st.sampled_from([Op.BIRTH] * 5 + [Op.DEATH] * 4 + [Op.CONVOLUTION] * 2 + list(Op)[3:]))
        if kind == Op.BIRTH:
            values.append(draw(sizes))
            alive.append(born)
            born += 1
        elif kind == Op.DEATH:
            if not alive:
                continue
            values.append(alive.pop(draw(st.integers(0, len(alive) - 1))))
        else:
            values.append(draw(st.integers(0, len(scratch) - 1)))
        kinds.append(int(kind))
    shapes = draw(st.lists(st.integers(0, 1), min_size=len(scratch), max_size=len(scratch)))
    # Equal shapes have equal workspaces.
    convolutions = np.repeat(np.array(shapes, dtype=np.int64)[:, None], 6, axis=1)
    own = np.array([scratch[shape % len(scratch)] for shape in shapes], dtype=np.int64)
    nothing = np.zeros(0, dtype=np.int64)
    start = Loaded(0, 0, 0, 0, nothing, nothing, nothing)
    columns = (np.array(column, dtype=np.int64) for column in (kinds, values))
    return Script(start, *columns, own, np.array(scratch, dtype=np.int64), convolutions, 9 * MIB)


@settings(max_examples=400, deadline=None)
@given(scripts(), st.integers(0, 300).map(lambda mib: mib * MIB), st.booleans())
def test_both_engines_decide_alike(drawn, capacity, flushes_first):
    warm_up()
    for room in (UNLIMITED, capacity):
        assert play(drawn, room, flushes_first=flushes_first) == play_readably(drawn, room, flushes_first)


@settings(max_examples=60, deadline=None)
@given(scripts(), st.integers(0, 200).map(lambda mib: mib * MIB), st.data())
def test_a_replay_holds_for_all_capacities_that_decide_alike(drawn, capacity, data):
    found = play_readably(drawn, capacity, False)
    if found.reserved_bytes < found.refused_bytes:
        other = data.draw(st.integers(found.reserved_bytes, min(found.refused_bytes - 1, 1 << 40)))
        assert play_readably(drawn, other, False) == found


@pytest.mark.parametrize("seed", range(2))
def test_both_engines_decide_alike_on_requests(seed):
    warm_up()
    rng, ended = random.Random(seed), set()
    for _ in range(12):
        request = random_request(rng, 300)
        policy = replace(KernelPolicy.of(rng.choice(CAPABILITIES)), workspace_fraction=rng.choice([0.0, 0.5, 1.0, 2.0]))
        events = events_of(shipped(), request, rng.choice(["ends", "first"]))
        one = script(events, policy, loaded(events))
        most = play(one).reserved_bytes
        for capacity in (UNLIMITED, *(rng.randint(most // 2, most) for _ in range(3))):
            flushes_first = rng.random() < 0.5
            expected = play_readably(one, capacity, flushes_first)
            assert play(one, capacity, flushes_first=flushes_first) == expected, (request, capacity)
            ended.add(expected.is_ok)
    assert ended == {True, False}


def answers(seed: int) -> list[str]:
    """Answer some random questions anew."""
    forget()
    rng, found = random.Random(seed), []
    cards = [card_named(name) for name in ("GTX 1060 6GB", "T4", "RTX 4060", "A10", "H100")]
    for _ in range(4):
        request = random_request(rng, 130)
        found += [repr(fit(request, card, "dry-run")) for card in cards]
    plain = GenerationRequest(batch=2)
    found.append(repr(largest_batch(plain, cards[2], shipped(), 6)))
    found.append(repr(largest_size(plain, cards[2], (1, 1), shipped(), 90)))
    found.append(repr(by_card([GenerationRequest(width=768, height=768)], cards, shipped())))
    return found


class Readable(fast_replay._Engine):
    def load(self, *, waits: bool = True) -> None:
        """Keep the readable engine."""


def test_answers_do_not_depend_on_the_engine(monkeypatch):
    warm_up()
    by_machine = answers(5)
    monkeypatch.setattr(fast_replay, "_engine", Readable())
    assert answers(5) == by_machine
    forget()


def test_without_numba_the_readable_engine_answers(monkeypatch):
    monkeypatch.setitem(sys.modules, "planner.replay.compiled", None)
    monkeypatch.delattr(sys.modules["planner.replay"], "compiled")
    play_compiled, said = fast_replay._load_compiled()
    assert play_compiled is None and said.startswith("readable, for numba cannot be imported")


def test_a_failing_compiler_is_no_failure_of_answers(monkeypatch):
    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(compiled, "replay", fail)
    monkeypatch.setattr(compiled, "forget_cache", lambda: None)
    play_compiled, said = fast_replay._load_compiled()
    assert play_compiled is None and "no space left" in said


ENGINE = "from planner.replay import fast_replay; print(fast_replay.engine())"


def said_by(**environment) -> str:
    run = [sys.executable, "-c", ENGINE]
    done = subprocess.run(run, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_machine_code_is_kept_in_the_given_folder_and_damage_is_survived(tmp_path):
    assert "kept in the user's cache" in said_by(NUMBA_CACHE_DIR=str(tmp_path))
    files = [path for path in tmp_path.rglob("*.nb?")]
    assert files
    for path in files:
        path.write_bytes(b"damaged")
    assert "compiled by numba" in said_by(NUMBA_CACHE_DIR=str(tmp_path))


def test_a_home_that_cannot_be_written_is_no_failure():
    nowhere = {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null/cache"}
    assert "its code cannot be kept on disk" in said_by(**nowhere, NUMBA_CACHE_DIR="/dev/null/numba")


COLD = """
import sys
from planner.cards.lookup import DEFAULT_CARDS, card_named
from planner.fit import fit
from planner.request import GenerationRequest
print([fit(GenerationRequest(), card_named(name)).verdict for name in DEFAULT_CARDS], "numba" in sys.modules)
"""


def test_a_cold_fit_does_not_wait_for_numba():
    run = [sys.executable, "-c", COLD]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "['fits', 'fits', 'fits'] False\n"
