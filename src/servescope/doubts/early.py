"""Doubts while a stage still runs: the rules of the final ones, on what is known by then.

None is raised that the final checks would not raise if the stage ended now: what buckets blur, what
counters do not show yet and what few requests do by chance is all read in favour of the stage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from servescope.doubts.facts import Doubt, percent
from servescope.doubts.generator import LATE_S, LATE_SHARE_OF_GAP
from servescope.doubts.target import ERRORS_RATIO, OFFERED_RATIO, stretched
from servescope.stats import lower_rank
from servescope.units import format_seconds, three_digits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servescope.store import Stage
    from servescope.tally import Tally

FEWEST = 100
"""Requests before which a share is looked at many times by chance alone."""
TOLD_S = 1.0
"""Counters may be so old: those of a cluster's nodes are."""


def early_doubts(
    stage: Stage, tally: Tally, *, elapsed_s: float, waits_s: float | None = None, loads: int = 1
) -> list[Doubt]:
    """What can be told so far, in the order of `KINDS`.

    `waits_s` is `Moment.waits_s`; `loads` tells how many times the load is offered at once.
    """
    found = [*_late(stage, tally, elapsed_s, loads), *_errors(stage, tally)]
    if waits_s is not None and tally.span_s:
        found += _behind(stage, tally, elapsed_s, waits_s)
    return found


def _late(stage: Stage, tally: Tally, elapsed_s: float, loads: int) -> Iterator[Doubt]:
    # What is due at one instant cannot leave at one: of bursts this cannot be told here, and of
    # users, who all begin at one, so many are no evidence.
    if loads > 1 or (stage.open and stage.rate is None):
        return
    n = int(tally.late.n)
    rank = lower_rank(n, 0.99)
    if n < FEWEST or rank is None:
        return
    limit = max(LATE_S, LATE_SHARE_OF_GAP * (1 / stage.rate if stage.rate else elapsed_s / n))
    above = tally.late.above(limit)
    if above - (stage.users or 0) > n - rank:
        most = format_seconds(limit)
        message = f"{above:,.0f} of {n:,} requests were sent more than {most} late"
        yield Doubt(kind="client_limited", message=message, value=above / n, limit=1 - 0.99)


def _errors(stage: Stage, tally: Tally) -> Iterator[Doubt]:
    """Of all that are planned: if none of the others fails it is as true in the end."""
    if tally.failed > ERRORS_RATIO * max(tally.requests, stage.planned or FEWEST):
        share = tally.failed / tally.requests
        message = f"{percent(share)} of {tally.requests:,} requests did not complete"
        yield Doubt(kind="errors", message=message, value=share, limit=ERRORS_RATIO)


def _behind(stage: Stage, tally: Tally, elapsed_s: float, waits_s: float) -> Iterator[Doubt]:
    """As if the request that has waited longest were sent now, or when the counters were read."""
    sent_s = elapsed_s - TOLD_S - (tally.first_ns - (stage.start_ns or 0)) / 1e9
    if stage.rate is not None and stretched(waits_s, sent_s):
        ratio = waits_s / sent_s
        message = f"{three_digits(stage.rate * ratio)} requests/s are offered, {percent(ratio)} of "
        message += "the declared rate"
        yield Doubt(kind="not_offered", message=message, value=ratio, limit=OFFERED_RATIO)
