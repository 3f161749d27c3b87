"""Test the threads that do expensive work: once for equal questions, bounded, and stopped when nobody waits."""

import threading
import time

import pytest

from pages.shared.guard.work import Busy, Stopped, Token, TooLate, Work


class Gate:
    """Work that goes on until it is let through or cancelled, and counts how often it was begun and ended."""

    def __init__(self):
        self.open, self.begun, self.stopped = threading.Event(), threading.Semaphore(0), threading.Event()
        self.calls = 0

    def __call__(self, token: Token) -> str:
        self.calls += 1
        self.begun.release()
        while not self.open.wait(0.005):
            if token.is_cancelled:
                self.stopped.set()
            token.check()
        return "answer"


@pytest.fixture
def work():
    made = Work(1, 2)
    yield made
    made.close()


@pytest.fixture
def gate():
    made = Gate()
    yield made
    made.open.set()


def test_an_answer_and_an_error_come_back(work):
    with work.ask("a", lambda token: 7) as ticket:
        assert ticket.answer(5) == 7
    with work.ask("b", lambda token: 1 // 0) as ticket, pytest.raises(ZeroDivisionError):
        ticket.answer(5)


def test_equal_questions_are_worked_out_once(work, gate):
    tickets = [work.ask("same", gate) for _ in range(20)]
    gate.open.set()
    assert [ticket.answer(5) for ticket in tickets] == ["answer"] * 20
    assert gate.calls == 1
    # What is done is not kept: the history may have changed.
    assert work.ask("same", gate).answer(5) == "answer" and gate.calls == 2


def test_work_goes_on_while_one_asker_waits_and_stops_with_the_last(work, gate):
    first, second = work.ask("same", gate), work.ask("same", gate)
    assert gate.begun.acquire(timeout=5)
    first.give_back()
    first.give_back()
    assert not gate.stopped.wait(0.05)
    second.give_back()
    assert gate.stopped.wait(5)
    # A new question does not join work that is being stopped.
    other = Gate()
    other.open.set()
    assert work.ask("same", other).answer(5) == "answer"


def test_a_question_that_left_the_queue_is_never_begun(work, gate):
    first, second = work.ask(1, gate), work.ask(2, gate)
    assert gate.begun.acquire(timeout=5) and work.waiting == 1
    second.give_back()
    assert work.waiting == 0
    gate.open.set()
    assert first.answer(5) == "answer" and gate.calls == 1


def test_one_question_too_many_is_refused_and_told_when_to_come_back(work, gate):
    tickets = [work.ask(number, gate) for number in range(3)]
    assert gate.begun.acquire(timeout=5)
    with pytest.raises(Busy, match=r"too many questions wait already - ask again in \d+ s") as refused:
        work.ask("one more", gate)
    assert refused.value.retry_after_s >= 1
    # An equal one takes no place.
    work.ask(2, gate).give_back()
    gate.open.set()
    assert [ticket.answer(5) for ticket in tickets] == ["answer"] * 3
    assert work.ask("later", gate).answer(5) == "answer"


def test_as_many_questions_are_taken_as_there_are_places():
    gate, work = Gate(), Work(2, 3)
    tickets = [work.ask(number, gate) for number in range(5)]
    with pytest.raises(Busy):
        work.ask(5, gate)
    gate.open.set()
    assert [ticket.answer(5) for ticket in tickets] == ["answer"] * 5
    work.close()


def test_an_answer_may_come_too_late(work, gate):
    with work.ask("slow", gate) as ticket, pytest.raises(TooLate, match=r"longer than 0.05 s - name fewer GPUs"):
        ticket.answer(0.05)
    assert gate.stopped.wait(5)


def test_an_error_of_the_work_is_not_taken_for_lateness(work):
    def fail(token: Token) -> None:
        raise TimeoutError("the disk")

    with work.ask("disk", fail) as ticket, pytest.raises(TimeoutError, match="the disk"):
        ticket.answer(5)


def test_closing_answers_all_who_wait_at_once():
    gate, work = Gate(), Work(1, 5)

    def deaf(token: Token) -> None:
        gate.begun.release()
        gate.open.wait(10)

    tickets = [work.ask(number, deaf) for number in range(3)]
    assert gate.begun.acquire(timeout=5)
    work.close()
    for ticket in tickets:
        with pytest.raises(Stopped, match="the app is shutting down"):
            ticket.answer(5)
    with pytest.raises(Stopped):
        work.ask("late", deaf)
    gate.open.set()
    work.open()
    assert work.ask("again", lambda token: 1).answer(5) == 1
    work.close()


def test_threads_do_not_keep_the_process_from_ending(work, gate):
    work.ask("a", gate)
    assert gate.begun.acquire(timeout=5)
    assert any(one.name == "work-1" for one in threading.enumerate())
    assert all(one.daemon for one in threading.enumerate() if one.name.startswith("work-"))


def test_progress_is_told(work):
    steps = threading.Semaphore(0)

    def walk(token: Token) -> None:
        token.expect(4)
        for _ in range(4):
            steps.acquire()
            token.step()

    with work.ask("walk", walk) as ticket:
        assert ticket.token.progress == 0
        seen = []
        for _ in range(4):
            steps.release()
            done, ends = len(seen) + 1, time.monotonic() + 5
            while ticket.token.done < done and time.monotonic() < ends:
                time.sleep(0.001)
            seen.append(ticket.token.progress)
        assert seen == [0.25, 0.5, 0.75, 1.0]


def test_many_askers_at_once_lose_no_answer():
    """Askers come and go in many threads; those who stay are all answered."""
    work, answered, refused = Work(2, 1000), [], []

    def ask(number: int) -> None:
        for turn in range(30):
            with work.ask((number + turn) % 7, lambda token: (token.check(), "answer")[1]) as ticket:
                if (number + turn) % 3:
                    try:
                        answered.append(ticket.answer(10))
                    except Stopped as error:
                        refused.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert refused == [] and answered == ["answer"] * 240
    assert work.waiting == 0
    work.close()
