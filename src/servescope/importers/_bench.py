"""What vLLM's bench and SGLang's, which came of it, write alike: keys and lists."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from servescope.importers import Figure, ImportedStage
from servescope.importers._reading import (
    Keys,
    arrivals,
    floats,
    of_gaps,
    spread,
    statistics,
    users,
    wrong,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MS = 1e-3
_STATISTICS = {"mean": "mean", "median": "p50", "p90": "p90", "p95": "p95", "p99": "p99"}
_STATISTICS |= {"max": "max"}


@dataclass(frozen=True)
class Requests:
    """What a file tells of each request that was answered, in the order of sending."""

    failed: int
    values: dict[str, NDArray[np.float64]]
    tokens: NDArray[np.float64]
    """Of each answer."""
    gaps_s: NDArray[np.float64] | None
    """Between chunks, of all requests."""
    n_gaps: NDArray[np.int64] | None
    """Of each request."""

    def figures(self) -> dict[str, Figure]:
        """The statistics of the values and gaps."""
        found: dict[str, Figure] = {name: spread(value) for name, value in self.values.items()}
        if self.gaps_s is not None:
            found |= of_gaps(self.gaps_s, self.tokens)
        return {name: figure for name, figure in found.items() if figure != {}}

    def without_token(self) -> int:
        """How many answers had a chunk more than tokens: the one with the role, most likely."""
        if self.n_gaps is None:
            return 0
        return int(np.sum(self.n_gaps == self.tokens))


def requests(path: Path, keys: Keys) -> Requests | None:
    """Request by request, where the file has that. Raises BadInput where its lists do not match."""
    ttft = keys.get("ttfts", list[float | None])
    tokens = keys.get("output_lens", list[float | None])
    errors = keys.get("errors", list[str | None])
    if ttft is None or tokens is None or errors is None:
        return None
    gaps = keys.get("itls", list[list[float | None]])
    lists = {
        "ttft_s": floats(ttft),
        "output_tokens": floats(tokens),
        "input_tokens": floats(keys.get("input_lens", list[float | None]) or [None] * len(ttft)),
        "e2e_s": floats(keys.get("latencies", list[float | None]) or []),
        "start": floats(keys.get("start_times", list[float | None]) or []),
    }
    if not len(lists["e2e_s"]) and gaps is not None and len(gaps) == len(ttft):
        lists["e2e_s"] = lists["ttft_s"] + np.array([floats(of_one).sum() for of_one in gaps])
    lists = {name: values for name, values in lists.items() if len(values)}
    if {len(values) for values in lists.values()} | {len(gaps or ttft)} != {len(errors)}:
        raise wrong(path, "want lists of one length: ttfts, output_lens, errors and the others")

    answered = np.array([not error for error in errors], np.bool_)
    order = np.flatnonzero(answered)
    if "start" in lists:
        order = order[np.argsort(lists["start"][order], kind="stable")]
    values = {name: column[order] for name, column in lists.items() if name != "start"}
    if "e2e_s" in values:
        rest = values["output_tokens"] - 1
        values["tpot_s"] = np.full(len(order), np.nan)
        after = values["e2e_s"] - values["ttft_s"]
        np.divide(after, rest, out=values["tpot_s"], where=rest > 0)
    values = {name: column for name, column in values.items() if not np.isnan(column).all()}
    mine = None if gaps is None else [gaps[k] for k in order]
    return Requests(
        failed=int(len(errors) - answered.sum()),
        values=values,
        tokens=lists["output_tokens"][order],
        gaps_s=None if mine is None else floats(gap for of_one in mine for gap in of_one),
        n_gaps=None if mine is None else np.array([len(of_one) for of_one in mine], np.int64),
    )


def printed(keys: Keys, name: str) -> dict[str, float]:
    """The statistics that the file has of a figure in ms, by our names, in seconds."""
    said = {ours: keys.number(f"{theirs}_{name}_ms") for theirs, ours in _STATISTICS.items()}
    return statistics(said, _MS)


def stage(
    path: Path, keys: Keys, latencies: dict[str, str], rates: dict[str, str]
) -> tuple[ImportedStage, Requests | None]:
    """A stage of one benchmark; `latencies` and `rates` name the keys and our figures for them.

    Where the file tells of each request, that is what the figures are worked out from.
    """
    found = requests(path, keys)
    figures: dict[str, Figure] = {}
    for theirs, ours in latencies.items():
        figures[ours] = printed(keys, theirs)
    for theirs, ours in rates.items():
        rate = keys.number(theirs)
        if rate is not None:
            figures[ours] = rate
    completed = keys.get("completed", int)
    for ours in ("input_tokens", "output_tokens"):
        total = keys.number(f"total_{ours}")
        if total is not None and completed:
            figures[ours] = {"mean": total / completed}
    failed = keys.get("failed", int)
    if found is None:
        values = _latencies(keys, completed)
        figures |= {name: spread(column) for name, column in values.items()}
    else:
        completed, failed, values = len(found.tokens), found.failed, found.values
        figures |= found.figures()
    if not completed:
        raise wrong(path, "want a benchmark in which at least one request was answered")
    outcomes = {"completed": completed} | ({"failed": failed} if failed else {})
    said = ImportedStage(
        load=load(keys),
        outcomes=outcomes,
        figures={name: figure for name, figure in figures.items() if figure != {}},
        values=values,
    )
    return said, found


def _latencies(keys: Keys, completed: int | None) -> dict[str, NDArray[np.float64]]:
    """Of vLLM's, end-to-end times stay without the other details; a failed request's are 0."""
    found = floats(keys.get("latencies", list[float | None]) or [])
    found = found[found > 0]
    return {"e2e_s": found} if len(found) and len(found) == completed else {}


def load(keys: Keys) -> str:
    """The load in our words, as both tools' command lines mean it."""
    rate, most = keys.word("request_rate"), keys.number("max_concurrency")
    if rate in ("inf", ""):  # Infinity, which is no JSON, counts as missing
        return users(most) if most else "burst"
    burstiness = keys.number("burstiness")
    try:
        per_s = float(rate)
    except ValueError:
        return rate  # such as a trace's
    if burstiness is not None and burstiness > 0 and burstiness != 1:
        words = f"gamma:rate={per_s:g},cv={burstiness**-0.5:g}"
    else:
        words = arrivals("poisson", per_s)
    return f"{words}, at most {most:g} at once" if most else words
