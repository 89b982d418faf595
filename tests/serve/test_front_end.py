"""The HTTP server has the API server's queue, too: what it delays, and who leaves meanwhile."""

from __future__ import annotations

import pytest

from servescope.protocols import Ask, known
from tests.serve.client import finish
from tests.support.command import until

WIRE = known()["openai-completions"]
SIM = "sim:vllm?model=llama-3.1-8b&gpu=h100-sxm-80gb"
REQUEST_S = 2e-3
MODEL = "llama-3.1-8b"


def an_ask(tokens):
    return Ask(prompt=(3, 1, 4, 1, 5), output_tokens=tokens, model=MODEL, usage=True)


def test_a_first_token_waits_for_the_front_end_and_the_engine_does_not_know(served):
    client = served(SIM)
    for _ in range(5):
        assert client.ask(WIRE, an_ask(3)).last("output_tokens") == 3
    counted = client.metrics()
    prefill_s = counted["vllm:request_prefill_time_seconds_sum"]
    assert counted["vllm:time_to_first_token_seconds_sum"] >= 5 * REQUEST_S + prefill_s - 1e-9
    lost_s = counted["servescope_lost_seconds_total"]
    assert counted["vllm:request_queue_time_seconds_sum"] == pytest.approx(0, abs=1e-6 + lost_s)


def test_requests_at_once_are_opened_one_by_one(served):
    client = served(SIM)
    connections = [client.start(WIRE, an_ask(2)) for _ in range(12)]
    answers = [finish(connection, WIRE, an_ask(2)) for connection in connections]
    assert [answer.last("output_tokens") for answer in answers] == [2] * 12
    counted = client.metrics()
    # However late each came, the front end had 2 ms of work for each, and the engine never waited.
    assert counted["vllm:e2e_request_latency_seconds_sum"] >= 12 * REQUEST_S
    assert counted["vllm:request_success_total{finished_reason=length}"] == 12


def test_who_leaves_before_he_is_taken_in_never_comes_to_the_engine(served):
    client = served(SIM)
    others = [client.start(WIRE, an_ask(1)) for _ in range(20)]
    client.start(WIRE, an_ask(400)).close()
    for connection in others:
        finish(connection, WIRE, an_ask(1))
    aborted = "vllm:request_success_total{finished_reason=abort}"
    until(lambda: client.metrics()[aborted] == 1, "he is known to have left")
    counted = client.metrics()
    assert counted["vllm:request_success_total{finished_reason=length}"] == 20
    assert counted["vllm:num_requests_running"] == counted["vllm:num_requests_waiting"] == 0


def test_what_is_too_long_is_refused_by_the_front_end(served):
    answer = served(SIM).ask(WIRE, an_ask(10**6))
    assert answer.status == 400
    assert "maximum context length" in answer.body.decode()
