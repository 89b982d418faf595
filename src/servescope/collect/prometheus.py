"""Pages of metrics in the Prometheus text format 0.0.4, as every engine serves them.

Names, labels and values stay as the page has them. A time stamp is passed over, for the sample has
that of the reading, and so are an exemplar, a comment and the series `..._created`. What is no such
line is counted and left out.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import urlsplit

from servescope.client.address import Address
from servescope.client.once import exchange
from servescope.collect import Absent, Collector, Reading, seconds

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
        _address(self.url)
        seconds("timeout", self.timeout)

    @property
    def source(self) -> str:
        """With host, port, path and query, for there may be several."""
        return source_of(*self.place)

    @property
    def place(self) -> tuple[Address, str]:
        """Where the page is, and its path with its query."""
        return _address(self.url)

    @property
    def timeout_s(self) -> float:
        """`timeout` in seconds."""
        return seconds("timeout", self.timeout)

    def reader(self) -> Callable[[], Iterable[Reading]]:
        """Fetches the page; no key is sent and no proxy is used. It raises OSError, or Absent."""
        address, path = self.place
        context = ssl.create_default_context() if address.scheme == "https" else None
        return lambda: fetch(address, path, context=context, headers={}, timeout_s=self.timeout_s)


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


def _address(url: str) -> tuple[Address, str]:
    """Where a page is, and its path with its query: `/metrics` where it has none.

    Raises ValueError.
    """
    want = "want a URL such as http://127.0.0.1:8000/metrics"
    try:
        parts = urlsplit(url)
        port = (443 if parts.scheme == "https" else 80) if parts.port is None else parts.port
    except ValueError:
        raise ValueError(want) from None
    usable = parts.scheme in ("http", "https") and parts.hostname and port
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(want)
    if parts.username is not None:
        raise ValueError(f"{want}, without user and password")
    path = (parts.path or "/metrics") + (f"?{parts.query}" if parts.query else "")
    host = parts.hostname or ""
    return Address(scheme=parts.scheme, host=host, port=port, prefix=""), path


def source_of(address: Address, path: str) -> str:
    """The name of a page as a source: with all that tells it from another of the same server."""
    return f"prometheus:{address.path or address.netloc}{path}"


def fetch(
    address: Address,
    path: str,
    *,
    context: ssl.SSLContext | None,
    headers: Mapping[str, str],
    timeout_s: float,
    hide: Callable[[str], str] = str,
) -> list[Reading]:
    """The readings on a page; no redirect is followed. Raises OSError, or Absent.

    `hide` takes secrets out of what the server says, should it repeat them.
    """
    wanted = {"Accept": "text/plain;version=0.0.4", "Accept-Encoding": "identity"}
    try:
        status, body = exchange(
            address,
            context,
            method="GET",
            path=path,
            headers={**wanted, "User-Agent": "servescope", **headers},
            timeout_s=timeout_s,
            whole=MAX_BYTES,
        )
    except OSError as error:
        raise OSError(hide(error.strerror or str(error))) from error
    if status != 200:
        raise Absent(f"HTTP {status}")
    readings, bad_lines = parse_page(hide(body.decode(errors="replace")))
    if not readings:
        raise Absent("no metric there: want a page in the Prometheus text format")
    return [*readings, Reading("collect_bad_lines", bad_lines)] if bad_lines else readings
