"""The simulated server speaks every protocol on one port, streamed and in one piece."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest

from servescope.engine.config import ENGINES
from servescope.engine.tokenizer import prompt_tokens, tokenize
from servescope.protocols import Ask, known, messages_of, plain_text
from tests.serve.client import finish
from tests.support.command import until

WIRES = known()
CHAT, COMPLETIONS = WIRES["openai-chat"], WIRES["openai-completions"]
PROMPT = "Please continue this story: One morning the old clock in the hall"


def an_ask(wire, tokens=12, **more):
    wants = dict.fromkeys({"usage", "ignore_eos"} & set(wire.optional), True)
    return Ask(prompt=PROMPT, model="tiny", output_tokens=tokens, **wants | more)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("name", WIRES)
@pytest.mark.parametrize("imitated", ["itself", "another"])
def test_the_client_half_of_every_protocol_reads_exactly_the_tokens_asked_for(
    client, name, stream, imitated
):
    wire = WIRES[name]
    own = name if name in ENGINES else "vllm"
    engine = own if imitated == "itself" else ENGINES[(ENGINES.index(own) + 1) % len(ENGINES)]
    ask = an_ask(wire, stream=stream, ignore_eos="ignore_eos" in wire.optional)
    answer = client(engine).ask(wire, ask)
    assert answer.status == 200
    assert answer.error is None
    text = answer.text
    if wire.echoes_prompt:
        text = text.removeprefix(plain_text(ask.prompt))
    assert len(tokenize(text)) == 12
    assert answer.last("output_tokens") in (12, None)
    as_text, as_chat = prompt_tokens(PROMPT), prompt_tokens(messages_of(PROMPT))
    assert answer.last("input_tokens") in (None, len(as_text), len(as_chat))


def test_usage_counts_the_prompt_as_tokenize_does(client):
    body = {"messages": [{"role": "user", "content": PROMPT}]}
    counted = client().post("/tokenize", body).json
    answer = client().ask(CHAT, an_ask(CHAT))
    assert answer.last("input_tokens") == counted["count"] == len(counted["tokens"])
    assert counted["max_model_len"] == 32768


def test_token_ids_are_a_prompt_of_exactly_so_many_tokens(client):
    ask = Ask(prompt=(5, 6, 7, 8), output_tokens=2, model="tiny", usage=True)
    assert client().ask(COMPLETIONS, ask).last("input_tokens") == 4


def test_an_ask_without_a_length_gets_16_tokens(client):
    answer = client().post("/v1/completions", {"prompt": "x"})
    assert answer.json["usage"]["completion_tokens"] == 16


def test_a_prompt_seen_before_is_found_in_the_prefix_cache_until_it_is_emptied(served):
    client = served("sim:vllm?step=1ms&model=tiny&block_tokens=4")
    cached = [client.ask(CHAT, an_ask(CHAT)).last("cached_tokens") or 0 for _ in range(2)]
    assert cached[0] == 0 < cached[1]
    assert client.post("/reset_prefix_cache").status == 200
    assert not client.ask(CHAT, an_ask(CHAT)).last("cached_tokens")


def test_the_next_turn_of_a_conversation_finds_the_answer_before_it_in_the_cache(served):
    client = served("sim:vllm?step=1ms&model=tiny&block_tokens=1")
    body = {"messages": [{"role": "user", "content": "Hello."}], "max_tokens": 20}
    first = client.post("/v1/chat/completions", body).json
    body["messages"] += [first["choices"][0]["message"], {"role": "user", "content": "Go on."}]
    usage = client.post("/v1/chat/completions", body).json["usage"]
    whole = first["usage"]["total_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= whole - 1


@pytest.mark.parametrize("engine", ENGINES)
def test_what_exceeds_the_context_is_refused_with_the_sizes_in_words(client, engine):
    wire = WIRES.get(engine, COMPLETIONS)
    answer = client(engine).ask(wire, an_ask(wire, tokens=40_000, stream=False))
    assert answer.status == wire.refused_with
    assert "32768" in answer.error


@pytest.mark.parametrize("name", WIRES)
def test_a_body_that_nobody_can_read_is_refused_by_the_first_protocol_of_the_path(client, name):
    wire = WIRES[name]
    answer = client(name if name in ENGINES else "vllm").post(wire.path(stream=False), ["?"])
    assert answer.status == wire.refused_with
    assert wire.decode_whole(answer.body).error


def test_vllm_does_not_know_other_models_and_sglang_serves_them(client):
    ask = Ask(prompt="x", output_tokens=2, model="nosuch")
    missing = client("vllm").ask(COMPLETIONS, ask)
    assert missing.status == 404
    assert "`nosuch` does not exist" in missing.error
    assert client("sglang").ask(COMPLETIONS, ask).status == 200


FULL = "step=30ms&max_num_seqs=1&max_waiting=1&model=tiny"
WAITING = {
    "vllm": "vllm:num_requests_waiting",
    "sglang": "sglang:num_queue_reqs",
    "tgi": "tgi_queue_size",
    "lightllm": "lightllm_queue_size",
    "llamacpp": "llamacpp:requests_deferred",
}


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tgi"])
def test_who_finds_the_queue_full_is_told_so_by_an_event_after_a_200_or_by_the_status(
    served, engine
):
    client, wire = served(f"sim:{engine}?{FULL}"), CHAT if engine == "vllm" else WIRES[engine]
    long = an_ask(wire, tokens=1000)
    running = client.start(wire, long)
    next(running.pieces(running.head()))
    waiting = client.start(wire, long)
    until(lambda: client.metrics()[WAITING[engine]] == 1, "the second one waits")
    streamed = client.ask(wire, an_ask(wire))
    whole = client.ask(wire, an_ask(wire, stream=False))
    assert (streamed.status, whole.status) == (200, wire.busy_with)
    assert streamed.error == whole.error
    assert not streamed.text
    running.close()
    waiting.close()


@pytest.mark.parametrize("engine", ["lightllm", "llamacpp"])
def test_the_queues_of_lightllm_and_llamacpp_have_no_limit(served, engine):
    client = served(f"sim:{engine}?step=2ms&max_num_seqs=2&model=tiny")
    started = [client.start(CHAT, an_ask(CHAT)) for _ in range(24)]
    until(lambda: client.metrics()[WAITING[engine]] > 0, "some wait")
    answers = [finish(connection, CHAT, an_ask(CHAT)) for connection in started]
    assert all(len(tokenize(answer.text)) == 12 for answer in answers)


def test_a_client_that_leaves_gives_its_blocks_back(served):
    client = served("sim:vllm?step=2ms&model=tiny")
    leaving = client.start(CHAT, an_ask(CHAT, tokens=20_000))
    until(lambda: client.metrics()["vllm:kv_cache_usage_perc"] > 0, "it has blocks")
    leaving.close()
    until(lambda: client.metrics()["vllm:kv_cache_usage_perc"] == 0, "the blocks are free")
    until(lambda: client.metrics()["vllm:num_requests_running"] == 0, "its last step is over")
    assert client.metrics()["vllm:request_success_total{finished_reason=abort}"] == 1


def test_who_does_not_read_a_stream_is_cut_off(served):
    client, wire = served("sim:vllm?step=1us&prefill=0&context=0&model=tiny"), WIRES["vllm"]
    lazy = client.start(wire, Ask(prompt=" abcdefghijk" * 9000, output_tokens=400))
    cut = "vllm:request_success_total{finished_reason=abort}"
    until(lambda: client.metrics()[cut] == 1, "it is cut off")
    lazy.close()


def test_an_answer_takes_as_many_steps_as_it_has_tokens(served):
    step_s, tokens = 0.005, 120
    client = served(f"sim:vllm?step={step_s}s&prefill=0&sequence=0&context=0&model=tiny")
    client.ask(CHAT, an_ask(CHAT))
    ratios: list[float] = []
    while len(ratios) < 5 and min(ratios, default=2) > 1.05:  # a machine that is busy may be late
        started = time.monotonic()
        streams = [client.start(CHAT, an_ask(CHAT, tokens=tokens)) for _ in range(4)]
        answers = [finish(stream, CHAT, an_ask(CHAT)) for stream in streams]
        ratios.append((time.monotonic() - started) / (tokens * step_s))
        assert {len(tokenize(answer.text)) for answer in answers} == {tokens}
    assert 1 <= min(ratios) <= 1.05


def test_tokens_come_one_by_one(served):
    client = served("sim:vllm?step=20ms&prefill=0&model=tiny")
    most = 0
    for _ in range(5):  # a machine that is busy may read several at once
        stream = client.start(CHAT, an_ask(CHAT, tokens=10))
        times = [time.monotonic() for piece in stream.pieces(stream.head()) if piece]
        stream.close()
        assert len(times) >= 10
        most = max(most, sum(b - a > 0.01 for a, b in pairwise(times)))
        if most >= 7:
            break
    assert most >= 7
