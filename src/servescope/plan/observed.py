"""What measured runs tell of the engine behind them: its requests, and what its steps had to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from servescope import token_times
from servescope.engine.cost import sizes
from servescope.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from servescope.records import Columns
    from servescope.store import Run

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

METRICS = ("ttft_s", "tpot_s", "e2e_s")
_FEWEST = 8
"""Answers, for a stage to be worth fitting to."""
_MOST = 5000
"""Requests of a stage that are replayed."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What was asked in one stage of a run, in the order of sending, and how long it took."""

    load: str
    """`users:4`."""
    prompts: Ints
    """Tokens computed of each prompt: what a prefix cache held is left out."""
    outputs: Ints
    sent_s: Floats
    users: int | None
    """None: they came when `sent_s` says."""
    measured: dict[str, Floats]
    rows: Columns


def stages(runs: Iterable[Run]) -> list[Stage]:
    """The stages of runs that can be fitted to. Raises BadInput where there is none."""
    found, said = [], []
    for run in runs:
        columns = run.columns().answered()
        said.append(str(run.path))
        for number, stage in enumerate(one for one in run.manifest.stages if not one.warmup):
            rows = columns.where(columns.stage == number)
            rows = rows.where((rows.input_tokens > 0) & (rows.output_tokens > 0))
            if len(rows) >= _FEWEST:
                # How long users thought is known, but replaying has no such pause.
                users = None if "think" in stage.load else stage.users
                found.append(_stage(stage.load, rows, users))
    if not found:
        want = f"want runs with a stage of at least {_FEWEST} answers that have token counts"
        raise BadInput("RUN", " ".join(said), want)
    return found


@dataclass(frozen=True, slots=True)
class Equations:
    """What took how long: a row for each stretch of a request's decode steps that had one batch,
    and one for the first token of each request that came to an idle engine."""

    work: Floats
    """Shape (n, 4): steps, prompt tokens computed, tokens of context attended to, and ways from
    client to engine and back."""
    batches: Floats
    """Shape (n, 1 + m): of the steps, how many had a batch of 1 and of each of `sizes(m)`; one of a
    size between two counts for both, in parts."""
    seconds: Floats
    """Shape (n,)."""


def equations(measured: Sequence[Stage], largest: int | None = None) -> Equations:
    """What the tokens' times tell; no batch is thought to be larger than `largest`.

    Between two tokens of a request lies a step; whoever had a token before and another after it
    was in it too, and whose first token came, his prompt was computed.
    """
    rows = np.concatenate([_equations(stage) for stage in measured])
    if largest is not None:
        rows[:, 0] = np.minimum(rows[:, 0], largest)
    most = rows[:, 0].max(initial=1)
    count = 0
    while [1, *sizes(count)][-1] < most:
        count += 1
    known = [1, *sizes(count)]
    parts = [np.interp(rows[:, 0], known, unit) for unit in np.eye(len(known))]
    batches = np.column_stack(parts) * rows[:, [1]]
    there = rows[:, -1] > 0
    return Equations(rows[there, 1:-1], batches[there], rows[there, -1])


def _stage(load: str, rows: Columns, users: int | None) -> Stage:
    rows = rows.where(np.arange(len(rows)) < _MOST)
    order = np.argsort(rows.sent_ns, kind="stable")
    figures = token_times.per_request(rows)
    return Stage(
        load=load,
        prompts=np.maximum(rows.input_tokens - np.maximum(rows.cached_tokens, 0), 1)[order],
        outputs=rows.output_tokens[order],
        sent_s=(rows.sent_ns[order] - rows.sent_ns.min()) / 1e9,
        users=users,
        measured={metric: figures[metric][order] for metric in METRICS},
        rows=rows,
    )


def _equations(stage: Stage) -> Floats:
    """Shape (n, 6): size of the batch, the columns of `Equations.work`, seconds."""
    rows = stage.rows
    first, last = token_times.first_chunk_ns(rows) / 1e9, token_times.last_chunk_ns(rows) / 1e9
    sent, computed = rows.sent_ns / 1e9, rows.input_tokens - np.maximum(rows.cached_tokens, 0)
    # Nobody was in flight when it was sent, and only it was sent until its first token came.
    before = np.searchsorted(np.sort(sent), sent)
    idle = before == np.searchsorted(np.sort(last), sent, "right")
    alone = idle & (np.searchsorted(np.sort(sent), first, "right") - before == 1)
    one, prompt = np.ones(alone.sum()), np.maximum(computed[alone], 1)
    took = (first - sent)[alone]
    prefill = np.column_stack((one, one, prompt, rows.input_tokens[alone], one, took))
    return np.concatenate((_stretches(rows, first, last, np.maximum(computed, 1.0)), prefill))


def _stretches(rows: Columns, first: Floats, last: Floats, computed: Floats) -> Floats:
    """As `_equations`, of what lies between a request's first token and its last.

    Tokens of one step do not come at quite the same time. Halfway between two of a request, whoever
    had a token and would have another was in the batch, and so were those whose first came then.
    """
    time, tokens, context = _tokens(rows)
    row = token_times.chunk_rows(rows)
    later = np.flatnonzero((row[1:] == row[:-1]) & (tokens[1:] > 0)) + 1
    if not len(later):
        return np.zeros((0, 6))
    seconds = time[later] - time[later - 1]
    after = np.append(np.where(np.diff(row[later]) == 0, seconds[1:], np.inf), np.inf)
    span = time[later] - seconds / 2, time[later] + np.minimum(seconds, after) / 2
    there = np.searchsorted(np.sort(last), span[0], "left")
    size = np.maximum(np.searchsorted(np.sort(first), span[1], "right") - there, 1)
    prompts = _between(first, computed, *span)
    attended = _between(time, tokens * context, *span)
    new = (np.diff(row[later]) != 0) | (np.diff(size) != 0) | (prompts[1:] > 0) | (prompts[:-1] > 0)
    start = np.concatenate(([0], np.flatnonzero(new) + 1))
    nothing = np.zeros(len(later))
    sums = np.column_stack((tokens[later], prompts, attended, nothing, seconds))
    return np.column_stack((size[start], np.add.reduceat(sums, start)))


def _tokens(rows: Columns) -> tuple[Floats, Floats, Floats]:
    """Of each chunk: when it came, its tokens and what the last of them attended to."""
    counts = np.diff(rows.chunk_start)
    row = token_times.chunk_rows(rows)
    even = rows.output_tokens / np.maximum(counts, 1)
    tokens = np.where(rows.chunk_tokens < 0, even[row], rows.chunk_tokens).astype(np.float64)
    summed = np.cumsum(tokens)
    before = np.concatenate(([0.0], summed))[rows.chunk_start[:-1]]
    context = rows.input_tokens[row] + summed - before[row] - 1
    return rows.chunk_ns / 1e9, tokens, context


def _between(time: Floats, amount: Floats, after: Floats, until: Floats) -> Floats:
    """What came later than `after` and not later than `until`, summed up."""
    order = np.argsort(time, kind="stable")
    summed = np.concatenate(([0.0], np.cumsum(amount[order])))
    times = time[order]
    found: Floats = summed[np.searchsorted(times, until, "right")]
    return found - summed[np.searchsorted(times, after, "right")]
