"""What measured runs tell of the engine behind them: its requests, and what its steps had to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from servescope import token_times
from servescope.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from servescope.records import Columns
    from servescope.store import Run

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

METRICS = ("ttft_s", "tpot_s", "e2e_s")
_FEWEST = 10
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


def equations(measured: Sequence[Stage]) -> tuple[Floats, Floats]:
    """Work, shape (n, 5), and the seconds that it took, shape (n,).

    The columns are steps, prompt tokens computed, sequences of all steps, tokens of context that
    they attended to, and ways from client to engine and back. Between a request's first and last
    token lie as many steps as it got tokens; whoever else got tokens meanwhile was in those steps,
    too, and whose first token came, his prompt was computed. A request that came to an idle engine
    tells of the way.
    """
    each = [_equations(stage) for stage in measured]
    work = np.concatenate([one[0] for one in each])
    seconds = np.concatenate([one[1] for one in each])
    return work[seconds > 0], seconds[seconds > 0]


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


def _equations(stage: Stage) -> tuple[Floats, Floats]:
    rows = stage.rows
    first, last = token_times.first_chunk_ns(rows) / 1e9, token_times.last_chunk_ns(rows) / 1e9
    sent, computed = rows.sent_ns / 1e9, rows.input_tokens - np.maximum(rows.cached_tokens, 0)
    made = rows.output_tokens
    time, tokens, context = _tokens(rows)
    span = first, last
    decode = np.column_stack(
        (
            made - 1.0,
            _between(first, np.maximum(computed, 1), *span),
            _between(time, tokens, *span),
            _between(time, tokens * context, *span),
            np.zeros(len(rows)),
        )
    )
    # Nobody was in flight when it was sent, and only it was sent until its first token came.
    before = np.searchsorted(np.sort(sent), sent)
    idle = before == np.searchsorted(np.sort(last), sent, "right")
    alone = idle & (np.searchsorted(np.sort(sent), first, "right") - before == 1)
    one = np.ones(alone.sum())
    prompt = rows.input_tokens[alone]
    prefill = np.column_stack((one, np.maximum(computed[alone], 1), one, prompt, one))
    several = made > 1
    return (
        np.concatenate((decode[several], prefill)),
        np.concatenate(((last - first)[several], (first - sent)[alone])),
    )


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
