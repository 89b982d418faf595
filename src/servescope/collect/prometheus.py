"""Pages of metrics in the Prometheus text format 0.0.4, as every engine serves them.

Names, labels and values stay as the page has them. A time stamp is passed over, for the sample has
that of the reading, and so are an exemplar, a comment and the series `..._created`. What is no such
line is counted and left out.
"""

from __future__ import annotations

import http.client
import re
import time
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from servescope.collect import Collector, Reading, seconds

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_BYTES = 16 << 20

# Nothing here is ever tried in two ways (*+, ++, ?+), so that no page can make it slow.
_LABEL = r'[ \t]*+[a-zA-Z_]\w*+[ \t]*+=[ \t]*+"(?:[^"\\]|\\.)*+"[ \t]*+'
_LINE = re.compile(
    r"[ \t]*+([a-zA-Z_:][\w:]*+)"
    rf"(?:[ \t]*+\{{((?:{_LABEL},)*+(?:{_LABEL})?+)[ \t]*+\}}[ \t]*+|[ \t]++)"
    r"([-+.0-9a-zA-Z]++)"
    r"(?:[ \t]++[-+.0-9eE]++)?+[ \t\r]*+(?:#.*+)?",
    re.ASCII,
)
_PAIR = re.compile(r'(\w+)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*+)"', re.ASCII)
_ESCAPE = re.compile(r'\\([\\"n])')


class Prometheus(Collector, frozen=True, tag="prometheus"):
    """A page of metrics in Prometheus's text format, under its own names."""

    url: str
    timeout: float | str = 1.0
    """For the whole page: seconds, or a text such as '200ms'."""

    def __post_init__(self) -> None:
        _split(self.url)
        seconds("timeout", self.timeout)

    @property
    def source(self) -> str:
        """With host, port and path, for there may be several servers."""
        where = _split(self.url)
        return f"prometheus:{where.netloc}{where.path}"

    def read(self) -> Iterable[Reading]:
        """Fetch the page. Raises OSError, HTTPException or ValueError."""
        page = _get(_split(self.url), seconds("timeout", self.timeout))
        readings, bad_lines = parse_page(page.decode(errors="replace"))
        if not readings:
            raise ValueError("no metric there: want a page in the Prometheus text format")
        return [*readings, Reading("collect_bad_lines", bad_lines)] if bad_lines else readings


def parse_page(text: str) -> tuple[list[Reading], int]:
    """The readings on a page, and how many of its lines are none that can be understood."""
    readings: list[Reading] = []
    *lines, rest = text.split("\n")
    bad_lines = int(bool(rest.strip()))  # a last line without its end may have been cut
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            bad_lines += 1
            continue
        name, labels, value = found.groups()
        try:
            reading = Reading(name, float(value), _labels(labels or ""))
        except ValueError:
            bad_lines += 1
            continue
        if not name.endswith("_created"):  # when a counter began: no measurement
            readings.append(reading)
    return readings, bad_lines


def _labels(text: str) -> dict[str, str]:
    return {name: _ESCAPE.sub(_unescape, value) for name, value in _PAIR.findall(text)}


def _unescape(found: re.Match[str]) -> str:
    return "\n" if found[1] == "n" else found[1]


def _split(url: str) -> SplitResult:
    """A URL's parts, the path `/metrics` where it has none. Raises ValueError."""
    want = "want a URL such as http://127.0.0.1:8000/metrics"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        raise ValueError(want) from None
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(want)
    if parts.username is not None:
        raise ValueError(f"{want}, without user and password")
    return parts._replace(path=parts.path or "/metrics", fragment="")


def _get(where: SplitResult, timeout_s: float) -> bytes:
    """The page; no key is sent, and no proxy and no redirect is followed."""
    until_s = time.monotonic() + timeout_s
    tls = where.scheme == "https"
    kind = http.client.HTTPSConnection if tls else http.client.HTTPConnection
    connection = kind(where.hostname or "", where.port, timeout=timeout_s)
    try:
        path = where.path + (f"?{where.query}" if where.query else "")
        headers = {"Accept": "text/plain;version=0.0.4", "Accept-Encoding": "identity"}
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise ValueError(f"HTTP {response.status} {response.reason}")
        return _body(response, until_s)
    finally:
        connection.close()


def _body(response: http.client.HTTPResponse, until_s: float) -> bytes:
    """The whole body, in time and within its size."""
    body = bytearray()
    while piece := response.read1(1 << 16):
        body += piece
        if len(body) > MAX_BYTES:
            raise ValueError(f"the page is larger than {MAX_BYTES >> 20} MiB")
        if time.monotonic() > until_s:
            raise TimeoutError("timed out")
    if response.length:
        raise ValueError(f"the page ended {response.length} bytes early")
    return bytes(body)
