"""What /metrics says adds up to what was asked, in every engine's own names."""

from __future__ import annotations

import pytest

from servescope.engine.config import ENGINES
from servescope.engine.tokenizer import prompt_tokens
from servescope.protocols import Ask, known
from tests.serve.client import samples

WIRE = known()["openai-completions"]
REQUESTS, TOKENS, PROMPT = 5, 7, (3, 1, 4, 1, 5)
SUMS = {
    "vllm": {
        "vllm:prompt_tokens_total": REQUESTS * len(PROMPT),
        "vllm:generation_tokens_total": REQUESTS * TOKENS,
        "vllm:request_success_total{finished_reason=length}": REQUESTS,
        "vllm:request_generation_tokens_sum": REQUESTS * TOKENS,
        "vllm:iteration_tokens_total_sum": REQUESTS * (len(PROMPT) + TOKENS),
        "vllm:inter_token_latency_seconds_count": REQUESTS * (TOKENS - 1),
        "vllm:time_to_first_token_seconds_count": REQUESTS,
        "vllm:request_queue_time_seconds_count": REQUESTS,
        "vllm:e2e_request_latency_seconds_count": REQUESTS,
        "vllm:num_requests_running": 0,
        "vllm:num_requests_waiting": 0,
        "vllm:kv_cache_usage_perc": 0,
    },
    "sglang": {
        "sglang:prompt_tokens_total{is_streaming=true}": (REQUESTS - 1) * len(PROMPT),
        "sglang:prompt_tokens_total{is_streaming=false}": len(PROMPT),
        "sglang:generation_tokens_total{is_streaming=true}": (REQUESTS - 1) * TOKENS,
        "sglang:num_requests_total{is_streaming=false}": 1,
        "sglang:realtime_tokens_total{mode=decode}": REQUESTS * TOKENS,
        "sglang:time_to_first_token_seconds_count{is_streaming=true}": REQUESTS - 1,
        "sglang:inter_token_latency_seconds_count": REQUESTS * (TOKENS - 1),
        "sglang:queue_time_seconds_count": REQUESTS,
        "sglang:num_running_reqs": 0,
        "sglang:token_usage": 0,
    },
    "tgi": {
        "tgi_request_input_length_sum": REQUESTS * len(PROMPT),
        "tgi_request_generated_tokens_sum": REQUESTS * TOKENS,
        "tgi_request_success": REQUESTS,
        "tgi_request_count": REQUESTS + 1,
        "tgi_request_failure{err=validation}": 1,
        "tgi_request_duration_count": REQUESTS,
        "tgi_request_queue_duration_count": REQUESTS,
        "tgi_queue_size": 0,
        "tgi_batch_current_size": 0,
    },
    "lightllm": {
        "lightllm_request_input_length_sum": REQUESTS * len(PROMPT),
        "lightllm_request_generated_tokens_sum": REQUESTS * TOKENS,
        "lightllm_request_success_total": REQUESTS,
        "lightllm_request_count_total": REQUESTS + 1,
        "lightllm_request_first_token_duration_count": REQUESTS,
        "lightllm_batch_current_size": 0,
    },
    "llamacpp": {
        "llamacpp:prompt_tokens_total": REQUESTS * len(PROMPT),
        "llamacpp:tokens_predicted_total": REQUESTS * TOKENS,
        "llamacpp:requests_processing": 0,
        "llamacpp:requests_deferred": 0,
    },
}


@pytest.mark.parametrize("engine", ENGINES)
def test_the_counts_add_up_to_what_was_asked(served, engine):
    client = served(f"sim:{engine}?step=1ms&model=tiny")
    for k in range(REQUESTS):
        ask = Ask(prompt=PROMPT, output_tokens=TOKENS, model="tiny", stream=k > 0, usage=True)
        assert client.ask(WIRE, ask).status == 200
    client.ask(WIRE, Ask(prompt="x", output_tokens=10**6, model="tiny"))
    counted = client.metrics()
    assert {name: counted.get(name) for name in SUMS[engine]} == SUMS[engine]


@pytest.mark.parametrize("engine", ENGINES)
def test_every_sample_belongs_to_a_family_with_help_and_type(client, engine):
    page = client(engine).get("/metrics").body.decode()
    kinds = dict(line.split()[2:4] for line in page.splitlines() if line.startswith("# TYPE"))
    helped = {line.split()[2] for line in page.splitlines() if line.startswith("# HELP")}
    assert set(kinds) == helped
    for name, labels, _ in samples(page):
        family = name
        if name not in kinds:
            family, _, part = name.rpartition("_")
            assert part in ("bucket", "sum", "count")
            assert kinds[family] == "histogram"
            assert ("le" in labels) == (part == "bucket")


def test_buckets_are_cumulative_and_the_last_holds_all(served):
    client = served("sim:vllm?step=1ms&model=tiny")
    for tokens in (1, 2, 300):
        client.ask(WIRE, Ask(prompt="x", output_tokens=tokens, model="tiny"))
    page = client.get("/metrics").body.decode()
    name = "vllm:request_generation_tokens"
    buckets = {labels["le"]: value for n, labels, value in samples(page) if n == f"{name}_bucket"}
    below = list(buckets.values())
    assert below == sorted(below)
    assert (buckets["1.0"], buckets["2.0"], buckets["200.0"], buckets["+Inf"]) == (1, 2, 2, 3)


def test_times_are_those_of_the_steps(served):
    step_s, tokens = 0.005, 40
    client = served(f"sim:vllm?step={step_s}s&prefill=0&sequence=0&context=0&model=tiny")
    client.ask(WIRE, Ask(prompt=PROMPT, output_tokens=tokens, model="tiny"))
    counted = client.metrics()
    decode_s = counted["vllm:request_decode_time_seconds_sum"]
    lost_s = counted["servescope_lost_seconds_total"]
    assert decode_s - lost_s == pytest.approx((tokens - 1) * step_s, abs=1e-6 + lost_s)
    assert counted["vllm:request_prefill_time_seconds_sum"] == pytest.approx(step_s, abs=1e-6)
    inside = counted["vllm:request_queue_time_seconds_sum"] + decode_s + step_s
    assert counted["vllm:e2e_request_latency_seconds_sum"] == pytest.approx(inside, abs=1e-6)


def test_prefix_hits_are_counted_in_tokens(served):
    client = served("sim:vllm?step=1ms&model=tiny&block_tokens=2")
    for _ in range(2):
        client.ask(WIRE, Ask(prompt="a b c d e f g", output_tokens=1, model="tiny"))
    counted, size = client.metrics(), len(prompt_tokens("a b c d e f g"))
    assert counted["vllm:prefix_cache_queries_total"] == 2 * size
    assert counted["vllm:prefix_cache_hits_total"] == 6
