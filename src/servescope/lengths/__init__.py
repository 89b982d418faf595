"""How long prompts and answers are: distributions of whole numbers of tokens, never below 1.

Laws are in `laws.py`, lengths drawn from a file in `files.py`.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec

from servescope.errors import BadInput
from servescope.lengths.files import Empirical, Pairs
from servescope.lengths.laws import Exponential, Fixed, Lognormal, Normal, Uniform, demand
from servescope.plugins import one_of, split
from servescope.seeds import generator
from servescope.traces import MOST_TOKENS, read_lengths, read_pairs

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    _Parts = list[tuple[str, str]]

__all__ = [
    "MOST_TOKENS",
    "Empirical",
    "Exponential",
    "Fixed",
    "Lengths",
    "Lognormal",
    "Normal",
    "Pairs",
    "Uniform",
    "at",
    "joint",
    "parse",
]

_BLOCK = 1024
_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)(e[-+]?\d{1,3})?", re.ASCII)
_RANGE = re.compile(r"(\d{1,15})-(\d{1,15})", re.ASCII)
_CUSTOMARY = (
    "want a length such as 512, uniform:1-512, normal:mean=256,std=64 or exponential:mean=128"
)

Lengths = Fixed | Uniform | Normal | Lognormal | Exponential | Empirical | Pairs


def parse(field: str, text: str) -> Lengths:
    """The distribution `text` asks for; raises BadInput naming `field`.

    >>> parse("--input-tokens", "uniform:1-512")
    Uniform(low=1, high=512)
    """
    name, parts = split(field, text)
    read = _FORMS.get(name)
    try:
        return read(parts) if read else _fixed(name, parts)
    except ValueError as error:
        raise BadInput(field, text, str(error)) from None
    except BadInput as error:  # in a file
        raise BadInput(field, error.value, error.want) from None


def joint(inputs: Lengths | None, outputs: Lengths | None) -> tuple[Lengths | None, Lengths | None]:
    """The lengths of prompts and answers, where `pairs` for prompts are for both.

    An answer has the length that stands beside its prompt's unless the user wants another.
    """
    if outputs is None and isinstance(inputs, Pairs):
        outputs = inputs
    if isinstance(outputs, Pairs):
        outputs = msgspec.structs.replace(outputs, output=True)
    return inputs, outputs


def at(lengths: Lengths, seed: int, purpose: str, index: int) -> int:
    """Length of item `index` in tokens: a pure function of the arguments.

    `purpose` keeps apart what has the same seed, such as 'input' and 'output'; not for `Pairs`,
    whose item has the same row for all purposes.
    """
    block, place = divmod(index, _BLOCK)
    purpose = "pairs" if isinstance(lengths, Pairs) else purpose
    return int(_block(lengths, seed, purpose, block)[place])


@lru_cache(maxsize=256)
def _block(lengths: Lengths, seed: int, purpose: str, block: int) -> NDArray[np.int64]:
    return lengths.draw(generator(seed, purpose, block), _BLOCK)


def _fixed(name: str, parts: _Parts) -> Fixed:
    if parts or not name.isascii() or not name.isdigit() or len(name) > 15:
        raise ValueError(_CUSTOMARY if name[:1] in "-+.0123456789" else _unknown(name))
    return Fixed(int(name))


def _unknown(name: str) -> str:
    return f"want a number of tokens, or {one_of(name, _FORMS)}"


def _uniform(parts: _Parts) -> Uniform:
    match = _RANGE.fullmatch(parts[0][1]) if len(parts) == 1 and not parts[0][0] else None
    if match is None:
        raise ValueError("want uniform:LOW-HIGH, such as uniform:1-512")
    return Uniform(int(match[1]), int(match[2]))


def _normal(parts: _Parts) -> Normal:
    return Normal(*_bounded(parts, "mean", "std"))


def _lognormal(parts: _Parts) -> Lognormal:
    if not dict(parts).keys() & {"median", "sigma"}:
        return Lognormal(*_bounded(parts, "mean", "std"))
    median, sigma, least, most = _bounded(parts, "median", "sigma")
    demand(sigma <= 5, "want sigma from 0 to 5")
    mean = median * math.exp(sigma**2 / 2)
    return Lognormal(mean, mean * math.sqrt(math.expm1(sigma**2)), least, most)


def _bounded(parts: _Parts, *keys: str) -> tuple[float, float, int | None, int | None]:
    """The two numbers of a law, and the bounds that may be given too."""
    given = _known(parts, (*keys, "min", "max"), needed=keys)
    first, second = (_number(key, given[key]) for key in keys)
    return first, second, _bound("min", given), _bound("max", given)


def _exponential(parts: _Parts) -> Exponential:
    given = _known(parts, ("mean", "max", "beyond"), needed=("mean",))
    mean = _number("mean", given["mean"])
    return Exponential(mean, _bound("max", given), given.get("beyond", "clip"))


def _empirical(parts: _Parts) -> Empirical:
    path, rest = _path(parts)
    column = _known(rest, ("column",), needed=()).get("column")
    return Empirical(path, read_lengths("", path, column), column)


def _pairs(parts: _Parts) -> Pairs:
    path, rest = _path(parts)
    _known(rest, (), needed=())
    return Pairs(path, read_pairs("", path))


def _path(parts: _Parts) -> tuple[str, _Parts]:
    if not parts or parts[0][0]:
        raise ValueError("want a file: empirical:FILE or pairs:FILE")
    return parts[0][1], parts[1:]


_FORMS: dict[str, Callable[[_Parts], Lengths]] = {
    "uniform": _uniform,
    "normal": _normal,
    "lognormal": _lognormal,
    "exponential": _exponential,
    "empirical": _empirical,
    "pairs": _pairs,
}


def _known(parts: _Parts, keys: tuple[str, ...], needed: tuple[str, ...]) -> dict[str, str]:
    for key, value in parts:
        if key not in keys:
            wrong = key or value
            raise ValueError(f"{wrong} is no setting here: want {one_of(wrong, keys)}")
    given = dict(parts)
    missing = [f"{key}=..." for key in needed if key not in given]
    demand(not missing, f"want {' and '.join(missing)} too")
    return given


def _number(key: str, text: str) -> float:
    demand(_NUMBER.fullmatch(text) is not None, f"want {key} to be a number such as 128 or 0.5")
    return float(text)


def _bound(key: str, given: dict[str, str]) -> int | None:
    text = given.get(key)
    if text is None:
        return None
    demand(text.isascii() and text.isdigit() and len(text) <= 15, f"want {key} to be an integer")
    return int(text)
