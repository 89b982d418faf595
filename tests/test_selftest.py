"""`servescope selftest`: the table of faults as a user runs it, its servers for other clients."""

import dataclasses
import http.client
import json
import signal
from functools import partial

import pytest

from servescope.errors import BadInput
from servescope.selftest import check, run_table
from servescope.serve import faults
from servescope.serve.answers import ROLE, answer, streamed
from servescope.serve.faulty import serve
from tests.support.command import Command, until

pytestmark = pytest.mark.slow

BODY = json.dumps(
    {"model": "paced", "messages": [{"role": "user", "content": "x"}], "stream": True}
)

LYING = streamed([ROLE._replace(content=True), *answer()[1:]])
"""Says that its first token left with the role."""


@pytest.fixture
def command(command):
    return partial(command, "selftest")


def altered(monkeypatch, name, **changes):
    """The table with another expectation of one fault."""
    fault = dataclasses.replace(faults.FAULTS[name], **changes)
    monkeypatch.setitem(faults.FAULTS, name, fault)


def post(url, path="/v1/chat/completions", **headers):
    """Status and body of one request of another client."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    try:
        connection.request("POST", path, BODY, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_each_fault_is_a_line_and_all_right_is_exit_0(command):
    status, out, err = command("--faults", "s429", "gzip", "refused")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [
        *(["ok", "s429"], ["ok", "gzip"], ["ok", "refused"])
    ]
    assert "4 failed:http_429" in lines[0]
    assert lines[3].startswith("3 of 3 right")


def test_an_outcome_that_is_not_the_one_expected_is_exit_1_and_says_what_came(command, monkeypatch):
    altered(monkeypatch, "s429", outcomes=("failed:http_5xx",))
    status, out, _ = command("--faults", "s429")
    assert status == 1
    assert out.startswith("WRONG s429")
    assert "4 failed:http_429" in out
    assert "0 of 1 right" in out


def test_json_is_the_rows_and_nothing_else(command):
    status, out, _ = command("--faults", "s429", "--json")
    assert status == 0
    (row,) = json.loads(out)["rows"]
    assert row["ok"]
    assert (row["fault"], row["came"]) == ("s429", {"failed:http_429": 4})


@pytest.mark.parametrize(
    ("fault", "changes", "told"),
    [
        ("s429", {"words": "speed up"}, "does not say 'speed up'"),
        ("s429", {"tokens": 9}, "{10} tokens instead of 9"),
        ("no_ctype", {"script": LYING}, "mean TTFT"),
    ],
)
def test_figures_and_reasons_are_compared_too(monkeypatch, tmp_path, fault, changes, told):
    altered(monkeypatch, fault, **changes)
    assert told in " ".join(check(fault, tmp_path / "run").wrong)


def test_a_row_that_is_wrong_is_tried_once_more(monkeypatch, tmp_path):
    altered(monkeypatch, "s401", words="never said")
    rows = list(run_table(["s401", "s429"], tmp_path))
    assert [(row.fault, row.ok, row.tries) for row in rows] == [
        ("s429", True, 1),
        ("s401", False, 2),
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("stall",), "want --faults"),
        (("--faults", "--serve", "stall"), "want --faults"),
        (("--faults", "stal"), "did you mean stall"),
        (("--serve", "stal"), "did you mean stall"),
        (("--serve", "stall", "--port", "70000"), "70000"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(command, words, told):
    status, out, err = command(*words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert told in err


def test_another_client_meets_the_fault_at_every_fourth_request_until_ctrl_c(tmp_path):
    command = Command("selftest", "--serve", "s429", cwd=tmp_path)
    line = command.process.stdout.readline()
    url = line.split()[0]
    assert "one request in four" in line
    statuses = [post(url)[0] for _ in range(8)]
    assert statuses == [200, 200, 200, 429] * 2
    command.process.send_signal(signal.SIGINT)
    assert command.wait() == 0
    assert "8 requests came, 2 met the fault" in command.out
    assert command.err == ""


def test_a_port_that_is_taken_is_bad_input():
    with serve("s429") as server, pytest.raises(BadInput, match="--port"):
        serve("stall", port=server.port).__enter__()


def test_a_server_of_faults_answers_nobody_who_was_sent_by_a_page_of_another_host():
    with serve("s429") as server:
        assert post(server.url, Host=f"evil.example:{server.port}")[0] == 403
        assert not server.requests
        assert post(server.url)[0] == 200
        until(lambda: server.requests, "the request")
        assert server.true_ttft_s() >= 0.05
