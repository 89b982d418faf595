"""Arrival processes, one file each. A struct's tag is the word before the colon in `--load`.

Dropping a file in here is enough: its first field is what a lone value in `--load` means, and an
open load draws its due times with the two functions for that below.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from servescope.errors import BadInput
from servescope.plugins import main_field, make, split

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from servescope.load import Limit, Load

MOST_REQUESTS = 50_000_000
"""Due times are drawn before the run and kept in memory: 400 MB at this many."""

LONGEST_S = 1e8
"""Three years; int64 nanoseconds hold 292 of them."""


def parse(field: str, text: str) -> list[Load]:
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
        return [_stage(field, text, name, settings | needless)]
    if main in settings:
        raise BadInput(field, text, f"want {main} either as {name}:{values[0]} or as {main}=...")
    return [_stage(field, text, name, {main: value, **settings}) for value in values]


def _stage(field: str, text: str, name: str, settings: dict[str, str]) -> Load:
    try:
        load: Load = make(field, __name__, name, settings)
    except BadInput as error:
        raise BadInput(field, text if error.value == name else error.value, error.want) from None
    return load


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
    if min(by_count / rate, limit.duration_s or math.inf) > LONGEST_S:
        raise BadInput("--load", load, "want a higher rate: this stage would last for years")
    # One to spare: the product may have been rounded down, and `within` cuts exactly.
    return int(min(math.ceil(by_time) + 1, by_count) if math.isfinite(by_time) else by_count)


def demand_count(load: Load, count: float) -> None:
    """Raise BadInput unless `count` due times can be drawn and kept."""
    if math.isinf(count):
        raise BadInput("--load", load, "want --requests or --duration: when does it end?")
    if count > MOST_REQUESTS:
        want = f"want at most {MOST_REQUESTS} requests in a stage, not {count:.3g}"
        raise BadInput("--load", load, want)


def within(due_ns: NDArray[np.floating[Any]], limit: Limit) -> NDArray[np.int64]:
    """Those of the sorted due times that the limit allows, in whole ns: all before its end."""
    kept = due_ns[: limit.requests].round()
    if limit.duration_s is not None:
        kept = kept[: int(kept.searchsorted(limit.duration_s * 1e9, side="left"))]
    return kept.astype("int64")
