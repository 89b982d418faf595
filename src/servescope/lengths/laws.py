"""Laws of lengths: samples of a continuous one are rounded to the nearest whole number.

Those outside the stated bounds are moved to the bound ('clip'), or for an exponential, if so asked,
drawn again ('redraw').
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from servescope.traces import MOST_TOKENS

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Fixed(msgspec.Struct, frozen=True):
    """Always the same length."""

    tokens: int

    def __post_init__(self) -> None:
        demand(1 <= self.tokens <= MOST_TOKENS, f"want a length from 1 to {MOST_TOKENS}")

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
        demand(
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


class _Bounded(msgspec.Struct, frozen=True):
    """A law of a mean and a standard deviation, clipped to the bounds given and to 1."""

    mean: float
    std: float
    min: int | None = None
    max: int | None = None

    def __post_init__(self) -> None:
        _demand_mean(self.mean)
        demand(0 <= self.std <= MOST_TOKENS, f"want std from 0 to {MOST_TOKENS}")
        _demand_bounds(self.min, self.max)

    def __str__(self) -> str:
        return f"{type(self).__name__.lower()}:" + _settings(**msgspec.structs.asdict(self))

    def draw(self, rng: np.random.Generator, n: int) -> NDArray[np.int64]:
        """`n` lengths, shape (n,)."""
        return _whole(self._samples(rng, n), self.smallest(), self.max)

    def smallest(self) -> int:
        """The least length that can come."""
        return self.min or 1

    def largest(self) -> int | None:
        """The greatest length that can come; None when there is no bound."""
        return self.max

    def _samples(self, rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        raise NotImplementedError


class Normal(_Bounded, frozen=True):
    """A normal law, clipped to the bounds given and to 1."""

    def _samples(self, rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        return rng.normal(self.mean, self.std, n)


class Lognormal(_Bounded, frozen=True):
    """A log-normal law, clipped to the bounds given and to 1.

    `mean` and `std` are those of the lengths themselves, before the bounds are applied.
    """

    def _samples(self, rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        variance = math.log1p((self.std / self.mean) ** 2)  # of the logarithm
        return rng.lognormal(math.log(self.mean) - variance / 2, math.sqrt(variance), n)


class Exponential(msgspec.Struct, frozen=True):
    """An exponential law; samples beyond `max` become `max` (clip) or are drawn again (redraw).

    `mean` is that of the law before `max` is applied, as the option's syntax says.
    """

    mean: float
    max: int | None = None
    beyond: str = "clip"

    def __post_init__(self) -> None:
        _demand_mean(self.mean)
        _demand_bounds(None, self.max)
        demand(self.beyond in ("clip", "redraw"), "want beyond=clip or beyond=redraw")
        if self.beyond == "redraw":
            demand(self.max is not None, "want max=... too: beyond=redraw needs it")
            demand(
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


def _whole(samples: NDArray[np.float64], low: int, high: int | None) -> NDArray[np.int64]:
    # the tail of a law without a bound may reach beyond any number
    return np.rint(np.clip(samples, low, high or MOST_TOKENS)).astype(np.int64)


def _settings(**values: float | str | None) -> str:
    return ",".join(f"{k}={_shortest(v)}" for k, v in values.items() if v is not None)


def _shortest(value: float | str) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def demand(holds: bool, want: str) -> None:
    """Raise ValueError, saying what would be right, unless it `holds`."""
    if not holds:
        raise ValueError(want)


def _demand_mean(mean: float) -> None:
    demand(0 < mean <= MOST_TOKENS, f"want a mean above 0, at most {MOST_TOKENS}")


def _demand_bounds(least: int | None, most: int | None) -> None:
    for name, bound in (("min", least), ("max", most)):
        demand(bound is None or 1 <= bound <= MOST_TOKENS, f"want {name} from 1 to {MOST_TOKENS}")
    demand((least or 1) <= (most or MOST_TOKENS), "want min not above max")
