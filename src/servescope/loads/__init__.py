"""Arrival processes, one file each. A struct's tag is the word before the colon in `--load`.

Dropping a file in here is enough: its first field is what a lone value in `--load` means, and an
open load draws its due times with the functions for that below. A struct that has a method
`stages() -> list[Load | Later]` instead of `offer` is a word for several stages (`sweep`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from servescope.errors import BadInput
from servescope.plugins import main_field, make, split

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from servescope.load import Later, Limit, Load

MOST_REQUESTS = 50_000_000
"""Due times are drawn before the run and kept in memory: 400 MB at this many."""

LONGEST_S = 1e8
"""Three years; int64 nanoseconds hold 292 of them."""


def parse(field: str, text: str) -> list[Load | Later]:
    """The stages that `--load NAME[:part,part,...]` asks for; raises BadInput naming `field`.

    A part without `=` is a value of the load's main field, and each makes a stage; `key=value` is
    a setting of all of them: `users:1,8,think=1s` is two stages.
    """
    name, parts = split(field, text)
    settings = {key: value for key, value in parts if key}
    values = [value for key, value in parts if not key]
    main = main_field(__name__, name)
    if main is None or not values:
        needless = dict.fromkeys(values, "")
        return _stages(field, text, name, settings | needless)
    if main in settings:
        raise BadInput(field, text, f"want {main} either as {name}:{values[0]} or as {main}=...")
    made = (_stages(field, text, name, {main: value, **settings}) for value in values)
    return [stage for stages in made for stage in stages]


def _stages(field: str, text: str, name: str, settings: dict[str, str]) -> list[Load | Later]:
    try:
        load = make(field, __name__, name, settings)
    except BadInput as error:
        raise BadInput(field, text if error.value == name else error.value, error.want) from None
    return load.stages() if hasattr(load, "stages") else [load]


def demand_rate(rate: float) -> None:
    """Raise ValueError, saying what would be right, unless `rate` (requests/s) is usable."""
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError("want a finite rate above 0 in requests/s, such as 4 or 0.5")


def most_due(load: Load, limit: Limit, rate: float) -> int:
    """How many requests a stage at a steady `rate` (requests/s) can have within its limit.

    Raises BadInput when these are too many to draw, or when the stage would not end for years.
    """
    by_time = math.inf if limit.duration_s is None else rate * limit.duration_s
    by_count = math.inf if limit.requests is None else limit.requests
    demand_count(load, min(by_time, by_count))
    demand_end(load, min(by_count / rate, limit.duration_s or math.inf))
    # One to spare: the product may have been rounded down, and `within` cuts exactly.
    return int(min(math.ceil(by_time) + 1, by_count) if math.isfinite(by_time) else by_count)


def demand_count(load: Load, count: float) -> None:
    """Raise BadInput unless `count` due times can be drawn and kept."""
    if math.isinf(count):
        raise BadInput("--load", load, "want --requests or --duration: when does it end?")
    if count > MOST_REQUESTS:
        want = f"want at most {MOST_REQUESTS} requests in a stage, not {count:.3g}"
        raise BadInput("--load", load, want)


def demand_end(load: Load, end_s: float) -> None:
    """Raise BadInput when the stage would not end for years."""
    if end_s > LONGEST_S:
        raise BadInput("--load", load, "want a higher rate: this stage would last for years")


def demand_arrivals(arrivals: str) -> None:
    """Raise ValueError unless `arrivals` is one of the two ways to fill a given rate."""
    if arrivals not in ("constant", "poisson"):
        raise ValueError("want arrivals=constant or arrivals=poisson")


def cumulated(
    draw: Callable[[int], NDArray[np.float64]], expected: int, limit: Limit, end: float
) -> NDArray[np.float64]:
    """Gaps of mean 1, as `draw` makes so many of them, added up to as many as `limit` wants.

    `expected` are wanted on average; where time ends the stage, they reach to `end`. Whatever the
    limit, the same generator behind `draw` gives a prefix of the same sums.
    """
    import numpy as np  # noqa: PLC0415 - listing the plug-ins must stay quick

    by_count = expected == limit.requests
    gaps = draw(expected + (0 if by_count else 6 * math.isqrt(expected) + 16))
    sums = np.cumsum(gaps)
    while not by_count and sums[-1] < end:
        gaps = np.concatenate([gaps, draw(len(gaps))])
        sums = np.cumsum(gaps)
    return sums


def within(due_ns: NDArray[np.floating[Any]], limit: Limit) -> NDArray[np.int64]:
    """Those of the sorted due times that the limit allows, in whole ns: all before its end."""
    kept = due_ns[: limit.requests].round()
    if limit.duration_s is not None:
        kept = kept[: int(kept.searchsorted(limit.duration_s * 1e9, side="left"))]
    return kept.astype("int64")
