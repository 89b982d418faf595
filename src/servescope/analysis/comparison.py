"""What a comparison says: sides, the differences between them, and a verdict a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

Verdict = Literal["better", "worse", "no difference shown"]

LATENCIES = {
    "ttft": "TTFT",
    "ttft_from_due": "TTFT from due",
    "itl": "ITL",
    "icl": "ICL",
    "tpot": "TPOT",
    "e2e": "end-to-end",
    "e2e_from_due": "end-to-end from due",
    "normalized_latency": "end-to-end / token",
}
"""By the names that bounds have; the keys of `goodput.METRICS` that a comparison knows."""
RATES = {
    "requests_per_s": "requests/s",
    "output_tokens_per_s": "output tokens/s",
    "total_tokens_per_s": "input + output tokens/s",
    "goodput_requests_per_s": "goodput, requests/s",
}
SHARES = {"goodput_ratio": "goodput, of all due", "error_ratio": "failed, of all due"}
"""Their changes are differences in points, not relative to A: a share may be 0."""
LENGTHS = {"input_tokens_mean": "input tokens, mean", "output_tokens_mean": "output tokens, mean"}
STATISTICS = ("mean", "p50", "p90", "p95", "p99")
JUDGED = ("mean", "p50", "p95", "p99")
"""Statistics that are in every table. The others are there for a gate that names them."""
HIGHER_IS_BETTER = (*RATES, "goodput_ratio")
TOO_FEW = "too few requests to judge it"


class Row(msgspec.Struct, kw_only=True):
    """One figure of a pair of stages."""

    figure: str
    """`ttft_p99`, `output_tokens_per_s`, ...: the name that a gate has for it."""
    label: str
    """For people."""
    form: str
    """How its values are shown: `seconds`, `number`, `percent`; `resource`: as its name says."""
    a: float | None
    """The baseline's value; of repeats, their geometric mean. None where it was not measured."""
    b: float | None
    change_ratio: float | None = None
    """(b - a) / a; of a share, b - a."""
    low: float | None = None
    """The change lies above this and below `high`, with 95 % confidence for all figures of the pair
    at once. None on one side: no limit can be given there."""
    high: float | None = None
    verdict: Verdict | None = None
    """None where the figure is not judged."""
    smallest_ratio: float | None = None
    """The smallest change that would have been seen with a probability of 80 %."""
    floor_ratio: float = 0.0
    """Half of the interval's width that more requests would not take away, but repeats would."""
    note: str = ""
    """Why it was not judged, or what to mind."""
    requests_wanted: int | None = None
    """About so many answered requests a side would give the change both limits; None: it has them,
    or requests are not what it lacks."""


def unit(row: Row) -> str:
    """What a change is counted in: of a share in points, as it is no part of it."""
    return "points" if row.figure in SHARES else "%"


def wanted(rows: Sequence[Row]) -> str:
    """How many requests rows want that are not judged for too few: 'about 1,300 a side'."""
    counts = [row.requests_wanted for row in rows if row.requests_wanted]
    if not counts:
        return ""
    low, high = min(counts), max(counts)
    return f"about {low:,}{f' to {high:,}' if high > low else ''} a side"


def said(row: Row) -> str:
    """A row's note with the number of requests that it wants."""
    few = wanted([row]) if row.note.endswith(TOO_FEW) else ""
    return f"{row.note}: wants {few}" if few else row.note


def rounded_up(n: float) -> int:
    """To two digits: an estimate is no more exact."""
    size = 10 ** max(0, math.floor(math.log10(max(n, 1))) - 1)
    return int(math.ceil(n / size) * size)


def change(row: Row) -> str:
    """A change for people: '+4.2 %', or of a share '+1.5 points'."""
    return "?" if row.change_ratio is None else f"{tenths(row.change_ratio)} {unit(row)}"


def interval(row: Row) -> str:
    """Where the change lies, without its unit: '-1.2 to +3.4'; '' where there is no limit."""
    if row.low is None:
        return "" if row.high is None else f"below {tenths(row.high)}"
    if row.high is None:
        return f"above {tenths(row.low)}"
    return f"{tenths(row.low)} to {tenths(row.high)}"


def tenths(ratio: float) -> str:
    """In percent with its sign; never '-0.0'."""
    return f"{ratio * 100:+z.1f}"


def letter(side: int) -> str:
    """By what a side is called: A is the baseline."""
    return chr(ord("A") + side) if side < 26 else f"side {side + 1}"


def judgement(figure: str, low: float, high: float) -> Verdict:
    """What an interval of a figure's change says."""
    if low <= 0 <= high:
        return "no difference shown"
    return "better" if (low > 0) == (figure in HIGHER_IS_BETTER) else "worse"


def label(figure: str) -> str:
    """What people call a figure."""
    metric, _, statistic = figure.rpartition("_")
    if metric in LATENCIES:
        return f"{LATENCIES[metric]} {statistic}"
    return {**RATES, **SHARES, **LENGTHS}.get(figure, figure)


def form(figure: str) -> str:
    """How a figure's values are shown."""
    if figure in SHARES:
        return "percent"
    return "number" if figure in RATES or figure in LENGTHS else "seconds"


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Something in which a side is unlike the baseline besides its figures."""

    what: str
    a: str
    b: str


class SideDoubt(msgspec.Struct, frozen=True, kw_only=True):
    """A doubt about a stage of a side."""

    load: str
    kind: str
    message: str


class Side(msgspec.Struct, kw_only=True):
    """Runs of one configuration, or result files of another tool, that stand together."""

    name: str
    """Short: the first run's name, or the directory's."""
    paths: list[str]
    """One a repeat."""
    kind: str
    """`measured`, `simulated` or `imported`."""
    target: str = ""
    """What was measured, in one line."""
    tool: str | None = None
    """Whose file it is, with the version; None: servescope's."""
    definitions: dict[str, str] = {}
    """What another tool means by a figure, by our name of it."""
    incomplete: list[str] = []
    """Runs that ended before their plan was done, and why."""
    doubts: list[SideDoubt] = []
    differs: list[Difference] = []
    """From the baseline; empty for the baseline itself."""
    unmatched: list[str] = []
    """Loads of this side that the baseline has not."""
    missing: list[str] = []
    """Loads of the baseline that this side has not."""
    notes: list[str] = []


class Pair(msgspec.Struct, kw_only=True):
    """One load of a side, against the same load of the baseline."""

    side: int
    """Which of the comparison's sides; the other is always side 0."""
    load: str
    requests: tuple[int, int]
    """Answered, of all repeats together: the baseline's and the side's."""
    repeats: tuple[int, int]
    rows: list[Row]
    same_load: bool = True
    """Else no figure is called better or worse: the load makes it so."""
    notes: list[str] = []
    """Why its sides are not alike, or say little: with one of these a gate keeps no bound."""

    def row(self, figure: str) -> Row | None:
        """The row of a figure."""
        return next((row for row in self.rows if row.figure == figure), None)

    def shown(self, verdict: Verdict) -> list[Row]:
        """The rows of that verdict."""
        return [row for row in self.rows if row.verdict == verdict]


class Comparison(msgspec.Struct, kw_only=True):
    """Sides against the first of them."""

    sides: list[Side]
    """The first is the baseline, A."""
    pairs: list[Pair]
    notes: list[str] = []
    """What holds for all of it: how the intervals were made."""
