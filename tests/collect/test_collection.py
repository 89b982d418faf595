"""The process that reads all sources, from the conductor's end; and collectors from their texts."""

import os
import signal
import threading
from http.server import BaseHTTPRequestHandler
from time import monotonic, monotonic_ns

import pytest

from servescope import collect
from servescope.collect import _collection, _source
from servescope.collect._collection import Collection
from servescope.collect.gpu import Gpu
from servescope.collect.host import Host
from servescope.collect.prometheus import Prometheus
from tests.collect.test_prometheus import page, serving
from tests.support.command import gone, until
from tests.support.refusal import refused

METRICS = page(b"a 1\n")


def readings(collection, samples, source):
    samples += collection.drain()
    return [one for one in samples if (one.source, one.name) == (source, "up")]


def test_sources_are_read_in_a_process_of_their_own_on_the_clock_of_the_run():
    with serving(METRICS) as (url, _):
        collector, samples = Prometheus(url=url, every=0.02), []
        with Collection([collector]) as collection:
            assert collection.drain() == []
            origin = monotonic_ns()
            collection.begin(origin)
            until(lambda: len(readings(collection, samples, collector.source)) > 2, "readings")
            assert collection._process.pid != os.getpid()
            collection.end()
            samples += collection.drain()
        ended = monotonic_ns() - origin
    times = [one.t_ns for one in samples if one.name == "up"]
    assert times == sorted(set(times))
    assert 0 < times[0] <= times[-1] < ended
    kept = [one.t_ns for one in samples if (one.name, one.value) == ("a", 1.0)]
    assert kept == [times[0], times[-1]]
    assert (collection.notes, collection.collected) == ([], {collector.source: "read"})


def test_the_process_is_of_lower_priority_in_a_session_of_its_own_and_ends_with_the_run():
    with Collection([Host()]) as collection:
        pid = collection._process.pid
        assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, os.nice(0) + 10)
        assert os.getsid(pid) == pid
        collection.begin(monotonic_ns())
        collection.end()
        assert gone([pid])


def test_a_run_that_does_not_begin_leaves_no_process_behind():
    with Collection([Host()]) as collection:
        pid = collection._process.pid
    assert gone([pid])


def test_a_process_that_dies_is_a_note_and_what_it_read_is_kept():
    samples = []
    with Collection([Host(every=0.02)]) as collection:
        collection.begin(monotonic_ns())
        until(lambda: readings(collection, samples, "host"), "a reading")
        os.kill(collection._process.pid, signal.SIGKILL)
        until(lambda: collection.drain() is not None and collection._over, "the end")
        collection.end()
    assert collection.notes == [
        "collectors: their process died: exit status -9; what they read until then is kept"
    ]
    assert collection.collected == {"host": "read"}


def test_what_was_asked_for_and_is_not_there_is_known_before_the_run_begins():
    with serving(METRICS) as (url, _), serving(page(b"", status=404)) as (nothing, _):
        asked = [Prometheus(url=url), Prometheus(url=nothing), Prometheus(url="http://127.0.0.1:9")]
        with Collection(asked, [Prometheus(url=f"{nothing}/other")]) as collection:
            missing = collection.missing()
    assert missing == [
        f"{asked[1].source} cannot be read: HTTP 404",
        f"{asked[2].source} cannot be read: Connection refused",
    ]


def test_a_page_that_has_not_answered_before_the_run_is_waited_for_no_longer(monkeypatch):
    monkeypatch.setattr(_collection, "FIRST_S", 0.1)
    release = threading.Event()
    with serving(lambda _: release.wait(20)) as (url, _):
        with Collection([Prometheus(url=url, timeout=600.0)]) as collection:
            (missing,) = collection.missing()
        release.set()
    assert missing.endswith("cannot be read: nothing came within 0.1 s")


def test_series_that_are_left_out_are_a_note(monkeypatch):
    told = _source.Told(0, readings=3, left_out=7, last=True)
    collection = Collection([Host()])
    monkeypatch.setattr(collection, "_told", {0: told})
    assert collection.notes == ["host: 7 series were left out: no more than 10,000 are kept"]


def test_a_process_that_cannot_start_is_a_note(monkeypatch):
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with Collection([Host()]) as collection:
        collection.begin(0)
        assert collection.drain() == []
        collection.end()
    assert ["could not start" in note for note in collection.notes] == [True]
    assert list(collection.collected) == ["host"]


def test_a_source_that_hangs_neither_delays_another_nor_holds_up_the_end_for_long():
    release, asked = threading.Event(), threading.Event()

    def hang(handler: BaseHTTPRequestHandler):
        asked.set()
        release.wait(20)

    samples = []
    with serving(hang) as (stuck, _), serving(METRICS) as (quick, _):
        hanging = Prometheus(url=stuck, timeout=600.0)
        other = Prometheus(url=quick, every=0.01)
        with Collection([hanging, other]) as collection:
            collection.begin(monotonic_ns())
            assert asked.wait(20)
            until(lambda: len(readings(collection, samples, other.source)) > 3, "readings")
            begun = monotonic()
            collection.end()
            assert monotonic() - begun < _source.STOP_S + 5
        release.set()
    assert {one.source for one in samples} == {other.source}
    lost = f"{hanging.source}: a reading did not end with the run; it is lost"
    assert collection.notes == [lost]
    assert collection.collected[hanging.source] == "no reading came in time"


def test_a_look_reads_everything_before_it_returns_and_waits_for_no_page_that_hangs(monkeypatch):
    monkeypatch.setattr(_collection, "LOOK_S", 20)  # this machine may be busy
    with serving(METRICS) as (url, came):
        with Collection([Prometheus(url=url, every="1h"), Host(every="1h")]) as collection:
            origin = monotonic_ns()
            collection.begin(origin)
            collection.look()
            collection.look()
            looked = len(came)
            samples = collection.drain()
        times = [one.t_ns for one in samples if one.name == "up"]
        assert (looked, len(times)) == (3, 4)  # one of them beforehand, to get ready
        assert max(times) < monotonic_ns() - origin
    monkeypatch.undo()
    release = threading.Event()
    with serving(lambda _: release.wait(20)) as (stuck, _):
        with Collection([Prometheus(url=stuck, timeout=600.0)]) as collection:
            collection.begin(monotonic_ns())
            begun = monotonic()
            collection.look()
            assert monotonic() - begun < _collection.LOOK_S + 5
        release.set()


def test_a_source_that_fails_is_told_in_one_line():
    with serving(page(b"", status=404)) as (url, _):
        collector = Prometheus(url=url)
        with Collection([collector]) as collection:
            collection.begin(0)
            collection.end()
            assert {(one.name, one.value) for one in collection.drain()} == {("up", 0.0)}
    said = f"{collector.source}: 1 of 1 readings failed, the first with: HTTP 404"
    assert collection.notes in ([said], [said.replace("1 of 1", "2 of 2")])
    assert collection.collected == {collector.source: "HTTP 404"}


def test_of_a_source_that_nobody_asked_for_only_the_manifest_tells_that_it_is_not_there():
    with serving(page(b"", status=501)) as (url, came):
        page_of_its_own = Prometheus(url=url, every=0.01)
        with Collection([], [page_of_its_own]) as collection:
            collection.begin(0)
            until(lambda: collection.drain() or collection._told, "an answer")
            collection.end()
            assert collection.drain() == []
    assert len(came) == 1
    assert (collection.notes, collection.collected) == ([], {page_of_its_own.source: "HTTP 501"})


def test_a_source_that_prints_and_floods_its_words_disturbs_nothing(tmp_path, monkeypatch):
    """A plug-in of another distribution, for it is not ours how it behaves."""
    info = tmp_path / "loud-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loud\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[servescope.collect]\nloud = loud:Loud\n")
    (tmp_path / "loud.py").write_text(
        "import os, sys\n"
        "from servescope.collect import Collector, Reading\n"
        "class Loud(Collector, frozen=True, tag='loud'):\n"
        "    def read(self):\n"
        "        os.write(1, b'{}' * 99999)\n"
        "        print('x' * 99999, file=sys.stderr)\n"
        "        return [Reading('x', float(k), {'k': str(k)}) for k in range(2000)]\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    from loud import Loud  # noqa: PLC0415

    with Collection([Loud()]) as collection:
        collection.begin(0)
        collection.end()
        samples = collection.drain()
    assert collection.notes == []
    assert {one.value for one in samples if one.name == "x"} == set(map(float, range(2000)))


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "want one of"),
        ("promtheus:x", "did you mean prometheus?"),
        ("prometheus", "want url too"),
        ("prometheus:localhost:8000", "want a URL such as"),
        ("prometheus:ftp://h/metrics", "want a URL such as"),
        ("prometheus:http://h:99999/", "want a URL such as"),
        ("prometheus:http://h:0/", "want a URL such as"),
        ("prometheus:http://[::1/", "want a URL such as"),
        ("prometheus:http://h/a b", "want a URL such as"),
        ("prometheus:http://h,evry=1s", "did you mean every?"),
        ("prometheus:http://h,every=0s", "every=0s: want a time from 10ms to 1h"),
        ("prometheus:http://h,every=often", "every=often: want a time"),
        ("prometheus:http://h,timeout=nan", "timeout=nan: want a time"),
        ("prometheus:http://h,url=http://h", "url only once"),
        ("prometheus:http://me:secret@h/", "without user and password"),
        ("promtheus:http://me:secret@h/", "did you mean"),
        ("host,evry=1s", "did you mean every?"),
        ("host,every=1ms", "want a time from 10ms to 1h"),
        ("hosts,every=1s", "did you mean host?"),
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
        ("https://h,every=200ms", "https://h", 0.2, "prometheus:h:443/metrics"),
        ("every=2,url=http://h/a,b", "http://h/a,b", 2.0, "prometheus:h:80/a,b"),
        (
            "http://[::1]:9/m?a=b&c=d,e",
            "http://[::1]:9/m?a=b&c=d,e",
            1.0,
            "prometheus:[::1]:9/m?a=b&c=d,e",
        ),
    ],
)
def test_a_collector_is_read_from_its_text(text, url, every_s, source):
    found = collect.parse("--collect", f"prometheus:{text}")
    assert (found.url, found.every_s, found.source) == (url, every_s, source)


def test_settings_may_follow_a_name_after_a_comma_too():
    for text in ("host,every=200ms", "host:every=200ms"):
        assert collect.parse("--collect", text) == Host(every="200ms")
    assert collect.parse("--collect", "gpu") == Gpu()


def test_an_end_that_waits_for_readings_has_an_end_itself(monkeypatch):
    """Where even the process hangs, it is killed."""
    monkeypatch.setattr(_collection, "STOP_S", 0.0)
    with Collection([Host()]) as collection:
        pid = collection._process.pid
        collection.begin(0)
        os.kill(pid, signal.SIGSTOP)
        collection.end()
    assert gone([pid])
    assert ["their process" in note for note in collection.notes] == [True]
