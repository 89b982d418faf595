"""Lengths as they were: rows of a file, drawn with replacement."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from servescope.traces import Rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class _Drawn(msgspec.Struct, frozen=True):
    """Rows of a file, each equally often."""

    path: str
    rows: Rows

    def draw(self, rng: np.random.Generator, n: int) -> NDArray[np.int64]:
        """`n` lengths, shape (n,)."""
        drawn: NDArray[np.int64] = rng.choice(self._tokens(), n)
        return drawn

    def smallest(self) -> int:
        """The least length that can come."""
        return int(self._tokens().min())

    def largest(self) -> int | None:
        """The greatest length that can come."""
        return int(self._tokens().max())

    def _tokens(self) -> NDArray[np.int64]:
        return self.rows.tokens


class Empirical(_Drawn, frozen=True):
    """The lengths in a file, each equally often."""

    column: str | None

    def __str__(self) -> str:
        return f"empirical:{self.path}" + (f",column={self.column}" if self.column else "")


class Pairs(_Drawn, frozen=True):
    """Input or output lengths from the rows of a file.

    Drawn with the same numbers, the input and the output come from the same row.
    """

    output: bool = False

    def __str__(self) -> str:
        return f"pairs:{self.path}"

    def _tokens(self) -> NDArray[np.int64]:
        return self.rows.tokens[:, int(self.output)]
