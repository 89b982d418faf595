"""How a run is shown while it goes on: in a terminal, and where there is none."""

import io
import re
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servescope import loads, records
from servescope.client.workers import Live
from servescope.deal import Deal
from servescope.doubts.early import early_doubts
from servescope.load import Limit
from servescope.records import Record, Sample
from servescope.report.live import LINE, Screen, Standing, line
from servescope.report.newest import Newest
from servescope.seeds import generator
from servescope.serve.answers import whole
from servescope.stage import Moment
from servescope.stats import distribution
from servescope.store import Stage
from servescope.tally import Tally
from servescope.token_times import token_gaps
from tests.support.command import QUICK, Command, until
from tests.support.items import source
from tests.support.served import Served, healthy
from tests.support.terminal import Terminal

MS = 1_000_000


def record(request=0, *, gaps=(), tokens=1, first=10 * MS, **other):
    chunks = [first, *gaps]
    count = sum(tokens) if isinstance(tokens, list) else tokens * len(chunks)
    known = {
        "stage": 0,
        "due_ns": 0,
        "sent_ns": 0,
        "chunk_ns": chunks,
        "chunk_tokens": tokens,
        "output_tokens": count,
        "end_ns": sum(chunks),
    }
    return Record(request=request, **known | other)


def tallied(*found):
    tally = Tally()
    for one in found:
        tally.note(one)
    return tally


def failed(request, outcome="failed:http_5xx", reason="HTTP 500; no blocks left", **other):
    return Record(
        request=request, stage=0, due_ns=0, sent_ns=0, end_ns=1, outcome=outcome, reason=reason
    )


def standing(tally, **changes):
    known = Standing(
        title="model at http://127.0.0.1:8000",
        stage="stage 1 of 2",
        load="poisson:4",
        tally=tally,
        elapsed_s=12.0,
        planned=300,
        progress=0.4,
        in_flight=3,
        asked=4.0,
        recent=3.9,
        tokens=123.0,
        left_s=18.0,
        run_left_s=48.0,
        server="3 running, 1 waiting, KV cache 41%",
        gpu="GPU 0 93% busy 61.2 of 141 GiB 412 W",
    )
    return known._replace(**changes)


# --- what is counted ------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.integers(1, 10**11),
            st.lists(st.integers(1, 10**10), max_size=20),
            st.integers(1, 5),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_percentiles_so_far_are_the_final_ones_to_a_bucket(answers):
    found = [
        record(k, first=first, gaps=gaps, tokens=tokens)
        for k, (first, gaps, tokens) in enumerate(answers)
    ]
    tally = tallied(*found)
    columns = records.columns(found)
    firsts = sorted(one.chunk_ns[0] / 1e9 for one in found)
    assert tally.ttft.quantile_s(0.5) == pytest.approx(firsts[(len(firsts) - 1) // 2], rel=0.012)
    gaps = token_gaps(columns)
    assert tally.itl.n == pytest.approx(gaps.weight.sum())
    if len(gaps.seconds):
        each = distribution(gaps.seconds, weights=gaps.weight)
        assert tally.itl.nth_s(tally.itl.n) == pytest.approx(each.max, rel=0.012, abs=1.1e-9)
        assert tally.itl.nth_s(1) == pytest.approx(each.min, rel=0.012, abs=1.1e-9)


def test_of_long_answers_a_part_stands_for_all_and_no_beat_is_missed():
    # every 32nd gap is slow, and of each answer every 32nd is looked at
    found = [record(k, gaps=([10 * MS] * 31 + [500 * MS]) * 32) for k in range(64)]
    itl = tallied(*found).itl
    assert itl.n == 64 * 1024
    assert itl.quantile_s(0.5) == pytest.approx(0.010, rel=0.02)
    assert itl.quantile_s(0.96) == pytest.approx(0.010, rel=0.02)
    assert itl.quantile_s(0.98) == pytest.approx(0.500, rel=0.02)


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=50), st.integers(0, 50))
def test_two_tallies_added_are_the_tally_of_both(times, cut):
    found = [record(k, first=first, gaps=[first, 2 * first]) for k, first in enumerate(times)]
    found.append(failed(99))
    both = tallied(*found[:cut])
    both.add(tallied(*found[cut:]))
    one = tallied(*found)
    for q in (0.01, 0.5, 0.99):
        assert both.ttft.quantile_s(q) == one.ttft.quantile_s(q)
        assert both.itl.quantile_s(q) == one.itl.quantile_s(q)
    assert (both.requests, both.answered, both.failures) == (
        one.requests,
        one.answered,
        one.failures,
    )
    assert both.output_tokens_per_s == one.output_tokens_per_s


def test_the_newest_reason_is_the_one_that_is_told():
    tally = tallied(failed(0, reason="old"), failed(1, "failed:stalled", "silent"))
    tally.add(tallied(failed(2, reason="new")))
    assert list(tally.words.values()) == ["silent", "new"]


# --- doubts so far --------------------------------------------------------------------------------


OPEN = Stage(load="constant:100", open=True, rate=100.0)


def kinds(stage, tally, *, elapsed_s=10.0, sent=1000, due=1000):
    return [
        doubt.kind for doubt in early_doubts(stage, tally, elapsed_s=elapsed_s, sent=sent, due=due)
    ]


def late(count, ns, n=1000):
    return tallied(*(record(k, due_ns=-ns if k < count else 0) for k in range(n)))


def test_a_good_stage_raises_no_doubt():
    assert kinds(OPEN, late(0, 0)) == []


def test_a_generator_that_is_late_with_more_than_one_in_a_hundred_is_doubted():
    assert kinds(OPEN, late(40, 5 * MS)) == ["client_limited"]
    assert kinds(OPEN, late(8, 5 * MS)) == []
    assert kinds(OPEN, late(40, MS // 2)) == []


def test_that_all_users_cannot_begin_at_one_instant_is_no_doubt():
    users = Stage(load="users:64", open=False, users=64)
    assert kinds(users, late(64, 5 * MS), due=None) == []
    assert kinds(users, late(120, 5 * MS), due=None) == ["client_limited"]


def test_more_than_one_error_in_a_hundred_is_doubted():
    good = [record(k) for k in range(99)]
    assert kinds(OPEN, tallied(*good, failed(99))) == []
    assert kinds(OPEN, tallied(*good, failed(99), failed(100))) == ["errors"]


def test_requests_that_were_due_and_are_not_sent_are_doubted():
    assert kinds(OPEN, late(0, 0), sent=900, due=1000) == ["not_offered"]
    assert kinds(OPEN, late(0, 0), sent=999, due=1000) == []
    assert kinds(OPEN, late(0, 0), elapsed_s=0.1, sent=8, due=10) == []


# --- one line -------------------------------------------------------------------------------------


@given(st.integers(1, 200), st.integers(0, 10**7))
def test_a_line_is_never_wider_than_there_is_room(columns, requests):
    tally = tallied(record(gaps=[MS] * 3), failed(1))
    tally.requests += requests
    assert len(line(standing(tally), columns)) <= columns


def test_a_line_has_what_matters_most_first():
    told = line(standing(tallied(record(gaps=[5 * MS] * 3), failed(1))))
    assert len(told) <= LINE
    order = [
        r"2/300 done",
        r"1 failed",
        r"3 in flight",
        r"of 4\.00",
        r"TTFT 10\.",
        r"ITL 4\.9|5\.0",
    ]
    places = [re.search(words, told).start() for words in order]
    assert places == sorted(places)


# --- what machines say ----------------------------------------------------------------------------


def read(source, t_s, **values):
    t_ns = round(t_s * 1e9)
    values = {"up": 1.0, **values}
    return [Sample(t_ns=t_ns, source=source, name=n, value=v) for n, v in values.items()]


def gpu(t_s, number, **values):
    t_ns = round(t_s * 1e9)
    labels = {"gpu": str(number)}
    return [
        Sample(t_ns=t_ns, source="gpu", name=n, value=v, labels=labels) for n, v in values.items()
    ]


def test_the_newest_values_of_engine_and_gpu_are_told():
    newest = Newest()
    assert newest.told() == ("", "")
    newest.note(read("engine", 1, running_requests=7.0, waiting_requests=2.0, kv_use_ratio=0.25))
    newest.note(read("gpu", 1))
    newest.note(gpu(1, 0, gpu_busy_ratio=0.5, gpu_memory_used_bytes=2.0**31))
    newest.note(read("engine", 2, running_requests=9.0))  # the others have not changed
    engine, gpus = newest.told()
    assert engine == "9 running, 2 waiting, KV cache 25%"
    assert gpus == "GPU 0 50% busy 2.0 GiB"


def test_of_many_gpus_some_are_shown_and_the_others_counted():
    newest = Newest()
    newest.note(read("gpu", 1))
    for number in range(8):
        newest.note(gpu(1, number, gpu_busy_ratio=0.5))
    assert newest.told()[1].endswith("GPU 3 50% busy; and 4 more")


# --- in a terminal --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server():
    with Served(healthy(0.02, 0.002), tokenize=True) as found:
        yield found


BOTH = ("--load", "poisson:40", "--load", "users:3", "--duration", "2s")


def is_panel(frame):
    return "╭" in frame


def test_a_panel_shows_the_stages_and_is_gone_in_the_end(server, tmp_path):
    terminal = Terminal("run", server.url, *QUICK, *BOTH, cwd=tmp_path)
    assert terminal.wait() == 0, terminal.written
    panels = list(filter(is_panel, terminal.frames))
    assert any("stage 1 of 2: poisson:40" in one for one in panels)
    last = panels[-1]
    assert "stage 2 of 2: users:3" in last
    assert re.search(r"requests +[\d.]+/s answered", last)
    assert re.search(r"TTFT +P50 [\d.]+ ms, P99 [\d.]+ ms", last)
    assert re.search(r"ITL +P50 [\d.]+ [mu]s, P99 [\d.]+ ms", last)
    left = "\n".join(terminal.left())
    assert not any(mark in left for mark in "╭│╰")
    assert re.search(r"stage 1 of 2, poisson:40: .* done", left)
    assert re.search(r"stage 2 of 2, users:3: .* done", left)
    assert "end-to-end" in terminal.out  # the table is where results go, without a code
    assert "\x1b" not in terminal.out


@pytest.mark.slow
def test_a_panel_is_drawn_four_times_a_second_at_most(server, tmp_path):
    terminal = Terminal(
        "run", server.url, *QUICK, "--load", "users:3", "--duration", "2s", cwd=tmp_path
    )
    assert terminal.wait() == 0
    drawn = len(list(filter(is_panel, terminal.frames)))
    took_s = float(re.search(r"users:3: ([\d.]+) s:", "\n".join(terminal.left()))[1])
    assert 3 <= drawn <= took_s * 4 + 3


@pytest.mark.slow
@pytest.mark.parametrize(("columns", "lines"), [(60, 12), (44, 6), (8, 2), (1, 1)])
def test_no_terminal_is_too_small(server, tmp_path, columns, lines):
    terminal = Terminal(
        *("run", server.url, *QUICK, "--load", "users:3", "--duration", "1s"),
        cwd=tmp_path,
        columns=columns,
        lines=lines,
    )
    assert terminal.wait() == 0, terminal.written
    for frame in terminal.frames:
        drawn = frame.splitlines()
        assert len(drawn) < lines or not drawn
        assert all(len(one) < columns or columns == 1 for one in drawn)


@pytest.mark.slow
def test_a_panel_follows_when_the_terminal_is_resized(server, tmp_path):
    terminal = Terminal(
        "run", server.url, *QUICK, "--load", "users:3", "--duration", "3s", cwd=tmp_path
    )
    terminal.shows("TTFT     P50")
    before = terminal.resize(50, 10)
    until(lambda: terminal.written.count("╰", before) > 2, "panels of the new size")
    assert terminal.wait() == 0
    later = terminal.written[before:].partition("\x1b[?2026h")[2]
    lines = re.sub(r"\r|\x1b\[\??[\d;]*[A-Za-z]", "", later).splitlines()
    assert max(len(one) for one in lines if one.startswith(("╭", "│", "╰"))) == 49


class Tty(io.StringIO):
    """Stands for a terminal whose size is not known, so that it is 80 by 24."""

    encoding = "utf-8"

    def fileno(self):
        raise OSError


def test_a_panel_goes_back_over_the_lines_that_a_narrower_terminal_broke(monkeypatch):
    out = Tty()
    screen = Screen(out)
    screen.draw(standing(Tally(), server="", gpu=""))
    height = out.getvalue().count("\n")
    monkeypatch.setattr(Screen, "_size", lambda _: (40, 24))
    out.truncate(0)
    screen.draw(standing(Tally(), server="", gpu=""))
    assert f"\x1b[{2 * height}A" in out.getvalue()  # each line of 79 columns has become two


@pytest.mark.slow
def test_ctrl_c_lets_the_run_drain_and_says_so(server, tmp_path):
    terminal = Terminal(
        "run", server.url, *QUICK, "--load", "users:3", "--duration", "60s", cwd=tmp_path
    )
    terminal.shows("TTFT     P50")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.wait() == 130
    left = terminal.left()
    assert any("SIGINT: nothing more is sent" in one for one in left)
    assert not any("╭" in one or "Traceback" in one for one in left)
    assert "INCOMPLETE" in terminal.out


def test_errors_are_shown_by_class_with_the_servers_words_and_no_code_of_its_gets_through(tmp_path):
    act = whole(500, b'{"error":{"message":"no \\u001b[2Jblocks"}}')
    with Served(act, tokenize=True) as refusing:
        terminal = Terminal(
            *("run", refusing.url, *QUICK, "--load", "constant:20", "--duration", "2s"),
            cwd=tmp_path,
        )
        assert terminal.wait() == 3
    last = list(filter(is_panel, terminal.frames))[-1]
    assert re.search(r"errors +\d+ failed:http_5xx", last)
    assert r"no \x1b[2Jblocks" in last
    assert "doubt    errors: 100 % of" in last
    assert "\x1b[2J" not in terminal.written


# --- where there is none --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_a_terminal_that_cannot_or_shall_not_gets_plain_lines(server, tmp_path, environment):
    terminal = Terminal(
        *("run", server.url, *QUICK, "--load", "users:3", "--duration", "1s"),
        cwd=tmp_path,
        **environment,
    )
    assert terminal.wait() == 0
    assert "\x1b" not in terminal.written
    assert "stage 1 of 1: users:3" in terminal.written


def test_where_there_is_no_terminal_there_are_lines(tmp_path):
    act = whole(500, b'{"error":{"message":"no blocks"}}')
    with Served(act, tokenize=True) as refusing:
        command = Command("run", refusing.url, *QUICK, "--requests", "9", cwd=tmp_path)
        assert command.wait() == 3
    _, plan, stage, *rest = command.err.splitlines()
    assert "seed 7" in plan
    assert stage == "stage 1 of 1: users:4"
    assert "  failed:http_5xx: HTTP 500; no blocks" in rest
    assert any(one.startswith("  doubt: errors: 100 % of") for one in rest)
    assert rest[-1].startswith("stage 1 of 1, users:4: ")
    assert "9/9 done, 9 failed" in rest[-1]


def test_a_simulated_run_is_shown_in_its_own_time(tmp_path):
    terminal = Terminal(
        *("run", "sim:vllm", *QUICK, "--load", "poisson:30", "--load", "users:2"),
        *("--duration", "100s"),
        cwd=tmp_path,
    )
    assert terminal.wait() == 0
    left = "\n".join(terminal.left())
    assert re.search(r"stage 1 of 2, poisson:30: (1 m|9\d s|100 s).* done", left), left


def moment(load, elapsed_s, **limit):
    (load,) = loads.parse("--load", load)
    wanted = Limit(**limit)
    offer = load.offer(wanted, generator(7, "arrivals"))
    deal = Deal(offer=offer, limit=wanted, items=source("dummy"), first_item=0)
    return Moment.of(deal, elapsed_s, Live(0, 0, 0), Tally())


def test_what_is_due_by_now_is_told_of_an_open_load_alone():
    assert moment("constant:2", 2.6, requests=100).due == 6
    assert moment("constant:2", 99.0, requests=100).due == 100
    assert moment("constant:2", 2.6, requests=100).ends_s == pytest.approx(49.5)
    assert moment("users:2", 2.6, duration_s=10.0)[-2:] == (None, 10.0)
    assert moment("users:2", 2.6, requests=10)[-2:] == (None, None)
