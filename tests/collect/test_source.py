"""One source being read: what is kept of it, and what is said where it fails."""

import math
import threading
from collections.abc import Callable, Iterable
from time import monotonic_ns

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from servescope.collect import Absent, Collector, Reading, _source
from servescope.collect._source import Course, Source, Told
from tests.support.command import until

UP, DOWN = Reading("up", 1.0), Reading("up", 0.0)


class Scripted(Collector, frozen=True, tag="scripted"):
    """Answers with what a function gives, from the first reading that is kept."""

    script: Callable[[], Iterable[Reading]]

    def reader(self):
        begun = []

        def read():
            if begun:
                return self.script()
            begun.append(True)  # the reading beforehand
            return []

        return read


def taken(script, least: int = 1, *, every: float | str = "10ms", origin_ns: int = 0):
    """What a source says that is read until it has said so much."""
    return told_by(Scripted(script=script, every=every), least, origin_ns=origin_ns)


def told_by(
    collector, least: int = 1, *, asked: bool = True, origin_ns: int = 0, looks: int = 0
) -> list[Told]:
    told: list[Told] = []
    course = Course(threading.Event(), threading.Event(), origin_ns)
    source = Source(0, collector, course, lambda one: one.first or told.append(one), asked=asked)
    source.thread.start()
    course.begun.set()
    for number in range(looks):
        until(lambda: len(told) > number, "a reading")  # noqa: B023 (called at once)
        source.look.set()
    until(lambda: len(told) >= least + looks, "readings")
    course.ended.set()
    source.look.set()
    source.thread.join(20)
    assert not source.thread.is_alive()
    return told


def held(told: list[Told]) -> list[list[Reading]]:
    """What each reading found, put together again from what changed."""
    known: dict[tuple, Reading] = {}
    found = []
    for one in told:
        known |= {(r.name, *sorted(r.labels.items())): r for r in one.values if r != UP}
        found.append(list(known.values()))
    return found


def test_readings_have_rising_times_since_the_run_began():
    numbers, origin = iter(range(10**9)), monotonic_ns()
    told = taken(
        lambda: [Reading("depth", float(next(numbers)), {"queue": "a"})], 3, origin_ns=origin
    )
    assert [one.values for one in told] == [
        [UP, Reading("depth", float(k), {"queue": "a"})] for k in range(len(told))
    ]
    times = [one.t_ns for one in told]
    assert times == sorted(set(times))
    assert 0 < times[0] <= times[-1] < monotonic_ns() - origin
    assert [one.last for one in told] == [False] * (len(told) - 1) + [True]


def test_a_reading_has_the_time_between_its_beginning_and_its_end():
    spans = []

    def slow():
        begun = monotonic_ns()
        threading.Event().wait(0.02)
        spans.append((begun, monotonic_ns()))
        return [Reading("x", 1.0)]

    told = taken(slow)
    assert all(a < one.t_ns < b for one, (a, b) in zip(told, spans, strict=True))


def test_only_what_changed_is_kept_and_all_of_it_at_the_first_and_the_last_reading():
    turns = iter(range(10**9))

    def half_still():
        k = next(turns)
        gone = [Reading("gone", 7.0)] if k == 0 else []
        return [*gone, Reading("still", 5.0, {"a": "b"}), Reading("moves", float(k))]

    told = taken(half_still, 4)
    first, *between, last = [{one.name for one in said.values} for said in told]
    assert first == last == {"up", "gone", "still", "moves"}
    assert all(names == {"up", "moves"} for names in between)
    assert {(one.name, one.value) for one in told[-1].values} > {("gone", 7.0), ("still", 5.0)}


series = st.tuples(st.sampled_from("abc"), st.dictionaries(st.sampled_from("xy"), st.text()))
pages = st.lists(
    st.dictionaries(series.map(repr), st.floats(allow_nan=False, allow_infinity=False)), min_size=1
)


@given(pages)
def test_what_every_reading_found_can_be_told_from_what_changed(found):
    """A series that a page leaves out holds its value."""
    expected, known = [], {}
    for page in found:
        known |= page
        expected.append(dict(known))
    collector = Scripted(script=list)
    told: list[Told] = []
    source = Source(0, collector, Course(threading.Event(), threading.Event()), told.append)
    for number, page in enumerate(found):
        source._reader = lambda page=page: [Reading(name, value) for name, value in page.items()]
        source._read(last=number == len(found) - 1)
    assert [{r.name: r.value for r in readings} for readings in held(told)] == expected


def test_a_source_that_fails_is_counted_and_read_again():
    answers = iter([None, [Reading("x", 1.0)], None])

    def flaky():
        found = next(answers, [Reading("x", 2.0)])
        if found is None:
            raise OSError("no\nroute")
        return found

    told = taken(flaky, 4)
    assert [one.values for one in told[:4]] == [
        [DOWN], [UP, Reading("x", 1.0)], [DOWN], [UP, Reading("x", 2.0)]
    ]  # fmt: skip
    assert (told[-1].failed, told[-1].readings, told[-1].reason) == (2, len(told), "no route")


@pytest.mark.parametrize(
    "reading",
    [
        Reading("x", "many"),
        Reading("x", None),
        Reading("x", 10**400),
        Reading(None, 1.0),
        Reading("x", 1.0, {"a": 1}),
        Reading("x", 1.0, {"a": "\ud800"}),
        "no reading",
    ],
)
def test_what_could_not_be_kept_in_the_run_is_a_failed_reading(reading):
    told = taken(lambda: [Reading("y", 1.0), reading])
    assert all((one.values, one.failed) == ([DOWN], one.readings) for one in told)


@given(st.text(), st.floats(), st.dictionaries(st.text(), st.text()))
def test_whatever_comes_out_can_be_written_and_read(name, value, labels):
    told = taken(lambda: [Reading(name, value, labels)], every=3600)
    for one in told:
        assert msgspec.json.decode(msgspec.json.encode(one), type=Told) == one
        own = math.isfinite(value) and (name, labels) != ("up", {})
        assert one.values == [UP, *([Reading(name, value, labels)] if own else [])]
        assert one.failed == 0


def test_the_end_of_a_run_is_read_and_does_not_wait_for_the_next_interval():
    numbers = iter(range(10**9))
    told = taken(lambda: [Reading("x", float(next(numbers)))], every="1h")
    assert [one.values[1].value for one in told] == [0.0, 1.0]


def test_a_source_is_read_at_once_where_that_is_wanted_and_then_goes_on_in_its_rhythm():
    numbers = iter(range(10**9))
    script = Scripted(script=lambda: [Reading("x", float(next(numbers)))], every="1h")
    assert [one.values[1].value for one in told_by(script, looks=2)] == [0.0, 1.0, 2.0, 3.0]


class Missing(Collector, frozen=True, tag="missing"):
    """A source that answers after so many failures."""

    failures: list[Exception]

    def read(self):
        if self.failures:
            raise self.failures.pop(0)
        return [Reading("x", 1.0)]


def test_a_source_that_nobody_asked_for_is_left_alone_where_there_is_none():
    told = told_by(Missing(failures=[Absent("HTTP 404")], every="10ms"), asked=False)
    assert told == [Told(0, reason="HTTP 404", last=True)]


def test_a_source_that_nobody_asked_for_is_tried_again_after_another_fault():
    told = told_by(Missing(failures=[OSError("timed out")] * 2, every="10ms"), 3, asked=False)
    assert [(one.readings, one.failed) for one in told[:3]] == [(0, 0), (0, 0), (1, 0)]
    assert told[2].values == [UP, Reading("x", 1.0)]


def test_a_source_that_was_asked_for_has_failed_where_there_is_none():
    absent = Absent("HTTP 404")
    told = told_by(Missing(failures=[absent] * 10**4, every="10ms"), 2)
    assert (told[-1].failed, told[-1].reason) == (told[-1].readings, "HTTP 404")


def test_no_page_has_more_series_kept_than_a_disk_bears_and_what_is_left_out_is_counted(
    monkeypatch,
):
    monkeypatch.setattr(_source, "MOST_SERIES", 5)
    numbers = iter(range(10**9))

    def always_new():
        yield Reading("running", 1.0)
        for _ in range(3):
            yield Reading("new", 1.0, {"id": str(next(numbers))})

    told = taken(always_new, 4)
    kept = {(one.name, *one.labels.values()) for each in told for one in each.values if one != UP}
    assert kept == {("running",), *(("new", str(k)) for k in range(4))}
    assert [one.left_out for one in told[:3]] == [0, 2, 3]
    assert held(told)[-1] == held(told)[-2]
