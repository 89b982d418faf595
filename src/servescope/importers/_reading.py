"""Files of other tools, read with care: whatever is wrong with one is one line that names it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from servescope.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from servescope.importers import Figure

    Floats = NDArray[np.float64]

T = TypeVar("T")

_MOST_MIB = 256
_NO_JSON = re.compile(rb"(?<=[\s:,\[])(?:-?Infinity|NaN)(?=\s*[,\]}])")
"""What Python writes for a number that is none. Inside a text it may be replaced too: the texts in
a result file are not read."""
_ONE_A_CHUNK = 0.01
"""Tokens and chunks whose ratio is so near to 1: each chunk was a token."""
_PERCENTILES = {"p50": 50, "p90": 90, "p95": 95, "p99": 99}


def wrong(path: Path, want: str) -> BadInput:
    """The error for a result file that cannot be read."""
    return BadInput("result file", path, want)


def content(path: Path) -> bytes:
    """The file's bytes. Raises BadInput where it cannot be read or is too large."""
    try:
        if path.stat().st_size > _MOST_MIB << 20:
            raise wrong(path, f"want at most {_MOST_MIB} MiB; keep a result without the details")
        return path.read_bytes()
    except OSError as error:
        raise wrong(path, f"want a file that can be read: {error.strerror}") from None


def documents(path: Path, kind: type[T]) -> list[T]:
    """The JSON document that the file is, or one a line. Raises BadInput where it is neither."""
    data = content(path)
    try:
        try:
            return _decoded(data, kind)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            if not _NO_JSON.search(data):
                raise
            return _decoded(_NO_JSON.sub(b"null", data), kind)
    except msgspec.ValidationError as error:
        raise wrong(path, f"want the tool's own keys and types: {_lower(error)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise wrong(path, f"want whole JSON: {_lower(error)}") from None
    except RecursionError:
        raise wrong(path, "want JSON that is not nested so deeply") from None


def _decoded(data: bytes, kind: type[T]) -> list[T]:
    # Of one document a line, a line of its own is the whole first one.
    first, _, rest = data.lstrip().partition(b"\n")
    decoder = msgspec.json.Decoder(kind)
    if not rest.strip():
        return [decoder.decode(data)]
    try:
        msgspec.json.decode(first, type=msgspec.Raw)
    except msgspec.DecodeError:
        return [decoder.decode(data)]
    return decoder.decode_lines(data)


def _lower(error: Exception) -> str:
    text = str(error)
    return text[:1].lower() + text[1:]


class Keys:
    """A JSON object of which each key is decoded when it is asked for, and no other is."""

    def __init__(self, path: Path, raw: Mapping[str, msgspec.Raw]) -> None:
        self._path, self._raw = path, raw

    @classmethod
    def of(cls, path: Path) -> list[Keys]:
        """The objects in a file: one document, or one a line."""
        return [cls(path, raw) for raw in documents(path, dict[str, msgspec.Raw])]

    def lacking(self, names: Iterable[str]) -> str:
        """A note on those of the keys that are not there; '' where all are."""
        missing = [name for name in names if name not in self._raw]
        return f"the file lacks {', '.join(missing)}" if missing else ""

    def get(self, name: str, kind: type[T]) -> T | None:
        """What a key holds; None where it is not there or null. Raises BadInput naming the key."""
        raw = self._raw.get(name)
        if raw is None or bytes(raw) == b"null":
            return None
        try:
            return msgspec.json.decode(raw, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise wrong(self._path, f"want the tool's own {name}: {_lower(error)}") from None

    def number(self, name: str) -> float | None:
        """A finite number; None where there is none."""
        return finite(self.get(name, float))

    def word(self, name: str) -> str:
        """A text or a number, as a text; '' where there is none."""
        raw = self._raw.get(name, msgspec.Raw(b""))
        if bytes(raw)[:1] == b'"':
            return self.get(name, str) or ""
        found = self.number(name)
        return "" if found is None else f"{found:g}"


def finite(value: float | None) -> float | None:
    """The number where it is one."""
    return value if value is not None and math.isfinite(value) else None


def statistics(said: Mapping[str, float | None], scale: float = 1.0) -> dict[str, float]:
    """Those of the statistics that are there, in units of ours: each times `scale`."""
    return {
        name: value if name == "n" else value * scale
        for name, value in said.items()
        if finite(value) is not None and value is not None
    }


def spread(values: Floats) -> dict[str, float]:
    """The statistics of all values, by our own rules; {} where there are none. NaN is no value."""
    import numpy as np  # noqa: PLC0415 (importing this module must not import numpy)

    there = values[~np.isnan(values)]
    if not len(there):
        return {}
    found = {"n": float(len(there)), "mean": float(there.mean()), "min": float(there.min())}
    at = np.percentile(there, list(_PERCENTILES.values()))
    return {**found, **dict(zip(_PERCENTILES, at.tolist(), strict=True)), "max": float(there.max())}


def of_gaps(gaps_s: Floats, output_tokens: Floats) -> dict[str, Figure]:
    """The figures of gaps between chunks, of all requests; tokens of each request.

    Where each chunk was a token, the gaps between chunks are those between tokens.
    """
    import numpy as np  # noqa: PLC0415

    if not len(gaps_s):
        return {}
    ratio = float(np.nansum(output_tokens)) / (len(gaps_s) + len(output_tokens))
    found: dict[str, Figure] = {"icl_s": spread(gaps_s), "tokens_per_chunk": ratio}
    if abs(ratio - 1) <= _ONE_A_CHUNK:
        found["itl_s"] = found["icl_s"]
    return found


def floats(values: Iterable[float | None]) -> Floats:
    """As an array, NaN for what is not there."""
    import numpy as np  # noqa: PLC0415

    return np.array([math.nan if value is None else value for value in values], np.float64)


def users(count: float) -> str:
    """A closed load in our words."""
    return f"users:{count:g}"


def arrivals(kind: str, rate: float) -> str:
    """An open load in our words."""
    return f"{kind}:{rate:g}"


def told(definitions: Mapping[str, str], stages: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The definitions of the figures that any of the stages has."""
    there = {name for figures in stages for name in figures}
    return {name: text for name, text in definitions.items() if name in there}
