"""Every figure of a stage, as functions of its columns.

All are over answered requests (completed or truncated) unless said otherwise. With a window that
is cut (the steady part of a stage), distributions are over the requests that were sent inside it,
and rates count what arrived inside it: tokens chunk by chunk, a prompt when the first chunk of its
answer came, a request when it ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import numpy as np

from servescope import token_times
from servescope.goodput import meets
from servescope.records import ABSENT, ANSWERED, COMPLETED, OUTCOMES
from servescope.stats import Distribution, distribution

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from servescope.goodput import Slo
    from servescope.records import Columns

Figure: TypeAlias = Distribution | float | dict[str, float] | dict[str, str | float] | None

_PEAK_S = 1.0
_DIFFERS = 0.01
_OF_EVERY_SENT = ("lateness_s", "connect_s")


class Window(msgspec.Struct, frozen=True):
    """The time that rates refer to, ends included, in seconds since the run began."""

    name: str
    """`stage` for the whole stage; anything else is a cut."""
    start_s: float
    end_s: float

    @property
    def span_s(self) -> float:
        """Its length."""
        return self.end_s - self.start_s

    def holds(self, t_ns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these times lie inside; absent ones do not."""
        start, end = round(self.start_s * 1e9), round(self.end_s * 1e9)
        inside: NDArray[np.bool_] = (t_ns >= start) & (t_ns <= end) & (t_ns != ABSENT)
        return inside


def stage_window(columns: Columns) -> Window | None:
    """From the first send to the last end, also of requests that could not be sent.

    A server that is gone must not shorten the time its throughput is measured over. None if
    nothing was sent.
    """
    sent = columns.where(columns.sent_ns != ABSENT)
    if not len(sent):
        return None
    end = max(int(sent.sent_ns.max()), int(token_times.ended_ns(columns).max()))
    return Window("stage", int(sent.sent_ns.min()) / 1e9, end / 1e9)


def asked_per_s(columns: Columns) -> float | None:
    """Requests due per second, from the first due time to the last; None where they are one."""
    # A later turn that was never sent was never due either.
    due = columns.due_ns[(columns.sent_ns != ABSENT) | (columns.turn == 0)]
    span_s = int(np.ptp(due)) / 1e9 if len(due) else 0.0
    return (len(due) - 1) / span_s if span_s else None


def figures(
    columns: Columns, window: Window | None = None, slo: Slo | None = None
) -> dict[str, Figure]:
    """All figures of one stage by name; None where a figure could not be measured, never 0.

    `columns` holds every request of the stage, whatever its outcome. Without `window` the whole
    stage is meant. The names and units are those of `summary.json`; the goodput figures are there
    only with an `slo`.
    """
    window = window or stage_window(columns)
    result: dict[str, Figure] = {
        **_latencies(columns, window),
        **_rates(columns, window),
        **_chunking(columns.answered()),
        "window": None if window is None else msgspec.to_builtins(window),
    }
    if slo is not None:
        result.update(_goodput(columns, window, slo))
    return result


def outcomes(columns: Columns) -> dict[str, int]:
    """How many requests came to each outcome: `completed`, and every other that occurred."""
    counts = np.bincount(columns.outcome, minlength=len(OUTCOMES))
    named = zip(OUTCOMES, counts.tolist(), strict=True)
    return {name: count for name, count in named if count or name == COMPLETED}


def from_due_differs(figures: Mapping[str, Any]) -> bool:
    """Whether a table must show latencies from the due time beside those from the sending.

    So it is when the median or P99 of TTFT or end-to-end differs between the two by over 1 %.
    """
    pairs = (("ttft_s", "ttft_from_due_s"), ("e2e_s", "e2e_from_due_s"))
    return any(_far_apart(figures.get(a), figures.get(b)) for a, b in pairs)


def peak_rate(t_ns: NDArray[np.int64], weight: NDArray[np.float64], window: Window) -> float | None:
    """The largest rate of `weight` per second over any 1 s within the window.

    `t_ns` and `weight` have shape (n,), all inside the window. A second counts the arrivals from
    its start up to, but not at, its end. The whole window is one of those compared: it is the only
    one where it is shorter than 1 s, and it keeps the peak from falling below the mean where the
    window is no whole number of seconds. None for a window without length.
    """
    mean = _per_second(float(weight.sum()), window)
    if mean is None or window.span_s <= _PEAK_S or not len(t_ns):
        return mean
    order = np.argsort(t_ns)
    times, running = t_ns[order], np.concatenate(([0.0], np.cumsum(weight[order])))
    behind = np.searchsorted(times, times + round(_PEAK_S * 1e9), side="left")
    return max(mean, float((running[behind] - running[:-1]).max()) / _PEAK_S)


def concurrency(columns: Columns, window: Window) -> dict[str, float] | None:
    """Time-weighted mean and the maximum of requests in flight, whatever became of them.

    In flight means from sent to end; a request without an end stays so to the window's end. None
    for a window without length.
    """
    if window.span_s <= 0:
        return None
    first, last = round(window.start_s * 1e9), round(window.end_s * 1e9)
    ended = token_times.ended_ns(columns)
    end = np.where(ended == ABSENT, last, ended)
    inside = (columns.sent_ns != ABSENT) & (end > first) & (columns.sent_ns < last)
    start = np.sort(np.clip(columns.sent_ns[inside], first, last))
    end = np.sort(np.clip(end[inside], first, last))
    # One that ends at the instant another starts has left: a user never has two.
    flying = np.arange(1, len(start) + 1) - np.searchsorted(end, start, side="right")
    mean = float(end.sum() - start.sum()) / (last - first)
    return {"mean": mean, "max": float(flying.max(initial=0))}


def _latencies(columns: Columns, window: Window | None) -> dict[str, Figure]:
    sent = columns.where(_inside(window, columns.sent_ns))
    answered = sent.answered()
    kept = np.isin(sent.outcome, [OUTCOMES.index(name) for name in ANSWERED])
    result: dict[str, Figure] = {
        name: distribution(values if name in _OF_EVERY_SENT else values[kept])
        for name, values in token_times.per_request(sent).items()
    }
    chunks, tokens = token_times.chunk_gaps(answered), token_times.token_gaps(answered)
    result["icl_s"] = distribution(chunks.seconds, groups=chunks.row)
    result["itl_s"] = distribution(
        tokens.seconds, weights=tokens.weight, groups=tokens.row, estimated=tokens.estimated
    )
    prompt = answered.input_tokens
    result["input_tokens"] = distribution(prompt[prompt != ABSENT])
    result["cached_tokens"] = distribution(_cached(answered))
    output = answered.output_tokens
    result["output_tokens"] = distribution(output[output != ABSENT])
    for name in ("reasoning_tokens", "tool_tokens"):
        spent = getattr(answered, name)
        result[name] = distribution(spent) if spent.any() else None
    return result


def _cached(answered: Columns) -> NDArray[np.int64]:
    """Cached tokens of each answer; none where no answer tells.

    A server that tells of some answers is silent about those for which there was nothing to tell.
    """
    cached = answered.cached_tokens
    return np.maximum(cached, 0) if (cached != ABSENT).any() else cached[:0]


def _rates(columns: Columns, window: Window | None) -> dict[str, Figure]:
    names = ("output_tokens", "total_tokens", "peak_output_tokens", "requests")
    if window is None:
        return {**{f"{name}_per_s": None for name in names}, "concurrency": None}
    answered = columns.answered()
    arrived = window.holds(answered.chunk_ns)
    counted = not (answered.output_tokens == ABSENT).any()
    tokens = token_times.arriving_tokens(answered)[arrived]
    prompts = answered.input_tokens[window.holds(token_times.first_chunk_ns(answered))]
    # A sum that leaves out what nobody counted would be too small without saying so.
    made = float(tokens.sum()) if counted else None
    total = None if made is None or (prompts == ABSENT).any() else float(prompts.sum()) + made
    ended = float(window.holds(token_times.ended_ns(answered)).sum())
    return {
        "output_tokens_per_s": None if made is None else _per_second(made, window),
        "total_tokens_per_s": None if total is None else _per_second(total, window),
        "peak_output_tokens_per_s": peak_rate(answered.chunk_ns[arrived], tokens, window)
        if counted
        else None,
        "requests_per_s": _per_second(ended, window),
        "concurrency": concurrency(columns, window),
    }


def _chunking(answered: Columns) -> dict[str, Figure]:
    chunks = len(answered.chunk_ns)
    if not chunks:
        return {"tokens_per_chunk": None, "merged_reads_ratio": None}
    counted = not (answered.output_tokens == ABSENT).any()
    tokens = float(token_times.chunk_tokens(answered).tokens.sum())
    return {
        "tokens_per_chunk": tokens / chunks if counted else None,
        "merged_reads_ratio": float(answered.merged_chunks.sum()) / chunks,
    }


def _goodput(columns: Columns, window: Window | None, slo: Slo) -> dict[str, Figure]:
    good = meets(slo, columns)
    if good is None or window is None:
        ratio = None if good is None or not len(columns) else 0.0
        return {"goodput_requests_per_s": None, "goodput_ratio": ratio}
    whole = window.name == "stage"
    due = np.ones(len(columns), np.bool_) if whole else window.holds(columns.due_ns)
    ended = good & window.holds(token_times.ended_ns(columns))
    return {
        "goodput_requests_per_s": _per_second(float(ended.sum()), window),
        "goodput_ratio": float(good[due].mean()) if due.any() else None,
    }


def _inside(window: Window | None, t_ns: NDArray[np.int64]) -> NDArray[np.bool_]:
    return window.holds(t_ns) if window is not None else np.zeros(len(t_ns), np.bool_)


def _per_second(amount: float, window: Window) -> float | None:
    return amount / window.span_s if window.span_s > 0 else None


def _far_apart(plain: Distribution | None, from_due: Distribution | None) -> bool:
    if plain is None or from_due is None:
        return False
    pairs = ((plain.p50, from_due.p50), (plain.p99, from_due.p99))
    return any(abs(b - a) > _DIFFERS * abs(a) for a, b in pairs)
