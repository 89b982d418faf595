"""The installed version against every server of the table of faults, on loopback.

A run is right if it ends by itself, accounts for every request as the server does, names the cause
of each failure, and its figures over the completed requests equal the server's own truth.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from servescope.conduct import conduct
from servescope.errors import Unreachable
from servescope.experiment import Trial
from servescope.records import ANSWERED, Record
from servescope.serve.faults import FAULTS, Fault
from servescope.serve.faulty import FaultyServer, serve
from servescope.summary import StageSummary, summarise

AT_ONCE = 8
USERS = 4
LONGEST_S = 20.0
"""Beyond this a run did not end by its timeouts; nothing is said of how fast it should be."""
TIMEOUTS: dict[str, Any] = {
    "timeout": "6s",
    "timeout_connect": "1s",
    "timeout_first_token": "1s",
    "timeout_between_tokens": "1s",
}
TTFT_TOLERANCE_S, TTFT_TOLERANCE_RATIO = 0.015, 0.15


class Row(msgspec.Struct, kw_only=True):
    """What came of one fault."""

    fault: str
    does: str
    """The server."""
    expected: list[str]
    came: dict[str, int]
    """Outcomes of the requests that met the fault."""
    wrong: list[str]
    """What is not as it should be; empty where all is."""
    tries: int = 1

    @property
    def ok(self) -> bool:
        """Whether all is right."""
        return not self.wrong


def run_table(names: Sequence[str], directory: Path) -> Iterator[Row]:
    """Check these faults, a few at a time, with their runs in `directory`; each row as it is known.

    What went wrong is tried once more, alone and last: other work on the machine may have held up
    the server, the client or both.
    """
    again = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            for row in pool.map(lambda name: check(name, directory / name), names):
                if row.ok:
                    yield row
                else:
                    again.append(row.fault)
        finally:
            pool.shutdown(cancel_futures=True)
    for name in again:
        row = check(name, directory / f"{name}-again")
        row.tries = 2
        yield row


def check(fault: str, directory: Path) -> Row:
    """Run against the server of one fault, and compare what was found with what it did.

    The run is kept in `directory`, which must not exist yet.
    """
    wanted = FAULTS[fault]
    row = Row(fault=fault, does=wanted.does, expected=list(wanted.outcomes), came={}, wrong=[])
    began_s = time.monotonic()
    with serve(wanted) as server:
        trial = Trial(
            target=server.url,
            model="paced" if wanted.models else None,
            load=[f"users:{USERS}"],
            requests=wanted.requests,
            data="dummy",
            input_tokens="20",
            output_tokens="10",
            seed=7,
            collect=["none"],
            out=str(directory.parent),
            name=directory.name,
            **TIMEOUTS,
        )
        try:
            run = conduct(trial)
        except Unreachable as error:
            row.came = {"unreachable": wanted.requests}
            if not wanted.refuses or wanted.words not in str(error):
                row.wrong.append(str(error))
            return row
        summary, records = summarise(run), list(run.records())
        if not summary.complete:
            row.wrong.append(f"not complete: {summary.ended_by}")
        row.came = _came(server, summary.stages[0])
        row.wrong += _miscounted(server, row.came, records, summary.stages[0])
        row.wrong += _misread(server, records, summary.stages[0])
    row.wrong += _unexplained(wanted, records, summary.stages[0])
    if time.monotonic() - began_s > LONGEST_S:
        row.wrong.append(f"took more than {LONGEST_S:g} s")
    return row


def _came(server: FaultyServer, stage: StageSummary) -> dict[str, int]:
    """Outcomes without those of the requests that met no fault and must have completed."""
    came = Counter(stage.outcomes)
    came["completed"] -= len(server.unharmed())
    return {outcome: count for outcome, count in came.items() if count}


def _miscounted(
    server: FaultyServer, came: dict[str, int], records: list[Record], stage: StageSummary
) -> Iterator[str]:
    """Requests that are lost, doubled or of another outcome than the fault's."""
    fault = server.fault
    if not sum(stage.outcomes.values()) == len(records) == fault.requests:
        yield f"{len(records)} records and {stage.outcomes} of {fault.requests} requests"
    if not fault.requests <= len(server.requests) <= stage.attempts and not fault.away_s:
        yield f"the server saw {len(server.requests)} requests in {stage.attempts} attempts"
    other = {outcome: count for outcome, count in came.items() if outcome not in fault.outcomes}
    if other:
        yield f"came {other}"


def _misread(server: FaultyServer, records: list[Record], stage: StageSummary) -> Iterator[str]:
    """Figures that differ from the server's truth, or are of anything but answers."""
    fault, figures = server.fault, stage.figures
    good = [record for record in records if record.outcome in ANSWERED]
    if counts := {record.output_tokens for record in good} - {fault.tokens}:
        yield f"{counts} tokens instead of {fault.tokens}"
    if not good:
        yield "no request completed"
        return
    for name in ("ttft_s", "output_tokens"):
        if figures[name].n != len(good):
            yield f"{name} of {figures[name].n} requests instead of {len(good)}"
    true_s, found_s = server.true_ttft_s(), figures["ttft_s"].mean
    if abs(found_s - true_s) > max(TTFT_TOLERANCE_S, TTFT_TOLERANCE_RATIO * true_s):
        yield f"mean TTFT {found_s * 1e3:.1f} ms instead of {true_s * 1e3:.1f} ms"


def _unexplained(fault: Fault, records: list[Record], stage: StageSummary) -> Iterator[str]:
    """Failures whose reason does not say what the server said."""
    told = [record.reason for record in records if record.outcome.startswith("failed")]
    told += [reason.words for reason in stage.reasons if reason.outcome not in ANSWERED]
    if silent := [words for words in told if not words or fault.words not in words]:
        yield f"the reason {silent[0][:100]!r} does not say {fault.words[:100]!r}"
