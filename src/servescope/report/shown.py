"""Stages as plots show them: their names, their colours, their values."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from servescope import goodput, token_times
from servescope.errors import shorten
from servescope.units import format_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from servescope.analysis.evidence import Evidence
    from servescope.records import Columns
    from servescope.store import Stage
    from servescope.summary import StageSummary

    Floats = NDArray[np.float64]

_MOST_DECADES = 4
"""Up to so many, an axis has ticks between the powers of ten."""
_MOST_LETTERS = 48
_LOG_ABOVE = 20
_NEAR = 1.6


@dataclass(frozen=True)
class Shown:
    """A stage of a run."""

    name: str
    """Its load; told apart from others of the same load."""
    colour: str
    summary: StageSummary
    offered: Stage
    columns: Columns
    """All its requests."""

    @cached_property
    def answered(self) -> Columns:
        """Those whose times enter the figures."""
        return self.columns.answered()

    @cached_property
    def _of_requests(self) -> dict[str, Floats]:
        return token_times.per_request(self.answered)

    def values(self, figure: str) -> tuple[Floats, Floats | None]:
        """The values behind a latency, without absent ones, and what each stands for.

        None where the summary has no such figure: then there is nothing to show.
        """
        if self.summary.figures.get(figure) is None:
            return np.empty(0), None
        if figure in ("itl_s", "icl_s"):
            pick = token_times.token_gaps if figure == "itl_s" else token_times.chunk_gaps
            gaps = pick(self.answered)
            return gaps.seconds, gaps.weight if figure == "itl_s" else None
        found = self._of_requests[figure]
        return found[~np.isnan(found)], None


def names(evidence: Evidence) -> list[str]:
    """What the stages of a run's summary are called: their loads, told apart where alike."""
    return distinct([shorten(stage.load, _MOST_LETTERS) for stage in evidence.summary.stages])


def stages(evidence: Evidence) -> list[Shown]:
    """The stages of a run that were begun, in their order."""
    found, named = evidence.summary.stages, names(evidence)
    return [
        Shown(
            name=name,
            colour=shade(k, len(found)),
            summary=stage,
            offered=evidence.offered(stage.number),
            columns=evidence.of_stage(stage.number),
        )
        for k, (name, stage) in enumerate(zip(named, found, strict=True))
    ]


def distinct(names: Sequence[str]) -> list[str]:
    """The same names, numbered where they are alike."""
    counts, seen, found = Counter(names), Counter[str](), []
    for name in names:
        seen[name] += 1
        found.append(f"{name} ({seen[name]})" if counts[name] > 1 else name)
    return found


def shade(k: int, n: int) -> str:
    """The page's colour of the k-th of n: a kind where they are few, else a place in an order."""
    return str(k) if n <= 2 else f"scale:{k / (n - 1):.3f}"


def time_axis(title: str, samples: Sequence[Floats], *, log: bool | None = None) -> dict[str, Any]:
    """Plotly's axis for times in seconds (each of `samples` of shape (n,), n > 0).

    Logarithmic where they are too far apart for a linear one, unless `log` says what it is to be.
    """
    if log is None:
        low = min(float(np.quantile(values, 0.02)) for values in samples)
        high = max(float(np.quantile(values, 0.98)) for values in samples)
        log = 0 < low < high / _LOG_ABOVE
    if not log:
        return {"title": {"text": title}, "tickformat": "~s", "ticksuffix": "s"}
    there = np.concatenate([values[values > 0] for values in samples])
    first, last = (math.floor(math.log10(x)) for x in (there.min(), there.max()))
    steps = (1, 2, 5) if last - first < _MOST_DECADES else (1,)
    ticks = [10.0**power * k for power in range(first, last + 2) for k in steps]
    texts = [format_seconds(tick).replace(".00", "").replace(".0 ", " ") for tick in ticks]
    return {"title": {"text": title}, "type": "log", "tickvals": ticks, "ticktext": texts}


def limit_lines(evidence: Evidence, figure: str, *, axis: str, most: float) -> list[dict[str, Any]]:
    """Plotly's shapes for the bounds that were declared on a latency, which the `axis` shows.

    Not those far beyond `most`, the largest value shown: they would press the rest into a corner.
    """
    trial = evidence.run.manifest.trial
    slo, _ = goodput.bounds(trial.get("slo") or [], trial.get("goodput") or [])
    on_it = [b for b in (slo.bounds if slo else ()) if goodput.METRICS[b.metric] == figure]
    near = [bound for bound in on_it if bound.limit_s <= _NEAR * most]
    return [line(axis, bound.limit_s, bound.text, "limit") for bound in near]


def line(axis: str, at: float, text: str, colour: str) -> dict[str, Any]:
    """A line across a plot at one value of the `axis`, x or y, with its name."""
    other = "y" if axis == "x" else "x"
    return {
        "type": "line",
        f"{axis}0": at,
        f"{axis}1": at,
        f"{other}ref": "paper",
        f"{other}0": 0,
        f"{other}1": 1,
        "line": {"colour": colour, "width": 1.5, "dash": "dot"},
        "label": {
            "text": text,
            "textposition": "start",
            "textangle": 0,
            "xanchor": "left",
            "yanchor": "bottom",
            "font": {"colour": colour, "size": 11},
        },
    }
