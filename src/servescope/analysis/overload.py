"""Whether an open load is kept up with; where it is not, what came of the rest and why.

The cause is what the servers' own gauges show while the load lasted: requests that wait in an
engine's queue, and what of the engine is full meanwhile.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from servescope import metrics, token_times
from servescope.analysis.told import Told, told
from servescope.findings import Finding
from servescope.metrics import Window
from servescope.records import ABSENT
from servescope.units import three_digits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from servescope.analysis.evidence import Evidence
    from servescope.analysis.steady import Steady
    from servescope.records import Columns
    from servescope.summary import StageSummary
    from servescope.telemetry import Series

    Floats = NDArray[np.float64]

KEEPS_UP = 0.95
"""A service keeps up with a rate where it answers at least this part of what it is sent;"""
DEVIATIONS = 3.0
"""it does not where more is lacking than so many standard deviations of a Poisson count of it, or
where a queue grows."""
ANSWERS_LONG = 5.0
"""What is judged lasts so many answers: in less, requests in flight are as many more by chance."""
FEWEST = 20
WAITING_RATIO = 0.1
"""A server's queue is named where it holds this part of what the client has in flight."""
READINGS = 5
"""Readings with requests in the queue that tell what is full meanwhile."""
KV_FULL, BATCH_FULL = 0.9, 0.95
"""In the median of them: this part of the KV cache, or of the most requests ever running."""


class Pace(NamedTuple):
    """The second half of the arrivals of an open load: the first fills the engine."""

    first_ns: int
    last_ns: int
    """When it began and when the last request was due; what ends later was in no hurry."""
    asked: int
    answered: int
    failed: int
    answer_s: float
    """What a fast answer takes (P10 end-to-end), as nearly without a queue as was seen."""

    @property
    def answers_per_s(self) -> float:
        """Requests that ended with an answer, per second."""
        return self.answered / ((self.last_ns - self.first_ns) / 1e9)

    @property
    def keeps_up(self) -> bool | None:
        """None where what is lacking may be chance: a Poisson count, or one busy spell."""
        lacking = self.asked - self.answered
        if lacking <= (1 - KEEPS_UP) * self.asked:
            return True
        long = (self.last_ns - self.first_ns) / 1e9 >= ANSWERS_LONG * self.answer_s
        return False if long and lacking > DEVIATIONS * math.sqrt(self.asked) else None

    @property
    def piles_up(self) -> bool:
        """Whether most of what is lacking had not ended: it did not fail, it waits."""
        return self.failed < (self.asked - self.answered) / 2


def pace(columns: Columns) -> Pace | None:
    """How the requests of an open stage were kept up with; None of too few."""
    due = columns.due_ns[(columns.sent_ns != ABSENT) | (columns.turn == 0)]
    if len(due) < 2 * FEWEST or due.min() == due.max():
        return None
    first, last = int(np.median(due)), int(due.max())
    if first == last:
        return None
    inside = [
        int(np.count_nonzero((times > first) & (times <= last)))
        for times in (
            due,
            token_times.ended_ns(columns.answered()),
            token_times.ended_ns(columns),
        )
    ]
    asked, answered, ended = inside
    e2e = token_times.per_request(columns.answered())["e2e_s"]
    e2e = e2e[~np.isnan(e2e)]
    answer_s = float(np.quantile(e2e, 0.1)) if len(e2e) else 0.0
    return Pace(first, last, asked, answered, ended - answered, answer_s)


def findings(evidence: Evidence, parts: dict[int, Steady]) -> list[Finding]:
    """The stages whose rate was not kept up with, each with the reason where it is known."""
    servers, found = told(evidence), []
    for stage in evidence.summary.stages:
        offered = evidence.offered(stage.number)
        if not offered.open or offered.rate is None:
            continue
        columns = evidence.of_stage(stage.number)
        seen, grew = pace(columns), parts[stage.number].grew
        if seen is None or (seen.keeps_up and not grew):
            continue
        cap = evidence.run.manifest.trial.get("max_concurrency")
        why = _Why(f"the rest waits here, behind the cap of {cap} in flight")
        if cap is None:
            why = _queue(servers, columns, seen)
        surely = bool(grew) or seen.keeps_up is False
        if seen.piles_up and why.empty:  # the engine has no queue: a busy spell, or all in flight
            continue
        # What chance may explain is told where the engine's own queue tells it too.
        if surely or (why.proof and seen.piles_up):
            told_of = _finding(stage, seen, why, grew=bool(grew))
            found.append(told_of if surely else msgspec.structs.replace(told_of, strength="likely"))
    return found


class _Why(NamedTuple):
    """Where requests wait and for what; no words where that is not known."""

    words: str = ""
    empty: bool = False
    """The servers say that next to nothing waits there."""
    proof: dict[str, float | str | None] = {}  # noqa: RUF012 (never changed)


def _finding(stage: StageSummary, seen: Pace, why: _Why, *, grew: bool) -> Finding:
    reached = stage.figures.get("requests_per_s") or 0.0
    asked = stage.asked_per_s or 0.0
    sentence = f"asked {three_digits(asked)} requests/s, it answers {three_digits(reached)}"
    proof: dict[str, float | str | None] = {"asked_per_s": asked, "requests_per_s": reached}
    if lost := unanswered(stage):
        sentence += f", and {lost}"
    if grew or seen.piles_up:
        sentence += f": {why.words or 'the rest piles up'}"
        # Where a queue surely grew, the finding `steady` says so.
        sentence += "" if grew else "; latencies depend on how long the stage lasted"
        proof |= why.proof
    return Finding(
        kind="overload",
        sentence=sentence,
        strength="shown",
        stage=stage.number,
        value=reached,
        evidence=proof,
    )


def unanswered(stage: StageSummary) -> str:
    """How many requests of a stage failed and what most of them met; empty where next to none."""
    failed = {k: n for k, n in stage.outcomes.items() if k.startswith("failed") and n}
    lost, total = sum(failed.values()), sum(stage.outcomes.values())
    if lost <= (1 - KEEPS_UP) * total:
        return ""
    return f"{lost:,} of {total:,} requests failed ({max(failed, key=failed.__getitem__)})"


def _queue(servers: Told, columns: Columns, seen: Pace) -> _Why:
    """What waits in the engine's queue, and what is full there meanwhile."""
    window = Window("load", columns.due_ns.min() / 1e9, seen.last_ns / 1e9)
    waiting, running = servers.named("waiting_requests"), servers.named("running_requests")
    flying = metrics.concurrency(columns, window)
    mean = _mean(waiting, window)
    if mean is None or not flying:
        return _Why()
    if mean < WAITING_RATIO * flying["mean"]:
        return _Why(empty=True)
    kv = servers.named("kv_use_ratio")
    busy = _while_waiting(waiting, running, window)
    full = _while_waiting(waiting, kv, window, np.maximum)
    why = f"on average {three_digits(mean)} of {three_digits(flying['mean'])} in flight wait in the"
    why += " engine's queue"
    proof: dict[str, float | str | None] = {"waiting_requests_mean": mean}
    if len(full) >= READINGS and float(np.median(full)) >= KV_FULL:
        proof["kv_use_ratio_while_waiting"] = float(np.median(full))
        why += f", for the KV cache is full ({100 * np.median(full):.0f} % in use)"
    elif len(busy) >= READINGS and float(np.median(busy)) >= BATCH_FULL * busy.max() > 0:
        proof["running_requests_max"] = float(busy.max())
        why += f", for its batch is full ({busy.max():,.0f} running)"
    return _Why(why, proof=proof)


def _mean(series: Sequence[Series], window: Window) -> float | None:
    """Of all servers together."""
    each = [one.mean(window.start_s, window.end_s) for one in series]
    known = [value for value in each if value is not None]
    return sum(known) if known else None


def _while_waiting(
    waiting: Sequence[Series], gauges: Sequence[Series], window: Window, join: np.ufunc = np.add
) -> Floats:
    """A gauge at the readings at which requests waited, of all servers that were read together."""
    if not waiting or not gauges:
        return np.empty(0)
    t_s = waiting[0].t_s
    for one in gauges:
        t_s = np.intersect1d(t_s, one.t_s)
    queue = waiting[0].value[np.searchsorted(waiting[0].t_s, t_s)]
    t_s = t_s[(queue > 0) & (t_s >= window.start_s) & (t_s <= window.end_s)]
    each = [one.value[np.searchsorted(one.t_s, t_s)] for one in gauges]
    found: Floats = join.reduce(each, axis=0)
    return found
