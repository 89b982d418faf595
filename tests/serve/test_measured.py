"""Runs against the served engine, protocol by protocol: both sides count the same."""

import urllib.request

import pytest

from servescope.conduct import conduct
from servescope.engine.config import parse
from servescope.experiment import Trial
from servescope.protocols import known
from servescope.serve import Server
from servescope.summary import summarise

QUICK = "sim:vllm?step=1ms&prefill=1us"
NOT_COUNTED = {"vllm"}
"""Protocols whose answers carry no counts: tokens are counted from the chunks."""


def counters(url):
    """The server's own counts of prompt and output tokens, and of requests."""
    page = urllib.request.urlopen(f"{url}/metrics", timeout=10).read().decode()
    found = {}
    for line in page.splitlines():
        if not line.startswith("#"):
            name, value = line.split("{")[0].split(" ")[0], float(line.rsplit(" ", 1)[1])
            found[name] = found.get(name, 0) + value
    names = (
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:request_success_total",
    )
    return [found[name] for name in names]


@pytest.fixture(scope="module")
def server():
    with Server(parse("TARGET", QUICK)) as running:
        yield running


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("protocol", sorted(known()))
def test_one_command_measures_the_served_engine_and_both_sides_count_the_same(
    server, tmp_path, protocol, stream
):
    trial = Trial(
        target=server.url,
        protocol=protocol,
        load=["users:3"],
        requests=12,
        input_tokens="40",
        output_tokens="uniform:5-9",
        stream=stream,
        out=str(tmp_path),
    )
    before = counters(server.url)
    run = conduct(trial)
    records = list(run.records())
    spent = [b - a for a, b in zip(before, counters(server.url), strict=True)]
    stage = summarise(run).stages[0]
    assert stage.outcomes == {"completed": 12}
    assert run.manifest.endpoint["protocol"] == protocol
    assert not stage.reasons
    if stream or protocol not in NOT_COUNTED:
        assert [r.output_tokens for r in records] == [r.asked_output_tokens for r in records]
    else:  # one chunk is not one token
        assert {r.output_tokens for r in records} == {None}
    if stage.figures["input_tokens"] is not None:
        assert {r.input_tokens for r in records} == {40}
        assert "lengths_missed" not in {doubt.kind for doubt in stage.doubts}
    counted = sum(r.output_tokens or 0 for r in records)
    probes = spent[2] - 12
    assert 0 < probes < 5
    if stream or protocol not in NOT_COUNTED:
        assert counted < spent[1] <= counted + max(4, known()[protocol].least_tokens) * probes
    assert ("counted_locally" in {d.kind for d in stage.doubts}) == (protocol in NOT_COUNTED)
