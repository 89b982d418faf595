"""HTTP/1.1 responses: heads, framing and compression, wherever reads end."""

from __future__ import annotations

import gzip
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servescope.protocols import ProtocolFault, http1
from servescope.protocols.http1 import BodyReader, parse_head
from tests.support.framing import CUTS, EVERY, chunked, cut, sized, unsized

OK = b"HTTP/1.1 200 OK"


def head(*lines: str, status: str = "HTTP/1.1 200 OK"):
    found = parse_head("\r\n".join([status, *lines, "", ""]).encode("latin-1"))
    assert found is not None
    return found


def fault_of(attempt) -> ProtocolFault:
    with pytest.raises(ProtocolFault) as fault:
        attempt()
    return fault.value


def unframe(raw: bytes, cuts=(), *, closed: bool = False) -> tuple[bytes, bool]:
    """Content of a response that comes in pieces, and whether its framing says that it ended."""
    found = parse_head(raw)
    assert found is not None
    body = BodyReader(found)
    content = b"".join(body.feed(piece) for piece in cut(raw[found.size :], cuts))
    if closed:
        body.close()
    return content, body.ended


# --- heads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "status", "http10"),
    [
        ("HTTP/1.1 200 OK", 200, False),
        ("HTTP/1.1 200 ", 200, False),
        ("HTTP/1.1 200", 200, False),
        ("HTTP/1.1 503 Service Unavailable", 503, False),
        ("HTTP/1.1 404 Nicht gefunden: ä", 404, False),
        ("HTTP/1.0 200 OK", 200, True),
        ("HTTP/1.1 599 ?", 599, False),
    ],
)
def test_status_lines_are_read(line, status, http10):
    found = head(status=line)
    assert (found.status, found.http10) == (status, http10)


@pytest.mark.parametrize(
    "line",
    [
        *("HTTP/1.1 20 OK", "HTTP/1.1 2000 OK", "HTTP/1.1 200OK", "HTTP/1.1  200 OK"),
        *("HTTP/1.1 -20 OK", "HTTP/1.1 2x0 OK", "HTTP/1.1", "HTTP/1.1 ", "HTTP/2 200 OK"),
        *("HTTP/1.2 200 OK", "http/1.1 200 OK", "ICY 200 OK", " HTTP/1.1 200 OK", "SSH-2.0-x"),
        *("HTTP/1.1 \u00b2\u00b2\u00b2 OK", "HTTP/1.1\t200 OK", "<html>"),
    ],
)
def test_other_status_lines_are_refused(line):
    assert fault_of(lambda: head(status=line)).kind == "protocol"


def test_what_is_no_http_is_refused_as_soon_as_it_shows():
    assert parse_head(b"SSH") is None
    assert "SSH-2.0" in str(fault_of(lambda: parse_head(b"SSH-2.0-OpenSSH_9.6\r\n")))


@pytest.mark.parametrize("size", range(len(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n")))
def test_a_head_is_not_read_before_it_is_whole(size):
    assert parse_head(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n"[:size]) is None


def test_names_of_headers_are_in_lower_case_and_values_without_outer_blanks():
    found = head("X-Queue-Time:  7\t", "EMPTY:", "colons:a:b", "Latin: \u00e9")
    assert found.headers == {"x-queue-time": "7", "empty": "", "colons": "a:b", "latin": "é"}


def test_repeated_headers_are_joined_by_a_comma():
    found = head("Via: a", "X: 1", "via: b", "VIA: c")
    assert found.headers == {"via": "a, b, c", "x": "1"}


def test_a_header_without_a_colon_is_refused():
    assert fault_of(lambda: head("good: 1", "bad")).kind == "protocol"


@pytest.mark.parametrize("line", [": 1", " : 1", "\t: 1"])
def test_a_header_without_a_name_is_refused(line):
    assert fault_of(lambda: head(line)).kind == "protocol"


def test_a_folded_header_is_one_value():
    found = head("X: one", "  two: 2", "\tthree", "Y: 1")
    assert found.headers == {"x": "one two: 2 three", "y": "1"}


def test_lines_of_a_head_may_end_with_lf_alone():
    raw = b"HTTP/1.1 200 OK\nA: b\r\nC: d\n\nbody\r\n\r\n"
    found = parse_head(raw)
    assert found is not None
    assert (found.headers, raw[found.size :]) == ({"a": "b", "c": "d"}, b"body\r\n\r\n")


@pytest.mark.parametrize("coding", ["gzip, chunked", "gzip", "chunked, gzip", "xchunked"])
def test_a_transfer_coding_that_was_not_asked_for_is_refused_by_name(coding):
    fault = fault_of(lambda: BodyReader(head(f"Transfer-Encoding: {coding}")))
    assert fault.kind == "protocol"
    assert "was not asked for" in str(fault)


def test_an_identity_transfer_coding_is_none():
    found = head("Transfer-Encoding: identity", "Content-Length: 3")
    assert (found.chunked, found.length) == (False, 3)


@pytest.mark.parametrize("interim", [b"100 Continue", b"102 Processing", b"103 Early Hints"])
def test_interim_responses_are_passed_over(interim):
    before = b"HTTP/1.1 %b\r\nLink: </a>\r\n\r\n" % interim * 2
    assert parse_head(before) is None
    found = parse_head(before + OK + b"\r\nContent-Length: 2\r\n\r\nok")
    assert found is not None
    assert (found.status, found.headers) == (200, {"content-length": "2"})
    assert found.size == len(before) + len(OK) + 23


def test_a_switch_of_protocols_is_final():
    assert head(status="HTTP/1.1 101 Switching Protocols").status == 101


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"])
def test_a_head_above_the_limit_is_refused(end):
    lines = b"\r\nX-%d: " + b"x" * 1000
    raw = OK + b"".join(lines % number for number in range(300)) + end
    assert len(raw) > http1.MAX_HEAD_BYTES
    assert fault_of(lambda: parse_head(raw)).kind == "too_large"


def test_a_header_line_above_the_limit_is_refused_and_one_below_is_not():
    assert head("X: " + "x" * (http1.MAX_LINE_BYTES - 3)).headers["x"]
    fault = fault_of(lambda: head("X: " + "x" * (http1.MAX_LINE_BYTES - 2)))
    assert fault.kind == "too_large"


@pytest.mark.parametrize(
    "length", ["", "-1", "+1", "1.0", "0x10", "ten", "1 2", "1,1", "\u00b2", "1_0", "5, 6"]
)
def test_a_bad_content_length_is_refused(length):
    assert fault_of(lambda: head(f"Content-Length: {length}")).kind == "protocol"


def test_content_lengths_that_differ_are_refused():
    assert fault_of(lambda: head("Content-Length: 1", "Content-Length: 2")).kind == "protocol"


@pytest.mark.parametrize(
    ("status", "lines", "length"),
    [
        ("200 OK", [], None),
        ("200 OK", ["Content-Length: 12"], 12),
        ("200 OK", ["Content-Length: 12", "Transfer-Encoding: chunked"], None),
        ("204 No Content", [], 0),
        ("304 Not Modified", ["Content-Length: 12"], 0),
        ("200 OK", ["Content-Length: 0"], 0),
    ],
)
def test_the_length_of_a_body_follows_from_its_head(status, lines, length):
    assert head(*lines, status=f"HTTP/1.1 {status}").length == length


@pytest.mark.parametrize(
    ("version", "connection", "keeps"),
    [
        ("1.1", None, True),
        ("1.1", "keep-alive", True),
        ("1.1", "Close", False),
        ("1.1", "keep-alive, close", False),
        ("1.0", None, False),
        ("1.0", "Keep-Alive", True),
        ("1.0", "close", False),
    ],
)
def test_whether_a_connection_is_kept_follows_from_the_version_and_its_header(
    version, connection, keeps
):
    lines = [] if connection is None else [f"Connection: {connection}"]
    assert head(*lines, status=f"HTTP/{version} 200 OK").keeps_alive is keeps


# --- framing --------------------------------------------------------------------------------------


@given(body=st.binary(max_size=200), inner=CUTS, outer=CUTS)
def test_a_body_comes_out_of_every_framing_wherever_reads_end(body, inner, outer):
    for framed in (
        chunked(OK, body, inner),
        chunked(OK, body, inner, b' ; name="a;b"'),
        sized(OK, body),
        unsized(OK, body),
    ):
        assert unframe(framed.raw, outer, closed=framed.closed) == (body, True)


@given(body=st.binary(max_size=200), inner=CUTS, outer=CUTS, cut_off=st.integers(1, 400))
def test_a_framed_body_that_is_cut_off_has_not_ended(body, inner, outer, cut_off):
    for framed in (chunked(OK, body, inner), sized(OK, body)):
        end = framed.raw.find(b"\r\n\r\n") + 4
        raw = framed.raw[: max(end, len(framed.raw) - cut_off)]
        if len(raw) < len(framed.raw):
            content, ended = unframe(raw, outer, closed=True)
            assert body.startswith(content)
            assert not ended


CHUNKED = OK + b"\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("raw", "content"),
    [
        (b"0\r\n\r\n", b""),
        (b"000\r\n\r\n", b""),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"005\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n", b"0123456789" * 2),
        (b'2;x\r\nab\r\n1 ;y="z"\r\nc\r\n0;last\r\n\r\n', b"abc"),
        (b"2\r\n\r\n\r\n0\r\n\r\n", b"\r\n"),
        (b"1\r\na\r\n0\r\nExpires: never\r\nX-Time: 7\r\n\r\n", b"a"),
    ],
)
@pytest.mark.parametrize("cuts", [(), EVERY], ids=["whole", "byte by byte"])
def test_chunked_bodies_are_read(raw, content, cuts):
    assert unframe(CHUNKED + raw, cuts) == (content, True)


BAD_CHUNKS = {
    "no size": b"\r\nhello\r\n",
    "not hexadecimal": b"5g\r\nhello\r\n",
    "a sign": b"+5\r\nhello\r\n",
    "a negative size": b"-5\r\nhello\r\n",
    "an underscore": b"0_5\r\nhello\r\n",
    "two numbers": b"5 5\r\nhello\r\n",
    "only an extension": b";a=b\r\nhello\r\n",
    "a chunk that is longer than its size": b"4\r\nhello\r\n",
    "a chunk that is shorter than its size": b"6\r\nhello\r\n0\r\n\r\n",
    "a chunk that ends with LF": b"5\r\nhello\n0\r\n\r\n",
    "a chunk that ends with CR and something": b"5\r\nhello\rx",
    "no framing at all": b'data: {"choices":[]}\n\ndata: [DONE]\r\n\r\n',
    "bytes after the last chunk": b"5\r\nhello\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n",
    "another last chunk": b"0\r\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", BAD_CHUNKS)
@pytest.mark.parametrize("cuts", [(), EVERY], ids=["whole", "byte by byte"])
def test_bad_chunks_are_refused(name, cuts):
    raw = CHUNKED + BAD_CHUNKS[name]
    assert fault_of(lambda: unframe(raw, cuts)).kind == "protocol"


def test_a_size_line_without_end_is_refused():
    raw = CHUNKED + b"5;" + b"x" * (http1.MAX_LINE_BYTES + 1)
    assert fault_of(lambda: unframe(raw)).kind == "too_large"
    assert fault_of(lambda: unframe(raw, range(0, len(raw), 1000))).kind == "too_large"


def test_content_comes_out_of_a_chunk_before_the_chunk_is_whole():
    body = BodyReader(head("Transfer-Encoding: chunked"))
    assert [body.feed(p) for p in (b"5\r", b"\nhe", b"l", b"lo", b"\r", b"\n0\r\n\r\n")] == [
        *(b"", b"he", b"l", b"lo", b"", b"")
    ]
    assert body.ended


@pytest.mark.parametrize("line", ["Content-Length: 5", "Transfer-Encoding: chunked"])
def test_the_close_does_not_end_a_body_whose_framing_goes_on(line):
    body = BodyReader(head(line))
    body.feed(b"4\r\n")
    body.close()
    assert not body.ended


def test_more_bytes_than_the_content_length_are_refused():
    raw = OK + b"\r\nContent-Length: 5\r\n\r\nhello!"
    assert fault_of(lambda: unframe(raw)).kind == "protocol"
    assert fault_of(lambda: unframe(raw, EVERY)).kind == "protocol"


def test_a_body_where_none_may_be_is_refused():
    raw = b"HTTP/1.1 204 No Content\r\n\r\nx"
    assert fault_of(lambda: unframe(raw)).kind == "protocol"


def test_no_bytes_after_the_end_are_no_fault():
    body = BodyReader(head("Content-Length: 0"))
    assert body.ended
    assert body.feed(b"") == b""


def test_an_http_1_0_body_ends_with_the_close():
    raw = b"HTTP/1.0 200 OK\r\n\r\nhello"
    assert unframe(raw) == (b"hello", False)
    assert unframe(raw, closed=True) == (b"hello", True)


# --- compression ----------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "GZIP", "deflate"])
@given(body=st.binary(max_size=200), inner=CUTS, outer=CUTS)
def test_a_compressed_body_is_read_wherever_reads_end(coding, body, inner, outer):
    packed = zlib.compress(body) if coding == "deflate" else gzip.compress(body)
    lines = OK + b"\r\nContent-Encoding: " + coding.encode()
    for framed in (chunked(lines, packed, inner), sized(lines, packed), unsized(lines, packed)):
        assert unframe(framed.raw, outer, closed=framed.closed) == (body, True)


def test_compressed_content_comes_out_at_every_flush():
    body, pack = BodyReader(head("Content-Encoding: gzip")), zlib.compressobj(wbits=31)
    for event in (b"data: a\n\n", b"data: b\n\n"):
        assert body.feed(pack.compress(event) + pack.flush(zlib.Z_SYNC_FLUSH)) == event


def test_a_compressed_body_that_grows_beyond_reason_is_refused():
    pack = zlib.compressobj(9, wbits=31)
    bomb = b"".join(pack.compress(bytes(1 << 20)) for _ in range(80)) + pack.flush()
    raw = sized(OK + b"\r\nContent-Encoding: gzip", bomb).raw
    assert len(bomb) < 100_000
    assert fault_of(lambda: unframe(raw)).kind == "too_large"
    assert fault_of(lambda: unframe(raw, range(0, len(raw), 1000))).kind == "too_large"


def test_bytes_that_are_not_compressed_as_stated_are_refused():
    raw = sized(OK + b"\r\nContent-Encoding: gzip", b"hello").raw
    assert fault_of(lambda: unframe(raw)).kind == "protocol"


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, br", "unknown"])
def test_a_coding_that_was_not_asked_for_is_refused(coding):
    found = head(f"Content-Encoding: {coding}")
    assert fault_of(lambda: BodyReader(found)).kind == "protocol"


@given(raw=st.binary(max_size=200), cuts=CUTS)
def test_no_bytes_raise_anything_but_a_fault(raw, cuts):
    for start in (b"", OK + b"\r\n", CHUNKED, OK + b"\r\nContent-Encoding: gzip\r\n\r\n"):
        with suppress(ProtocolFault):
            if parse_head(start + raw) is not None:
                unframe(start + raw, cuts)


@pytest.mark.parametrize("cut", [1, 4, 9])
def test_a_compressed_body_that_is_cut_is_not_whole_though_its_framing_ends(cut):
    packed = gzip.compress(b"data: x\n\n" * 20)[:-cut]
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n"
    reader = BodyReader(parse_head(head.encode()))
    reader.feed(packed)
    assert reader.ended
    assert not reader.whole
