"""What servers do wrong, and what must come of it: every row of the table of faults."""

import socket
import time

import pytest

from servescope.conduct import conduct
from servescope.errors import Unreachable
from servescope.experiment import Trial
from servescope.summary import summarise
from tests.support.faults import (
    FAULTS,
    GAP_S,
    Fault,
    Piece,
    answer,
    event,
    streamed,
)
from tests.support.faulty import FaultyServed, VanishingServed

pytestmark = pytest.mark.slow

QUICK = {
    "timeout": "6s",
    "timeout_connect": "1s",
    "timeout_first_token": "1s",
    "timeout_between_tokens": "1s",
}
LONGEST_S = 20
"""Beyond this a run did not end by its timeouts; nothing is said of how fast it should be."""


def measure(url, tmp_path, **options):
    """A run, its summary and its records."""
    options = {"data": "dummy", "input_tokens": "20", "output_tokens": "10", **QUICK, **options}
    run = conduct(Trial(target=url, out=str(tmp_path / "runs"), seed=7, **options))
    return run, summarise(run), list(run.records())


def unused_url():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("name", FAULTS)
def test_a_run_against_a_server_with_a_fault_says_what_happened_and_nothing_else(name, tmp_path):
    fault = FAULTS[name]
    options = {"load": ["users:4"], "requests": fault.requests, **fault.options}
    with FaultyServed(fault, **fault.server) as server:
        began_s = time.monotonic()
        _, summary, records = measure(server.url, tmp_path, **options)
        assert time.monotonic() - began_s < LONGEST_S
        assert len(server.requests) == fault.requests
        hit = sum(map(server.meets, range(fault.requests)))
        true_ttft_s = server.true_ttft_s()
    assert summary.complete

    outcomes = summary.stages[0].outcomes
    assert sum(outcomes.values()) == fault.requests == len(records)
    came = outcomes.copy()
    unharmed = fault.requests - hit
    came["completed"] = came.get("completed", 0) - unharmed
    assert sum(came.get(outcome, 0) for outcome in fault.outcomes) == hit, outcomes

    good = [r for r in records if r.outcome in ("completed", "truncated")]
    assert {r.output_tokens for r in good} == {fault.tokens}
    figures = summary.stages[0].figures
    assert figures["output_tokens"].n == figures["ttft_s"].n == len(good)
    assert figures["output_tokens"].mean == pytest.approx(fault.tokens, rel=0.01)
    assert figures["ttft_s"].mean == pytest.approx(true_ttft_s, rel=0.15, abs=0.015)

    told = [r for r in records if r.outcome.startswith("failed")]
    assert all(fault.words in r.reason and r.reason for r in told)
    assert all(fault.words in reason.words for reason in summary.stages[0].reasons)


def one_row(name, tmp_path, **options):
    """Figures of a run in which all meet the fault."""
    with FaultyServed(FAULTS[name]) as server:
        _, summary, records = measure(server.url, tmp_path, requests=8, **options)
    return summary, records


def test_two_tokens_an_event_read_itl_5_ms_and_icl_10_ms(tmp_path):
    summary, _ = one_row("multi_tok", tmp_path)
    figures = summary.stages[0].figures
    assert figures["itl_s"].p50 == pytest.approx(0.005, rel=0.1)
    assert figures["icl_s"].p50 == pytest.approx(0.010, rel=0.1)


@pytest.mark.parametrize("name", ["no_usage", "usage_zero"])
def test_where_the_server_does_not_count_the_doubt_counted_locally_is_told(tmp_path, name):
    summary, records = one_row(name, tmp_path)
    assert {record.count_source for record in records} == {"chunks"}
    assert "counted_locally" in {doubt.kind for doubt in summary.doubts}


def test_reasoning_is_the_first_token_and_the_first_output_token_is_told_apart(tmp_path):
    _, records = one_row("reasoning", tmp_path)
    for record in records:
        after = record.first_output_ns - record.chunk_ns[0]
        assert after == pytest.approx(6 * GAP_S * 1e9, rel=0.3)


def test_fewer_tokens_than_a_limit_that_was_not_pinned_are_a_completed_answer(tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "one two three", "max_tokens": 10}\n')
    options = {"data": f"file:{prompts}", "input_tokens": None, "output_tokens": None}
    summary, records = one_row("short_length", tmp_path, **options)
    assert summary.stages[0].outcomes == {"completed": 8}
    assert {record.output_tokens for record in records} == {5}


def test_with_no_listener_the_run_ends_soon_and_leaves_no_directory(tmp_path):
    began_s = time.monotonic()
    with pytest.raises(Unreachable, match="refused") as told:
        measure(unused_url(), tmp_path)
    assert told.value.exit_status == 3
    assert time.monotonic() - began_s < LONGEST_S
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize(
    ("requests", "at_request", "away_s"), [(60, 20, 1.5), (100, 50, 2.0)], ids=["restart", "die"]
)
def test_a_server_that_goes_and_comes_back_costs_the_requests_it_hit_and_no_others(
    tmp_path, requests, at_request, away_s
):
    with VanishingServed(at_request, away_s) as server:
        _, summary, records = measure(server.url, tmp_path, load=["users:4"], requests=requests)
        back = sum(request.at_ns > server.back_ns for request in server.requests)
        answered = server.answered
    outcomes = summary.stages[0].outcomes
    assert sum(outcomes.values()) == len(records) == requests
    assert outcomes.pop("completed") == answered
    assert set(outcomes) <= {"failed:connect", "failed:incomplete"}
    assert back > 0
    assert summary.stages[0].figures["ttft_s"].mean == pytest.approx(0.05, abs=0.015)


def changed(change):
    return Fault(streamed([p._replace(data=change(p.data)) for p in answer()]), all=True)


STREAMS = {
    "lines end with CR": changed(lambda data: data.replace(b"\n", b"\r")),
    "a byte-order mark stands first": Fault(
        streamed([Piece(0, b"\xef\xbb\xbf"), *answer()]), all=True
    ),
    "data stands on two lines": changed(lambda data: data.replace(b',"', b',\ndata: "', 1)),
    "id and retry stand between": changed(lambda data: b"id\nretry: 5\n" + data + b"id: 9\n\n"),
    "events have names": changed(lambda data: b"event: chunk\n" + data),
    "events hold U+2028": changed(lambda data: data.replace(b" x", " \u2028".encode())),
    "the last blank line is missing": Fault(
        streamed([*answer()[:-1], Piece(0.14, b"data: [DONE]\n")]), all=True
    ),
    "answers hold the word data: many times": changed(
        lambda data: data.replace(b" x", b" data:data:data:data:")
    ),
    "thirty events without content come first": Fault(
        streamed([Piece(0, event({"content": ""}))] * 30 + answer()), all=True
    ),
}


@pytest.mark.parametrize("name", STREAMS)
def test_streams_are_read_by_the_standard_where(name, tmp_path):
    with FaultyServed(STREAMS[name]) as server:
        _, summary, _ = measure(server.url, tmp_path, requests=4)
        true_ttft_s = server.true_ttft_s()
    assert summary.stages[0].outcomes == {"completed": 4}
    assert summary.stages[0].figures["ttft_s"].mean == pytest.approx(true_ttft_s, abs=0.015)
    assert summary.stages[0].figures["output_tokens"].mean == 10
