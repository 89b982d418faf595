"""Which of several replicas a request goes to."""

from __future__ import annotations

from collections.abc import Callable

Router = Callable[[list[int], int], int]
"""The replica for a request: by how many each has in flight, and by the request's group, -1 where
it has none: requests of one group have a prefix in common."""

FAR_MORE = 32
"""A replica with so many more in flight than another loses the requests of its prefixes to it: the
default of `--balance-abs-threshold` of SGLang's router."""


class RoundRobin:
    """One after the other."""

    def __init__(self) -> None:
        self._next = 0

    def __call__(self, loads: list[int], _group: int) -> int:
        """The replica for a request."""
        chosen, self._next = self._next, (self._next + 1) % len(loads)
        return chosen


class LeastLoaded:
    """The one with the fewest requests, the first of equals."""

    def __call__(self, loads: list[int], _group: int) -> int:
        """The replica for a request."""
        return loads.index(min(loads))


class PrefixAware:
    """The one that had this group last, unless it has far more requests than another."""

    def __init__(self) -> None:
        self._had: dict[int, int] = {}

    def __call__(self, loads: list[int], group: int) -> int:
        """The replica for a request."""
        least = loads.index(min(loads))
        chosen = self._had.get(group, least) if group >= 0 else least
        if loads[chosen] - loads[least] > FAR_MORE:
            chosen = least
        self._had[group] = chosen
        return chosen


ROUTERS: dict[str, Callable[[], Router]] = {
    "round_robin": RoundRobin,
    "least_loaded": LeastLoaded,
    "prefix_aware": PrefixAware,
}
