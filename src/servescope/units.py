"""Words for quantities, '5m' read and 12.3 ms printed; and words from elsewhere made printable."""

from __future__ import annotations

import math
import re

from servescope.errors import BadInput

_SECONDS = {
    "ns": 1e-9,
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "": 1.0,
    "m": 60.0,
    "min": 60.0,
    "h": 3600.0,
}
_DURATION = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([a-z]*)")


def parse_duration_s(field: str, text: str) -> float:
    """Seconds in '90', '90s', '200ms', '1.5m' or '1h'; raises BadInput naming `field`."""
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None or match[2] not in _SECONDS:
        raise BadInput(field, text, "want a time such as 30s, 200ms, 5m or 1h")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if not math.isfinite(seconds):
        raise BadInput(field, text, "want a finite time such as 30s")
    return seconds


def format_seconds(seconds: float) -> str:
    """Seconds for people, in three digits: '12.3 ms', '1.50 s', '2 m 05 s'."""
    size = abs(seconds)
    if math.isnan(seconds):
        return "-"
    if size >= 119.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} m {rest:02d} s"
    if size >= 0.9995:
        return f"{three_digits(seconds)} s"
    if size >= 0.9995e-3 or size == 0:
        return f"{three_digits(seconds * 1e3)} ms"
    return f"{three_digits(seconds * 1e6)} us"


def three_digits(value: float) -> str:
    """A number to three significant digits, never in exponent form: 0.123, 1.23, 12.3, 1234."""
    if not math.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value) * (1 + 5e-4))))
    return f"{value:,.{min(decimals, 6)}f}"


def printable(text: str) -> str:
    """Text from elsewhere with control and other unprintable characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
