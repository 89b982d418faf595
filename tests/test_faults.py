"""What servers do wrong, and what must come of it: every row of the table of faults."""

import re
import socket
import time
from pathlib import Path

import pytest

from servescope.client.reading import REASON_CHARS
from servescope.conduct import conduct
from servescope.errors import Unreachable
from servescope.experiment import Trial
from servescope.selftest import LONGEST_S, TIMEOUTS, run_table
from servescope.serve.answers import GAP_S, for_ever, whole
from servescope.serve.faults import FAULTS
from servescope.serve.faulty import serve
from servescope.summary import summarise
from tests.support.served import Served

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[1] / "docs" / "faults.md"


def measure(url, tmp_path, **options):
    """A run, its summary and its records."""
    options = {"data": "dummy", "input_tokens": "20", "output_tokens": "10", **TIMEOUTS, **options}
    run = conduct(Trial(target=url, out=str(tmp_path / "runs"), seed=7, **options))
    return run, summarise(run), list(run.records())


def unused_url():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(scope="module")
def rows(request, tmp_path_factory):
    """The rows of the table that were chosen, run a few at a time."""
    chosen = [item for item in request.session.items if item.module is request.module]
    names = [item.callspec.params["row"] for item in chosen if "rows" in item.fixturenames]
    return {row.fault: row for row in run_table(names, tmp_path_factory.mktemp("table"))}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("row", FAULTS)
def test_a_run_against_a_server_with_a_fault_says_what_happened_and_nothing_else(row, rows):
    assert rows[row].wrong == []


def one_row(fault, tmp_path, **options):
    """Summary and records of a short run against a server of this fault."""
    with serve(fault) as server:
        _, summary, records = measure(server.url, tmp_path, requests=8, **options)
    return summary, records


def test_two_tokens_an_event_read_itl_5_ms_and_icl_10_ms(tmp_path):
    summary, _ = one_row("multi_tok", tmp_path)
    figures = summary.stages[0].figures
    assert figures["itl_s"].p50 == pytest.approx(0.005, rel=0.1)
    assert figures["icl_s"].p50 == pytest.approx(0.010, rel=0.1)


@pytest.mark.parametrize(
    "name",
    ["no_usage", "usage_zero", "usage_low", "usage_high", "usage_negative", "usage_text"],
)
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


def test_a_server_that_comes_back_is_loaded_again_and_answers(tmp_path):
    with serve("restart") as server:
        measure(server.url, tmp_path, load=["users:4"], requests=60)
        late = [request for request in server.unharmed() if request.at_ns > server.back_ns > 0]
    assert late


def test_a_content_type_is_kept_and_decides_nothing(tmp_path):
    for name, kind in (("wrong_ctype", "text/plain"), ("no_ctype", "")):
        _, records = one_row(name, tmp_path, name=name)
        assert {(record.outcome, record.content_type) for record in records} == {
            ("completed", kind)
        }


def test_failures_alike_are_one_reason_with_their_count_and_at_most_500_characters(tmp_path):
    summary, records = one_row("s500_large", tmp_path)
    (reason,) = summary.stages[0].reasons
    assert (reason.outcome, reason.count) == ("failed:http_5xx", 2)
    assert len(max((record.reason for record in records), key=len)) <= REASON_CHARS


def test_a_key_does_not_follow_a_redirect_to_another_server(tmp_path, monkeypatch):
    monkeypatch.setenv("SERVESCOPE_API_KEY", "sk-not-for-others")
    with Served(for_ever) as other:
        act = whole(307, b"", "text/plain", f"Location: {other.url}/v1/chat/completions")
        with Served(act, tokenize=True) as server:
            _, summary, _ = measure(server.url, tmp_path, requests=4)
        assert server.requests[0].headers["authorization"] == "Bearer sk-not-for-others"
        assert not other.requests
    assert summary.stages[0].outcomes == {"completed": 0, "failed:http_other": 4}
    assert other.url in summary.stages[0].reasons[0].words


def test_answers_are_asked_for_without_compression(tmp_path):
    with serve("length") as server:
        measure(server.url, tmp_path, requests=1)
    assert server.requests[0].headers["accept-encoding"] == "identity"


def test_no_timeout_is_longer_than_that_of_the_whole_request(tmp_path):
    long = dict.fromkeys(("timeout_connect", "timeout_first_token"), "60s")
    with Served(for_ever, tokenize=True) as server:
        began_s = time.monotonic()
        _, _, records = measure(server.url, tmp_path, requests=2, **long, timeout="0.5s")
    assert time.monotonic() - began_s < LONGEST_S
    (outcome,) = {record.outcome for record in records}
    assert outcome in ("failed:timeout_first_token", "failed:timeout_total")
    assert "after 0.5 s" in records[0].reason


def test_the_table_in_the_docs_is_that_of_the_code():
    rows = re.findall(r"^\| `(\w+)`( \(all\))? \| (.*) \| (.*) \|$", DOCS.read_text(), re.MULTILINE)
    told = {name: (bool(everyone), does, outcome) for name, everyone, does, outcome in rows}
    assert told == {
        name: (fault.all, fault.does, " or ".join(fault.outcomes)) for name, fault in FAULTS.items()
    }
