"""How wrong the instrument is on this machine: what it last read of itself, and where that is kept.

A reading holds for the version and the machine it was made with; a run's manifest carries it as
long as both are the same.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any, TypeVar

import msgspec

import servescope
from servescope.store import replace

TTFT_US = 1000.0
"""P99 of the error of TTFT: the quickest servers answer in some 20 ms, of which this is a 20th."""
TOKEN_US = 1000.0
"""P99 of the error of a token's time: fast engines make a token in 5 to 10 ms."""
MERGED_RATIO = 0.01
"""Of the tokens: more that share a read would move a P99 by whole gaps."""
LATE_US, LATE_GAPS = 1000.0, 0.01
"""P99 of the lateness, the larger of a time and of a share of the mean gap: as the doubt has it."""
KS_CRITICAL = 1.628
"""Over the root of n: 1 % of true Poisson processes lie beyond it."""
OTHERS_RATIO = 0.05
"""Of our cores: where other work used more, P99s are partly that work's."""


Row = TypeVar("Row", "StreamRow", "RateRow")


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of an error, in microseconds."""

    n: int
    p50: float
    p99: float
    max: float


class StreamRow(msgspec.Struct, frozen=True, kw_only=True):
    """So many streams at once, each at its pace: times as read against times as they were."""

    streams: int
    requests: int
    """That were answered and found in the server's log."""
    missing: int
    """That were not, or with another number of tokens."""
    tokens_per_s: float
    """That the server sent while all its streams ran."""
    ttft_error_us: Spread
    """From sending to the first token: the way of both through the kernel is in it."""
    token_error_us: Spread
    """Of the time of each token."""
    itl_error_us: Spread
    merged_ratio: float
    """Share of the tokens that came out of the same read as the one before."""
    lag_p99_us: float
    """How late the loop read what the kernel had; it is in no time that the kernel stamped."""
    load_cpu_us_per_token: float
    """CPU of the load processes: as many ms per 1000 tokens."""
    cpu_us_per_token: float
    """CPU of everything but the server, starts and the records included."""
    others_cores: float | None
    """What other work used of our cores meanwhile; None: it cannot be told."""

    @property
    def error_us(self) -> float:
        """The larger P99 of the two kinds of time."""
        return max(self.ttft_error_us.p99, self.token_error_us.p99)

    @property
    def wrong(self) -> list[str]:
        """What is beyond the limits."""
        found = []
        if self.missing:
            found.append(f"{self.missing} of {self.requests + self.missing} answers were not read")
        for name, error, limit in (
            ("TTFT", self.ttft_error_us, TTFT_US),
            ("token", self.token_error_us, TOKEN_US),
        ):
            if not error.p99 <= limit:
                found.append(f"{name} error P99 {error.p99:.0f} us, above {limit:.0f}")
        if self.merged_ratio > MERGED_RATIO:
            found.append(
                f"{self.merged_ratio:.1%} of the tokens shared a read, above {MERGED_RATIO:.0%}"
            )
        return found


class RateRow(msgspec.Struct, frozen=True, kw_only=True):
    """Requests of a Poisson process: when they were due, were sent, and reached the server."""

    rate: float
    """Requests per second, as declared."""
    requests: int
    missing: int
    achieved_rate: float
    """As the server received them."""
    sent_late_us: Spread
    """Sent after due, as the record says."""
    came_late_us: Spread
    """Received after due, as the server's kernel says."""
    ks: float
    """Largest distance of the gaps' distribution at the server from the exponential one."""
    ks_critical: float
    others_cores: float | None

    @property
    def wrong(self) -> list[str]:
        """What is beyond the limits."""
        found = []
        if self.missing:
            found.append(f"{self.missing} of {self.requests + self.missing} requests did not come")
        limit = max(LATE_US, LATE_GAPS * 1e6 / self.rate)
        if not self.came_late_us.p99 <= limit:
            late = self.came_late_us.p99
            found.append(f"requests came {late:.0f} us late (P99), above {limit:.0f}")
        if not self.ks <= self.ks_critical:
            found.append(f"KS {self.ks:.3f}, above {self.ks_critical:.3f}: no Poisson process")
        return found


class Reading(msgspec.Struct, kw_only=True):
    """What the instrument read of itself."""

    servescope: str = servescope.__version__
    host: dict[str, Any] = {}
    """The facts that must still be the same for the reading to hold."""
    measured_utc: str
    server_core: int | None
    """Where the null server had a core to itself; None: there was but one for everything."""
    streams: list[StreamRow] = []
    rates: list[RateRow] = []
    notes: list[str] = []

    @property
    def _rows(self) -> list[StreamRow | RateRow]:
        return [*self.streams, *self.rates]

    @property
    def wrong(self) -> bool:
        """Whether anything is beyond the limits, or nothing could be measured."""
        return not self._rows or any(row.wrong for row in self._rows)

    @property
    def others_ratio(self) -> float | None:
        """The most that other work used of our cores; None: it cannot be told."""
        known = [row.others_cores for row in self._rows if row.others_cores is not None]
        return max(known) / self.host["cores"] if known else None

    @property
    def verdict(self) -> str:
        """One sentence."""
        times, starts = _up_to(self.streams), _up_to(self.rates)
        said = []
        if times:
            error = max(row.error_us for row in times)
            count = times[-1].streams
            said.append(
                f"times are right within {error:.0f} us (P99) up to "
                f"{count} stream{'s' if count > 1 else ''}"
            )
        elif self.streams:
            said.append("times are not right within the limits even with one stream")
        if starts:
            late = max(row.came_late_us.p99 for row in starts)
            said.append(
                f"requests leave within {late:.0f} us (P99) of when they are due, "
                f"up to {starts[-1].rate:g}/s"
            )
        elif self.rates:
            said.append(f"requests leave late even at {self.rates[0].rate:g}/s")
        return f"On this machine {'; '.join(said) or 'nothing could be measured'}."


def _up_to(rows: list[Row]) -> list[Row]:
    """The rows before the first that is beyond the limits."""
    ends = next((k for k, row in enumerate(rows) if row.wrong), len(rows))
    return rows[:ends]


def host() -> dict[str, Any]:
    """The facts of a machine that an error may depend on."""
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    try:
        with Path("/proc/cpuinfo").open() as lines:
            named = (line for line in lines if line.startswith("model name"))
            return next(named, "").partition(":")[2].strip()
    except OSError:
        return ""


def path() -> Path:
    """Where a reading is kept."""
    said = os.environ.get("XDG_CACHE_HOME", "")
    cache = Path(said) if said.startswith("/") else Path("~/.cache").expanduser()
    return cache / "servescope" / "instrument.json"


def keep(reading: Reading) -> None:
    """Keep a reading for the runs that follow, in place of the one before. Raises OSError."""
    where = path()
    where.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    replace(where, msgspec.json.format(msgspec.json.encode(reading), indent=1) + b"\n")


def kept() -> dict[str, Any]:
    """The reading that was made by this version on this machine; empty where there is none."""
    try:
        reading = msgspec.json.decode(path().read_bytes(), type=Reading)
    except (OSError, RuntimeError, msgspec.DecodeError):  # RuntimeError: no home directory
        return {}
    if (reading.servescope, reading.host) != (servescope.__version__, host()):
        return {}
    found: dict[str, Any] = msgspec.to_builtins(reading)
    return found
