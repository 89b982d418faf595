"""The declared protocol: other people's APIs as settings, and settings that cannot be."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from servescope import protocols
from servescope.client.reading import Reading, read
from servescope.datasets import Message
from servescope.errors import BadInput
from servescope.protocols import Ask, Event, ProtocolFault, Reply, WireProtocol
from tests.support.framing import CUTS, Framed, chunked, cut

OLLAMA = {
    "request": {
        "model": "${model}",
        "messages": "${messages}",
        "stream": "${stream}",
        "options": {"num_predict": "${output_tokens}", "temperature": 0},
    },
    "route": "/api/chat",
    "frames": "lines",
    "text": "message.content",
    "reasoning": "message.thinking",
    "finish_reason": "done_reason",
    "input_tokens": "prompt_eval_count",
    "output_tokens": "eval_count",
    "end": "path:done",
    "pinned": {"options": {"num_predict": "${output_tokens}", "stop": []}},
}
GEMINI = {
    "request": {
        "contents": [{"role": "user", "parts": [{"text": "${prompt}"}]}],
        "generationConfig": {"maxOutputTokens": "${output_tokens}"},
    },
    "route": "/v1beta/models/m:streamGenerateContent?alt=sse",
    "whole_route": "/v1beta/models/m:generateContent",
    "text": "candidates.0.content.parts.0.text",
    "finish_reason": "candidates.0.finishReason",
    "input_tokens": "usageMetadata.promptTokenCount",
    "output_tokens": "usageMetadata.candidatesTokenCount",
    "key_header": "x-goog-api-key",
}
SO_FAR = {
    "request": {
        "query": "Q: ${prompt}\nA:",
        "params": {"n": "${output_tokens}", "tag": "n-${output_tokens}"},
    },
    "route": "/ask",
    "text": "outputs.text",
    "reasoning": "outputs.thought",
    "cumulative": True,
    "end": "[DONE]",
}
NEVER_STREAMS = {
    "request": {"inputs": "${prompt}", "parameters": {"max_new_tokens": "${output_tokens}"}},
    "route": "/predict",
    "frames": "whole",
    "text": "0.generated_text",
}
APIS = {"ollama": OLLAMA, "gemini": GEMINI, "so far": SO_FAR, "whole": NEVER_STREAMS}
LINES = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson"
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream"
texts = st.text(max_size=12) | st.sampled_from(
    ["${model}", "\n", "data: [DONE]\n\n", "\0", "é", '"']
)
replies = st.builds(
    Reply, id=texts, model=texts, created=st.just(0), input_tokens=st.integers(1, 1000)
)


def template(settings: dict, **more) -> WireProtocol:
    return protocols.declared("protocol", {"name": "template"} | settings | more)


def minimal(**more) -> WireProtocol:
    return template({"request": {"p": "${prompt}"}, "route": "/x", "text": "t"}, **more)


def body(wire: WireProtocol, **fields) -> dict:
    return msgspec.json.decode(wire.encode(Ask(**{"prompt": "hi", "output_tokens": 7} | fields)))


def reading_of(wire: WireProtocol, response: Framed, cuts=()) -> Reading:
    return read(wire, response.raw, response.reads(cuts), closed=response.closed)


def lines(*events: dict) -> Framed:
    return chunked(LINES, b"".join(msgspec.json.encode(event) + b"\n" for event in events))


def events(*found: dict | bytes) -> Framed:
    datas = [part if isinstance(part, bytes) else msgspec.json.encode(part) for part in found]
    return chunked(EVENTS, b"".join(b"data: " + data + b"\n\n" for data in datas))


@pytest.fixture(params=APIS, scope="module")
def wire(request):
    return template(APIS[request.param])


# --- other people's APIs --------------------------------------------------------------------------


def test_placeholders_become_values_of_their_json_types():
    turns = (Message("system", "s"), Message("user", "u"))
    assert body(template(OLLAMA), prompt=turns, model="m") == {
        "model": "m",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        "stream": True,
        "options": {"num_predict": 7, "temperature": 0},
    }


def test_within_a_longer_string_placeholders_become_text():
    assert body(template(SO_FAR)) == {"query": "Q: hi\nA:", "params": {"n": 7, "tag": "n-7"}}
    wire = minimal(request={"p": "${model} ${stream} ${prompt}"})
    assert body(wire, model="m", stream=False) == {"p": "m false hi"}


def test_what_stands_in_a_prompt_is_never_replaced():
    assert body(template(SO_FAR), prompt="${model}")["query"] == "Q: ${model}\nA:"


def test_messages_become_paragraphs_where_only_a_text_is_taken():
    turns = (Message("system", "s"), Message("user", "u"))
    assert body(template(NEVER_STREAMS), prompt=turns)["inputs"] == "s\n\nu"


def test_fields_of_the_user_are_sent_as_they_are():
    assert body(minimal(), extra={"seed": 1, "p": [None]}) == {"seed": 1, "p": [None]}


def test_what_pins_the_length_is_merged_into_the_request_and_may_be_given_up():
    wire = template(OLLAMA)
    assert wire.optional == ("ignore_eos",)
    pinned = body(wire, ignore_eos=True)["options"]
    assert pinned == {"num_predict": 7, "temperature": 0, "stop": []}
    assert "stop" not in body(wire)["options"]
    assert template(GEMINI).optional == ()


def test_lines_of_json_are_read_as_a_stream():
    reading = reading_of(
        template(OLLAMA),
        lines(
            {"message": {"role": "assistant", "content": "", "thinking": "Hm"}, "done": False},
            {"message": {"role": "assistant", "content": "Hel"}, "done": False},
            {"message": {"role": "assistant", "content": "lo"}, "done": False},
            {
                "message": {"role": "assistant", "content": ""},
                "done": True,
                "done_reason": "length",
                "prompt_eval_count": 26,
                "eval_count": 9,
            },
        ),
    )
    assert (reading.texts, reading.reasoning_chunks) == (["Hm", "Hel", "lo"], [0])
    assert (reading.end_marker, reading.finish_reason) == (True, "length")
    assert (reading.input_tokens, reading.output_tokens) == (26, 9)


def test_the_end_of_the_body_ends_a_stream_that_has_no_marker():
    part = {"candidates": [{"content": {"parts": [{"text": "Hel"}], "role": "model"}}]}
    reading = reading_of(template(GEMINI), events(part, part | {"usageMetadata": {}}))
    assert (reading.texts, reading.end_marker) == (["Hel", "Hel"], True)
    assert reading.output_tokens is None


def test_a_marker_of_the_end_may_be_no_json():
    reading = reading_of(template(SO_FAR), events({"outputs": {"text": "a"}}, b"[DONE] "))
    assert (reading.texts, reading.end_marker, reading.fault) == (["a"], True, None)


@pytest.mark.parametrize("settings", [OLLAMA, SO_FAR])
def test_a_stream_without_its_marker_is_not_ended(settings):
    wire = template(settings, text="t")
    response = lines({"t": "a"}) if wire.streams_json else events({"t": "a"})
    reading = reading_of(wire, response)
    assert (reading.texts, reading.end_marker, reading.finish_reason) == (["a"], False, None)


def test_of_a_text_that_is_all_so_far_only_the_new_part_counts():
    said = ["He", "Hello", "Hello", "Hello \ufffd", "Hello é!", "Hello"]
    found = [{"outputs": {"text": text, "thought": "Hm"}} for text in said]
    reading = reading_of(template(SO_FAR), events(*found, b"[DONE]"))
    assert reading.texts == ["HmHe", "llo", " \ufffd", "é!"]


def test_an_answer_of_an_api_that_never_streams_is_read_in_one_piece():
    wire = template(NEVER_STREAMS)
    assert wire.path(stream=True) == "/predict"
    reading = reading_of(wire, chunked(LINES, b'[{"generated_text": "Hello"}]'))
    assert (reading.texts, reading.end_marker, reading.error) == (["Hello"], True, None)


def test_an_answer_in_one_piece_may_have_another_route():
    assert template(GEMINI).path(stream=False) == GEMINI["whole_route"]
    assert template(OLLAMA).path(stream=False) == "/api/chat"


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        (OLLAMA, {"error": "model not found"}, "model not found"),
        (GEMINI, {"error": {"code": 429, "message": "quota"}}, "quota"),
        (OLLAMA | {"error": "detail.0.msg"}, {"detail": [{"msg": "too long"}]}, "too long"),
    ],
)
def test_an_error_is_read_in_the_servers_words(settings, error, words):
    wire = template(settings)
    response = lines(error) if wire.streams_json else events(error)
    assert reading_of(wire, response).error == words
    assert wire.decode_whole(msgspec.json.encode(error)).error == words


@pytest.mark.parametrize("error", [None, "", False, {}])
def test_an_empty_error_is_none(error):
    assert minimal().decode_whole(msgspec.json.encode({"t": "a", "error": error})) == Event(
        text="a"
    )


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (b'{"t": 5}', "text at t is 5: want str"),
        (b'{"t": ["a"]}', 'text at t is \\["a"\\]: want str'),
        (b'{"t": "a", "n": "7"}', "output_tokens at n is 7: want int"),
        (b'{"t": "a", "n": true}', "output_tokens at n is true: want int"),
        (b'{"t": "a"', "truncated"),
    ],
)
def test_a_path_that_leads_to_something_else_is_a_fault_that_names_it(event, words):
    wire = minimal(output_tokens="n")
    with pytest.raises(ProtocolFault, match=words) as fault:
        wire.decoder().feed(b"data: " + event + b"\n\n")
    assert fault.value.kind == "protocol"


@pytest.mark.parametrize("event", [b"{}", b"[]", b"null", b"3", b'"x"', b'{"a": 1}', b'{"a": []}'])
def test_a_path_that_leads_nowhere_says_nothing(event):
    wire = minimal(text="a.0.b")
    assert wire.decoder().feed(b"data: " + event + b"\n\n") == [Event()]


@pytest.mark.parametrize("frames", ["lines", "whole"])
def test_a_line_that_never_ends_is_too_large(frames):
    decoder = minimal(frames=frames).decoder()
    piece = b" " * (4 << 20)
    assert [decoder.feed(piece) for _ in range(4)] == [[]] * 4
    with pytest.raises(ProtocolFault) as fault:
        decoder.feed(piece)
    assert fault.value.kind == "too_large"


# --- both halves agree ----------------------------------------------------------------------------


@st.composite
def answers(draw, wire):
    chunks = draw(st.lists(texts, min_size=1, max_size=6))
    reply, finish = draw(replies), draw(st.sampled_from(["stop", "length"]))
    stream = wire.renderer(Ask(prompt="x", output_tokens=9), reply)
    parts = [stream.opening()]
    for count, text in enumerate(chunks, 1):
        parts.append(stream.chunk(text, count, finish if count == len(chunks) else None))
    return chunks, reply, finish, b"".join([*parts, stream.closing(len(chunks))])


@pytest.mark.parametrize("name", ["ollama", "gemini", "so far"])
@given(data=st.data())
def test_a_stream_decodes_to_what_was_rendered_however_it_is_cut(name, data):
    wire = template(APIS[name])
    chunks, reply, finish, rendered = data.draw(answers(wire))
    reading = reading_of(wire, chunked(EVENTS, rendered, data.draw(CUTS)), data.draw(CUTS))
    assert (reading.fault, reading.error, reading.end_marker) == (None, None, True)
    assert reading.texts == [text for text in chunks if text]
    if wire.finish_reason is not None:
        told = (reading.finish_reason, reading.input_tokens, reading.output_tokens)
        assert told == (finish, reply.input_tokens, len(chunks))


@pytest.mark.parametrize("name", ["ollama", "gemini", "so far"])
@given(data=st.data())
def test_a_response_that_is_cut_off_is_never_whole(name, data):
    wire = template(APIS[name])
    chunks, _, _, rendered = data.draw(answers(wire))
    response = chunked(EVENTS, rendered)
    raw = response.raw[: data.draw(st.integers(0, len(response.raw) - 1))]
    reading = reading_of(wire, Framed(raw, response.at, closed=True), data.draw(CUTS))
    assert (reading.fault, reading.framed_end) == (None, False)
    said = [text for text in chunks if text]
    assert reading.texts == said[: len(reading.texts)]


@given(reply=replies, text=texts, tokens=st.integers(1, 1000))
def test_a_whole_answer_decodes_to_what_was_rendered(wire, reply, text, tokens):
    ask = Ask(prompt="x", output_tokens=9, stream=False)
    event = wire.decode_whole(wire.render_whole(ask, reply, text, tokens, "stop"))
    assert (event.text, event.error) == (text, None)
    assert event.finish_reason in ("stop", None)
    assert event.output_tokens in (tokens, None)


@given(data=st.data())
def test_what_is_encoded_parses_as_the_same_ask(wire, data):
    ask = Ask(
        prompt=data.draw(texts.filter(bool)),
        output_tokens=data.draw(st.integers(1, 1000)),
        model=data.draw(texts),
        stream=data.draw(st.booleans()),
        ignore_eos="ignore_eos" in wire.optional and data.draw(st.booleans()),
    )
    parsed = wire.parse(wire.encode(ask), wire.path(stream=ask.stream))
    assert protocols.plain_text(parsed.prompt) == ask.prompt
    assert (parsed.output_tokens, parsed.ignore_eos) == (ask.output_tokens, ask.ignore_eos)
    if wire.event_mark == b"\n":  # the one whose request says them
        assert (parsed.model, parsed.stream) == (ask.model, ask.stream)


def test_an_answer_in_one_piece_is_told_by_its_route_where_the_request_does_not_say():
    wire = template(GEMINI)
    asked = wire.encode(Ask(prompt="x", output_tokens=1))
    assert wire.parse(asked, GEMINI["route"]).stream
    assert not wire.parse(asked, GEMINI["whole_route"]).stream


@given(data=st.data())
def test_no_bytes_make_the_client_half_raise_anything_but_its_own_fault(wire, data):
    pieces = st.binary(max_size=20) | st.sampled_from([b"data: {}\n\n", b"[", b'{"a":', b"\n"])
    sent = b"".join(data.draw(st.lists(pieces, max_size=12)))
    decoder = wire.decoder()
    for piece in cut(sent, data.draw(CUTS)):
        with suppress(ProtocolFault):
            decoder.feed(piece)
    for call in (decoder.close, lambda: wire.decode_whole(sent), lambda: wire.parse(sent, "/")):
        with suppress(ProtocolFault):
            call()


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ({}, "query: want 'Q: "),
        ({"query": "hi", "params": {"n": 1, "tag": "n-1"}}, "query: want"),
        ({"query": "Q: hi\nA:", "params": {"n": "1", "tag": "n-1"}}, r"params.n: Expected `int`"),
        ({"query": "Q: \nA:", "params": {"n": 1, "tag": "n-1"}}, "prompt must not be empty"),
        ({"query": "Q: hi\nA:", "params": {"n": 0, "tag": "n-0"}}, "at least 1, got 0"),
    ],
)
def test_a_request_that_the_template_does_not_make_is_refused_in_words(sent, words):
    with pytest.raises(ProtocolFault, match=words) as fault:
        template(SO_FAR).parse(msgspec.json.encode(sent), "/ask")
    assert fault.value.kind == "http_4xx"


# --- settings that cannot be ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"request": {"p": "hi"}}, r"want \$\{prompt\} or \$\{messages\}"),
        ({"request": {"p": "${prompt} ${promt}"}}, r"request.p: '\$\{promt\}' is no placeholder"),
        ({"request": {"p": ["${prompt}", "${prompt"]}}, r"request.p.1: '\$\{prompt' is no place"),
        ({"request": {"p": "${prompt}", "x": "${1+1}"}}, r"request.x: '\$\{1\+1\}' is no place"),
        ({"request": {"p": "Say ${messages}"}}, r"request.p: want \$\{messages\} alone"),
        ({"request": {"${model}": "${prompt}"}}, "request: want placeholders in values"),
        ({"pinned": {"x": "${tokens}"}}, r"pinned.x: '\$\{tokens\}' is no placeholder"),
        ({"route": "generate"}, "route: 'generate': want a path such as /generate"),
        ({"route": "/a\r\nHost: x"}, "want a path"),
        ({"text": ""}, "text: '': want keys with dots between"),
        ({"output_tokens": "usage..n"}, "output_tokens: 'usage..n': want keys"),
        ({"end": " "}, "end: want the data of the last event"),
        ({"end": "path:"}, "end: '': want keys"),
        ({"frames": "websocket"}, "websocket"),
        ({"headers": {"x-a": "1\r\nx-b: 2"}}, "'x-a': want a name and one line of ASCII"),
        ({"headers": {"authorization": "Bearer k"}}, "'authorization': want none that is set"),
        ({"headers": {"Api-Key": "k"}, "key_header": "api-key"}, "want none that is set"),
        ({"key_header": "a: b"}, "'a: b': want a name"),
        ({"cumulative": "perhaps"}, "bool"),
        ({"txt": "t"}, r"did you mean text\?"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_any_request(settings, words):
    with pytest.raises(BadInput, match=words) as refusal:
        minimal(**settings)
    assert refusal.value.field == "protocol"


def test_headers_and_that_of_the_key_are_the_users():
    wire = minimal(headers={"x-tenant": "7"}, key_header="api-key")
    assert (wire.headers, wire.key_header) == ({"x-tenant": "7"}, "api-key")
