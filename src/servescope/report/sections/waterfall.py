"""Requests one below the other: when each waited, when its tokens came."""

from __future__ import annotations

from typing import Any

import numpy as np

from servescope import token_times
from servescope.analysis.evidence import Evidence
from servescope.records import ABSENT, ANSWERED, OUTCOMES, Columns
from servescope.report.content import Plot, Section
from servescope.report.curves import rounded
from servescope.report.shown import Shown, stages

PLACE = 80
_MOST = 200
"""Requests, over all stages."""
_FEWEST = 40
"""Of a stage."""


def section(evidence: Evidence) -> Section | None:
    """Neighbours from the middle of each stage: a sample of all would hide who waited for whom."""
    found = stages(evidence)
    most = max(_FEWEST, _MOST // max(len(found), 1))
    plots = [
        plot for k, s in enumerate(found) if (plot := _plot(s, k, most, len(found))) is not None
    ]
    return Section(name="waterfall", title="Requests", plots=plots) if plots else None


def _plot(stage: Shown, number: int, most: int, several: int) -> Plot | None:
    sent = stage.columns.where(stage.columns.sent_ns != ABSENT)
    if not len(sent):
        return None
    order = np.argsort(sent.due_ns, kind="stable")
    first = max(0, (len(order) - most) // 2)
    mask = np.zeros(len(sent), np.bool_)
    mask[order[first : first + most]] = True
    kept = sent.where(mask)
    parts = _parts(kept)
    zero = kept.due_ns.min() / 1e9
    place = np.argsort(np.argsort(kept.due_ns, kind="stable"), kind="stable")
    traces = [_bars(name, colour, place, start - zero, span) for name, colour, start, span in parts]
    them = "requests" if len(sent) == len(stage.columns) else "requests that were sent"
    whole = len(kept) == len(sent)
    what = f"all {them}" if whole else f"{len(kept)} neighbours of {len(sent):,} {them}"
    return Plot(
        name=f"waterfall-{number}",
        title=f"Request waterfall, {stage.name}",
        caption=f"A line a request, in the order in which they were due ({what}): grey until it "
        "was sent, orange until its first token (queue and prefill), blue while its tokens came, "
        "red where it was not answered.",
        choice=stage.name if several > 1 else "",
        traces=[trace for trace in traces if trace["x"]],
        layout={
            "barmode": "overlay",
            "bargap": 0.15,
            "height": min(680, 140 + 8 * len(kept)),
            "xaxis": {
                "title": {"text": "seconds since the first of them was due"},
                "ticksuffix": "s",
            },
            "yaxis": {"autorange": "reversed", "title": {"text": "request"}, "showgrid": False},
        },
        csv_header=["request", "due_s", "sent_s", "first_token_s", "last_token_s", "outcome"],
        csv_rows=_rows(kept),
    )


def _parts(kept: Columns) -> list[tuple[str, str, Any, Any]]:
    """Name, colour, start and length in seconds of each kind of bar; NaN where there is none."""
    due, sent = kept.due_ns / 1e9, kept.sent_ns / 1e9
    first = _seconds(token_times.first_chunk_ns(kept))
    last = _seconds(token_times.last_chunk_ns(kept))
    end = _seconds(token_times.ended_ns(kept))
    good = np.isin(kept.outcome, [OUTCOMES.index(name) for name in ANSWERED])
    return [
        ("until sent", "waiting", due, sent - due),
        ("until first token", "prefill", np.where(good, sent, np.nan), first - sent),
        ("tokens", "decode", np.where(good, first, np.nan), last - first),
        ("not answered", "failed", np.where(good, np.nan, sent), np.maximum(end - sent, 0)),
    ]


def _seconds(t_ns: Any) -> Any:  # noqa: ANN401 (an array)
    return np.where(t_ns == ABSENT, np.nan, t_ns / 1e9)


def _bars(name: str, colour: str, place: Any, start: Any, span: Any) -> dict[str, Any]:  # noqa: ANN401
    there = np.isfinite(start) & np.isfinite(span) & (span > 0)
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "y": place[there].tolist(),
        "base": rounded(start[there]),
        "x": rounded(span[there]),
        "marker": {"colour": colour, "line": {"width": 0}},
        "hovertemplate": "%{x:.3s}s<extra>%{fullData.name}</extra>",
    }


def _rows(kept: Columns) -> list[list[Any]]:
    first, last = token_times.first_chunk_ns(kept), token_times.last_chunk_ns(kept)
    times = (kept.due_ns, kept.sent_ns, first, last)
    cells = [rounded(_seconds(t_ns)) for t_ns in times]
    names = [OUTCOMES[k] for k in kept.outcome.tolist()]
    return [list(row) for row in zip(kept.request.tolist(), *cells, names, strict=True)]
