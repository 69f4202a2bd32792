"""Fan-out: who watches is woken, and nothing is kept of who went away."""

import pytest

from hub.control.fanout import Fanout


def test_who_watches_an_agent_is_woken_for_it_and_for_no_other():
    fanout = Fanout()
    with fanout.watching("a") as a, fanout.watching("b") as b, fanout.watching(None) as everything:
        fanout.wake(["a"])
        assert (a.is_set(), b.is_set(), everything.is_set()) == (True, False, True)


def test_two_who_watch_the_same_agent_are_both_woken_and_leave_apart():
    fanout = Fanout()
    with fanout.watching("a") as first:
        with fanout.watching("a") as second:
            fanout.wake(["a"])
            assert first.is_set()
            assert second.is_set()
        first.clear()
        fanout.wake(["a"])
        assert first.is_set()
    assert not fanout._watchers


def test_at_the_end_everybody_is_woken():
    fanout = Fanout()
    with fanout.watching("a") as a, fanout.watching(None) as everything:
        fanout.wake_all()
        assert a.is_set()
        assert everything.is_set()


def test_nothing_is_left_of_a_watcher_that_failed():
    fanout = Fanout()
    with pytest.raises(ZeroDivisionError), fanout.watching("a"):
        raise ZeroDivisionError
    fanout.wake(["a"])
    assert not fanout._watchers
