"""The steady part of a stage: without its beginning, and without what is left when no more comes.

The end is when the load ends: an open one with its last arrival, a closed one when the first load
process has no more requests for its users. The users of a closed load all begin at once, so that
its beginning lasts until each has had its first answer. Beyond that a beginning is left out only
where it is plainly unlike the rest: where the first values of a series lie outside of what the
second half of the load shows, up to where the series first crosses the mean of that half (Fishman,
*Concepts and Methods in Discrete Event Digital Simulation*, 1973). Rules that minimise an error,
such as MSER-5, leave out a busy spell at the beginning of a run that was steady all along.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from servescope import goodput, metrics, token_times
from servescope.analysis.drift import P_MOST, batched, trend
from servescope.findings import Finding
from servescope.metrics import Window
from servescope.records import ABSENT
from servescope.stats import Distribution
from servescope.units import format_seconds, three_digits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from servescope.analysis.evidence import Evidence
    from servescope.records import Columns
    from servescope.store import Stage
    from servescope.summary import StageSummary

    Floats = NDArray[np.float64]

BATCH = 5
"""Requests whose mean is looked at, one after the other."""
LEVELS = 100
"""Equal parts of a stage in which the requests in flight are counted."""
CUT_DEVIATIONS, CUT_DIFFERS = 3.0, 0.1
"""A beginning is unlike the rest where its first value is so many standard deviations, and so much
of the mean, away from it."""
GROWS_PARTS, GROWS_T = 24, 3.77
"""A queue grows where the requests in the system rise over as many parts of the load's second half
so surely (Student's t of 23 degrees of freedom, one chance in 2000),"""
GROWS_RATIO = 0.25
"""and by more than this."""
DRIFTS_RATIO = 0.2
"""Latency that changes by more is not steady: the limit of the doubt `not_stationary`."""
FEWEST = 20
ANSWERS_LONG = 3.0
"""A steady part lasts at least so many median answers."""
DIFFERS, DIFFERS_UNSURE = 0.1, 0.5
"""A figure of the whole stage is said beside the steady part's where it is outside of that one's
interval and differs by more; a percentile without an interval, where it does so by much."""
_FIGURES = (
    ("ttft_s", "p99", "TTFT P99"),
    ("ttft_s", "p50", "TTFT P50"),
    ("e2e_s", "p99", "end-to-end P99"),
    ("e2e_s", "p50", "end-to-end P50"),
    ("output_tokens_per_s", "", "output tokens/s"),
)
MOST_SAID = 3


class Steady(NamedTuple):
    """The steady part of a stage, or why it has none."""

    window: Window | None
    why: str = ""
    changes: bool = False
    """It has none because the service did not hold still, not for want of requests or time."""
    load_changes: bool = False
    """It has none because the load did not hold still."""
    grew: tuple[float, float] | None = None
    """Requests in the system in the middle of the load and at its end, where a queue grew."""


@dataclass(frozen=True)
class Loaded:
    """A stage while its load lasted, in ns since the run began."""

    columns: Columns
    start_ns: int
    end_ns: int
    sent_ns: NDArray[np.int64]
    """Of the answered requests, in order."""
    times: dict[str, Floats]
    """TTFT and end-to-end latency of the same."""

    def level(self, at_ns: Floats) -> Floats:
        """How many requests were due and had not ended at each of these times."""
        came, went = self._comings
        flying = np.searchsorted(came, at_ns, "right") - np.searchsorted(went, at_ns, "right")
        return flying.astype(np.float64)

    def mean_level(self, parts: int) -> Floats:
        """The mean of the same in equal parts of the time."""
        edges = np.linspace(self.start_ns, self.end_ns, parts + 1)
        came, went = self._comings
        return np.diff(_time_since(came, edges) - _time_since(went, edges)) / np.diff(edges)

    @cached_property
    def _comings(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        # A later turn that was never sent was never due either.
        meant = (self.columns.sent_ns != ABSENT) | (self.columns.turn == 0)
        ended = token_times.ended_ns(self.columns)[meant]
        never = np.iinfo(np.int64).max
        went = np.where(ended == ABSENT, never, ended)
        return np.sort(self.columns.due_ns[meant]), np.sort(went)


def find(evidence: Evidence, number: int) -> Steady:
    """The steady part of a stage."""
    offered, columns = evidence.offered(number), evidence.of_stage(number)
    if offered.open and offered.rate is None:
        return Steady(None, "the load itself changes", load_changes=True)
    loaded = _loaded(columns, offered)
    if loaded is None:
        return Steady(None, f"fewer than {FEWEST} requests were answered")
    grew = _grew(loaded) if offered.open else None
    if grew is not None:
        was, is_now = (f"{level:,.0f}" for level in grew)
        why = f"a queue grew: requests in the system rose from {was} to {is_now}"
        return Steady(None, why, changes=True, grew=grew)
    return _judged(loaded, _settled_ns(loaded, 0 if offered.open else offered.users or 0))


def find_all(evidence: Evidence) -> dict[int, Steady]:
    """The steady part of every stage, by its number."""
    return {stage.number: find(evidence, stage.number) for stage in evidence.summary.stages}


def note(evidence: Evidence, parts: dict[int, Steady]) -> None:
    """Put the figures over the steady part beside those of the whole, in the summary."""
    trial = evidence.run.manifest.trial
    slo, _ = goodput.bounds(trial.get("slo") or [], trial.get("goodput") or [])
    for stage in evidence.summary.stages:
        part = parts[stage.number]
        stage.unsteady = part.why or None
        if part.window is not None:
            found = metrics.figures(evidence.of_stage(stage.number), part.window, slo)
            # What the whole stage cannot tell, a part of it cannot either.
            unknown = [name for name, value in stage.figures.items() if value is None]
            stage.steady = {**found, **dict.fromkeys(unknown)}


def findings(evidence: Evidence, parts: dict[int, Steady]) -> list[Finding]:
    """Where a stage has no steady part because it changes, and what the whole hides of one."""
    found = []
    for stage in evidence.summary.stages:
        part = parts[stage.number]
        if part.window is None:
            found += _none(stage, part)
        elif stage.steady is not None:
            found += _differs(stage, part.window)
    return found


def _loaded(columns: Columns, offered: Stage) -> Loaded | None:
    sent = columns.where(columns.sent_ns != ABSENT)
    answered = sent.answered()
    if len(answered) < FEWEST:
        return None
    order = np.argsort(answered.sent_ns, kind="stable")
    times = token_times.per_request(answered)
    found = Loaded(
        columns,
        int(sent.sent_ns.min()),
        _load_ended_ns(sent, offered),
        answered.sent_ns[order],
        {name: times[name][order] for name in ("ttft_s", "e2e_s")},
    )
    return found if found.end_ns > found.start_ns else None


def _load_ended_ns(sent: Columns, offered: Stage) -> int:
    """The last arrival; of a closed load, when the first load process sent its last request.

    Each has a share of a closed load's requests, dealt as its users are.
    """
    if offered.open or not offered.users:
        return int(sent.due_ns.max())
    user = (sent.request - offered.first_request) % offered.users
    process = user % (offered.workers or 1)
    last = np.full(offered.workers or 1, ABSENT)
    np.maximum.at(last, process, sent.sent_ns)
    return int(last[last != ABSENT].min())


def _settled_ns(loaded: Loaded, users: int) -> int:
    """When the beginning is over."""
    begun_ns = _answered_once_ns(loaded.columns, users) if users else loaded.start_ns
    level = loaded.mean_level(LEVELS)
    step_ns = (loaded.end_ns - loaded.start_ns) / LEVELS
    found = [begun_ns, loaded.start_ns + round(_beginning(level) * step_ns)]
    for values in loaded.times.values():
        there = (loaded.sent_ns >= begun_ns) & (loaded.sent_ns <= loaded.end_ns)
        there &= ~np.isnan(values)
        count = np.count_nonzero(there) // BATCH
        if count:
            means = values[there][: count * BATCH].reshape(count, BATCH).mean(axis=1)
            found.append(int(loaded.sent_ns[there][_beginning(means) * BATCH]))
    return max(found)


def _answered_once_ns(columns: Columns, users: int) -> int:
    """When each user's first request had ended."""
    first = columns.where(np.argsort(np.argsort(columns.due_ns, kind="stable")) < users)
    return int(token_times.ended_ns(first).max())


def _beginning(series: Floats) -> int:
    """How many of the first values are unlike the second half; at most half of them."""
    half = len(series) // 2
    if half < 4:
        return 0
    mean, deviation = float(series[half:].mean()), float(series[half:].std(ddof=1))
    near = CUT_DIFFERS * mean
    away = series[:half] - mean
    if abs(away[0]) <= max(CUT_DEVIATIONS * deviation, near):
        return 0
    settled = (np.sign(away) != np.sign(away[0])) | (np.abs(away) <= near)
    return int(np.argmax(settled)) if settled.any() else half


def _grew(loaded: Loaded) -> tuple[float, float] | None:
    """From where to where the requests in the system rose, where they surely did and by much.

    In the second half of the load, by Student's test of the steps from one part to the next: those
    of a queue that holds its own come to nothing however long its busy spells, and those of one
    that grows do not.
    """
    middle_ns = (loaded.start_ns + loaded.end_ns) // 2
    level = loaded.level(np.linspace(middle_ns, loaded.end_ns, GROWS_PARTS + 1))
    steps = np.diff(level)
    first, last = float(level[0]), float(level[-1])
    surely = float(steps.mean()) > GROWS_T * float(steps.std(ddof=1)) / np.sqrt(GROWS_PARTS)
    return (first, last) if surely and last - first > max(2.0, GROWS_RATIO * first) else None


def _judged(loaded: Loaded, start_ns: int) -> Steady:
    """The part from `start_ns` to the load's end, if it is one."""
    window = Window("steady", start_ns / 1e9, loaded.end_ns / 1e9)
    e2e = loaded.times["e2e_s"][window.holds(loaded.sent_ns)]
    e2e = e2e[~np.isnan(e2e)]
    if len(e2e) < FEWEST:
        return Steady(None, f"fewer than {FEWEST} requests were sent after its beginning")
    answer_s = float(np.median(e2e))
    if window.span_s < ANSWERS_LONG * answer_s:
        long, answer = format_seconds(window.span_s), format_seconds(answer_s)
        return Steady(None, f"the load lasted {long} after its beginning, an answer {answer}")
    line = trend(batched(e2e, window.span_s, answer_s))
    if line is not None and line.p < P_MOST and abs(line.ratio) > DRIFTS_RATIO:
        was, is_now = format_seconds(line.start), format_seconds(line.end)
        why = f"the median end-to-end latency went from {was} to {is_now}"
        return Steady(None, why, changes=True)
    return Steady(window)


def _none(stage: StageSummary, part: Steady) -> list[Finding]:
    if not part.changes:
        return []
    names = ("in_system_first", "in_system_last")
    return [
        Finding(
            kind="steady",
            sentence=f"no part of the stage is steady: {part.why}; its latencies depend on how "
            "long it lasted",
            strength="shown",
            stage=stage.number,
            value=part.grew[1] if part.grew else None,
            evidence=dict(zip(names, part.grew or (), strict=False)),
        )
    ]


class _Differs(NamedTuple):
    """A figure that is another in the steady part than over the whole stage."""

    name: str
    label: str
    whole: float
    steady: float
    surely: bool
    """Outside of the steady part's own interval."""

    @property
    def sentence(self) -> str:
        """Both values, for people."""
        show = three_digits if self.name.endswith("per_s") else format_seconds
        return f"{self.label} {show(self.whole)} over the whole stage, {show(self.steady)} there"


def _differing(stage: StageSummary) -> list[_Differs]:
    """The figures that differ, most of all first."""
    found = []
    for name, statistic, label in _FIGURES:
        inside, outside = (stage.steady or {}).get(name), stage.figures.get(name)
        least, surely, key = DIFFERS, False, name
        if isinstance(inside, Distribution) and isinstance(outside, Distribution):
            interval, key = inside.ci95[statistic], f"{name}_{statistic}"
            inside, outside = float(getattr(inside, statistic)), getattr(outside, statistic)
            if interval is None:
                least = DIFFERS_UNSURE
            elif interval[0] <= outside <= interval[1]:
                continue
            surely = interval is not None
        if inside and outside and abs(outside / inside - 1) > least:
            found.append(_Differs(key, label, outside, inside, surely))
    return sorted(found, key=lambda one: -abs(math.log(one.whole / one.steady)))


def _differs(stage: StageSummary, window: Window) -> list[Finding]:
    """What the figures are in the steady part, where those of the whole stage are others."""
    found = _differing(stage)[:MOST_SAID]
    if not found:
        return []
    whole = stage.figures["window"]
    spans = window.span_s, whole["end_s"] - whole["start_s"]
    lasts = " of ".join(format_seconds(span_s) for span_s in spans)
    evidence: dict[str, float | str | None] = {"start_s": window.start_s, "end_s": window.end_s}
    for one in found:
        evidence |= {f"{one.name}_steady": one.steady, f"{one.name}_whole": one.whole}
    return [
        Finding(
            kind="steady",
            sentence=f"steady for {lasts}: " + "; ".join(one.sentence for one in found),
            strength="shown" if found[0].surely else "likely",
            stage=stage.number,
            value=found[0].steady,
            evidence=evidence,
        )
    ]


def _time_since(ordered_ns: NDArray[np.int64], at: Floats) -> Floats:
    """Sum over the times of how long ago each was, at each time `at`; those to come count 0."""
    past = np.searchsorted(ordered_ns, at, side="right")
    sums = np.concatenate(([0.0], np.cumsum(ordered_ns[: past.max(initial=0)], dtype=np.float64)))
    return past * at - sums[past]
