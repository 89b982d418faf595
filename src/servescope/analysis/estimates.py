"""The figures of one stage as a comparison needs them: each with what its run says of its noise."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from servescope import token_times
from servescope.analysis.comparison import LATENCIES, LENGTHS, RATES, STATISTICS
from servescope.analysis.difference import GRID, Blocks, Estimate
from servescope.goodput import METRICS, Slo, meets
from servescope.metrics import stage_window
from servescope.records import ABSENT, ANSWERED, OUTCOMES
from servescope.stats import PERCENTILES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from servescope.records import Columns

    Floats = NDArray[np.float64]

Estimates = dict[str, Estimate]
_TAIL = 0.75
_DRAINS = 400
_MOST_FLYING = 1000
_MOST_COUNTED = 10_000_000
"""Requests: a file that says more would take all memory, and is none of a load on one server."""
_BINS = 400
"""Pieces of a stage's time in which arrivals are counted."""


def of_stage(columns: Columns, slo: Slo | None, wanted: Collection[str]) -> Estimates:
    """Every figure among `wanted` of a stage's requests; those not measured are left out."""
    answered = columns.answered()
    window = stage_window(columns)
    if window is None:
        return {}
    found = _shares(columns, slo, wanted)
    if not len(answered):
        return found
    times = token_times.per_request(answered)
    flying = float(np.nansum(times["e2e_s"])) / window.span_s if window.span_s > 0 else 1.0
    blocks = Blocks.of(len(answered), flying, "requests", _order(answered))
    for metric in LATENCIES:
        names = {s: f"{metric}_{s}" for s in STATISTICS if f"{metric}_{s}" in wanted}
        if not names:
            continue
        if metric in ("itl", "icl"):
            pick = token_times.token_gaps if metric == "itl" else token_times.chunk_gaps
            gaps = pick(answered)
            sample = _Sample(gaps.seconds, gaps.weight, gaps.row, len(answered))
        else:
            sample = _Sample.one_each(times[METRICS[metric]])
        found |= {name: e for s, name in names.items() if (e := sample.estimate(s, blocks))}
    for name in LENGTHS:
        if name in wanted:
            counts = getattr(answered, name.removesuffix("_mean"))
            lengths = _Sample.one_each(np.where(counts == ABSENT, np.nan, counts.astype(float)))
            if (mean := lengths.estimate("mean", blocks)) is not None:
                found[name] = mean
    return found | _rates(columns, answered, slo, wanted)


def of_values(
    values: Mapping[str, Any], figures: Mapping[str, Any], wanted: Collection[str]
) -> Estimates:
    """The same from another tool's values, one a request, and from its figures where it has none.

    Keys are names of `summary.json`. Figures alone say nothing of their noise.
    """
    found: Estimates = {}
    for metric in LATENCIES:
        key = METRICS[metric]
        own = np.asarray(values.get(key, ()), np.float64)
        own = own[~np.isnan(own)]
        sample, blocks = _Sample.one_each(own), Blocks.of(len(own), 0.0, f"requests of {metric}")
        said = figures.get(key)
        for statistic in STATISTICS:
            name = f"{metric}_{statistic}"
            estimate = sample.estimate(statistic, blocks) if name in wanted else None
            if name in wanted and estimate is None and isinstance(said, dict):
                estimate = _bare(said.get(statistic))
            if estimate is not None:
                found[name] = estimate
    for name in [*RATES, *LENGTHS]:
        key = name.removesuffix("_mean")
        own, said = np.asarray(values.get(key, ()), np.float64), figures.get(key)
        own = own[~np.isnan(own)]
        estimate = _Sample.one_each(own).estimate("mean", Blocks.of(len(own), 0.0, "lengths"))
        if estimate is None:
            estimate = _bare(said.get("mean") if isinstance(said, dict) else said)
        if name in wanted and estimate is not None:
            found[name] = estimate
    return found


def failed_share(completed: int, counts: Collection[int], wanted: Collection[str]) -> Estimates:
    """The share of requests that failed, where only its counts are known: maybe all at once."""
    total = sum(counts)
    if "error_ratio" not in wanted or not 0 < total <= _MOST_COUNTED:
        return {}
    return {"error_ratio": _share(np.arange(total) >= completed, np.arange(total))}


class _Sample:
    """Values of which each belongs to a request and stands for `weight` samples."""

    def __init__(self, values: Floats, weight: Floats, row: NDArray[np.int64], n: int) -> None:
        order = np.argsort(values)
        self._sorted = values[order]
        self._plain = bool((weight == 1).all())
        self._edges = None if self._plain else np.cumsum(weight[order])
        self.total = float(weight.sum())
        self._values, self._weight, self._row, self._n = values, weight, row, n
        self._each = np.bincount(row, weight, n)

    @classmethod
    def one_each(cls, values: Floats) -> _Sample:
        """One value a request; NaN where it has none."""
        there = np.flatnonzero(~np.isnan(values))
        return cls(values[there], np.ones(len(there)), there, len(values))

    def estimate(self, statistic: str, blocks: Blocks | None) -> Estimate | None:
        """A statistic; None where there are no values."""
        if not len(self._sorted):
            return None
        if statistic == "mean":
            value = float(self._values @ self._weight) / self.total
            summed = np.bincount(self._row, self._weight * self._values, self._n)
            influence = summed - value * self._each
            scale = value
        else:
            q = PERCENTILES[statistic]
            value = float(self._at(np.array([q]))[0])
            # Of a value that many have, more lie at or below it, and fewer below, than its share.
            influence = self._below(self._values <= value)
            under = self._below(self._values < value)
            influence = under if under @ under > influence @ influence else influence
            scale = 1.0
        if value <= 0:
            return None
        if blocks is None:
            return _bare(value)
        in_tail = PERCENTILES.get(statistic, 0.5) > _TAIL
        influence = influence * (self._n / self.total)
        error, sums = blocks.error(influence)
        with_ends = blocks.error_with_ends(influence) if in_tail else 0.0
        reach = math.inf, math.inf
        if statistic == "mean":
            ladder = math.log(value) + GRID * (error / scale)
        else:
            with np.errstate(divide="ignore", invalid="ignore"):
                ladder = np.log(self._at(q + GRID * max(error, with_ends)))
            reach = _reach(q, error), _reach(q, with_ends)
            sums = -sums  # more of them below it is a smaller percentile
        return Estimate(value, math.log(value), ladder, sums, blocks.axis, blocks.dof, reach)

    def _below(self, which: NDArray[np.bool_]) -> Floats:
        """How far each request's share of `which` is from that of all, weighted."""
        share = np.bincount(self._row, self._weight * which, self._n)
        return share - float(share.sum()) / self.total * self._each

    def _at(self, shares: Floats) -> Floats:
        """The values below which these shares lie, interpolated; NaN beyond the sample."""
        inside = (shares >= 0) & (shares <= 1)
        position = np.where(inside, shares, 0) * max(self.total - 1, 0)
        whole = np.floor(position)
        low, high = self._nth(whole), self._nth(whole + 1)
        return np.where(inside, low + (high - low) * (position - whole), np.nan)

    def _nth(self, k: Floats) -> Floats:
        index = k if self._edges is None else np.searchsorted(self._edges, k, side="right")
        found: Floats = self._sorted[np.minimum(index, len(self._sorted) - 1).astype(np.int64)]
        return found


def _reach(q: float, error: float) -> float:
    return min(q, 1 - q) / error if error else math.inf


def _rates(
    columns: Columns, answered: Columns, slo: Slo | None, wanted: Collection[str]
) -> Estimates:
    """Rates over the stage. How they vary is read where the load was on, between filling and
    draining; when the last answers end adds to it."""
    window = stage_window(columns)
    if window is None or window.span_s <= 0:
        return {}
    e2e = token_times.per_request(answered)["e2e_s"]
    typical = float(e2e.mean())
    flying = max(float(e2e.sum()) / window.span_s, 1.0)
    drain = _drain_s(e2e, math.ceil(flying)) / window.span_s
    sent_s = columns.sent_ns[columns.sent_ns != ABSENT] / 1e9
    start, end = float(sent_s.min()) + typical, float(sent_s.max())
    if end - start < window.span_s / 2:
        start, end = window.start_s, window.end_s
    bins = min(_BINS, len(answered))
    blocks = Blocks.of(bins, bins * typical / (end - start), "time")
    edges = np.linspace(start, end, bins + 1)
    found: Estimates = {}
    for name, weight in _weights(answered, slo).items():
        total = float(weight.sum())
        if name not in wanted or total <= 0:
            continue
        value = total / window.span_s
        counts = _spread(answered, weight, edges)
        mean = float(counts.mean())
        if blocks is None or mean <= 0:
            found[name] = Estimate(value, math.log(value))
            continue
        varied: Floats = counts / mean - 1
        # What comes early in one piece of time is missing in the next: those are not alike.
        error, sums = blocks.error(varied, alike=False)
        ladder = math.log(value) + GRID * math.hypot(error, drain)
        found[name] = Estimate(value, math.log(value), ladder, sums, blocks.axis, blocks.dof)
    return found


def _spread(answered: Columns, weight: Floats, edges: Floats) -> Floats:
    """How much is done in each piece of time, a request's weight evenly over its time in flight.

    Counted at its end, what a batch finishes together would look like noise.
    """
    first, last = (at / 1e9 - edges[0] for at in (answered.sent_ns, token_times.ended_ns(answered)))
    density = weight / np.maximum(last - first, 1e-9)
    inside = edges - edges[0]

    def done(since: Floats) -> Floats:
        order = np.argsort(since)
        begun = np.searchsorted(since[order], inside)
        slope, at_0 = (
            np.concatenate(([0.0], np.cumsum(each[order])))[begun]
            for each in (density, density * since)
        )
        found: Floats = inside * slope - at_0
        return found

    pieces: Floats = np.diff(done(first) - done(last))
    return pieces


def _drain_s(e2e_s: Floats, flying: int) -> float:
    """Standard deviation of the time that the last requests take: of the longest rest of them."""
    rng = np.random.default_rng(flying)
    chosen = rng.choice(e2e_s, (_DRAINS, min(flying, _MOST_FLYING)), p=e2e_s / e2e_s.sum())
    return float((chosen * rng.random(chosen.shape)).max(axis=1).std())


def _weights(answered: Columns, slo: Slo | None) -> dict[str, Floats]:
    """What each rate counts of each answered request."""
    found = {"requests_per_s": np.ones(len(answered))}
    if not (answered.output_tokens == ABSENT).any():
        found["output_tokens_per_s"] = answered.output_tokens.astype(np.float64)
        if not (answered.input_tokens == ABSENT).any():
            found["total_tokens_per_s"] = found[
                "output_tokens_per_s"
            ] + answered.input_tokens.astype(np.float64)
    good = meets(slo, answered) if slo is not None else None
    if good is not None:
        found["goodput_requests_per_s"] = good.astype(np.float64)
    return found


def _shares(columns: Columns, slo: Slo | None, wanted: Collection[str]) -> Estimates:
    """Shares of all requests that were due, whatever became of them."""
    failed = ~np.isin(columns.outcome, [OUTCOMES.index(name) for name in ANSWERED])
    found = {"error_ratio": failed}
    good = meets(slo, columns) if slo is not None else None
    if good is not None:
        found["goodput_ratio"] = good
    return {name: _share(which, _order(columns)) for name, which in found.items() if name in wanted}


def _share(which: NDArray[np.bool_], order: NDArray[np.int64]) -> Estimate:
    n, value = len(which), float(which.mean())
    blocks = Blocks.of(n, 0.0, "due", order)
    if blocks is None:
        return Estimate(value, value)
    varied: Floats = which.astype(np.float64) - value
    error, sums = blocks.error(varied)
    # Of none among n it is not known that there are none at all (Agresti and Coull, 1998).
    likely = (value * n + 2) / (n + 4)
    error = max(error, math.sqrt(likely * (1 - likely) / (n + 4)))
    return Estimate(value, value, value + GRID * error, sums, blocks.axis, blocks.dof)


def _bare(value: Any) -> Estimate | None:  # noqa: ANN401 (whatever a file says)
    """A figure about whose noise nothing is known."""
    if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        return None
    return Estimate(float(value), math.log(value))


def _order(columns: Columns) -> NDArray[np.int64]:
    """The requests as they were sent, those never sent where they were due."""
    when = np.where(columns.sent_ns != ABSENT, columns.sent_ns, columns.due_ns)
    return np.argsort(when, kind="stable")
