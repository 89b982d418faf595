"""Doubts about the load generator itself and its clock: the instrument, not what it measures."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from servescope import token_times
from servescope.doubts.facts import REMEDIES, Doubt, StageFacts, percent
from servescope.records import ABSENT
from servescope.stats import lower_rank
from servescope.units import format_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from servescope.records import Columns, Sample

LATE_S, LATE_SHARE_OF_GAP = 1e-3, 0.01
BUSY_RATIO, BUSY_LEAST_S = 0.9, 1.0
"""A process that is busy for less than this long is no sign of one that cannot keep up."""
LAG_S, USER_LAG_S = 5e-3, 1e-3
"""The event loop's lag that is too much; the second where it enters the times."""
KEPT_WAITING_RATIO = 0.02
"""Above this share of the time spent waiting for a core, it is others that slow the generator."""
MERGED_RATIO = 0.01

_OWN_LIMITS = {
    "too many open files": "open files",
    "cannot assign requested address": "local ports",
    "no buffer space available": "memory",
    "cannot allocate memory": "memory",
}
_OWN_LIMIT = re.compile(
    rf"(?:connect: )?(?:\[Errno \d+\] )?({'|'.join(_OWN_LIMITS)})", re.IGNORECASE
)


class Generator(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the load generator in one stage; None where nothing is."""

    cpu_ratio: list[float] = []
    """Share of a core that each load process used."""
    lag_p99_s: float | None = None
    """How long what the kernel had waited for the event loop; the worst process's."""
    lag_p99_low_s: float | None = None
    """Lower end of the 95 % interval of that."""
    lag_max_s: float | None = None
    behind_ratio: float | None = None
    """Share of the time in which the event loop was over 1 ms late, as far as it could tell."""
    waiting_ratio: float | None = None
    """Share of the time that a load process waited for a core which others had."""
    clock: str | None = None
    """Who stamped the times of what was received: `kernel`, or `user` if a process had to."""
    clock_steps: int = 0
    """How often the wall clock was set."""
    apart_s: float | None = None
    """How far the clocks of two nodes may be apart; None where only one drove the load."""
    together: int = 0
    """The most requests that were due at one instant, where it was more than one."""
    spread_s: float | None = None
    """How long it took to send them all."""


def generator(columns: Columns, samples: Sequence[Sample]) -> Generator:
    """What is known of the load generator in the stage of `columns`.

    `samples` may be those of other stages and sources too.
    """
    stage = str(columns.stage[0]) if len(columns) else None
    loop: dict[str, list[float]] = {}
    unsure: dict[str, float] = {}
    for sample in samples:
        if sample.labels.get("stage", stage) != stage:
            continue
        if sample.source == "loop":
            loop.setdefault(sample.name, []).append(sample.value)
        elif sample.source == "clock" and sample.name == "uncertainty_s":
            node = sample.labels.get("node", "")
            unsure[node] = max(unsure.get(node, 0.0), sample.value)
    together, spread_s = _burst(columns)
    worst = {name: max(values) for name, values in loop.items()}
    return Generator(
        cpu_ratio=loop.get("cpu_ratio", []),
        lag_p99_s=worst.get("lag_p99_s"),
        lag_p99_low_s=worst.get("lag_p99_low_s", worst.get("lag_p99_s")),
        lag_max_s=worst.get("lag_max_s"),
        behind_ratio=worst.get("behind_ratio"),
        waiting_ratio=worst.get("waiting_ratio"),
        clock=clock_of(loop.get("kernel_clock", []), loop.get("turns", [])),
        clock_steps=int(worst.get("clock_steps", 0)),
        apart_s=sum(sorted(unsure.values())[-2:]) if len(unsure) > 1 else None,
        together=together,
        spread_s=spread_s,
    )


def clock_of(kernel_clock: Sequence[float], turns: Sequence[float]) -> str | None:
    """Whose clock the times are of: `user` if any process that read something had no stamps.

    Of each process, whether it had any and how many turns of its loop read something.
    """
    seen = [kernel for kernel, n in zip(kernel_clock, turns, strict=False) if kernel or n]
    return None if not seen else "kernel" if all(seen) else "user"


def own_limit(outcome: str, words: str) -> str | None:
    """What this machine had no more of, a key of `REMEDIES`; None where it was not that.

    `outcome` and `words` are those of a request that did not complete.
    """
    found = _OWN_LIMIT.match(words) if outcome == "failed:connect" else None
    return _OWN_LIMITS[found[1].lower()] if found else None


def _burst(columns: Columns) -> tuple[int, float | None]:
    """The most requests that were due at one instant, and how long it took to send them."""
    sent = columns.where(columns.sent_ns != ABSENT)
    if not len(sent):
        return 0, None
    _, group, counts = np.unique(sent.due_ns, return_inverse=True, return_counts=True)
    most = int(np.argmax(counts))
    if counts[most] < 2:
        return 0, None
    return int(counts[most]), float(np.ptp(sent.sent_ns[group == most])) / 1e9


# --- client_limited -------------------------------------------------------------------------------


def client_limited(
    stage: StageFacts, columns: Columns, figures: Mapping[str, Any], ours: Generator
) -> Doubt | None:
    """The generator was late, short of something, busy, or lagged."""
    reasons = list(_reasons(stage, columns, figures, ours))
    if not reasons:
        return None
    _, value, limit = reasons[0]
    told = "; ".join(message for message, _, _ in reasons)
    return Doubt(
        kind="client_limited",
        message=f"the load generator was a limit itself: {told}",
        value=value,
        limit=limit,
        advice=_faster(stage, ours),
    )


def _reasons(
    stage: StageFacts, columns: Columns, figures: Mapping[str, Any], ours: Generator
) -> Iterator[tuple[str, float, float]]:
    for lacking, count in stage.exhausted.items():
        told = f"{count:,} of {len(columns):,} requests were not sent: it had no more {lacking}"
        yield told, count / len(columns), 0.0
    delay, limit = np.sort(_own_delay_s(columns)), _allowed_delay_s(stage, columns)
    rank = lower_rank(len(delay), 0.99)
    if rank is not None and delay[rank - 1] > limit:
        late = float(np.quantile(delay, 0.99))
        told = f"it sent requests {format_seconds(late)} late (P99), above {format_seconds(limit)}"
        yield told, late, limit
    busy, window = max(ours.cpu_ratio, default=0.0), figures.get("window")
    if busy > BUSY_RATIO and window and window["end_s"] - window["start_s"] >= BUSY_LEAST_S:
        told = f"a load process used {busy * 100:.0f} % of a core, above {BUSY_RATIO * 100:.0f} %"
        yield told, busy, BUSY_RATIO
    lag = ours.lag_p99_s
    if lag is not None and (ours.lag_p99_low_s or 0.0) > LAG_S:
        told = f"its event loop lagged {format_seconds(lag)} (P99), above {format_seconds(LAG_S)}"
        yield told, lag, LAG_S


def _own_delay_s(columns: Columns) -> NDArray[np.float64]:
    """What the generator itself added to each sending, in seconds (m,).

    Requests that are due at one instant cannot leave at one instant: each is judged from when the
    one before it left. The load asked for that queue; `Generator.spread_s` tells its length.
    """
    sent = columns.where(columns.sent_ns != ABSENT)
    order = np.lexsort((sent.sent_ns, sent.due_ns))
    delay = token_times.generator_delay_s(columns)[order]
    due, left = sent.due_ns[order], sent.sent_ns[order]
    behind = np.diff(due, prepend=ABSENT) == 0
    since_s = np.diff(left, prepend=left[:1]) / 1e9
    return np.where(behind, np.minimum(delay, since_s), delay)


def _allowed_delay_s(stage: StageFacts, columns: Columns) -> float:
    gap_s = 0.0
    if stage.open and stage.rate:
        gap_s = 1 / stage.rate
    else:
        sent = columns.sent_ns[columns.sent_ns != ABSENT]
        if len(sent) > 1:
            gap_s = float(np.ptp(sent)) / 1e9 / (len(sent) - 1)
    return max(LATE_S, LATE_SHARE_OF_GAP * gap_s)


def _faster(stage: StageFacts, ours: Generator) -> str:
    if stage.exhausted:
        return "; ".join(REMEDIES[lacking] for lacking in stage.exhausted)
    spread = "spread the load over more processes (--workers), or move it to an idle machine"
    waiting = ours.waiting_ratio or 0.0
    if waiting > KEPT_WAITING_RATIO:
        spread = (
            f"other programs kept a load process waiting for a core for {percent(waiting)} of the "
            "time: move the load to an idle machine, or end them"
        )
    if stage.open:
        return f"{spread}; the from-due latencies contain the delay, the others do not"
    return f"{spread}; a late generator offers less load than {stage.label} promises"


# --- clock ----------------------------------------------------------------------------------------


def clock(stage: StageFacts, columns: Columns, ours: Generator) -> Iterator[Doubt | None]:
    """The clock was set, or the loop's lag is in the times, or nodes disagree about the time."""
    if ours.clock_steps and ours.clock != "user":
        times = "once" if ours.clock_steps == 1 else f"{ours.clock_steps} times"
        yield Doubt(
            kind="clock",
            message=f"the wall clock, which the kernel stamps by, was set {times} during the stage",
            value=float(ours.clock_steps),
            limit=0.0,
            advice="what was received within 20 ms of it may be off by as much as it was set: do "
            "not trust the largest and smallest ttft_s, itl_s, icl_s and e2e_s; have the time "
            "service slew, not step, and run again",
        )
    lag = ours.lag_p99_s
    if ours.clock == "user" and lag is not None and (ours.lag_p99_low_s or 0.0) > USER_LAG_S:
        yield Doubt(
            kind="clock",
            message="the kernel did not stamp what was received, and the event loop lagged "
            f"{format_seconds(lag)} (P99): the times are so much too late",
            value=lag,
            limit=USER_LAG_S,
            advice="ttft_s, itl_s and e2e_s contain the lag: use more --workers, an idle machine, "
            "or a connection that the kernel stamps (TCP on Linux)",
        )
    limit = _allowed_delay_s(stage, columns)
    if ours.apart_s is not None and ours.apart_s > limit:
        yield Doubt(
            kind="clock",
            message="the clocks of the nodes are aligned to within "
            f"{format_seconds(ours.apart_s)} only, above {format_seconds(limit)}",
            value=ours.apart_s,
            limit=limit,
            advice="due times, lateness_s, concurrency and the window of the rates compare nodes "
            "and may be off by so much; ttft_s, itl_s and e2e_s are of one clock each and stand",
        )


# --- merged_reads ---------------------------------------------------------------------------------


def merged_reads(figures: Mapping[str, Any], ours: Generator) -> Doubt | None:
    """Chunks came out of one read with the chunk before: the kernel keeps the last one's time."""
    ratio = figures.get("merged_reads_ratio") or 0.0
    if ratio <= MERGED_RATIO:
        return None
    return Doubt(
        kind="merged_reads",
        message=f"{percent(ratio)} of the chunks came out of one read with the chunk before: their "
        "times are upper bounds, and the gaps between them are not seen",
        value=ratio,
        limit=MERGED_RATIO,
        advice=_fewer_merged(ratio, ours),
    )


def _fewer_merged(ratio: float, ours: Generator) -> str:
    """Whose doing it was: chunks that our loop merges are those that came while it was late."""
    if ours.behind_ratio is None or ours.lag_p99_s is None:
        return "whether the client was late or the server sent them together is not known here"
    late = max(ours.behind_ratio, ours.waiting_ratio or 0.0)
    if late >= ratio / 2:
        return (
            f"the event loop was late, or waited for a core, for {percent(late)} of the time, and "
            "what came meanwhile was merged: more --workers, or an idle machine"
        )
    return (
        f"the event loop read what was there within {format_seconds(ours.lag_p99_s)} (P99) and was "
        f"late for {percent(late)} of the time only: the server, or a proxy before it, sends "
        "several chunks at once, and users get them so"
    )
