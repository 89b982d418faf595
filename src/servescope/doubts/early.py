"""Doubts while a stage still runs: from counts alone, so the final ones may know better."""

from __future__ import annotations

from typing import TYPE_CHECKING

from servescope.doubts.facts import Doubt, percent
from servescope.doubts.generator import LATE_S, LATE_SHARE_OF_GAP
from servescope.doubts.target import ERRORS_RATIO, OFFERED_RATIO, STRETCH_S
from servescope.stats import lower_rank
from servescope.units import format_seconds, three_digits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servescope.store import Stage
    from servescope.tally import Tally


def early_doubts(
    stage: Stage, tally: Tally, *, elapsed_s: float, sent: int, due: int | None
) -> list[Doubt]:
    """What can be told so far, in the order of `KINDS`; `due` requests were to be sent by now."""
    found = [*_late(stage, tally, elapsed_s), *_errors(tally)]
    if due is not None:
        found += _behind(stage, elapsed_s, sent, due)
    return found


def _late(stage: Stage, tally: Tally, elapsed_s: float) -> Iterator[Doubt]:
    if stage.open and stage.rate is None:  # a burst cannot leave at one instant
        return
    # Nor can all users begin at one: so many of the latest are no evidence.
    n = int(tally.late.n) - (stage.users or 0)
    rank = lower_rank(n, 0.99)
    surely_s = None if rank is None else tally.late.nth_s(rank)
    gap_s = 1 / stage.rate if stage.rate else elapsed_s / max(n, 1)
    limit = max(LATE_S, LATE_SHARE_OF_GAP * gap_s)
    if surely_s is not None and surely_s > limit:
        late, most = format_seconds(surely_s), format_seconds(limit)
        message = f"requests are sent {late} late or more (P99), above {most}"
        yield Doubt(kind="client_limited", message=message, value=surely_s, limit=limit)


def _errors(tally: Tally) -> Iterator[Doubt]:
    if tally.failed > ERRORS_RATIO * tally.requests:
        share = tally.failed / tally.requests
        message = f"{percent(share)} of {tally.requests:,} requests did not complete"
        yield Doubt(kind="errors", message=message, value=share, limit=ERRORS_RATIO)


def _behind(stage: Stage, elapsed_s: float, sent: int, due: int) -> Iterator[Doubt]:
    if stage.rate is None or sent >= OFFERED_RATIO * due:
        return
    missing = due - sent
    if missing / due * elapsed_s > STRETCH_S:
        rate = three_digits(sent / elapsed_s)
        message = f"{missing:,} of {due:,} requests due are not sent: {rate}/s are offered"
        yield Doubt(kind="not_offered", message=message, value=sent / due, limit=OFFERED_RATIO)
