"""How a run is shown while it goes on: in a terminal, and where there is none."""

import io
import os
import re
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servescope.records import Sample
from servescope.report.live import LINE, WIDEST, Screen, Standing, line, over
from servescope.report.newest import Newest
from servescope.serve.answers import whole
from servescope.tally import Tally
from tests.support.command import QUICK, Command, children, until
from tests.support.served import Served, healthy
from tests.support.tallied import MS, failed, record, tallied
from tests.support.terminal import Terminal


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
        left_s=18.0,
        run_left_s=48.0,
        server="3 running, 1 waiting, KV cache 41%",
        gpu="GPU 0 93% busy 61.2 of 141 GiB 412 W",
    )
    return known._replace(**changes)


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
        r"TTFT P50/P99 (9\.9|10\.)",
        r"ITL (4\.9|5\.0)",
    ]
    places = [re.search(words, told).start() for words in order]
    assert places == sorted(places)


def test_requests_and_tokens_are_told_over_one_window():
    answers = [record(k, gaps=[10 * MS] * 199) for k in range(4)]  # each ends after 2 s
    told = line(standing(tallied(*answers), elapsed_s=6.0))
    assert "2.00/s of 4.00, 400 tokens/s," in told


@pytest.mark.parametrize("columns", [70, 80, 110])
def test_the_line_that_stays_of_a_stage_fits_into_the_terminal(columns):
    tally = tallied(record(gaps=[5 * MS] * 3), *(failed(k) for k in range(1, 4)))
    kept = over(standing(tally, load="poisson:4,ramp=2"), columns)
    assert len(kept) <= columns
    assert kept.startswith("stage 1 of 2, poisson:4,ramp=2: 12 s: 4/300 done")
    assert len(over(standing(tally, load="poisson:4"))) > 80  # a file breaks no lines


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


BOTH = ("--load", "poisson:40", "--load", "users:3", "--duration", "1s")


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


@pytest.mark.waits
def test_a_panel_is_drawn_four_times_a_second_at_most(server, tmp_path):
    terminal = Terminal(
        "run", server.url, *QUICK, "--load", "users:3", "--duration", "2s", cwd=tmp_path
    )
    assert terminal.wait() == 0
    drawn = len(list(filter(is_panel, terminal.frames)))
    took_s = float(re.search(r"users:3: ([\d.]+) s:", "\n".join(terminal.left()))[1])
    assert 3 <= drawn <= took_s * 4 + 3


@pytest.mark.waits
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


@pytest.mark.waits
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


def test_a_load_process_that_was_held_up_is_doubted_in_the_panel(server, tmp_path):
    terminal = Terminal(
        *("run", server.url, *QUICK, "--load", "constant:200", "--duration", "60s"),
        *("--workers", "1", "--collect", "none"),
        cwd=tmp_path,
    )
    terminal.shows("TTFT     P50")
    (loading,) = children(terminal.process.pid)
    for number in (signal.SIGSTOP, signal.SIGCONT):
        os.kill(loading, number)
        seen = len(terminal.frames)
        until(lambda: len(terminal.frames) > seen + 2, "the panel goes on")  # noqa: B023
    terminal.shows("doubt    client_limited: ")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.wait() == 130
    assert "client_limited" in terminal.out


@given(st.integers(1, 130), st.integers(1, 16), st.integers(0, 3))
def test_a_panel_keeps_to_the_room_there_is_and_its_first_row_to_the_last(
    columns, height, failures
):
    screen = Screen(Tty())
    screen._size = lambda: (columns, height)
    screen.draw(standing(tallied(record(gaps=[MS] * 3), *map(failed, range(failures)))))
    drawn = re.sub(r"\r|\x1b\[\??[\d;]*[A-Za-z]", "", screen._out.getvalue()).splitlines()
    assert len(drawn) < height or (height == 1 and not drawn)
    assert all(len(one) < columns for one in drawn) or columns == 1
    if columns > 40 and height > 6:
        assert {len(one) for one in drawn} == {min(columns - 1, WIDEST)}
        assert "done" in drawn[1]
        assert drawn[-1].startswith("╰")


@pytest.mark.waits
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


@pytest.mark.waits
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
