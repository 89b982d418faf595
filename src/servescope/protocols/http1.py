"""HTTP/1.1 responses as functions of bytes: the head, and the body out of its framing."""

from __future__ import annotations

import zlib
from functools import lru_cache

import msgspec

from servescope.protocols import ProtocolFault

_HEX = b"0123456789abcdefABCDEF"
MAX_HEAD_BYTES = 256 << 10
MAX_LINE_BYTES = 64 << 10
MAX_BODY_BYTES = 64 << 20
MAX_RATIO, RATIO_FREE_BYTES = 256, 1 << 20
"""A compressed body may grow by this factor; the first megabyte of it, by any."""
LOWER, UPPER = b"%x\r\n", b"%X\r\n"
"""How servers write the size of a chunk."""


class Head(msgspec.Struct, frozen=True):
    """Status line and headers of a response."""

    status: int
    headers: dict[str, str]
    """Names in lower case; repeated ones joined by a comma."""
    size: int
    """Bytes up to the body, interim (1xx) responses included."""
    http10: bool

    @property
    def transfer_codings(self) -> list[str]:
        """What was done to the body for its transfer, in this order."""
        codings = self.headers.get("transfer-encoding", "").lower().split(",")
        return [coding.strip() for coding in codings if coding.strip() not in ("", "identity")]

    @property
    def chunked(self) -> bool:
        """Whether the body ends with a zero chunk."""
        return self.transfer_codings[-1:] == ["chunked"]

    @property
    def length(self) -> int | None:
        """Length of the body where it is stated; None when chunked or ended by the close."""
        if self.status in (204, 304):
            return 0
        if self.chunked:
            return None
        text = self.headers.get("content-length")
        return int(text) if text is not None else None

    @property
    def keeps_alive(self) -> bool:
        """Whether the connection may carry another request afterwards."""
        tokens = self.headers.get("connection", "").lower()
        return "close" not in tokens and (not self.http10 or "keep-alive" in tokens)


def parse_head(data: bytes | bytearray) -> Head | None:
    """The head of the response that `data` begins with; None while it is not whole.

    Raises ProtocolFault for what is no HTTP/1 response, or a head beyond the limits.
    """
    start = 0
    while True:
        if len(data) - start >= 5 and not data.startswith(b"HTTP/", start, start + 5):
            raise ProtocolFault("protocol", f"not HTTP: {bytes(data[start : start + 80])!r}")
        end, body = _end_of_head(data, start)
        if (len(data) if end < 0 else end) > MAX_HEAD_BYTES:
            raise ProtocolFault("too_large", f"response head above {MAX_HEAD_BYTES:,} bytes")
        if end < 0:
            return None
        head = _head(bytes(data[start:end]), body)
        if head.status >= 200 or head.status == 101:
            return head
        start = body


def _end_of_head(data: bytes | bytearray, start: int) -> tuple[int, int]:
    """Where the last line of a head ends, -1 while it has not, and where the body begins.

    Lines may end with LF alone (RFC 9112, section 2.2).
    """
    crlf = data.find(b"\n\r\n", start)
    lf = data.find(b"\n\n", start, len(data) if crlf < 0 else crlf)
    return (crlf, crlf + 3) if lf < 0 else (lf, lf + 2)


@lru_cache(maxsize=1 << 6)  # a server sends the same one for a second, until its Date changes
def _head(text: bytes, size: int) -> Head:
    first, *lines = (line.removesuffix(b"\r") for line in text.split(b"\n"))
    version, _, rest = first.partition(b" ")
    code = rest[:3]
    numbered = code.isdigit() and code >= b"100" and not rest[3:4].strip()
    if version not in (b"HTTP/1.1", b"HTTP/1.0") or not numbered:
        raise ProtocolFault("protocol", f"bad status line: {first[:80]!r}")
    headers: dict[str, str] = {}
    key = ""
    for line in lines:
        if len(line) > MAX_LINE_BYTES:
            raise ProtocolFault("too_large", f"header line above {MAX_LINE_BYTES:,} bytes")
        text_line = line.decode("latin-1")
        if key and text_line[:1] in " \t":  # folded, as RFC 9112 lets a client undo (5.2)
            headers[key] = f"{headers[key]} {text_line.strip()}".strip()
            continue
        name, colon, value = text_line.partition(":")
        key, value = name.strip().lower(), value.strip()
        if not colon or not key:
            raise ProtocolFault("protocol", f"bad header line: {line[:80]!r}")
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit() and len(length) < 19):
        raise ProtocolFault("protocol", f"bad content-length: {length[:80]!r}")
    return Head(int(code), headers, size, version == b"HTTP/1.0")


class BodyReader:
    """Takes the framing (chunks, length, end by close) and the compression off a body."""

    def __init__(self, head: Head) -> None:
        codings = head.transfer_codings
        self._unframe = Chunks() if codings[-1:] == ["chunked"] else None
        self._left = head.length
        self.ended = self._left == 0
        if other := [coding for coding in codings if coding != "chunked"]:
            message = f"transfer coding {other[0][:40]!r} was not asked for"
            raise ProtocolFault("protocol", message)
        coding = head.headers.get("content-encoding", "identity").lower().strip()
        if coding not in ("identity", "", "gzip", "x-gzip", "deflate"):
            raise ProtocolFault("protocol", f"content-encoding {coding[:40]!r} was not asked for")
        self._inflate = zlib.decompressobj(47) if coding in ("gzip", "x-gzip", "deflate") else None
        self._deflated = self._inflated = 0

    def feed(self, data: bytes) -> bytes:
        """The content in `data`. Raises ProtocolFault."""
        if self.ended:
            if data:
                raise ProtocolFault("protocol", f"bytes after the end: {data[:80]!r}")
            return b""
        if self._unframe is not None:
            data = self._unframe.feed(data)
            self.ended = self._unframe.ended
        elif self._left is not None:
            if len(data) > self._left:
                raise ProtocolFault("protocol", "more bytes than the content-length says")
            self._left -= len(data)
            self.ended = self._left == 0
        return data if self._inflate is None else self._decompress(data)

    @property
    def fresh(self) -> bool:
        """Whether it would read what follows as a new one would, and as often as it likes."""
        if self._inflate is not None or self.ended:
            return False
        return self._left is None if self._unframe is None else self._unframe.fresh

    def close(self) -> None:
        """The connection was closed by the server: the end of a body that states no length."""
        if self._left is None and self._unframe is None:
            self.ended = True

    @property
    def whole(self) -> bool:
        """Whether the framing has ended, and the compressed content in it too."""
        packed = self._inflate is not None and self._deflated and not self._inflate.eof
        return self.ended and not packed

    def _decompress(self, data: bytes) -> bytes:
        assert self._inflate is not None  # noqa: S101 (for the type checker)
        self._deflated += len(data)
        most = min(MAX_BODY_BYTES, max(RATIO_FREE_BYTES, MAX_RATIO * self._deflated))
        try:
            content = self._inflate.decompress(data, most - self._inflated + 1)
        except zlib.error as error:
            raise ProtocolFault("protocol", f"bad compressed body: {error}") from None
        self._inflated += len(content)
        if self._inflated > most:
            grown = f"{MAX_BODY_BYTES:,} bytes or {MAX_RATIO} times its size"
            raise ProtocolFault("too_large", f"body decompresses to more than {grown}")
        return content


@lru_cache(maxsize=1 << 12)
def chunk_line(size: int, form: bytes) -> bytes:
    """The first line of a chunk of `size` bytes with this line and all.

    `form` is LOWER or UPPER. No chunk has 21 bytes, say: then it is what no such chunk begins with.
    """
    for digits in range(1, 7):
        line = form % max(0, size - digits - 4)
        if len(line) == digits + 2 and size > digits + 4:
            return line
    return b"\n" * (size + 1)


class Chunks:
    """The chunked transfer coding, strictly (RFC 9112, section 7.1)."""

    def __init__(self) -> None:
        self.ended = False
        self._rest = b""
        self._need = 0
        """Bytes of the current chunk still to come, its CRLF included."""
        self._trailers = False

    @property
    def fresh(self) -> bool:
        """Whether a chunk begins here."""
        return not (self._need or self._rest or self._trailers or self.ended)

    def feed(self, data: bytes) -> bytes:
        """The content in `data`. Raises ProtocolFault."""
        opening = chunk_line(len(data), LOWER)
        if data.startswith(opening) and data.endswith(b"\r\n") and self.fresh:
            return data[len(opening) : -2]  # one whole chunk, as most reads are
        out: list[bytes] = []
        at, size = 0, len(data)
        if not self._need and self._rest:
            data, self._rest = self._rest + data, b""
            size = len(data)
        while at < size and not self.ended:
            if self._need:
                at = self._take(data, at, out)
                continue
            end = data.find(b"\r\n", at)
            if end < 0:
                self._rest = data[at:]
                if len(self._rest) > MAX_LINE_BYTES:
                    raise ProtocolFault("too_large", "a chunk's size line has no end")
                break
            self._line(data[at:end])
            at = end + 2
        if self.ended and at < size:
            raise ProtocolFault("protocol", f"bytes after the last chunk: {data[at : at + 80]!r}")
        return out[0] if len(out) == 1 else b"".join(out)

    def _take(self, data: bytes, at: int, out: list[bytes]) -> int:
        end = min(at + self._need, len(data))
        body_end = min(end, at + max(0, self._need - 2))
        if body_end > at:
            out.append(data[at:body_end])
        if b"\r\n"[2 - self._need + (body_end - at) :][: end - body_end] != data[body_end:end]:
            raise ProtocolFault("protocol", "a chunk is longer than its size says")
        self._need -= end - at
        return end

    def _line(self, line: bytes) -> None:
        if self._trailers:
            self.ended = not line
            return
        digits = line.partition(b";")[0].strip()
        try:
            chunk = int(digits, 16) if not digits.strip(_HEX) else -1
        except ValueError:
            chunk = -1
        if chunk < 0:
            raise ProtocolFault("protocol", f"bad chunk size: {line[:80]!r}")
        if chunk > MAX_BODY_BYTES:
            raise ProtocolFault("too_large", f"a chunk of {chunk:,} bytes is announced")
        if chunk:
            self._need = chunk + 2
        else:
            self._trailers = True
