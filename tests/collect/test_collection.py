import math
import threading
from collections.abc import Callable, Iterable
from time import monotonic_ns

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from servescope import collect
from servescope.collect import Collection, Collector, Reading
from servescope.records import Sample
from tests.support.command import until
from tests.support.refusal import refused


class Scripted(Collector, frozen=True, tag="scripted"):
    """Answers with what a function gives."""

    script: Callable[[], Iterable[Reading]]

    def read(self):
        return self.script()


def taken(script, least: int = 1, *, every: float | str = "10ms", origin_ns: int = 0):
    """Samples and notes of a collection that was let run until there were so many samples."""
    collection, samples = Collection([Scripted(script=script, every=every)], origin_ns), []
    with collection:
        until(lambda: samples.extend(collection.drain()) or len(samples) >= least, "samples")
    return samples + collection.drain(), collection.notes


def test_readings_become_samples_with_rising_times_since_the_run_began():
    numbers = iter(range(10**9))
    origin = monotonic_ns()
    samples, notes = taken(
        lambda: [Reading("depth", float(next(numbers)), {"queue": "a"})], 3, origin_ns=origin
    )
    assert [s.value for s in samples] == list(range(len(samples)))
    assert {(s.source, s.name, s.labels["queue"]) for s in samples} == {("scripted", "depth", "a")}
    times = [s.t_ns for s in samples]
    assert times == sorted(set(times))
    assert 0 < times[0] <= times[-1] < monotonic_ns() - origin
    assert notes == []


def test_a_sample_has_the_time_between_the_beginning_and_the_end_of_its_reading():
    spans = []

    def slow():
        begun = monotonic_ns()
        threading.Event().wait(0.02)
        spans.append((begun, monotonic_ns()))
        return [Reading("x", 1.0)]

    samples, _ = taken(slow)
    assert all(a < s.t_ns < b for s, (a, b) in zip(samples, spans, strict=True))


def test_a_source_that_fails_is_counted_and_noted_and_read_again():
    answers = iter([None, [Reading("x", 1.0)], None])

    def flaky():
        found = next(answers, [Reading("x", 2.0)])
        if found is None:
            raise OSError("no\nroute")
        return found

    samples, notes = taken(flaky, 4)
    found = [(s.name, s.value) for s in samples]
    assert found[:4] == [("collect_errors", 1), ("x", 1), ("collect_errors", 2), ("x", 2)]
    assert notes == [f"scripted: 2 of {len(found)} readings failed, the first with: no route"]


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
    samples, notes = taken(lambda: [Reading("y", 1.0), reading])
    assert {s.name for s in samples} == {"collect_errors"}
    assert len(notes) == 1


@given(st.text(), st.floats(), st.dictionaries(st.text(), st.text()))
def test_every_sample_that_comes_out_can_be_written_and_read(name, value, labels):
    samples, notes = taken(lambda: [Reading(name, value, labels), Reading("last", 0)], every=3600)
    assert notes == []
    for sample in samples:
        assert msgspec.json.decode(msgspec.json.encode(sample), type=Sample) == sample
    kept = [(s.name, s.value, s.labels) for s in samples if (s.name, s.value) != ("last", 0)]
    finite = math.isfinite(value) and (name, value) != ("last", 0)
    assert kept == ([(name, value, labels)] * 2 if finite else [])


def test_what_is_not_finite_is_left_out_without_a_fault():
    samples, notes = taken(
        lambda: [Reading(n, float(n)) for n in ("nan", "inf", "-inf")] + [Reading("x", 1.0)]
    )
    assert ({s.name for s in samples}, notes) == ({"x"}, [])


def test_the_end_of_a_run_is_read_and_does_not_wait_for_the_next_interval():
    numbers = iter(range(10**9))
    samples, _ = taken(lambda: [Reading("x", next(numbers))], every="1h")
    assert [s.value for s in samples] == [0, 1]


def test_a_source_that_hangs_neither_delays_another_nor_holds_up_the_end(monkeypatch):
    monkeypatch.setattr(collect, "STOP_S", 0.05)
    release, asked = threading.Event(), threading.Event()

    def hang():
        asked.set()
        release.wait()
        return []

    turns = threading.Semaphore(0)

    def quick():
        turns.release()
        return [Reading("x", 1.0)]

    both = [Scripted(script=script, every=0.01) for script in (hang, quick)]
    with Collection(both, 0) as collection:
        assert asked.wait(10)
        assert all(turns.acquire(timeout=10) for _ in range(3))
    notes = collection.notes
    release.set()
    assert ["did not end" in note for note in notes] == [True]
    assert {sample.name for sample in collection.drain()} == {"x"}


def test_a_slow_source_is_never_read_twice_at_once():
    inside, most = [], []

    def slow():
        inside.append(1)
        most.append(len(inside))
        threading.Event().wait(0.02)
        inside.pop()
        return [Reading("x", 1.0)]

    taken(slow, 4)
    assert set(most) == {1}


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "want one of prometheus"),
        ("promtheus:x", "did you mean prometheus?"),
        ("prometheus", "want url too"),
        ("prometheus:localhost:8000", "want a URL such as"),
        ("prometheus:ftp://h/metrics", "want a URL such as"),
        ("prometheus:http://h:99999/", "want a URL such as"),
        ("prometheus:http://[::1/", "want a URL such as"),
        ("prometheus:http://h/a b", "want a URL such as"),
        ("prometheus:http://h,evry=1s", "did you mean every?"),
        ("prometheus:http://h,every=0s", "every=0s: want a time from 10ms to 1h"),
        ("prometheus:http://h,every=often", "every=often: want a time"),
        ("prometheus:http://h,timeout=nan", "timeout=nan: want a time"),
        ("prometheus:http://h,url=http://h", "url only once"),
        ("prometheus:http://me:secret@h/", "without user and password"),
        ("promtheus:http://me:secret@h/", "did you mean"),
    ],
)
def test_a_wrong_collector_is_refused_with_what_would_be_right(text, hint):
    with refused("--collect", hint) as caught:
        collect.parse("--collect", text)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "url", "every_s", "source"),
    [
        ("http://h:1/m", "http://h:1/m", 1.0, "prometheus:h:1/m"),
        ("https://h,every=200ms", "https://h", 0.2, "prometheus:h/metrics"),
        ("every=2,url=http://h/a,b", "http://h/a,b", 2.0, "prometheus:h/a,b"),
        ("http://h/m?a=b&c=d,e", "http://h/m?a=b&c=d,e", 1.0, "prometheus:h/m"),
    ],
)
def test_a_collector_is_read_from_its_text(text, url, every_s, source):
    found = collect.parse("--collect", f"prometheus:{text}")
    assert (found.url, found.every_s, found.source) == (url, every_s, source)
