"""Nothing is lost between a client and a server: what one counts, the other must count too.

In flight is what arrives times how long it stays (Little, Operations Research 9, 1961): what the
answered requests do not account for failed. What a client has in flight, its server has running or
waiting: what is missing there is held by something between the two. Both see the same answers take
the same time, but for the way, and both count the same tokens.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from servescope import metrics, token_times
from servescope.analysis.told import Told, told
from servescope.findings import Finding
from servescope.metrics import Window, stage_window
from servescope.records import ABSENT, CANCELLED, OUTCOMES
from servescope.units import format_seconds, three_digits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from servescope.analysis.evidence import Evidence
    from servescope.analysis.steady import Steady
    from servescope.records import Columns
    from servescope.telemetry import Histogram, Series

    Floats = NDArray[np.float64]

UNANSWERED_RATIO = 0.1
READINGS = 8
"""Readings of a server's gauges that a comparison wants."""
HELD_RATIO, HELD_LEAST = 0.2, 2.0
"""The client has more in flight than the server where the difference surely exceeds this part of
the larger, and so many requests: steps and readings are not taken at one instant."""
LATER_S, LATER_RATIO = 0.05, 0.25
"""Answers are late at the client where it sees them take longer than the server by more than this,
by more than this part of what it sees,"""
ROUND_TRIPS = 3.0
"""and by more than so many round trips, as connecting shows them."""
COUNTS_DIFFER = 0.05
"""Counts differ where they do so by more than this, and by more than `FEW_ANSWERS` come to."""
FEW_ANSWERS = 2
ALL_COUNTED = 0.1
"""Means are compared where server and client count the same answers but for this part of them."""
_Z = 2.5


class Held(NamedTuple):
    """Requests in flight as the client and as its server have them, over a stage."""

    client: float
    server: float
    low: float
    """Interval of the mean difference, some 98 % wide."""
    high: float
    readings: int


class Later(NamedTuple):
    """A mean time as client and server see it, of the same answers, in seconds."""

    client_s: float
    server_s: float

    @property
    def excess_s(self) -> float:
        """How much longer the client waits."""
        return self.client_s - self.server_s

    def is_late(self, round_trip_s: float) -> bool:
        """Whether that is more than the way explains."""
        least = max(LATER_S, LATER_RATIO * self.client_s, ROUND_TRIPS * round_trip_s)
        return self.excess_s > least

    def said(self, what: str) -> str:
        """Both values, for people."""
        return (
            f"{format_seconds(self.excess_s)} later than the server says (mean {what} "
            f"{format_seconds(self.client_s)} here, {format_seconds(self.server_s)} there)"
        )


def findings(evidence: Evidence, parts: dict[int, Steady]) -> list[Finding]:
    """What client and server do not agree on, stage by stage, and then of the run."""
    servers = told(evidence)
    found = _mixed(evidence)
    for stage in evidence.summary.stages:
        columns = evidence.of_stage(stage.number)
        window = parts[stage.number].window or stage_window(columns)
        if window is None or window.span_s <= 0:
            continue
        found += _unanswered(stage.number, columns, window)
        found += _held(servers, stage.number, columns, window)
        found += _late(evidence, servers, stage.number)
    return found + _counts(evidence, servers)


def _mixed(evidence: Evidence) -> list[Finding]:
    """Pages that say nothing of any one server."""
    telemetry = evidence.telemetry
    return [
        Finding(
            kind="conservation",
            sentence=f"answers of several servers alternate on the page {source}, for its counters "
            "fall again and again: none is used; read each server by itself (--metrics URL)",
            strength="shown",
            evidence={"source": source},
        )
        for source in telemetry.sources
        if telemetry.mixed(source)
    ]


def _unanswered(number: int, columns: Columns, window: Window) -> list[Finding]:
    """Requests that were in flight and failed: latencies know nothing of them."""
    ours = columns.outcome == OUTCOMES.index(CANCELLED)  # the end of a stage is no loss
    every = metrics.concurrency(columns.where(~ours), window)
    answered = metrics.concurrency(columns.answered(), window)
    if every is None or answered is None or not every["mean"]:
        return []
    lost = every["mean"] - answered["mean"]
    if lost <= UNANSWERED_RATIO * every["mean"] or not len(columns.answered()):
        return []
    return [
        Finding(
            kind="conservation",
            sentence=f"of {three_digits(every['mean'])} requests in flight on average "
            f"{three_digits(lost)} failed in the end: throughput times latency, which are of the "
            f"answered ones, comes to {three_digits(answered['mean'])}",
            strength="shown",
            stage=number,
            value=lost,
            evidence={"in_flight": every["mean"], "in_flight_answered": answered["mean"]},
        )
    ]


def _held(servers: Told, number: int, columns: Columns, window: Window) -> list[Finding]:
    """Requests that the client has in flight and its server does not have, or the reverse."""
    held = _levels(servers, columns, window)
    if held is None:
        return []
    proof: dict[str, float | str | None] = {
        "client_in_flight": held.client,
        "server_running_and_waiting": held.server,
        "low": held.low,
        "high": held.high,
        "readings": float(held.readings),
    }
    least = max(HELD_LEAST, HELD_RATIO * max(held.client, held.server))
    client, server = three_digits(held.client), three_digits(held.server)
    between = held.client - held.server
    if held.low > least:
        answers = np.count_nonzero(window.holds(token_times.ended_ns(columns.answered())))
        wait_s = between * window.span_s / answers if answers else None  # Little's law
        wait = "" if wait_s is None else f", {format_seconds(wait_s)} of each"
        return [
            Finding(
                kind="conservation",
                sentence=f"of {client} requests in flight on average the server had {server} "
                f"running or waiting: {three_digits(between)} were held on the way{wait} (by a "
                "proxy, a gateway, a limit on connections, or the server's own front end)",
                strength="shown",
                stage=number,
                value=between,
                evidence=proof,
            )
        ]
    if held.high < -least:
        return [
            Finding(
                kind="conservation",
                sentence=f"the server had {server} requests running or waiting on average, of "
                f"which this client had sent {client}: others use it, too",
                strength="shown",
                stage=number,
                value=-between,
                evidence=proof,
            )
        ]
    return []


def _levels(servers: Told, columns: Columns, window: Window) -> Held | None:
    """Requests in flight on both sides, at the times when the server was read."""
    running = servers.named("running_requests")
    if not running:
        return None
    others = servers.named("waiting_requests", "paused_requests")
    at_s = running[0].t_s
    at_s = at_s[(at_s >= window.start_s) & (at_s <= window.end_s)]
    server = sum((_at(series, at_s) for series in (*running, *others)), np.zeros(len(at_s)))
    client = _flying(columns, at_s)
    kept = ~np.isnan(server)
    if np.count_nonzero(kept) < READINGS:
        return None
    apart = client[kept] - server[kept]
    mean, reach = float(apart.mean()), _Z * _error(apart)
    return Held(
        float(client[kept].mean()),
        float(server[kept].mean()),
        mean - reach,
        mean + reach,
        len(apart),
    )


def _at(series: Series, at_s: Floats) -> Floats:
    """A series' value at each time, as last read; NaN before that, or if a reading failed since."""
    last = np.searchsorted(series.t_s, at_s, side="right") - 1
    read_s = series.t_s[np.maximum(last, 0)]
    failed = np.searchsorted(series.failed_s, at_s) > np.searchsorted(series.failed_s, read_s)
    return np.where((last >= 0) & ~failed, series.value[np.maximum(last, 0)], np.nan)


def _flying(columns: Columns, at_s: Floats) -> Floats:
    """Requests that were sent and had not ended at each time."""
    sent = columns.where(columns.sent_ns != ABSENT)
    ended = token_times.ended_ns(sent)
    went = np.sort(np.where(ended == ABSENT, np.iinfo(np.int64).max, ended))
    came, at_ns = np.sort(sent.sent_ns), at_s * 1e9
    flying = np.searchsorted(came, at_ns, "right") - np.searchsorted(went, at_ns, "right")
    return flying.astype(np.float64)


def _error(values: Floats) -> float:
    """The standard error of a mean of values of which neighbours may be alike."""
    rest = values - values.mean()
    total = float(rest @ rest)
    likeness = max(0.0, float(rest[1:] @ rest[:-1]) / total) if total else 0.0
    enlarged = (1 + likeness) / max(1 - likeness, 0.05)
    return math.sqrt(total / (len(values) - 1) / len(values) * enlarged)


def _late(evidence: Evidence, servers: Told, number: int) -> list[Finding]:
    """Answers that come to the client later than the server says that it gave them."""
    # The whole stage: at its ends little is in flight that one side counts and the other not yet.
    window = stage_window(evidence.of_stage(number))
    if window is None:
        return []
    answered = evidence.columns.answered()
    streamed = bool(evidence.run.manifest.trial.get("stream", True))
    first = _later(answered, window, "ttft_s", servers.histograms("ttft_s")) if streamed else None
    whole = _later(answered, window, "e2e_s", servers.histograms("e2e_s"))
    way_s = _round_trip_s(evidence.of_stage(number))
    if first and first.is_late(way_s) and (not whole or whole.excess_s < first.excess_s / 2):
        late, sentence = first, f"first tokens come {first.said('TTFT')}"
        if whole:
            much = format_seconds(max(0.0, whole.excess_s))
            sentence += f", whole answers only {much}: something on the way holds tokens back"
    elif whole and whole.is_late(way_s):
        late, sentence = whole, f"answers come {whole.said('end-to-end latency')}"
        sentence += ": requests or answers wait on the way"
    elif first and first.is_late(way_s):
        late, sentence = first, f"first tokens come {first.said('TTFT')}"
        sentence += ": requests wait on the way"
    else:
        return []
    proof: dict[str, float | str | None] = {"round_trip_s": way_s}
    for name, seen in (("ttft", first), ("e2e", whole)):
        if seen:
            proof |= {f"client_{name}_s": seen.client_s, f"server_{name}_s": seen.server_s}
    return [
        Finding(
            kind="conservation",
            sentence=sentence,
            strength="shown",
            stage=number,
            value=late.excess_s,
            evidence=proof,
        )
    ]


def _later(
    answered: Columns, window: Window, name: str, histograms: Sequence[Histogram]
) -> Later | None:
    """A mean time on both sides, of what was counted between two readings around the window."""
    if not histograms:
        return None
    read_s = histograms[0].t_s
    i = max(0, int(np.searchsorted(read_s, window.start_s, "right")) - 1)
    k = min(len(read_s) - 1, int(np.searchsorted(read_s, window.end_s, "left")))
    if k <= i:
        return None
    between = Window("read", float(read_s[i]), float(read_s[k]))
    # Without the lag: else the server's part would end a reading later than the client's.
    exact = (replace(one, lag_s=0.0) for one in histograms)
    over = [one.over(between.start_s, between.end_s) for one in exact]
    known = [one for one in over if one is not None and one.mean is not None]
    count = sum(one.count for one in known)
    seen = token_times.per_request(answered)[name]
    seen = seen[between.holds(token_times.ended_ns(answered)) & ~np.isnan(seen)]
    open_ends = float(_flying(answered, read_s[[i, k]]).sum())
    if abs(count - len(seen)) > max(FEW_ANSWERS + open_ends, ALL_COUNTED * len(seen)):
        return None
    server_s = sum((one.mean or 0.0) * one.count for one in known) / (count or 1)
    return Later(float(seen.mean()), server_s) if len(seen) and count else None


def _round_trip_s(columns: Columns) -> float:
    """Median time to connect, which takes a round trip or more; 0 where nothing was connected."""
    took = columns.connect_ns[columns.connect_ns > 0]
    return float(np.median(took)) / 1e9 if len(took) else 0.0


class Count(NamedTuple):
    """Something that both sides count over the whole run."""

    what: str
    server: float
    least: float
    """What the client knows to have come."""
    most: float
    """The same with all that it may not know of, such as what failed answers had cost."""
    few: float
    """What a few answers more or less come to."""


def _counts(evidence: Evidence, servers: Told) -> list[Finding]:
    """The server's counters against the client's own counts, from before the first request on."""
    for count in _both_counted(evidence.columns, servers):
        slack = max(COUNTS_DIFFER * count.most, count.few)
        proof: dict[str, float | str | None] = {
            "server": count.server,
            "client": count.least,
            "client_at_most": count.most,
        }
        server, client = f"{count.server:,.0f}", f"{count.least:,.0f}"
        if count.server > count.most + slack:
            more = "others use it, too, or requests were repeated on the way"
            sentence = f"the server counted {server} {count.what}, this client {client}: {more}"
        elif count.server < count.least - slack:
            less = "its metrics page is not that of all who answered"
            sentence = f"{client} {count.what} came, and the server counted {server}: {less}"
        else:
            continue
        return [
            Finding(
                kind="conservation",
                sentence=sentence,
                strength="shown",
                value=count.server - count.least,
                evidence=proof,
            )
        ]
    return []


def _both_counted(columns: Columns, servers: Told) -> list[Count]:
    sent = columns.where(columns.sent_ns != ABSENT)
    made, finished = servers.named("generated_tokens"), servers.named("requests_finished")
    found = []
    answered = sent.answered()
    unknown = len(sent) - len(answered) + int((sent.attempts - 1).sum())
    if made and len(answered) and answered.counted_by_server.all():
        longest = float(max(answered.output_tokens.max(), sent.asked_output_tokens.max()))
        span_s, server, open_ends = _risen(made, sent)
        come = Window("read", *span_s).holds(answered.chunk_ns)
        least = float(token_times.arriving_tokens(answered)[come].sum())
        few = (FEW_ANSWERS + open_ends) * longest
        found.append(Count("output tokens", server, least, least + unknown * longest, few))
    if finished and len(sent):
        span_s, server, open_ends = _risen(finished, sent)
        ended = token_times.ended_ns(answered)
        least = float(np.count_nonzero(Window("read", *span_s).holds(ended)))
        found.append(Count("answers", server, least, least + unknown, FEW_ANSWERS + open_ends))
    return found


def _risen(counters: list[Series], sent: Columns) -> tuple[tuple[float, float], float, float]:
    """From when to when all counters were read, in s; how much they rose in all; and how many
    requests were in flight at either end, which a server may count before or after it.

    The beginning is the first request's, if they were read before it.
    """
    start_s = max(int(sent.sent_ns.min()) / 1e9, *(one.t_s[0] for one in counters))
    end_s = min(one.t_s[-1] for one in counters)
    at_s = np.array([start_s, end_s])
    risen = sum(float(np.diff(_at(one, at_s))[0]) for one in counters)
    open_ends = _flying(sent, at_s - 1e-6).sum()  # what is sent right then is counted whole
    return (float(start_s), float(end_s)), risen, float(open_ends)
