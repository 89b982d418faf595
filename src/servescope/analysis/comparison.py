"""What a comparison says: sides, the differences between them, and a verdict a figure."""

from __future__ import annotations

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


class Row(msgspec.Struct, kw_only=True):
    """One figure of a pair of stages."""

    figure: str
    """`ttft_p99`, `output_tokens_per_s`, ...: the name that a gate has for it."""
    label: str
    """For people."""
    form: str
    """How its values are shown: `seconds`, `number` or `percent`."""
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
    notes: list[str] = []

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
