"""`servescope selftest`: the instrument against a server that remembers what it did."""

import http.client
import json
import os
import stat
import sys
from array import array

import msgspec
import numpy as np
import pytest
from scipy import stats

from servescope import cli, error_bars, instrument, offers
from servescope.client.reading import read
from servescope.error_bars import RateRow, Reading, Spread, StreamRow
from servescope.errors import ServescopeError
from servescope.experiment import Trial, resolve
from servescope.instrument import Case, Measured, rate_row, stream_row
from servescope.protocols import known
from servescope.records import Record, Sample
from servescope.serve.null import NullServer, Served
from servescope.store import Manifest, Run, RunWriter, Stage

TTFT_NS, ITL_NS = 20_000_000, 2_000_000
ORIGIN_NS = 5_000_000_000
GOOD = Spread(n=100, p50=5.0, p99=40.0, max=50.0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "servescope" / "instrument.json"


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    few = (Case("users", 8, 16, 8), Case("poisson", 200, 40, 1))
    monkeypatch.setattr(instrument, "QUICK", few)

    def invoke(*words):
        monkeypatch.setattr(sys, "argv", ["servescope", *words])
        try:
            cli.main()
        except SystemExit as end:
            return (end.code, *capsys.readouterr())
        return (0, *capsys.readouterr())

    return invoke


def limit(monkeypatch, size):
    """The limits of all errors, so that a busy machine decides nothing."""
    for name in ("TTFT_US", "TOKEN_US", "MERGED_RATIO", "LATE_US", "KS_CRITICAL"):
        monkeypatch.setattr(error_bars, name, size)
    monkeypatch.setattr(instrument, "KS_CRITICAL", size)


# --- the null server ------------------------------------------------------------------------------


def answers(server, prompt, tokens):
    """What another client gets for one request."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens}
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body))
        return connection.getresponse().read()
    finally:
        connection.close()


def test_a_null_answer_has_the_tokens_asked_for_at_its_pace_and_without_drift():
    with NullServer(ttft_s=TTFT_NS / 1e9, itl_s=ITL_NS / 1e9) as server:
        said = [answers(server, f"prompt {tokens}", tokens) for tokens in (1, 50)]
        truth = server.end()
    for tokens, body, served in zip((1, 50), said, truth, strict=True):
        assert body.count(b'" and"') == len(served.sent_ns) == tokens
        assert b'"completion_tokens":%d' % tokens in body
        assert body.endswith(b"data: [DONE]\n\n")
        assert json.loads(served.body)["messages"][0]["content"] == f"prompt {tokens}"
        due = served.received_ns + TTFT_NS + ITL_NS * np.arange(tokens)
        late = np.array(served.sent_ns) - due
        assert late.min() >= -100_000  # with others, never before them
        assert late.min() < ITL_NS  # and a late one does not make all that follow late


def test_a_null_server_that_was_killed_is_an_error_and_no_truth():
    with NullServer(ttft_s=0.01, itl_s=0.01) as server:
        server.process.kill()
        with pytest.raises(ServescopeError, match="died"):
            server.end()


def test_what_a_null_server_sends_is_whole_for_a_strict_reader():
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with NullServer(ttft_s=0.01, itl_s=0.001) as server:
        body = answers(server, "one two three", 5)
    raw = head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    reading = read(known()["openai-chat"], raw, array("q", [1, len(raw)]), closed=False)
    assert reading.framed_end
    assert reading.end_marker
    assert (reading.finish_reason, reading.output_tokens) == ("length", 5)
    assert len(reading.chunk_at) == 5


# --- reading against truth ------------------------------------------------------------------------


def body_of(prompt):
    return json.dumps({"messages": [{"role": "user", "content": prompt}]}).encode()


def a_run(tmp_path, requests):
    """A run and its truth: of each request (prompt, times as read, times as they were, merged)."""
    manifest = Manifest(
        name="run",
        servescope="0",
        started_utc="",
        origin_ns=ORIGIN_NS,
        stages=[Stage(load="users:1", open=False, start_ns=0)],
    )
    served = []
    with RunWriter(tmp_path, manifest) as writer:
        for k, (prompt, sent, read_at, received, true_at, merged) in enumerate(requests):
            sha256 = instrument._prompt_sha256(body_of(prompt))
            writer.append(
                Record(
                    request=k,
                    stage=0,
                    due_ns=sent - 1000,
                    sent_ns=sent,
                    chunk_ns=[read_at[0], *np.diff(read_at).tolist()],
                    end_ns=read_at[-1],
                    prompt_sha256=sha256,
                    merged_chunks=merged,
                )
            )
            true_ns = array("q", [ORIGIN_NS + at for at in true_at])
            served.append(Served(ORIGIN_NS + received, body_of(prompt), true_ns))
        for name, value in (("cpu_ratio", 0.5), ("lag_p99_s", 0.0001)):
            writer.sample(Sample(t_ns=0, source="loop", name=name, value=value))
    return Measured(Run(tmp_path / "run"), served, 2.0, 0.1)


def test_errors_are_what_was_read_less_what_was(tmp_path):
    # The second token of "b" was read with the third: 10 ms and 7 us late.
    requests = [
        ("a", 0, [50_012_000, 60_007_000], 5_000, [50_005_000, 60_000_000], 0),
        ("b", 0, [50_007_000, 70_007_000, 70_007_000], 0, [50_000_000, 60_000_000, 70_000_000], 1),
    ]
    row = stream_row(2, a_run(tmp_path, requests))
    assert (row.requests, row.missing) == (2, 0)
    assert (row.ttft_error_us.p50, row.ttft_error_us.max) == (9.5, 12.0)
    assert (row.token_error_us.n, row.token_error_us.p50) == (5, 7.0)
    assert row.token_error_us.max == row.itl_error_us.max + 7.0 == 10_007.0
    assert row.itl_error_us.n == 3
    assert row.merged_ratio == 0.2
    assert row.lag_p99_us == 100.0
    # half a core for 70 ms, and 2 s, over five tokens
    assert row.load_cpu_us_per_token == pytest.approx(0.5 * 70_007 / 5)
    assert row.cpu_us_per_token == 4e5


def test_lateness_is_told_by_the_record_and_by_the_server(tmp_path):
    requests = [
        (str(k), at, [at + 9_000], at + 250_000, [at + 5_000], 0)
        for k, at in enumerate(range(0, 100_000_000, 10_000_000))
    ]
    row = rate_row(100.0, a_run(tmp_path, requests))
    assert row.sent_late_us == Spread(n=10, p50=1.0, p99=1.0, max=1.0)
    assert row.came_late_us == Spread(n=10, p50=251.0, p99=251.0, max=251.0)
    assert row.achieved_rate == pytest.approx(100.0)
    assert row.wrong == [f"KS {row.ks:.3f}, above {row.ks_critical:.3f}: no Poisson process"]


@pytest.mark.parametrize("what", ["another prompt", "fewer tokens"])
def test_an_answer_that_the_server_did_not_give_is_missing(tmp_path, what):
    measured = a_run(
        tmp_path, [(prompt, 0, [9, 19, 29], 5, [9, 19, 29], 0) for prompt in ("a", "b")]
    )
    first, second = measured.truth
    other = (
        second._replace(body=body_of("c"))
        if what == "another prompt"
        else second._replace(sent_ns=second.sent_ns[:2])
    )
    row = stream_row(2, measured._replace(truth=[first, other]))
    assert (row.requests, row.missing) == (1, 1)
    assert row.wrong == ["1 of 2 answers were not read"]


def test_a_run_without_an_answer_is_an_error_with_the_reason(tmp_path):
    measured = a_run(tmp_path, [("a", 0, [9], 5, [9], 0)])
    with pytest.raises(ServescopeError, match="in vain"):
        stream_row(1, measured._replace(truth=[]))


@pytest.mark.parametrize("rate", [0.5, 80.0, 2000.0])
def test_the_distance_from_a_poisson_process_is_that_of_scipy(rate):
    gaps_s = np.random.default_rng(1).gamma(1.3, 1 / 80, 500)
    expected = stats.kstest(gaps_s, "expon", args=(0, 1 / rate)).statistic
    assert instrument.ks_exponential(gaps_s, rate) == pytest.approx(expected)


def test_the_limit_is_the_distance_that_one_true_poisson_process_in_a_hundred_exceeds():
    assert stats.kstwobign.sf(error_bars.KS_CRITICAL) == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize("case", instrument.RATES, ids=str)
def test_the_schedules_are_themselves_ordinary_poisson_processes(case):
    target = "http://127.0.0.1:9"
    trial = Trial(target=target, load=[str(case)], requests=case.requests, seed=instrument.SEED)
    (offer,) = offers.offers(resolve(trial))
    gaps_s = np.diff(offer.drawn.due_ns) / 1e9
    assert stats.kstest(gaps_s, "expon", args=(0, 1 / case.size)).pvalue > 0.4


# --- what is said of it ---------------------------------------------------------------------------


COMMON = {"requests": 10, "missing": 0, "others_cores": 0.02}
STREAM = COMMON | {
    "tokens_per_s": 100.0,
    "merged_ratio": 0.0,
    "lag_p99_us": 50.0,
    "load_cpu_us_per_token": 8.0,
    "cpu_us_per_token": 16.0,
    **dict.fromkeys(("ttft_error_us", "token_error_us", "itl_error_us"), GOOD),
}
RATE = COMMON | {"sent_late_us": GOOD, "came_late_us": GOOD, "ks": 0.01, "ks_critical": 0.03}


def stream(streams, **changes):
    return StreamRow(**STREAM | {"streams": streams} | changes)


def rate(per_s, **changes):
    return RateRow(**RATE | {"rate": per_s, "achieved_rate": per_s} | changes)


def reading(*rows):
    found = instrument.new_reading()
    found.streams = [row for row in rows if isinstance(row, StreamRow)]
    found.rates = [row for row in rows if isinstance(row, RateRow)]
    return found


def spread(p99):
    return Spread(n=100, p50=5.0, p99=p99, max=p99)


def test_the_verdict_claims_no_more_than_was_within_the_limits():
    rows = [stream(1), stream(64, token_error_us=spread(70.0)), stream(256), rate(50.0)]
    assert reading(*rows).verdict == (
        "On this machine times are right within 70 us (P99) up to 256 streams; "
        "requests leave within 40 us (P99) of when they are due, up to 50/s."
    )
    bad = reading(stream(1), stream(64, token_error_us=spread(2000.0)), stream(256), rate(50.0))
    assert "within 40 us (P99) up to 1 stream;" in bad.verdict
    none = reading(stream(1, merged_ratio=0.02), rate(50.0, ks=0.2))
    assert "not right within the limits even with one stream" in none.verdict
    assert "requests leave late even at 50/s" in none.verdict


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (stream(1, ttft_error_us=spread(1001.0)), "TTFT error P99 1001 us, above 1000"),
        (stream(1, token_error_us=spread(1001.0)), "token error P99 1001 us, above 1000"),
        (stream(1, merged_ratio=0.011), "1.1% of the tokens shared a read, above 1%"),
        (stream(1, missing=1), "1 of 11 answers were not read"),
        (rate(500.0, came_late_us=spread(1001.0)), "came 1001 us late (P99), above 1000"),
        (rate(5.0, came_late_us=spread(2001.0)), "came 2001 us late (P99), above 2000"),
        (rate(500.0, ks=0.031), "KS 0.031, above 0.030"),
        (rate(500.0, missing=1), "1 of 11 requests did not come"),
    ],
)
def test_what_is_beyond_a_limit_is_named_with_it(row, told):
    (wrong,) = row.wrong
    assert told in wrong
    assert reading(row).wrong
    assert not reading(stream(1), rate(5.0, came_late_us=spread(1999.0))).wrong


def test_where_nothing_could_be_measured_nothing_is_claimed():
    assert reading().wrong
    assert reading().verdict == "On this machine nothing could be measured."


def test_what_others_used_is_told_against_our_cores():
    found = reading(stream(1, others_cores=None), stream(2, others_cores=0.5))
    found.host["cores"] = 2
    assert found.others_ratio == 0.25
    assert reading(stream(1, others_cores=None)).others_ratio is None


# --- the command, and what is kept ----------------------------------------------------------------


def test_a_reading_is_kept_and_the_runs_of_this_version_and_machine_carry_it(
    command, monkeypatch, cache, tmp_path
):
    limit(monkeypatch, 1e9)
    before = os.sched_getaffinity(0)
    status, out, err = command("selftest", "--quick", "--json")
    assert (status, err) == (0, "")
    assert os.sched_getaffinity(0) == before
    found = json.loads(out)
    assert found["ok"]
    assert found["verdict"].startswith("On this machine times are right within")
    (closed,), (opened,) = found["streams"], found["rates"]
    assert (closed["streams"], closed["requests"], closed["missing"]) == (8, 16, 0)
    assert closed["token_error_us"]["n"] == 16 * 8
    assert closed["token_error_us"]["p50"] < instrument.ITL_S * 1e6
    assert (opened["rate"], opened["requests"], opened["missing"]) == (200, 40, 0)
    assert opened["came_late_us"]["p50"] > opened["sent_late_us"]["p50"]
    assert stat.S_IMODE(cache.stat().st_mode) == 0o600

    with NullServer(ttft_s=0.001, itl_s=0.001) as server:
        words = ("run", server.url, "--data", "dummy", "--requests", "2", "--name")
        assert command(*words, "here")[0] == 0
        carried = json.loads((tmp_path / "runs/here/manifest.json").read_text())["instrument"]
        assert carried["streams"] == found["streams"]
        changed = json.loads(cache.read_text()) | {"servescope": "0.0.9"}
        cache.write_text(json.dumps(changed))
        assert command(*words, "later")[0] == 0
    assert json.loads((tmp_path / "runs/later/manifest.json").read_text())["instrument"] == {}


def test_the_table_says_what_is_beyond_the_limits_and_exit_is_1(command, monkeypatch):
    limit(monkeypatch, 0.0)
    status, out, _ = command("selftest", "--quick")
    assert status == 1
    assert out.count("WRONG TTFT error P99") == 1
    assert "WRONG requests came" in out
    flat = " ".join(out.split())
    assert "times are not right within the limits even with one stream" in flat
    assert not [line for line in out.splitlines() if len(line) > 80]


@pytest.mark.parametrize("changed", ["version", "kernel", "cut", "absent", "not ours"])
def test_a_reading_of_other_circumstances_is_not_carried(cache, changed):
    kept = reading(stream(1))
    error_bars.keep(kept)
    assert error_bars.kept()["streams"][0]["streams"] == 1
    if changed == "version":
        kept.servescope = "0.0.9"
    if changed == "kernel":
        kept.host = kept.host | {"kernel": "2.6"}
    error_bars.keep(kept)
    if changed == "cut":
        cache.write_bytes(cache.read_bytes()[:-9])
    if changed == "absent":
        cache.unlink()
    if changed == "not ours":
        cache.write_text('{"host": [1]}')
    assert error_bars.kept() == {}


def test_a_cache_elsewhere_than_an_absolute_path_is_not_believed(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert error_bars.path() == tmp_path / ".cache/servescope/instrument.json"


def test_a_load_that_cannot_be_had_here_is_left_out_and_said(monkeypatch):
    monkeypatch.setattr(instrument, "QUICK", (Case("users", 0, 5, 2), Case("users", 2, 4, 2)))
    found = instrument.new_reading()
    rows = list(instrument.fill(found, quick=True))
    assert [row.streams for row in rows] == [2]
    assert found.notes[0].startswith("users:0 was left out: --load")


@pytest.mark.parametrize("words", [("--quick", "--faults"), ("--quick", "--serve", "stall")])
def test_quick_is_of_the_instrument_alone(command, words):
    status, out, err = command("selftest", *words)
    assert (status, out, err.count("\n")) == (2, "", 1)


def test_a_reading_survives_being_written_down():
    found = reading(stream(1), rate(50.0))
    assert msgspec.json.decode(msgspec.json.encode(found), type=Reading) == found
