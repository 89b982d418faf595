"""Anthropic messages: what servers send is understood, and what clients send is taken."""

from __future__ import annotations

import msgspec
import pytest

from servescope.client.reading import Reading, read
from servescope.datasets import Message
from servescope.protocols import Ask, Event, ProtocolFault, Reply
from servescope.protocols.anthropic_messages import AnthropicMessages
from tests.support.framing import chunked

WIRE = AnthropicMessages()


def stream(*events: dict, more: bytes = b"") -> Reading:
    body = b"".join(
        b"event: %b\ndata: %b\n\n" % (event["type"].encode(), msgspec.json.encode(event))
        for event in events
    )
    response = chunked(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream", body + more)
    reading = read(WIRE, response.raw, response.reads(()), closed=response.closed)
    assert reading.fault is None
    return reading


def start(**usage) -> dict:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": "m"}
    usage = {"input_tokens": 25, "output_tokens": 1} | usage
    return {"type": "message_start", "message": message | {"stop_reason": None, "usage": usage}}


def begin(index: int, **block) -> dict:
    return {"type": "content_block_start", "index": index, "content_block": block}


def delta(index: int, kind: str, **fields) -> dict:
    fields = {"type": kind} | fields
    return {"type": "content_block_delta", "index": index, "delta": fields}


def end(reason: str, **usage) -> tuple[dict, dict]:
    stop = {"stop_reason": reason, "stop_sequence": None}
    return {"type": "message_delta", "delta": stop, "usage": usage}, {"type": "message_stop"}


def encoded(ask: Ask) -> dict:
    return msgspec.json.decode(WIRE.encode(ask))


def parse(**fields) -> Ask:
    return WIRE.parse(msgspec.json.encode({"model": "m", "max_tokens": 9} | fields), "")


def test_thinking_text_and_calls_of_tools_are_content_each_of_its_kind():
    reading = stream(
        start(),
        begin(0, type="thinking", thinking="", signature=""),
        {"type": "ping"},
        delta(0, "thinking_delta", thinking="Hm"),
        delta(0, "signature_delta", signature="EqQBCgIYAhIM1gbcDa9GJwZA2b3h"),
        {"type": "content_block_stop", "index": 0},
        begin(1, type="text", text=""),
        delta(1, "text_delta", text="Let me "),
        delta(1, "text_delta", text="look."),
        delta(1, "citations_delta", citation={"type": "page_location"}),
        {"type": "content_block_stop", "index": 1},
        begin(2, type="tool_use", id="toolu_1", name="look", input={}),
        delta(2, "input_json_delta", partial_json=""),
        delta(2, "input_json_delta", partial_json='{"at": 1}'),
        {"type": "content_block_stop", "index": 2},
        *end("tool_use", output_tokens=89, output_tokens_details={"thinking_tokens": 40}),
    )
    assert reading.texts == ["Hm", "Let me ", "look.", "look", '{"at": 1}']
    assert (reading.reasoning_chunks, reading.tool_chunks) == ([0], [3, 4])
    assert (reading.finish_reason, reading.end_marker, reading.error) == ("tool_use", True, None)
    assert (reading.input_tokens, reading.output_tokens) == (25, 89)
    assert reading.reasoning_tokens == 40


def test_prompt_tokens_include_those_that_the_cache_held_or_took():
    reading = stream(start(cache_read_input_tokens=1000, cache_creation_input_tokens=300))
    assert (reading.input_tokens, reading.cached_tokens) == (1325, 1000)


def test_the_count_of_output_tokens_comes_with_the_message_delta_only():
    assert stream(start()).output_tokens is None
    reading = stream(start(), delta(0, "text_delta", text="a"), *end("end_turn", output_tokens=7))
    assert reading.output_tokens == 7


def test_the_prompt_may_be_counted_at_the_end():
    events = end("max_tokens", input_tokens=12, output_tokens=3)
    reading = stream(start(input_tokens=0), *events, more=b"data: [DONE]\n\n")
    assert (reading.input_tokens, reading.output_tokens) == (12, 3)
    assert reading.finish_reason == "max_tokens"


def test_an_error_in_a_stream_is_read_in_the_servers_words():
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    reading = stream(start(), delta(0, "text_delta", text="a"), error)
    assert (reading.error, reading.texts) == ("Overloaded", ["a"])


def test_a_stream_that_stops_before_the_message_does_is_not_ended():
    reading = stream(start(), delta(0, "text_delta", text="a"), {"type": "content_block_stop"})
    assert (reading.finish_reason, reading.end_marker) == (None, False)


def test_an_answer_in_one_piece_is_read_with_all_its_blocks():
    body = (
        b'{"type":"message","role":"assistant","content":['
        b'{"type":"thinking","thinking":"Hm.","signature":"x"},{"type":"text","text":"Hi"},'
        b'{"type":"tool_use","id":"t","name":"look","input":{"at": 1}}],'
        b'"stop_reason":"tool_use","usage":{"input_tokens":9,"output_tokens":5}}'
    )
    event = WIRE.decode_whole(body)
    assert (event.reasoning, event.text, event.tool) == ("Hm.", "Hi", 'look{"at": 1}')
    assert (event.finish_reason, event.input_tokens, event.output_tokens) == ("tool_use", 9, 5)
    assert event.error is None


def test_an_error_may_be_flat():
    assert WIRE.decode_whole(b'{"type":"error","message":"gone"}') == Event(error="gone")


def test_a_request_has_the_version_and_its_key_in_a_header_of_its_own():
    assert WIRE.headers == {"anthropic-version": "2023-06-01"}
    assert WIRE.key_header == "x-api-key"


def test_system_messages_at_the_beginning_have_a_field_of_their_own():
    turns = (Message("system", "be brief"), Message("user", "x"))
    body = encoded(Ask(prompt=turns, output_tokens=4, model="m"))
    assert body == {
        "model": "m",
        "max_tokens": 4,
        "system": "be brief",
        "messages": [{"role": "user", "content": "x"}],
        "stream": True,
    }


def test_several_system_messages_become_blocks_and_later_ones_stay_where_they_are():
    turns = tuple(Message(role, role + "!") for role in ("system", "system", "user", "system"))
    body = encoded(Ask(prompt=turns, output_tokens=4))
    assert [part["text"] for part in body["system"]] == ["system!", "system!"]
    assert [message["role"] for message in body["messages"]] == ["user", "system"]
    assert WIRE.parse(msgspec.json.encode(body), "").prompt == turns


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"messages": [{"role": "user", "content": "x"}]}, (Message("user", "x"),)),
        (
            {
                "system": "s",
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                    }
                ],
            },
            (Message("system", "s"), Message("user", "a\nb")),
        ),
    ],
)
def test_content_may_be_a_text_or_blocks(fields, prompt):
    assert parse(**fields).prompt == prompt


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"max_tokens": 1, "messages": []}, "at least one message"),
        ({"messages": [{"role": "user", "content": "x"}]}, "`max_tokens`"),
        (
            {"max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "'image': want text",
        ),
        ({"max_tokens": 1, "messages": [{"role": "user"}]}, "`content`"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(body, words):
    with pytest.raises(ProtocolFault, match=words) as fault:
        WIRE.parse(msgspec.json.encode(body), "")
    assert fault.value.kind == "http_4xx"


def test_an_overload_has_its_own_status_and_name():
    assert WIRE.busy_with == 529
    assert msgspec.json.decode(WIRE.render_error(529, "busy")) == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "busy"},
    }


def test_the_server_half_tells_prompt_tokens_from_the_cache_apart():
    reply = Reply(id="7", model="m", created=5, input_tokens=30, cached_tokens=16)
    renderer = WIRE.renderer(Ask(prompt="x", output_tokens=2), reply)
    events = WIRE.decoder().feed(renderer.opening())
    assert (events[0].input_tokens, events[0].cached_tokens) == (30, 16)
    assert b'"input_tokens":14,' in renderer.opening()


def test_an_error_in_a_stream_of_the_server_half_is_read_as_one():
    renderer = WIRE.renderer(
        Ask(prompt="x", output_tokens=2), Reply(id="", model="", created=0, input_tokens=1)
    )
    events = WIRE.decoder().feed(renderer.opening() + renderer.error(529, "too busy"))
    assert [event.error for event in events if event.error] == ["too busy"]
