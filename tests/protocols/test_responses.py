"""OpenAI responses: what servers send is understood, and what clients send is taken."""

from __future__ import annotations

import msgspec
import pytest

from servescope.client.reading import Reading, read
from servescope.datasets import Message
from servescope.protocols import Ask, Event, ProtocolFault, Reply
from servescope.protocols.openai_responses import OpenAIResponses
from tests.support.framing import chunked

WIRE = OpenAIResponses()
USAGE = {
    "input_tokens": 36,
    "input_tokens_details": {"cached_tokens": 32},
    "output_tokens": 87,
    "output_tokens_details": {"reasoning_tokens": 64},
    "total_tokens": 123,
}


def stream(*events: dict) -> Reading:
    body = b"".join(
        b"event: %b\ndata: %b\n\n" % (event["type"].encode(), msgspec.json.encode(event))
        for event in events
    )
    response = chunked(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream", body)
    reading = read(WIRE, response.raw, response.reads(()), closed=response.closed)
    assert reading.fault is None
    return reading


def delta(kind: str, text: str) -> dict:
    return {"type": f"response.{kind}.delta", "item_id": "x", "output_index": 0, "delta": text}


def ended(status: str, **more) -> dict:
    response = {"id": "resp_1", "object": "response", "status": status, "usage": USAGE} | more
    return {"type": f"response.{status}", "response": response}


def whole(**fields) -> Event:
    return WIRE.decode_whole(msgspec.json.encode({"object": "response"} | fields))


def parse(**fields) -> Ask:
    return WIRE.parse(msgspec.json.encode({"model": "m", "max_output_tokens": 9} | fields), "")


def test_reasoning_text_and_calls_of_functions_are_content_each_of_its_kind():
    reading = stream(
        {"type": "response.created", "response": {"status": "in_progress", "usage": None}},
        {"type": "response.in_progress", "response": {"status": "in_progress"}},
        {"type": "response.output_item.added", "item": {"type": "reasoning", "summary": []}},
        delta("reasoning_summary_text", "Hm"),
        delta("reasoning_text", "..."),
        {"type": "response.output_item.added", "item": {"type": "message", "content": []}},
        delta("output_text", "Let me "),
        delta("output_text", "look."),
        {"type": "response.output_item.added", "item": {"type": "function_call", "name": "look"}},
        delta("function_call_arguments", '{"at":'),
        delta("function_call_arguments", "1}"),
        ended("completed"),
    )
    assert reading.texts == ["Hm", "...", "Let me ", "look.", "look", '{"at":', "1}"]
    assert (reading.reasoning_chunks, reading.tool_chunks) == ([0, 1], [4, 5, 6])
    assert (reading.finish_reason, reading.end_marker, reading.error) == ("completed", True, None)
    assert (reading.input_tokens, reading.cached_tokens) == (36, 32)
    assert (reading.output_tokens, reading.reasoning_tokens) == (87, 64)


def test_what_repeats_the_text_counts_only_once():
    part = {"type": "output_text", "text": "Hello"}
    item = {"type": "message", "content": [part]}
    reading = stream(
        {"type": "response.content_part.added", "part": part | {"text": ""}},
        delta("output_text", "Hello"),
        {"type": "response.output_text.done", "text": "Hello"},
        {"type": "response.content_part.done", "part": part},
        {"type": "response.output_item.done", "item": item},
        ended("completed", output=[item]),
    )
    assert reading.texts == ["Hello"]


@pytest.mark.parametrize("kind", ["response.incomplete", "response.completed"])  # vLLM's: the last
def test_an_answer_that_reached_its_limit_says_so(kind):
    details = {"incomplete_details": {"reason": "max_output_tokens"}}
    end = ended("incomplete", **details) | {"type": kind}
    reading = stream(delta("output_text", "a"), end)
    assert (reading.finish_reason, reading.end_marker) == ("max_output_tokens", True)
    assert reading.error is None


@pytest.mark.parametrize(
    "event",
    [
        ended("failed", error={"code": "server_error", "message": "the model is gone"}),
        {"type": "error", "code": "server_error", "message": "the model is gone", "param": None},
        {"type": "error", "error": {"type": "server_error", "message": "the model is gone"}},
    ],
)
def test_each_form_of_an_error_is_read_in_the_servers_words(event):
    reading = stream(delta("output_text", "a"), event)
    assert reading.error == "the model is gone"


def test_a_failure_without_words_is_still_a_failure():
    assert stream(ended("failed", error=None)).error == "the response was failed"


def test_a_stream_that_stops_before_its_last_event_is_not_ended():
    reading = stream(delta("output_text", "a"), {"type": "response.output_text.done", "text": "a"})
    assert (reading.finish_reason, reading.end_marker) == (None, False)


def test_events_of_other_kinds_are_passed_over_whatever_they_hold():
    reading = stream(
        {"type": "response.mcp_list_tools.completed", "item": {"type": "mcp", "name": "x"}},
        {"type": "response.some_day.delta", "delta": {"x": [1]}},
        {"type": "response.output_item.added", "item": {"type": "mcp_call", "name": "x"}},
        delta("output_text", "a"),
        ended("completed", output=[{"type": "web_search_call", "content": {"odd": 1}}]),
    )
    assert reading.texts == ["a"]


def test_an_answer_in_one_piece_is_read_with_all_its_items():
    event = whole(
        status="completed",
        usage=USAGE,
        output=[
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
            {"type": "message", "content": [{"type": "output_text", "text": "Hi "}]},
            {"type": "message", "content": [{"type": "refusal", "refusal": "no"}]},
            {"type": "function_call", "name": "look", "arguments": '{"at":1}'},
        ],
    )
    assert (event.reasoning, event.text, event.tool) == ("Hm.", "Hi no", 'look{"at":1}')
    assert (event.finish_reason, event.output_tokens) == ("completed", 87)


def test_an_answer_in_one_piece_may_have_failed():
    assert whole(status="failed", error={"message": "gone"}, output=[]).error == "gone"


def test_a_prompt_keeps_its_form_in_a_request():
    plain = msgspec.json.decode(WIRE.encode(Ask(prompt="x", output_tokens=4, model="m")))
    assert plain == {"model": "m", "input": "x", "max_output_tokens": 4, "stream": True}
    turns = (Message("system", "be brief"), Message("user", "x"))
    body = msgspec.json.decode(WIRE.encode(Ask(prompt=turns, output_tokens=4, ignore_eos=True)))
    assert body["input"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "x"},
    ]
    assert body["ignore_eos"] is True


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"input": "x"}, "x"),
        ({"input": "x", "instructions": "y"}, (Message("system", "y"), Message("user", "x"))),
        ({"input": [{"role": "developer", "content": "x"}]}, (Message("developer", "x"),)),
        (
            {
                "input": [
                    {
                        "type": "message",
                        "role": "user",
                        "content": [
                            {"type": "input_text", "text": "a"},
                            {"type": "input_text", "text": "b"},
                        ],
                    }
                ]
            },
            (Message("user", "a\nb"),),
        ),
    ],
)
def test_input_may_be_a_text_or_messages_with_instructions_before(fields, prompt):
    assert parse(**fields).prompt == prompt


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "input must not be empty"),
        ([], "input must not be empty"),
        ([{"type": "item_reference", "id": "x"}], "input of type 'item_reference'"),
        ([{"role": "user", "content": [{"type": "input_image"}]}], "'input_image': want text"),
        (7, r"\$.input"),
    ],
)
def test_input_that_is_not_text_is_refused_in_words(value, words):
    with pytest.raises(ProtocolFault, match=words) as fault:
        parse(input=value)
    assert fault.value.kind == "http_4xx"


def test_what_the_server_half_streams_is_numbered_and_holds_the_answer_at_its_end():
    reply = Reply(id="7", model="m", created=5, input_tokens=3)
    renderer = WIRE.renderer(Ask(prompt="x", output_tokens=2), reply)
    body = renderer.opening() + renderer.chunk("Hel", 1, None) + renderer.chunk("lo", 2, "length")
    body += renderer.closing(2)
    events = [
        msgspec.json.decode(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: ")
    ]
    kinds = [line[7:].decode() for line in body.split(b"\n") if line.startswith(b"event: ")]
    assert [event["type"] for event in events] == kinds
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    last = events[-1]["response"]
    assert (last["status"], last["output"][0]["content"][0]["text"]) == ("incomplete", "Hello")
    assert last["usage"]["total_tokens"] == 5


def test_an_error_in_a_stream_of_the_server_half_is_read_as_one():
    renderer = WIRE.renderer(
        Ask(prompt="x", output_tokens=2), Reply(id="", model="", created=0, input_tokens=1)
    )
    events = WIRE.decoder().feed(renderer.opening() + renderer.error(503, "too busy"))
    assert [event.error for event in events if event.error] == ["too busy"]
