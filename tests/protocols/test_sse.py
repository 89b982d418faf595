"""Server-sent events: the WHATWG rules, wherever reads end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servescope.protocols import ProtocolFault, sse
from servescope.protocols.sse import EventStream
from tests.support.framing import CUTS, EVERY, cut

BOM = b"\xef\xbb\xbf"


def events(*pieces: bytes) -> list[bytes]:
    stream = EventStream()
    return [event for piece in pieces for event in stream.feed(piece)] + stream.close()


RULES = {
    "an event ends at a blank line": (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
    "lines may end with CRLF": (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
    "lines may end with CR": (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
    "line endings may be mixed": (b"data: a\r\n\ndata: b\n\rdata: c\r\r\n", [b"a", b"b", b"c"]),
    "LF after CRLF is a blank line": (b"data: a\r\n\ndata: b\n\n", [b"a", b"b"]),
    "the blank after the colon may be missing": (b"data:a\n\n", [b"a"]),
    "only one blank is taken away": (b"data:  a \n\n", [b" a "]),
    "a tab is no blank": (b"data:\ta\n\n", [b"\ta"]),
    "several data lines are one event": (b"data: a\ndata:b\ndata: c\n\n", [b"a\nb\nc"]),
    "other fields between data lines do not matter": (b"data: a\nid: 1\ndata: b\n\n", [b"a\nb"]),
    "empty data lines are empty lines": (b"data: a\ndata:\ndata\n\n", [b"a\n\n"]),
    "comments are passed over": (b": keep-alive\n\n:\n\ndata: a\n:b\n\n", [b"a"]),
    "a comment may look like data": (b":data: a\n\n", []),
    "the other fields are passed over": (
        b"event: delta\nid: 7\nretry: 10\ndata: a\nfuture: x\n\n",
        [b"a"],
    ),
    "a field without a colon is passed over": (b"event\ndatum\n\ndata: a\n\n", [b"a"]),
    "a field name is exact": (b"Data: a\n data: b\ndatas: c\ndata : d\n\n", []),
    "data without a colon is empty": (b"data\n\n", [b""]),
    "blank lines make no events": (b"\n\n\r\n\r\n\n", []),
    "the value may hold colons": (b"data: a: b:c\n\n", [b"a: b:c"]),
    "a byte-order mark at the start is skipped": (BOM + b"data: a\n\n", [b"a"]),
    "only one byte-order mark is skipped": (BOM + BOM + b"data: a\n\n", []),
    "a byte-order mark later is not skipped": (b"data: a\n\n" + BOM + b"data: b\n\n", [b"a"]),
    "a byte-order mark in a value stays": (b"data: " + BOM + b"\n\n", [BOM]),
    "other Unicode line ends do not end a line": (
        "data: a\u2028b\u2029c\x85d\x0be\x0cf\n\n".encode(),
        ["a\u2028b\u2029c\x85d\x0be\x0cf".encode()],
    ),
    "NUL is a byte like others": (b"data: \0\n\n", [b"\0"]),
    "whole lines at the end of the body are an event": (b"data: a\n\ndata: b\n", [b"a", b"b"]),
    "an unfinished line at the end is no event": (b"data: a\n\ndata: b", [b"a"]),
    "whole lines count though the next was cut": (b"data: a\nid: 4", [b"a"]),
    "a last CR ends its line": (b"data: a\r", [b"a"]),
    "an empty body has no events": (b"", []),
}


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule):
    body, want = RULES[rule]
    assert events(body) == want
    assert events(*cut(body, EVERY)) == want


@given(rule=st.sampled_from(sorted(RULES)), cuts=CUTS)
def test_rules_hold_wherever_reads_end(rule, cuts):
    body, want = RULES[rule]
    assert events(*cut(body, cuts)) == want


@pytest.mark.parametrize(
    ("pieces", "done"),
    [
        ([b"data: a\n", b"\n"], [0, 1]),
        ([b"data: a\r\n\r", b"\n"], [1, 0]),
        ([b"data: a\r", b"\n\r", b"\ndata: b\r\r", b"\n"], [0, 1, 1, 0]),
        ([b"data: a\r\r", b"data: b\r\r"], [1, 1]),
        ([b"data: a\r", b"", b"\n", b"", b"\r\n"], [0, 0, 0, 0, 1]),
        ([b"da", b"ta: a\n\nda", b"ta: b\n\n"], [0, 1, 1]),
    ],
)
def test_an_event_is_complete_with_the_first_byte_that_ends_its_blank_line(pieces, done):
    stream = EventStream()
    assert [len(stream.feed(piece)) for piece in pieces] == done


def test_each_stream_begins_afresh():
    first, second = EventStream(), EventStream()
    first.feed(b"data: a\r")
    assert second.feed(b"\ndata: b\n\n") == [b"b"]


values = st.binary(max_size=12).filter(lambda value: b"\r" not in value and b"\n" not in value)
fillers = st.sampled_from([b"", b": x", b"id: 1", b"event: e", b"nothing"])


@given(
    data=st.data(),
    contents=st.lists(st.lists(values, min_size=1, max_size=3), max_size=5),
    bom=st.booleans(),
    cuts=CUTS,
)
def test_what_is_written_is_read_whatever_the_line_ends_and_cuts(data, contents, bom, cuts):
    end = st.sampled_from([b"\n", b"\r\n", b"\r"])
    body = bytearray(BOM if bom else b"")
    for lines in contents:
        for line in lines:
            if filler := data.draw(fillers):
                body += filler + data.draw(end)
            body += b"data: " + line
            body += data.draw(end)
        # A LF after a CR would belong to the same line end and make no blank line.
        body += b"\r\n" if body.endswith(b"\r") else data.draw(end)
    want = [b"\n".join(lines) for lines in contents]
    got = events(*cut(bytes(body), cuts))
    assert got == want


@given(
    body=st.lists(st.sampled_from([*b"\r\n:d \0"]) | st.sampled_from([b"data: x"]), max_size=40),
    cuts=CUTS,
)
def test_any_bytes_give_the_same_events_whole_and_in_pieces(body, cuts):
    raw = b"".join(bytes([part]) if isinstance(part, int) else part for part in body)
    assert events(*cut(raw, cuts)) == events(raw)


TOO_LARGE = {
    "a line that goes on": [b"data: " + b"x" * 100],
    "an event in one piece": [b"data: " + b"x" * 100 + b"\n\n"],
    "a line in small pieces": [b"data: ", *[b"x" * 10] * 10],
    "a line that the piece with its end makes too large": [b"data: ", b"x" * 40, b"x" * 60 + b"\n"],
    "a line whose beginning came with the end of another": [b"\ndata: " + b"x" * 50, b"x" * 50],
    "many lines in one piece": [b"data: xxxxxxxxxx\n" * 10],
    "many lines in many pieces": [b"data: xxxxxxxxxx\n"] * 10,
    "many empty lines": [b"data:\n"] * 100,
    "a comment that goes on": [b": " + b"x" * 100],
}


@pytest.mark.parametrize("pieces", TOO_LARGE.values(), ids=TOO_LARGE)
def test_an_event_above_the_limit_is_refused_however_it_comes(pieces, monkeypatch):
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 64)
    stream = EventStream()
    with pytest.raises(ProtocolFault) as fault:
        list(map(stream.feed, pieces))
    assert fault.value.kind == "too_large"


def test_events_below_the_limit_may_be_many(monkeypatch):
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 64)
    stream = EventStream()
    body = (b"data: " + b"x" * 50 + b"\n\n") * 20
    assert stream.feed(body) == [b"x" * 50] * 20
    for _ in range(20):
        assert stream.feed(b"data: " + b"x" * 25) == []
        assert stream.feed(b"x" * 25 + b"\n\n") == [b"x" * 50]


def test_comments_without_end_stay_within_the_limit(monkeypatch):
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 64)
    stream = EventStream()
    for _ in range(100):
        assert stream.feed(b": keep-alive\n\n") == []
