"""How long prompts and answers are: distributions of whole numbers of tokens, never below 1.

Samples of a continuous law are rounded to the nearest integer; those outside the stated bounds are
moved to the bound ('clip'), or for an exponential, if so asked, drawn again ('redraw').
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from servescope.errors import BadInput
from servescope.plugins import one_of, split
from servescope.seeds import generator

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

MOST_TOKENS = 10_000_000
"""No length, mean or bound may exceed this: beyond it lies a slip of the finger."""

_BLOCK = 1024
_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)(e[-+]?\d{1,3})?", re.ASCII)
_RANGE = re.compile(r"(\d{1,15})-(\d{1,15})", re.ASCII)
_CUSTOMARY = (
    "want a length such as 512, uniform:1-512, normal:mean=256,std=64 or exponential:mean=128"
)


class Fixed(msgspec.Struct, frozen=True):
    """Always the same length."""

    tokens: int

    def __post_init__(self) -> None:
        _demand(1 <= self.tokens <= MOST_TOKENS, f"want a length from 1 to {MOST_TOKENS}")

    def __str__(self) -> str:
        return f"{self.tokens}"

    def draw(self, rng: np.random.Generator, n: int) -> NDArray[np.int64]:  # noqa: ARG002
        """`n` lengths, shape (n,)."""
        return np.full(n, self.tokens, np.int64)

    def smallest(self) -> int:
        """The least length that can come."""
        return self.tokens

    def largest(self) -> int | None:
        """The greatest length that can come; None when there is no bound."""
        return self.tokens


class Uniform(msgspec.Struct, frozen=True):
    """Every length from `low` to `high`, both included, equally often."""

    low: int
    high: int

    def __post_init__(self) -> None:
        _demand(
            1 <= self.low <= self.high <= MOST_TOKENS,
            f"want a range LOW-HIGH from 1 up to {MOST_TOKENS}, LOW not above HIGH",
        )

    def __str__(self) -> str:
        return f"uniform:{self.low}-{self.high}"

    def draw(self, rng: np.random.Generator, n: int) -> NDArray[np.int64]:
        """`n` lengths, shape (n,)."""
        return rng.integers(self.low, self.high, n, endpoint=True)

    def smallest(self) -> int:
        """The least length that can come."""
        return self.low

    def largest(self) -> int | None:
        """The greatest length that can come; None when there is no bound."""
        return self.high


class Normal(msgspec.Struct, frozen=True):
    """A normal law, clipped to the bounds given and to 1."""

    mean: float
    std: float
    min: int | None = None
    max: int | None = None

    def __post_init__(self) -> None:
        _demand_mean(self.mean)
        _demand(0 <= self.std <= MOST_TOKENS, f"want std from 0 to {MOST_TOKENS}")
        _demand_bound("min", self.min)
        _demand_bound("max", self.max)
        _demand(self.smallest() <= (self.max or MOST_TOKENS), "want min not above max")

    def __str__(self) -> str:
        return "normal:" + _settings(mean=self.mean, std=self.std, min=self.min, max=self.max)

    def draw(self, rng: np.random.Generator, n: int) -> NDArray[np.int64]:
        """`n` lengths, shape (n,)."""
        return _whole(rng.normal(self.mean, self.std, n), self.smallest(), self.max)

    def smallest(self) -> int:
        """The least length that can come."""
        return self.min or 1

    def largest(self) -> int | None:
        """The greatest length that can come; None when there is no bound."""
        return self.max


class Exponential(msgspec.Struct, frozen=True):
    """An exponential law; samples beyond `max` become `max` (clip) or are drawn again (redraw).

    `mean` is that of the law before `max` is applied, as the option's syntax says.
    """

    mean: float
    max: int | None = None
    beyond: str = "clip"

    def __post_init__(self) -> None:
        _demand_mean(self.mean)
        _demand_bound("max", self.max)
        _demand(self.beyond in ("clip", "redraw"), "want beyond=clip or beyond=redraw")
        if self.beyond == "redraw":
            _demand(self.max is not None, "want max=... too: beyond=redraw needs it")
            _demand(
                self._share_kept() >= 0.01,
                "want a mean of at most 99 times max: beyond=redraw would discard nearly all",
            )

    def __str__(self) -> str:
        beyond = None if self.beyond == "clip" else self.beyond
        return "exponential:" + _settings(mean=self.mean, max=self.max, beyond=beyond)

    def draw(self, rng: np.random.Generator, n: int) -> NDArray[np.int64]:
        """`n` lengths, shape (n,)."""
        # Drawing again until a sample is within max gives the law below max and nothing else; its
        # inverse gives the same samples in one pass, from exactly n numbers.
        share = self._share_kept() if self.beyond == "redraw" else 1.0
        samples = -self.mean * np.log1p(-share * rng.random(n))
        return _whole(samples, 1, self.max)

    def smallest(self) -> int:
        """The least length that can come."""
        return 1

    def largest(self) -> int | None:
        """The greatest length that can come; None when there is no bound."""
        return self.max

    def _share_kept(self) -> float:
        return 1.0 if self.max is None else -math.expm1(-self.max / self.mean)


Lengths = Fixed | Uniform | Normal | Exponential


def parse(field: str, text: str) -> Lengths:
    """The distribution `text` asks for; raises BadInput naming `field`.

    >>> parse("--input-tokens", "uniform:1-512")
    Uniform(low=1, high=512)
    """
    name, parts = split(field, text)
    read = _FORMS.get(name, _fixed)
    try:
        return read(name, parts)
    except ValueError as error:
        raise BadInput(field, text, str(error)) from None


def at(lengths: Lengths, seed: int, purpose: str, index: int) -> int:
    """Length of item `index` in tokens: a pure function of the arguments.

    `purpose` keeps apart what has the same seed, such as 'input' and 'output'.
    """
    block, place = divmod(index, _BLOCK)
    return int(_block(lengths, seed, purpose, block)[place])


@lru_cache(maxsize=256)
def _block(lengths: Lengths, seed: int, purpose: str, block: int) -> NDArray[np.int64]:
    return lengths.draw(generator(seed, purpose, block), _BLOCK)


def _whole(samples: NDArray[np.float64], low: int, high: int | None) -> NDArray[np.int64]:
    return np.clip(np.rint(samples).astype(np.int64), low, high)


def _settings(**values: float | str | None) -> str:
    return ",".join(f"{k}={_shortest(v)}" for k, v in values.items() if v is not None)


def _shortest(value: float | str) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _demand(holds: bool, want: str) -> None:
    if not holds:
        raise ValueError(want)


def _demand_mean(mean: float) -> None:
    _demand(0 < mean <= MOST_TOKENS, f"want a mean above 0, at most {MOST_TOKENS}")


def _demand_bound(name: str, bound: int | None) -> None:
    _demand(bound is None or 1 <= bound <= MOST_TOKENS, f"want {name} from 1 to {MOST_TOKENS}")


def _fixed(name: str, parts: list[tuple[str, str]]) -> Fixed:
    if parts or not name.isascii() or not name.isdigit() or len(name) > 15:
        raise ValueError(_CUSTOMARY if name[:1] in "-+.0123456789" else _unknown(name))
    return Fixed(int(name))


def _unknown(name: str) -> str:
    return f"want a number of tokens, or {one_of(name, _FORMS)}"


def _uniform(name: str, parts: list[tuple[str, str]]) -> Uniform:  # noqa: ARG001
    match = _RANGE.fullmatch(parts[0][1]) if len(parts) == 1 and not parts[0][0] else None
    if match is None:
        raise ValueError("want uniform:LOW-HIGH, such as uniform:1-512")
    return Uniform(int(match[1]), int(match[2]))


def _normal(name: str, parts: list[tuple[str, str]]) -> Normal:  # noqa: ARG001
    given = _known(parts, ("mean", "std", "min", "max"), needed=("mean", "std"))
    mean, std = _number("mean", given["mean"]), _number("std", given["std"])
    return Normal(mean, std, _bound("min", given), _bound("max", given))


def _exponential(name: str, parts: list[tuple[str, str]]) -> Exponential:  # noqa: ARG001
    given = _known(parts, ("mean", "max", "beyond"), needed=("mean",))
    mean = _number("mean", given["mean"])
    return Exponential(mean, _bound("max", given), given.get("beyond", "clip"))


_FORMS: dict[str, Callable[[str, list[tuple[str, str]]], Lengths]] = {
    "uniform": _uniform,
    "normal": _normal,
    "exponential": _exponential,
}


def _known(
    parts: list[tuple[str, str]], keys: tuple[str, ...], needed: tuple[str, ...]
) -> dict[str, str]:
    for key, value in parts:
        if key not in keys:
            raise ValueError(
                f"{key or value} is no setting here: want {one_of(key or value, keys)}"
            )
    given = dict(parts)
    missing = [f"{key}=..." for key in needed if key not in given]
    _demand(not missing, f"want {' and '.join(missing)} too")
    return given


def _number(key: str, text: str) -> float:
    _demand(_NUMBER.fullmatch(text) is not None, f"want {key} to be a number such as 128 or 0.5")
    return float(text)


def _bound(key: str, given: dict[str, str]) -> int | None:
    text = given.get(key)
    if text is None:
        return None
    _demand(text.isascii() and text.isdigit() and len(text) <= 15, f"want {key} to be an integer")
    return int(text)
