"""Events that are alike are read many at a time, to the same result as one by one."""

from __future__ import annotations

from array import array
from itertools import accumulate

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servescope.client import reading as reading_module
from servescope.client.answer import Asked, record
from servescope.client.reading import Reading, read
from servescope.client.wire import Exchange
from servescope.protocols import Ask, Reply, known
from servescope.protocols.openai_chat import OpenAIChat
from servescope.protocols.template import Template
from tests.protocols.test_recorded import RECORDED, recorded, wire_of

KINDS = known() | {
    "template": Template(request={"p": "${prompt}"}, route="/", text="a.0.b", end="[DONE]"),
    "template-cumulative": Template(
        request={"p": "${prompt}"}, route="/", text="text", cumulative=True
    ),
}
ALONE = {"anthropic-messages", "lightllm", "llamacpp", "openai-chat", "openai-completions"}
ALONE |= {"openai-responses"}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
ORIGIN_NS = 500
ODD = ["", "", "\n", '"', "\\", '","', "data: x\n\n", "[DONE]", "é", "😀", "\ufeff", "\x7f", "0"]
LITERALS = [rb"\u00e9", rb"\ud83d\ude00", rb"\/", rb"\"", rb"\\", b'","', b"\xc3\xa9", b"\t"]
LITERALS += [rb"\ud83d", rb"\x", b"\xff", b"\xed\xa0\x80", b"\x01", b"\0", b'"', b"\\", b"\n", b"]"]
"""Inside of strings as a server may have written them; the last of them are no JSON."""
EVENTS = [b": ping\n\n", b"data: [DONE]\n\n", b'data: {"error":{"message":"died"}}\n\n', b"\n"]
EVENTS += [b"data: {broken\n\n", b'data: {"a":1}\r\n\r\n', b"data:\n\n", b"odd\n\n", b"data: {}\n"]
SWAPS = [
    (b'"content":', b'"reasoning_content":'),
    (b'"created":', b'"created":1'),
    (b'"finish_reason":null', b'"finish_reason":""'),
    (b'"text":', b'"thinking":'),
    (b"tokens", b"token"),
    (b":null", b":-1.5"),
    (b"\n\n", b"\r\n\r\n"),
    (b"data: ", b"data:"),
    (b"data: ", b"id: 7\ndata: "),
]
"""What may change in the events of a stream from one of them on."""


def stream_of(wire, texts, *, each=False, created=1_795_228_174, words="x") -> list[bytes]:
    """The events of one answer, one token each."""
    ask = Ask(prompt=words, output_tokens=len(texts), usage=True, usage_each=each)
    reply = Reply(id="chatcmpl-0123456789", model="m", created=created, input_tokens=30)
    renderer = wire.renderer(ask, reply)
    last = len(texts)
    tokens = enumerate(texts, 1)
    parts = [renderer.chunk(text, n, "length" if n == last else None) for n, text in tokens]
    return [renderer.opening(), *parts, renderer.closing(last)]


def chunked(parts, line=b"%x\r\n") -> tuple[bytes, list[int]]:
    """A response with a chunk for each part, and where each ends."""
    raw = bytearray(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    ends = [len(raw)]
    for part in filter(None, parts):
        raw += line % len(part) + part + b"\r\n"
        ends.append(len(raw))
    raw += b"0\r\n\r\n"
    return bytes(raw), [*ends, len(raw)]


def unsized(parts, more=b"") -> tuple[bytes, list[int]]:
    """A response that is not cut into chunks, and where each part ends."""
    ends = list(accumulate(map(len, parts), initial=len(HEAD + more) + 2))
    return HEAD + more + b"\r\n" + b"".join(parts), ends


def reads_of(ends) -> array:
    """A read that ends at each of these places, 1000 ns apart."""
    return array("q", [n for number, end in enumerate(ends, 1) for n in (1000 * number, end)])


def told(reading: Reading) -> dict:
    fault = reading.fault and (reading.fault.kind, str(reading.fault))
    return vars(reading) | {"fault": fault}


def in_both_ways(wire, raw, reads, *, closed=False, kept=None) -> Reading:
    """The reading, which must be the same one by one, and so must the record."""
    found = []
    exchange = Exchange(
        0, "closed" if closed else "ended", "", 1, 600, 700, 0, 0, 1 << 40, reads, raw
    )
    asked = Asked(0, 30, 16, True, True, "0" * 16, 4, kept)
    for least in (0, 1 << 60):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reading_module, "LEAST_BYTES", least)
            reading = read(wire, raw, reads, closed=closed)
            line = msgspec.json.encode(record(exchange, asked, wire, ORIGIN_NS))
            found.append((told(reading), line, reading))
    (many, line, reading), (single, its_line, _) = found
    assert many == single
    assert line == its_line
    return reading


def noted_one_by_one(wire, raw, reads) -> int:
    """How many times an event or more were noted."""
    times = []
    plain = Reading.note

    def note(self, events, at):
        times.append(at)
        plain(self, events, at)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reading, "note", note)
        read(wire, raw, reads, closed=False)
    return len(times)


@pytest.fixture(params=sorted(KINDS), scope="module")
def wire(request):
    return KINDS[request.param]


@st.composite
def texts_of_an_answer(draw):
    some = st.sampled_from([" the", " a", "ing", " of", " the" * 12])
    return draw(
        st.lists(some | some | st.sampled_from(ODD) | st.text(max_size=5), min_size=1, max_size=24)
    )


@st.composite
def framings(draw, parts) -> tuple[bytes, list[int]]:
    """A response of these events, and places where its reads may well end."""
    parts = list(filter(None, parts))
    if draw(st.sampled_from([True, True, True, False])):
        for _ in range(draw(st.integers(0, 2))):  # some chunks hold two events, or a part of one
            at = draw(st.integers(0, max(0, len(parts) - 2)))
            parts[at : at + 2] = [b"".join(parts[at : at + 2])]
            if draw(st.booleans()):
                place = draw(st.integers(0, len(parts[at])))
                parts[at : at + 1] = [parts[at][:place], parts[at][place:]]
        line = draw(st.sampled_from([b"%x\r\n", b"%x\r\n", b"%X\r\n", b"%03x\r\n", b"%x;a=b\r\n"]))
        return chunked(parts, line)
    return unsized(parts, draw(st.just(b"") | st.just(b"Content-Length: 5000\r\n")))


@st.composite
def reads_for(draw, raw, ends) -> array:
    way = draw(st.sampled_from(["each", "each", "some", "more", "any", "every"]))
    any_place = st.lists(st.integers(1, len(raw)), max_size=8)
    if way == "some":
        missed = set(draw(st.lists(st.sampled_from(ends), max_size=8)))
        ends = [end for end in ends if end not in missed]
    elif way == "more":
        ends = [*ends, *draw(any_place)]
    elif way == "any":
        ends = draw(any_place)
    elif way == "every" and len(raw) < 3000:
        ends = range(1, len(raw))
    return reads_of(sorted({end for end in ends if end < len(raw)} | {len(raw)}))


def spoilt(draw, parts):
    """The events with something in the midst of them that was not to be expected."""
    at = draw(st.integers(0, len(parts) - 1))
    how = draw(st.sampled_from(["event", "swap", "swap", "cut", "literal", "literal", "nothing"]))
    if how == "event":
        return [*parts[:at], draw(st.sampled_from(EVENTS)), *parts[at:]]
    if how == "swap":
        before, after = draw(st.sampled_from(SWAPS))
        return [*parts[:at], *(part.replace(before, after) for part in parts[at:])]
    if how == "cut":
        return parts[:at]
    if how == "literal":
        put = draw(st.sampled_from(LITERALS))
        return [part.replace(b" the", put) for part in parts]
    return parts


@given(data=st.data())
@settings(max_examples=40)
def test_every_stream_is_read_as_if_its_events_were_decoded_one_by_one(wire, data):
    texts = data.draw(texts_of_an_answer())
    parts = stream_of(wire, texts, each=data.draw(st.booleans()), words=data.draw(st.text()) or "x")
    for _ in range(data.draw(st.sampled_from([0, 0, 1, 2]))):
        parts = spoilt(data.draw, parts) or [b"data: {}\n\n"]
    raw, ends = data.draw(framings(parts))
    if data.draw(st.sampled_from([False, False, True])):
        place = data.draw(st.integers(len(raw) // 2, len(raw)))
        byte = data.draw(st.sampled_from([b"", b"0", b'"', b"\n", b"f", b"}"]))
        raw = raw[:place] + byte + raw[place + data.draw(st.integers(0, 1)) :]
    reads = data.draw(reads_for(raw, ends))
    kept = data.draw(st.none() | st.just("x"))
    in_both_ways(wire, raw, reads, closed=data.draw(st.booleans()), kept=kept)


LONG = [f" word{n}" if n % 7 else "\n" for n in range(100)]


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("name", sorted(ALONE))
def test_hardly_an_event_of_a_usual_stream_is_decoded_by_itself(name, each):
    wire = KINDS[name]
    raw, ends = chunked(stream_of(wire, LONG, each=each))
    reads = reads_of(ends)
    assert in_both_ways(wire, raw, reads).texts == LONG
    assert noted_one_by_one(wire, raw, reads) <= 16


def test_tokens_counted_with_every_event_are_counted_so_many_at_a_time():
    raw, ends = chunked(stream_of(OpenAIChat(), LONG, each=True))
    found = in_both_ways(OpenAIChat(), raw, reads_of(ends))
    assert found.chunk_total == [*range(1, 101)]
    assert found.chunk_at == [1000 * n for n in range(3, 103)]


@pytest.mark.parametrize(("before", "after"), SWAPS[:3])
def test_a_stream_that_changes_on_its_way_is_looked_at_anew(before, after):
    wire, parts = OpenAIChat(), stream_of(OpenAIChat(), LONG)
    parts = [parts[0], *(part.replace(before, after) for part in parts[1:50]), *parts[50:]]
    raw, ends = chunked(parts)
    found = in_both_ways(wire, raw, reads_of(ends))
    assert found.texts == LONG
    assert found.reasoning_chunks == ([*range(49)] if b"reasoning" in after else [])
    assert noted_one_by_one(wire, raw, reads_of(ends)) <= 24


def test_a_clock_in_every_event_is_no_hindrance():
    wire, one, other = OpenAIChat(), *(stream_of(OpenAIChat(), LONG, created=n) for n in (7, 12))
    parts = [(one, other)[n // 5 % 2][n] for n in range(len(one))]
    raw, ends = chunked(parts)
    assert in_both_ways(wire, raw, reads_of(ends)).texts == LONG
    assert noted_one_by_one(wire, raw, reads_of(ends)) <= 24


@pytest.mark.parametrize("line", [b"%x\r\n", b"%X\r\n"])
def test_chunks_may_say_their_size_in_either_case_and_any_number_of_digits(line):
    texts = [f"{n}" + "long" * (n % 40) for n in range(100)]
    raw, ends = chunked(stream_of(OpenAIChat(), texts), line)
    assert in_both_ways(OpenAIChat(), raw, reads_of(ends)).texts == texts
    assert noted_one_by_one(OpenAIChat(), raw, reads_of(ends)) <= 24


def test_events_that_shared_a_read_are_told_apart_from_those_that_did_not():
    raw, ends = chunked(stream_of(OpenAIChat(), LONG))
    reads = reads_of([end for number, end in enumerate(ends) if number % 10 or number < 10])
    found = in_both_ways(OpenAIChat(), raw, reads)
    assert found.merged == 10
    assert len(set(found.chunk_at)) == 90
    assert noted_one_by_one(OpenAIChat(), raw, reads) <= 16


def swapped(part: bytes) -> bytes:
    """An event of usage with two of its parts in each other's place."""
    one = b'"},"finish_reason":null}],"usage":{"prompt_tokens":30,"completion_tokens":'
    other = b',"total_tokens":'
    return part.replace(other, b"@").replace(one, other).replace(b"@", one)


LOOK_ALIKE = {
    "strings that end in each other": lambda n, part: part.replace(
        b"word60", b"a\\" if n == 61 else b""
    ).replace(b"word61", b',"b'),
    "two strings in the place of one": lambda n, part: part.replace(b"word60", b'","'),
    "parts in another order": lambda n, part: swapped(part) if n == 60 else part,
    "two values in the place of one": lambda n, part: part.replace(b":61,", b":61,1,"),
    "no value": lambda n, part: part.replace(b":61,", b":,"),
    "a count that is none": lambda n, part: part.replace(b":%d," % n, b":%d.5," % n, n < 50),
    "a count too large": lambda n, part: part.replace(b":61,", b":9876543210,"),
    "a prompt that grows": lambda n, part: part.replace(b":30,", b":%d," % (30 + n)),
    "two texts in one event": lambda n, part: part.replace(
        b'"content":', b'"reasoning":"so","content":'
    ),
    "something after each event": lambda n, part: part + b": so\n\n",
    "an end in the midst": lambda n, part: part + (b"data: [DONE]\n\n" if n == 60 else b""),
    "an error in the midst": lambda n, part: (
        part.replace(b'"choices"', b'"error":"died","c"') if n == 60 else part
    ),
    "lines that end with CRLF": lambda n, part: part.replace(b"\n", b"\r\n"),
    "all as it should be": lambda n, part: part,
}


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("earlier", [(0,), (0, 2), (0, 3, 5)])
@pytest.mark.parametrize("name", LOOK_ALIKE)
def test_what_only_looks_alike_is_not_taken_for_it(name, earlier, closed):
    parts = stream_of(OpenAIChat(), LONG, each=True)
    parts = [LOOK_ALIKE[name](n, part) for n, part in enumerate(parts)]
    for last in (90, len(parts)):
        raw, ends = unsized(parts[:last]) if closed else chunked(parts[:last])
        cuts = {end - less for end in ends[40:] for less in earlier}
        in_both_ways(OpenAIChat(), raw, reads_of(sorted(cuts.union(ends))), closed=closed)


def test_a_stream_that_says_its_length_is_read_to_its_end():
    parts = stream_of(OpenAIChat(), LONG)
    length = sum(map(len, parts))
    raw, ends = unsized(parts, b"Content-Length: %d\r\n" % length)
    assert in_both_ways(OpenAIChat(), raw, reads_of(ends)).framed_end


def test_what_comes_after_the_end_marker_is_no_answer():
    parts = stream_of(OpenAIChat(), LONG)
    raw, ends = chunked([*parts[:31], b"data: [DONE]\n\n", *parts[31:]])
    assert in_both_ways(OpenAIChat(), raw, reads_of(ends)).texts == LONG[:30]


def test_a_chunk_of_another_size_than_it_says_is_found_among_many():
    parts = stream_of(OpenAIChat(), LONG)
    raw, ends = chunked(parts)
    size = b"%x\r\n" % len(parts[60])
    raw = raw[: ends[60]] + raw[ends[60] :].replace(size, b"%x\r\n" % (len(parts[60]) - 1), 1)
    found = in_both_ways(OpenAIChat(), raw, reads_of(ends))
    assert found.texts == LONG[:59]
    assert str(found.fault) == "a chunk is longer than its size says"


def test_a_string_that_changes_and_is_no_text_has_every_event_decoded():
    wire = OpenAIChat()
    parts = [
        part.replace(b'"created"', b'"obfuscation":"%d","created"' % (n % 10))
        for n, part in enumerate(stream_of(wire, LONG))
    ]
    raw, ends = chunked(parts)
    assert in_both_ways(wire, raw, reads_of(ends)).texts == LONG
    assert noted_one_by_one(wire, raw, reads_of(ends)) > 100


STREAMS = {path.stem for path in RECORDED.glob("*-stream*.txt")}


@pytest.mark.parametrize("name", sorted(STREAMS))
def test_a_recorded_stream_is_read_the_same_however_long_its_middle_is(name):
    response, wire = recorded(name), wire_of(name)
    in_both_ways(wire, response.raw, array("q", response.reads(())), closed=response.closed)
    body = bytes(response.raw[at] for at in response.at)
    head, *events = body.split(b"\n\n")
    texts = [b'"content":"', b'"text":"', b'"tokens_predicted":1']
    longer = [
        events[0].replace(text, text + b"%d" % n)
        for n in range(40)
        for text in texts
        if events and text in events[0]
    ]
    raw, ends = chunked([part + b"\n\n" for part in [head, *longer, *events] if part])
    in_both_ways(wire, raw, reads_of(ends))
