"""The factors that bring distances nearest to zero: damped, reweighted least squares."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

HUBER = 0.05
"""Distances beyond this count by their size, no longer by their square."""
_STEP = 0.02
"""Of a logarithm, for slopes: what is simulated changes in small jumps."""
_LEAST = 1e-3
"""How firmly a factor that nothing depends on stays where it is."""
_ROUNDS = 40
_ENOUGH = 1e-5
_FARTHEST = 1.0
"""Of a logarithm, in one round."""


class Found(NamedTuple):
    """Factors, and the relative standard error of each; 1 and more: it cannot be told."""

    factors: Floats
    uncertainty: Floats
    left: float
    """How far what was found still is: Huber's sum of the distances, and the ties' squares."""


def nearest(distances: Callable[[Floats], Floats], count: int, ties: float | Floats = 0.0) -> Found:
    """Factors, all above 0, that make `distances` of them small; the search begins at 1.

    To move one by a logarithm of x counts as a distance of `ties` x, so that those that the
    distances do not tell apart stay near where they began.
    """
    x, damping, firm = np.zeros(count), 1e-2, np.broadcast_to(np.square(ties), count)
    at = distances(np.exp(x))
    left = _size(at)
    for _ in range(_ROUNDS):
        slopes = _slopes(distances, x, at)
        before = left
        for _ in range(6):
            step = _step(slopes, at, damping, firm, x)
            there = distances(np.exp(x + step))
            left = _size(there) + float(firm @ (x + step) ** 2)
            if left < before:
                damping /= 3
                break
            damping *= 4
        else:
            left = before
            break
        x, at = x + step, there
        if before - left < _ENOUGH * before:
            break
    return Found(np.exp(x), _uncertainty(_slopes(distances, x, at), at), left)


def _slopes(distances: Callable[[Floats], Floats], x: Floats, at: Floats) -> Floats:
    each = [distances(np.exp(x + _STEP * unit)) - at for unit in np.eye(len(x))]
    return np.array(each).T / _STEP


def _weights(at: Floats) -> Floats:
    found: Floats = np.minimum(1.0, HUBER / np.maximum(np.abs(at), 1e-12))
    return found


def _size(at: Floats) -> float:
    far = np.abs(at)
    return float(np.where(far < HUBER, far**2, 2 * HUBER * far - HUBER**2).sum())


def _step(slopes: Floats, at: Floats, damping: float, firm: Floats, x: Floats) -> Floats:
    weighted = slopes.T * _weights(at)
    normal = weighted @ slopes
    more = damping * np.diag(normal) + firm + _LEAST
    step = np.linalg.solve(normal + np.diag(more), -weighted @ at - firm * x)
    limited: Floats = np.clip(step, -_FARTHEST, _FARTHEST).astype(np.float64)
    return limited


def _uncertainty(slopes: Floats, at: Floats) -> Floats:
    """As of independent distances, which percentiles of one sample are not quite."""
    weighted = slopes.T * _weights(at)
    normal = weighted @ slopes
    spread = float((_weights(at) * at**2).sum() / max(len(at) - len(normal), 1))
    spread = max(spread, 1e-12)
    variance = np.diag(np.linalg.inv(normal + np.eye(len(normal)) * spread))
    found: Floats = np.sqrt(variance * spread)
    return found
