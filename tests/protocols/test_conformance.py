"""What every protocol in the folder must hold, whatever its wire format: both halves agree."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servescope.client.reading import read
from servescope.datasets import Message
from servescope.protocols import Ask, Event, ProtocolFault, Reply, known
from tests.support.framing import CUTS, Framed, chunked, cut, sized, unsized

KINDS = known()
AWKWARD = ["", "\r\n", "\n\n", "\r", "\0", '"', "\\", "😀", "é", "\u2028", "\ufeff", "\ufffd"]
AWKWARD += ["\x7f", "data: ", "data: [DONE]\n\n", ": ", "event: error", "</s>", "\ud7ff"]
AWKWARD += ['{"error":{}}', '{"text":']
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream"

texts = st.sampled_from(AWKWARD) | st.text(max_size=12)
words = st.text(min_size=1, max_size=40)
messages = st.builds(Message, st.sampled_from(["system", "user", "assistant"]), words)
lengths, times = st.integers(1, 10**6), st.integers(0, 1 << 32)
replies = st.builds(Reply, id=texts, model=texts, created=times, input_tokens=lengths)
finishes = st.sampled_from(["stop", "length"])
BARE = Ask(prompt="x", output_tokens=1, stream=True)


def for_any(*strategies, **named):
    """Fewer examples than usual, for every protocol has its own."""
    return lambda test: settings(max_examples=40)(given(*strategies, **named)(test))


@dataclass(frozen=True)
class Form:
    """What an answer can say in a wire format; by default, what it says on OpenAI's text routes."""

    length: str | None = "length"
    """The finish reason of an answer that was cut at its limit."""
    stop: str | None = "stop"
    counts: Literal["asked", "each", "end", "never"] = "asked"
    """Token counts of a stream: where asked for, in every event, at the end."""
    whole_input: bool = True
    """Whether an answer in one piece tells how long the prompt was."""
    ends: bool = True
    """Whether the end of a stream is marked, so that one which was cut is known."""

    def reason(self, finish: str) -> str | None:
        return self.length if finish == "length" else self.stop


FORMS = {
    "anthropic-messages": Form("max_tokens", "end_turn", counts="end"),
    "lightllm": Form(counts="each"),
    "llamacpp": Form("limit", "eos", counts="each"),
    "openai-responses": Form("max_output_tokens", "completed", counts="end"),
    "sglang": Form(counts="each"),
    "tgi": Form(stop="eos_token", counts="each", whole_input=False),
    "vllm": Form(None, None, counts="never", whole_input=False, ends=False),
}


def form_of(wire) -> Form:
    return FORMS.get(wire.__struct_config__.tag, Form())


def expresses(wire, name: str, value=True) -> bool:
    """Whether a request has words for this field of an ask."""
    return wire.encode(msgspec.structs.replace(BARE, **{name: value})) != wire.encode(BARE)


@pytest.fixture(params=sorted(KINDS), scope="module")
def wire(request):
    return KINDS[request.param]


@st.composite
def asks(draw, wire, *, stream=None):
    """Asks that `wire` can express."""
    prompts = [words, st.lists(messages, min_size=1, max_size=4).map(tuple)]
    if wire.takes_ids:
        prompts.append(st.lists(st.integers(0, 2**31), min_size=1, max_size=8).map(tuple))
    streamed = draw(st.booleans()) if stream is None else stream
    flags = ("ignore_eos", "min_tokens", "max_completion_tokens")
    flags += ("usage", "usage_each") if streamed else ()
    said = {name: expresses(wire, name) and draw(st.booleans()) for name in flags}
    if said.get("usage_each"):
        said["usage"] = True
    return Ask(
        prompt=draw(st.one_of(prompts)),
        output_tokens=draw(st.integers(1, 10**6)),
        model=draw(texts) if expresses(wire, "model", "m") else "",
        stream=streamed,
        **said,
    )


@dataclass
class Answer:
    """A streamed answer as the server half renders it."""

    ask: Ask
    reply: Reply
    texts: list[str]
    totals: list[int]
    finish: str
    parts: list[bytes]
    """Opening, one a text, closing."""
    wire: object

    @property
    def form(self) -> Form:
        return form_of(self.wire)

    @property
    def said(self) -> list[str]:
        """The texts as the answer has them: after that of the prompt, where it is echoed."""
        echo = prompt_of(self.ask) if self.wire.echoes_prompt else ""
        return [echo + self.texts[0], *self.texts[1:]]

    @property
    def counts(self) -> tuple[int | None, int | None]:
        """Tokens of prompt and answer as the stream tells them."""
        if self.ask.usage or self.form.counts in ("each", "end"):
            return self.reply.input_tokens, self.totals[-1]
        return None, None

    @property
    def contents(self) -> list[tuple[str, int | None, int]]:
        """Text, count so far and end in the body of every chunk that is not empty."""
        ends, end = [], 0
        for part in self.parts:
            end += len(part)
            ends.append(end)
        each = self.ask.usage_each or self.form.counts == "each"
        totals = [total if each else None for total in self.totals]
        chunks = zip(self.said, totals, ends[1:], strict=False)
        return [chunk for chunk in chunks if chunk[0]]


@st.composite
def answers(draw, wire):
    ask, reply, finish = draw(asks(wire, stream=True)), draw(replies), draw(finishes)
    chunks = draw(st.lists(st.tuples(texts, st.integers(1, 5)), min_size=1, max_size=8))
    stream = wire.renderer(ask, reply)
    parts, totals = [stream.opening()], [0]
    for i, (text, tokens) in enumerate(chunks, 1):
        totals.append(totals[-1] + tokens)
        last = finish if i == len(chunks) else None
        parts.append(stream.chunk(text, totals[-1], last))
    parts.append(stream.closing(totals[-1]))
    return Answer(ask, reply, [text for text, _ in chunks], totals[1:], finish, parts, wire)


@st.composite
def framings(draw, body: bytes, head: bytes = OK) -> Framed:
    kind = draw(st.sampled_from([chunked, sized, unsized]))
    if kind is chunked:
        return chunked(head, body, draw(CUTS), draw(st.sampled_from([b"", b";a=b", b' ;a="b"'])))
    return kind(head, body)


def prompt_of(ask: Ask):
    """A prompt without the form that a protocol may have to give it."""
    if isinstance(ask.prompt, tuple) and isinstance(ask.prompt[0], Message):
        return "\n\n".join(message.content for message in ask.prompt)
    return ask.prompt


def decode(wire, pieces: list[bytes]) -> list[Event]:
    decoder = wire.decoder()
    return [event for piece in pieces for event in decoder.feed(piece)] + decoder.close()


def fault_of(function, *arguments) -> str | None:
    """The kind of the ProtocolFault that a call raises, if it does."""
    try:
        function(*arguments)
    except ProtocolFault as fault:
        return fault.kind
    return None


def last(values):
    """The last value that is stated."""
    return next((value for value in reversed(list(values)) if value is not None), None)


@for_any(data=st.data())
def test_what_is_encoded_parses_as_the_same_ask(wire, data):
    ask = data.draw(asks(wire))
    parsed = wire.parse(wire.encode(ask), wire.path(stream=ask.stream))
    assert msgspec.structs.replace(parsed, prompt=ask.prompt) == ask
    assert prompt_of(parsed) == prompt_of(ask)
    assert wire.parse(wire.encode(parsed), wire.path(stream=ask.stream)) == parsed
    if type(parsed.prompt) is type(ask.prompt) and type(parsed.prompt[0]) is type(ask.prompt[0]):
        assert parsed == ask, "the protocol has this form of prompt, and keeps it"


@for_any(st.text(max_size=8), st.integers())
def test_fields_of_the_user_are_sent_as_they_are(wire, text, number):
    more = {"seed": number % 2**63, "stop": [text], "nested": {"a": None, "b": [1.5, True]}}
    body = msgspec.json.decode(wire.encode(msgspec.structs.replace(BARE, extra=more)))
    places = [body, *(part for part in body.values() if isinstance(part, dict))]
    assert any(place | more == place for place in places)


def test_what_is_called_optional_is_what_a_request_can_say(wire):
    flags = ("usage_each", "min_tokens", "ignore_eos", "usage")
    assert {name for name in flags if expresses(wire, name)} == set(wire.optional)


def paths(wire) -> set[str]:
    return {wire.path(stream=stream) for stream in (True, False)}


NEIGHBOURS = [
    pair for pair in permutations(sorted(KINDS), 2) if paths(KINDS[pair[0]]) & paths(KINDS[pair[1]])
]


@pytest.mark.parametrize(("name", "other"), NEIGHBOURS)
@for_any(data=st.data())
def test_protocols_that_share_a_path_refuse_what_is_the_others(name, other, data):
    ask = data.draw(asks(KINDS[name]))
    path = KINDS[name].path(stream=ask.stream)
    if path in paths(KINDS[other]):
        body = KINDS[name].encode(ask)
        assert fault_of(KINDS[other].parse, body, path) == "http_4xx"


@for_any(data=st.data())
def test_a_stream_decodes_to_what_was_rendered_however_it_is_cut(wire, data):
    answer = data.draw(answers(wire))
    events = decode(wire, cut(b"".join(answer.parts), data.draw(CUTS)))
    contents = [(event.text, event.output_tokens) for event in events if event.has_content]
    assert contents == [(text, total) for text, total, _ in answer.contents]
    assert last(event.finish_reason for event in events) == answer.form.reason(answer.finish)
    assert not any(event.error or event.reasoning or event.tool for event in events)
    counts = (last(e.input_tokens for e in events), last(e.output_tokens for e in events))
    assert counts == answer.counts


@for_any(data=st.data())
def test_a_whole_answer_decodes_to_what_was_rendered(wire, data):
    ask, reply, text = data.draw(asks(wire, stream=False)), data.draw(replies), data.draw(st.text())
    tokens, finish = data.draw(st.integers(1, 1000)), data.draw(finishes)
    event = wire.decode_whole(wire.render_whole(ask, reply, text, tokens, finish))
    said = prompt_of(ask) + text if wire.echoes_prompt else text
    assert (event.text, event.error) == (said, None)
    assert event.finish_reason == form_of(wire).reason(finish)
    assert (event.input_tokens, event.output_tokens) == whole_counts(wire, reply, tokens)


def whole_counts(wire, reply: Reply, tokens: int) -> tuple[int | None, int | None]:
    """The counts that an answer in one piece tells."""
    form = form_of(wire)
    told = reply.input_tokens if form.whole_input else None
    return told, None if form.counts == "never" else tokens


@for_any(data=st.data())
def test_a_streamed_response_is_read_with_the_time_of_the_read_that_completed_each_event(
    wire, data
):
    answer = data.draw(answers(wire))
    response = data.draw(framings(b"".join(answer.parts)))
    reads = response.reads(data.draw(CUTS))
    reading = read(wire, response.raw, reads, closed=response.closed)
    assert (reading.fault, reading.error, reading.framed_end) == (None, None, True)
    assert reading.texts == [text for text, _, _ in answer.contents]
    assert reading.chunk_total == [total for _, total, _ in answer.contents]
    times = [response.came(end, reads) for _, _, end in answer.contents]
    assert reading.chunk_at == times
    assert reading.merged == len(times) - len(set(times))
    assert reading.first_output_at == (times[0] if times else None)
    assert reading.finish_reason == answer.form.reason(answer.finish)
    assert reading.finish_reason or reading.end_marker
    assert (reading.input_tokens, reading.output_tokens) == answer.counts


@for_any(data=st.data())
def test_a_whole_response_is_read_at_its_last_read(wire, data):
    ask, reply, text = data.draw(asks(wire, stream=False)), data.draw(replies), data.draw(words)
    finish = data.draw(finishes)
    response = data.draw(framings(wire.render_whole(ask, reply, text, 7, finish)))
    reads = response.reads(data.draw(CUTS))
    reading = read(wire, response.raw, reads, closed=response.closed)
    assert (reading.fault, reading.error, reading.framed_end) == (None, None, True)
    said = prompt_of(ask) + text if wire.echoes_prompt else text
    assert (reading.texts, reading.chunk_at) == ([said], [reads[-2]])
    assert (reading.input_tokens, reading.output_tokens) == whole_counts(wire, reply, 7)
    assert reading.finish_reason == form_of(wire).reason(finish)
    assert reading.finish_reason or reading.end_marker


@for_any(data=st.data())
def test_a_stream_without_its_last_events_is_not_taken_for_whole(wire, data):
    answer = data.draw(answers(wire))
    kept = answer.parts[: data.draw(st.integers(1, len(answer.parts) - 2))]
    response = data.draw(framings(b"".join(kept)))
    reading = read(wire, response.raw, response.reads(()), closed=response.closed)
    assert (reading.fault, reading.error, reading.framed_end) == (None, None, True)
    assert reading.texts == [text for text in answer.said[: len(kept) - 1] if text]
    if answer.form.ends:
        assert (reading.finish_reason, reading.end_marker) == (None, False)


@for_any(data=st.data())
def test_a_response_that_is_cut_off_is_never_whole(wire, data):
    answer = data.draw(answers(wire))
    response = data.draw(framings(b"".join(answer.parts)))
    if response.closed:
        return
    raw = response.raw[: data.draw(st.integers(0, len(response.raw) - 1))]
    response = Framed(raw, response.at, closed=True)
    reading = read(wire, raw, response.reads(data.draw(CUTS)), closed=True)
    assert not reading.framed_end
    assert reading.fault is None
    whole = [text for text, _, _ in answer.contents]
    assert reading.texts == whole[: len(reading.texts)]


@for_any(data=st.data())
def test_an_error_with_its_status_is_read_in_the_servers_words(wire, data):
    status = data.draw(st.sampled_from([400, 404, 422, 429, 500, 503]))
    message = data.draw(words)
    head = b"HTTP/1.1 %d Error\r\nContent-Type: application/json" % status
    response = data.draw(framings(wire.render_error(status, message), head))
    reads = response.reads(data.draw(CUTS))
    reading = read(wire, response.raw, reads, closed=response.closed)
    assert (reading.fault, reading.texts, reading.framed_end) == (None, [], True)
    assert reading.error == message


@for_any(data=st.data())
def test_an_error_inside_a_stream_is_read_in_the_servers_words(wire, data):
    answer, message = data.draw(answers(wire)), data.draw(words)
    stream = wire.renderer(answer.ask, answer.reply)
    body = stream.opening()
    kept = data.draw(st.integers(0, len(answer.texts) - 1))
    for text, total in list(zip(answer.texts, answer.totals, strict=True))[:kept]:
        body += stream.chunk(text, total, None)
    body += stream.error(data.draw(st.sampled_from([400, 500, 503])), message)
    response = data.draw(framings(body))
    reads = response.reads(data.draw(CUTS))
    reading = read(wire, response.raw, reads, closed=response.closed)
    assert reading.fault is None
    assert reading.texts == [text for text in answer.said[:kept] if text]
    assert reading.error == message


@for_any(data=st.data())
def test_an_error_in_place_of_a_whole_answer_is_an_error(wire, data):
    message = data.draw(words)
    event = wire.decode_whole(wire.render_error(500, message))
    assert (event.error, event.text) == (message, "")


@given(data=st.data())
@settings(max_examples=200)
def test_no_bytes_make_the_client_half_raise_anything_but_its_own_fault(wire, data):
    odd = [b"data: {}\n\n", b"[", b'{"choices":[{', b'"', b"}", b"\xff", b"1e999", b"\0", b"\\ud8"]
    odd += [b'{"text":"', b'{"text": ["', b'","meta_info":{', b'"]}\0', b'{"token":{"text":']
    parts = st.sampled_from(AWKWARD).map(str.encode) | st.binary(max_size=20) | st.sampled_from(odd)
    body = b"".join(data.draw(st.lists(parts, max_size=12)))
    assert fault_of(decode, wire, [body]) in (None, "protocol", "too_large")
    assert fault_of(wire.decode_whole, body) in (None, "protocol", "too_large")
    assert fault_of(wire.parse, body, wire.path(stream=True)) in (None, "http_4xx")


def test_json_nested_too_deep_is_a_fault_in_both_halves(wire):
    deep = b'{"unknown":' + b"[" * 100_000
    with pytest.raises(ProtocolFault):
        wire.decode_whole(deep)
    with pytest.raises(ProtocolFault):
        decode(wire, [deep + b"\n\0" if wire.streams_json else b"data: " + deep + b"\n\n"])
    with pytest.raises(ProtocolFault):
        wire.parse(deep, wire.path(stream=True))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"{}", b'"x"', b"\xff", b'{"a":1}'])
def test_a_request_that_asks_nothing_is_refused_in_words(wire, body):
    with pytest.raises(ProtocolFault) as fault:
        wire.parse(body, wire.path(stream=True))
    assert fault.value.kind == "http_4xx"
    assert str(fault.value)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_request_for_no_token_is_refused(wire, limit):
    body = wire.encode(msgspec.structs.replace(BARE, output_tokens=limit))
    with pytest.raises(ProtocolFault, match=f"at least 1, got {limit}"):
        wire.parse(body, wire.path(stream=True))
