"""Service-level objectives: bounds such as `ttft_p99<200ms`, read in two ways.

*Goodput* asks of each request whether its own figures meet every bound. A figure that a request
has once (ttft, tpot, e2e, ...) is compared as it is, whatever the bound's percentile. Of `itl` and
`icl` a request has many: the bound's statistic is taken over that request's own gaps, and a bound
without one means the largest gap.

*Checking* (exit status 4) asks whether the stage's figure meets the bound. A bound without a
statistic is one on every request (every gap, for itl and icl), so it is met when the largest value
meets it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from servescope import token_times
from servescope.errors import BadInput
from servescope.plugins import one_of
from servescope.records import ANSWERED, OUTCOMES
from servescope.stats import PERCENTILES, Distribution, quantile_by_group
from servescope.units import parse_duration_s

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from servescope.records import Columns

METRICS = {
    "ttft": "ttft_s",
    "tpot": "tpot_s",
    "itl": "itl_s",
    "icl": "icl_s",
    "e2e": "e2e_s",
    "normalized_latency": "normalized_latency_s_per_token",
    "ttfo": "ttfo_s",
    "ttft_from_due": "ttft_from_due_s",
    "e2e_from_due": "e2e_from_due_s",
}
"""What a bound may be on, and the figure's name."""
STATISTICS = (*PERCENTILES, "mean", "max")
_VLLM = {"ttft": "ttft", "tpot": "tpot", "e2el": "e2e"}
_BETWEEN_TOKENS = ("tpot", "itl", "icl")
_BOUND = re.compile(r"([a-z0-9_]+?)(?:_(p\d+|mean|max))?\s*(<=|<)\s*(.+)")


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """One bound on one metric."""

    metric: str
    """A key of `METRICS`."""
    limit_s: float
    statistic: str | None = None
    """One of `STATISTICS`; None binds every request."""
    inclusive: bool = False
    """`<=` instead of `<`."""
    text: str = ""
    """As the user wrote it."""

    def met_by(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which of `values` (seconds) lie within the bound; NaN does not."""
        return values <= self.limit_s if self.inclusive else values < self.limit_s


class Slo(msgspec.Struct, frozen=True):
    """Bounds that are to be met together."""

    bounds: tuple[Bound, ...]

    def __str__(self) -> str:
        return ",".join(bound.text for bound in self.bounds)


class Verdict(msgspec.Struct, frozen=True):
    """Whether a stage met one bound."""

    bound: str
    value: float | None
    """Seconds; None when the stage has no such figure."""
    met: bool | None
    """None when it cannot be told, which counts as not met."""


def parse_slo(field: str, text: str) -> Slo:
    """The bounds in 'ttft_p99<200ms,tpot_p95<50ms,e2e<2s'; raises BadInput naming `field`."""
    return Slo(tuple(_parse_bound(field, part.strip()) for part in text.split(",")))


def parse_vllm_goodput(*pairs: str, field: str = "goodput") -> Slo:
    """The bounds in vLLM's spelling, 'ttft:200' 'tpot:50' 'e2el:2000', in milliseconds.

    Raises BadInput naming `field`. They bind every request, as vLLM has them.
    """
    return Slo(tuple(_parse_pair(field, pair.strip()) for pair in pairs))


def bounds(slo: Sequence[str], pairs: Sequence[str]) -> tuple[Slo | None, Slo | None]:
    """What goodput is measured against, and what the exit status depends on.

    `slo` are texts of `--slo`, `pairs` those of `--goodput`, which vLLM only reports. None: nothing
    was declared. Raises BadInput naming the option.
    """
    gate = parse_slo("--slo", ",".join(slo)) if slo else None
    reported = parse_vllm_goodput(*pairs, field="--goodput") if pairs else None
    both = (*(gate.bounds if gate else ()), *(reported.bounds if reported else ()))
    return Slo(both) if both else None, gate


def meets(slo: Slo, columns: Columns) -> NDArray[np.bool_] | None:
    """Which requests were answered within every bound, shape (n,).

    A failed, cancelled or never-sent request is not. An answer with nothing after its first chunk
    cannot miss a bound on the time between tokens. None when a bound's metric could not be
    measured on any answer, so that nobody takes 'not measured' for good.
    """
    rows = np.flatnonzero(np.isin(columns.outcome, [OUTCOMES.index(name) for name in ANSWERED]))
    answered = columns.answered()
    good = np.zeros(len(columns), np.bool_)
    good[rows] = True
    for bound in slo.bounds:
        values = _own_values(bound, answered)
        absent = np.isnan(values)
        if len(values) and absent.all():
            return None
        good[rows] &= bound.met_by(values) | (absent & (bound.metric in _BETWEEN_TOKENS))
    return good


def check_slo(slo: Slo, figures: Mapping[str, Any]) -> list[Verdict]:
    """Each bound against the stage's own figures (as `metrics.figures` returns them)."""
    return [_check(bound, figures.get(METRICS[bound.metric])) for bound in slo.bounds]


def _check(bound: Bound, figure: Distribution | None) -> Verdict:
    if figure is None:
        return Verdict(bound.text, None, None)
    value = float(getattr(figure, bound.statistic or "max"))
    return Verdict(bound.text, value, bool(bound.met_by(np.array(value))))


def _own_values(bound: Bound, columns: Columns) -> NDArray[np.float64]:
    """What the bound is compared with, for each request, shape (n,); NaN where absent."""
    if bound.metric not in ("itl", "icl"):
        return token_times.per_request(columns)[METRICS[bound.metric]]
    pick = token_times.token_gaps if bound.metric == "itl" else token_times.chunk_gaps
    gaps, n = pick(columns), len(columns)
    if bound.statistic == "mean":
        weight = np.bincount(gaps.row, gaps.weight, n)
        summed = np.bincount(gaps.row, gaps.weight * gaps.seconds, n)
        return np.where(weight > 0, summed / np.where(weight > 0, weight, 1), np.nan)
    if bound.statistic in PERCENTILES:
        q = PERCENTILES[bound.statistic]
        return quantile_by_group(gaps.seconds, gaps.weight, gaps.row, n, q)
    largest = np.full(n, np.nan)
    np.fmax.at(largest, gaps.row, gaps.seconds)
    return largest


def _parse_bound(field: str, text: str) -> Bound:
    match = _BOUND.fullmatch(text.lower())
    if match is None:
        raise BadInput(field, text, "want bounds such as ttft_p99<200ms,tpot_p95<50ms,e2e<2s")
    metric, statistic, sign, limit = match.groups()
    if metric not in METRICS:
        raise BadInput(field, metric, f"want {one_of(metric, METRICS)}")
    if statistic is not None and statistic not in STATISTICS:
        raise BadInput(field, f"{metric}_{statistic}", f"want {one_of(statistic, STATISTICS)}")
    return Bound(
        metric=metric,
        statistic=statistic,
        inclusive=sign == "<=",
        limit_s=_parse_limit(field, text, limit),
        text=text,
    )


def _parse_limit(field: str, text: str, limit: str) -> float:
    if limit[-1:].isdigit() or limit.endswith("."):
        # A bare 200 would be seconds here and is milliseconds elsewhere: nobody should guess.
        raise BadInput(field, text, "want a time with its unit, such as 200ms or 2s")
    seconds = parse_duration_s(field, limit)
    if seconds <= 0:
        raise BadInput(field, text, "want a time above 0")
    return seconds


def _parse_pair(field: str, pair: str) -> Bound:
    name, _, limit = pair.partition(":")
    if name not in _VLLM:
        raise BadInput(field, pair, f"want {one_of(name, _VLLM)}, then :milliseconds")
    try:
        milliseconds = float(limit)
    except ValueError:
        milliseconds = np.nan
    if not 0 < milliseconds < np.inf:
        raise BadInput(field, pair, f"want {name}:milliseconds, such as {name}:200")
    # vLLM counts a request whose figure equals the bound as good.
    return Bound(
        metric=_VLLM[name],
        limit_s=milliseconds / 1e3,
        inclusive=True,
        text=f"{_VLLM[name]}<={milliseconds:g}ms",
    )
