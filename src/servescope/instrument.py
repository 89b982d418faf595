"""The instrument measures itself: real runs against a server that remembers what it did.

The runs take the path of every other, load processes and all; the null server (`serve/null.py`) is
on this machine and has the same clock, so that each time in a record has a true one to stand
beside. Requests are told apart by their prompts.
"""

from __future__ import annotations

import hashlib
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from servescope.client.machine import cpu_times
from servescope.conduct import conduct
from servescope.error_bars import KS_CRITICAL, RateRow, Reading, Spread, StreamRow, host
from servescope.errors import BadInput, ServescopeError
from servescope.experiment import Trial
from servescope.records import COMPLETED, Record
from servescope.serve.null import NullServer, Served
from servescope.store import Run

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

TTFT_S, ITL_S = 0.05, 0.01
TINY_TTFT_S = 0.005
SEED = 2
"""The same schedules every time, so that two readings differ by the machine alone. Chosen out of
forty for schedules none of which is an unlucky draw: what KS then finds was added on the way."""


class Case(NamedTuple):
    """One run against the null server: a load, how many requests, how many tokens each."""

    load: str
    size: int
    """Users of a closed loop, or requests per second of an open one."""
    requests: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.load}:{self.size}"


STREAMS = (
    Case("users", 1, 40, 16),
    Case("users", 64, 128, 128),
    Case("users", 256, 512, 128),
    Case("users", 1024, 2048, 128),
)
RATES = (
    Case("poisson", 50, 150, 1),
    Case("poisson", 200, 500, 1),
    Case("poisson", 500, 1000, 1),
    Case("poisson", 1000, 2000, 1),
    Case("poisson", 2000, 4000, 1),
)
QUICK = (Case("users", 1, 5, 16), Case("users", 64, 128, 32), Case("poisson", 500, 300, 1))


class Measured(NamedTuple):
    """One run, what its server did, and what it took."""

    run: Run
    truth: list[Served]
    cpu_s: float
    """Of everything but the server."""
    others_cores: float | None


def new_reading() -> Reading:
    """An empty one, of now and here."""
    cores = sorted(os.sched_getaffinity(0))
    return Reading(
        host=host(),
        measured_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        server_core=cores[-1] if len(cores) > 1 else None,
    )


def fill(reading: Reading, *, quick: bool = False) -> Iterator[StreamRow | RateRow]:
    """Measure, and give each row as it is known; the rows stay in the reading."""
    with _apart(reading.server_core) as cores, TemporaryDirectory(prefix="servescope-") as out:
        for case in QUICK if quick else (*STREAMS, *RATES):
            try:
                measured = _measure(case, reading.server_core, cores, out)
            except BadInput as error:  # fewer descriptors than streams, say
                reading.notes.append(f"{case} was left out: {error}")
                continue
            if case.load == "users":
                reading.streams.append(stream_row(case.size, measured))
                yield reading.streams[-1]
            else:
                reading.rates.append(rate_row(case.size, measured))
                yield reading.rates[-1]


@contextmanager
def _apart(server_core: int | None) -> Iterator[set[int]]:
    """Leave one core to the server: the load's real-time priority would keep it waiting.

    Gives the cores of both.
    """
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores - {server_core})
    try:
        yield cores
    finally:
        os.sched_setaffinity(0, cores)


def _measure(case: Case, server_core: int | None, cores: set[int], out: str) -> Measured:
    """One run, by the same path as any other. Raises BadInput where it cannot be done here."""
    others = _Others(cores)
    ttft_s = TTFT_S if case.load == "users" else TINY_TTFT_S
    with NullServer(ttft_s=ttft_s, itl_s=ITL_S) as server:
        if server_core is not None:
            server.pin(server_core)
        began_s = _cpu_s()
        run = conduct(
            Trial(
                target=server.url,
                load=[str(case)],
                requests=case.requests,
                data="dummy",
                input_tokens="16",
                output_tokens=str(case.tokens),
                seed=SEED,
                collect=["none"],  # other work on these cores would be taken for its own
                out=out,
                name=f"{case.load}-{case.size}",
            )
        )
        if run.manifest.interrupted:
            raise KeyboardInterrupt
        took_s = _cpu_s() - began_s
        truth = server.end()
    return Measured(run, truth, took_s, others.cores())


# --- reading against truth ------------------------------------------------------------------------


class Pair(NamedTuple):
    """A request as it was recorded, and as it was."""

    record: Record
    served: Served


def paired(records: list[Record], served: list[Served]) -> list[Pair]:
    """The answered requests with what the server did for them, by their prompts.

    Raises ServescopeError where there are none.
    """
    true = {_prompt_sha256(one.body): one for one in served}
    found = [
        Pair(record, true[record.prompt_sha256])
        for record in records
        if record.outcome == COMPLETED
        and record.prompt_sha256 in true
        and len(record.chunk_ns) == len(true[record.prompt_sha256].sent_ns)
    ]
    if not found:
        why = next((record.reason for record in records), "nothing was sent")
        raise ServescopeError(f"the null server was measured in vain: {why}")
    return found


def _prompt_sha256(body: bytes) -> str:
    prompt = msgspec.json.decode(body)["messages"][0]["content"]
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def spread(errors_ns: Ints) -> Spread:
    """Sizes of errors, shape (n,), summed up in microseconds."""
    p50, p99, most = np.percentile(np.abs(errors_ns), (50, 99, 100)) / 1e3
    return Spread(n=len(errors_ns), p50=float(p50), p99=float(p99), max=float(most))


def stream_row(streams: int, measured: Measured) -> StreamRow:
    """What a closed loop came to."""
    records, truth = list(measured.run.records()), measured.truth
    pairs, origin_ns = paired(records, truth), _origin_ns(measured.run)
    first, token, gap, sent = [], [], [], []
    for record, served in pairs:
        read_ns = np.cumsum(record.chunk_ns) + origin_ns
        true_ns = np.array(served.sent_ns, np.int64)
        ttft_ns = read_ns[0] - record.sent_ns - origin_ns
        first.append(ttft_ns - (true_ns[0] - served.received_ns))
        token.append(read_ns - true_ns)
        gap.append(np.diff(read_ns) - np.diff(true_ns))
        sent.append(true_ns)
    tokens = sum(len(one.sent_ns) for one in truth)
    load_cpu_s, lag_s = _health(measured.run, records)
    merged = sum(record.merged_chunks for record, _ in pairs)
    return StreamRow(
        streams=streams,
        requests=len(pairs),
        missing=len(records) - len(pairs),
        tokens_per_s=_most_per_s(np.concatenate(sent)),
        ttft_error_us=spread(np.array(first, np.int64)),
        token_error_us=spread(np.concatenate(token)),
        itl_error_us=spread(np.concatenate(gap)),
        merged_ratio=merged / sum(map(len, sent)),
        lag_p99_us=lag_s * 1e6,
        load_cpu_us_per_token=load_cpu_s / tokens * 1e6,
        cpu_us_per_token=measured.cpu_s / tokens * 1e6,
        others_cores=measured.others_cores,
    )


def rate_row(rate: float, measured: Measured) -> RateRow:
    """What an open loop came to."""
    records, origin_ns = list(measured.run.records()), _origin_ns(measured.run)
    pairs = paired(records, measured.truth)
    due = np.array([record.due_ns for record, _ in pairs], np.int64)
    sent = np.array([record.sent_ns for record, _ in pairs], np.int64)
    came = np.array([served.received_ns for _, served in pairs], np.int64)
    gaps_s = np.diff(np.sort(came)).astype(np.float64) / 1e9
    return RateRow(
        rate=rate,
        requests=len(pairs),
        missing=len(records) - len(pairs),
        achieved_rate=float(1 / gaps_s.mean()),
        sent_late_us=spread(sent - due),
        came_late_us=spread(came - origin_ns - due),
        ks=ks_exponential(gaps_s, rate),
        ks_critical=KS_CRITICAL / len(gaps_s) ** 0.5,
        others_cores=measured.others_cores,
    )


def ks_exponential(gaps_s: NDArray[np.float64], rate: float) -> float:
    """Kolmogorov and Smirnov's distance of gaps, shape (n,), from those of a Poisson process."""
    expected = -np.expm1(-rate * np.sort(gaps_s))
    n = len(gaps_s)
    steps = np.arange(n + 1) / n
    return float(max((steps[1:] - expected).max(), (expected - steps[:-1]).max()))


def _most_per_s(sent_ns: Ints) -> float:
    """The highest rate over a tenth of a second."""
    return float(np.bincount((sent_ns - sent_ns.min()) // 100_000_000).max() * 10)


def _origin_ns(run: Run) -> int:
    assert run.manifest.origin_ns is not None, "a run that began has one"  # noqa: S101
    return run.manifest.origin_ns


def _health(run: Run, records: list[Record]) -> tuple[float, float]:
    """CPU seconds of the load processes, and the worst P99 of their lag in seconds."""
    samples = [sample for sample in run.samples() if sample.source == "loop"]
    start_ns = run.manifest.stages[0].start_ns or 0
    wall_s = (max(record.end_ns for record in records) - start_ns) / 1e9
    busy = sum(sample.value for sample in samples if sample.name == "cpu_ratio")
    lags = [sample.value for sample in samples if sample.name == "lag_p99_s"]
    return busy * wall_s, max(lags, default=0.0)


# --- what it took ---------------------------------------------------------------------------------


def _cpu_s() -> float:
    """CPU seconds of this process and of those of its children that have ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


class _Others:
    """What other work uses of some cores from now on."""

    def __init__(self, cores: set[int]) -> None:
        self._cores = cores
        self._began = (time.monotonic(), _cpu_s(), _idle_s(cores))

    def cores(self) -> float | None:
        """So many of them, on average; None where the system does not tell."""
        wall_s, own_s, idle_s = self._began
        now_idle_s = _idle_s(self._cores)
        if idle_s is None or now_idle_s is None:
            return None
        wall_s, own_s = time.monotonic() - wall_s, _cpu_s() - own_s
        busy_s = wall_s * len(self._cores) - (now_idle_s - idle_s)
        return max(0.0, (busy_s - own_s) / wall_s)


def _idle_s(cores: set[int]) -> float | None:
    """Seconds that these cores have been idle; None where the system does not tell."""
    try:
        times = cpu_times()
        return sum(times[f"cpu{core}"].idle for core in cores) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, KeyError):  # KeyError: a container is shown some cores only
        return None
