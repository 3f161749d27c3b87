"""Test that scripts take turns, in order, and that nobody waits for ever."""

import threading
import time

import pytest

from pages.shared.guard.turns import Turns


def waits_until(turns: Turns, waiting: int) -> None:
    ends = time.monotonic() + 10
    while turns.waiting < waiting:
        assert time.monotonic() < ends
        time.sleep(0.001)


def test_turns_come_in_the_order_in_which_they_were_asked_for_and_one_at_a_time():
    turns, order, inside, most = Turns(60), [], [0], [0]

    def act(number: int) -> None:
        with turns.taken():
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            order.append(number)
            time.sleep(0.002)
            inside[0] -= 1

    threads = [threading.Thread(target=act, args=(number,)) for number in range(8)]
    with turns.taken():
        for number, thread in enumerate(threads):
            thread.start()
            waits_until(turns, number + 1)
        assert order == []
    for thread in threads:
        thread.join(10)
    assert (order, most, turns.waiting) == (list(range(8)), [1], 0)


def test_an_error_gives_the_turn_on():
    turns = Turns(60)
    with pytest.raises(KeyError), turns.taken():
        raise KeyError
    assert turns._take()


def test_a_turn_that_is_not_given_back_holds_up_nobody_for_long():
    turns, passed = Turns(0.01), threading.Event()

    def act() -> None:
        with turns.taken():
            passed.set()

    with turns.taken():
        thread = threading.Thread(target=act)
        thread.start()
        # It goes on without a turn, and must not give away the one that is held.
        assert passed.wait(10)
        thread.join(10)
        assert not turns._is_free
    assert turns._is_free and turns.waiting == 0
