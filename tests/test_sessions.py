"""Later turns wait for the answer before them, keep their history, and are never lost silently."""

from servescope.datasets import Turn
from servescope.sessions import Sessions


class Caller:
    """Who uses sessions, and what came of each turn."""

    def __init__(self):
        self.went = {}
        self.sessions = Sessions(self.ready)

    def ready(self, what, due_ns, user, answers):
        assert what not in self.went
        self.went[what] = (due_ns, user, list(answers))


def test_a_turn_that_is_known_late_still_has_the_answers_before_it():
    caller = Caller()
    assert not caller.sessions.ended(Turn(1, 0), 100, "HELLO", user=3)
    caller.sessions.add(Turn(1, 1, last=True), "turn 1", due_ns=-1, think_ns=20)
    assert caller.went == {"turn 1": (120, -1, ["HELLO"])}


def test_a_user_goes_on_with_a_turn_that_waits():
    caller = Caller()
    caller.sessions.add(Turn(1, 1, last=True), "turn 1", due_ns=500, think_ns=20)
    assert caller.sessions.ended(Turn(1, 0), 100, "HELLO", user=3)
    assert caller.went == {"turn 1": (500, 3, ["HELLO"])}


def test_what_follows_a_turn_that_failed_is_given_up_whenever_it_is_known():
    caller = Caller()
    caller.sessions.add(Turn(1, 1), "turn 1", due_ns=-1, think_ns=0)
    assert not caller.sessions.ended(Turn(1, 0), 100, None, user=3)
    caller.sessions.add(Turn(1, 2, last=True), "turn 2", due_ns=-1, think_ns=0)
    assert caller.sessions.give_up() == ["turn 1", "turn 2"]
    assert caller.went == {}


def test_turns_whose_session_never_began_are_given_up_at_the_end():
    caller = Caller()
    caller.sessions.add(Turn(1, 1), "turn 1", due_ns=-1, think_ns=0)
    assert caller.sessions.give_up() == []
    assert caller.sessions
    assert caller.sessions.give_up(everything=True) == ["turn 1"]
    assert not caller.sessions
