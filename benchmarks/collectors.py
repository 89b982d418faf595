"""Whether the load engine feels the collectors: the same loads without them, with, and with more.

    python benchmarks/collectors.py [--rounds N]      two minutes with 6

The null server remembers what it did, so each time that was read has a true one beside it. The
three take turns within a round: what else the machine does hits all alike. Prints medians over the
rounds, and of the differences from the runs without, within each round, how they spread.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from servescope import instrument
from servescope.conduct import conduct
from servescope.engine.config import EngineConfig
from servescope.error_bars import RateRow, StreamRow
from servescope.experiment import Trial
from servescope.instrument import Case, Measured
from servescope.serve import Server
from servescope.serve.null import NullServer

CASES = (Case("users", 64, 256, 64), Case("poisson", 500, 1500, 1))
FIGURES = {
    "users": ("ttft_error_us", "token_error_us", "lag_p99_us"),
    "poisson": ("sent_late_us", "came_late_us"),
}


def ways(page: str) -> dict[str, dict[str, Any]]:
    """What is collected in each of the runs that are compared."""
    eager = [f"prometheus:{page}/metrics,every=50ms", "host,every=50ms"]
    return {
        "without": {"collect": ["none"]},
        "by default, and a page": {"metrics": [f"{page}/metrics"]},
        "20 times as often": {"collect": eager},
    }


def measure(case: Case, core: int | None, out: Path, options: dict[str, Any]) -> Measured:
    """One run against the null server."""
    ttft_s = instrument.TTFT_S if case.load == "users" else instrument.TINY_TTFT_S
    with NullServer(ttft_s=ttft_s, itl_s=instrument.ITL_S) as server:
        if core is not None:
            server.pin(core)
        trial = Trial(
            target=server.url,
            load=[str(case)],
            requests=case.requests,
            data="dummy",
            input_tokens="16",
            output_tokens=str(case.tokens),
            seed=instrument.SEED,
            out=str(out),
            **options,
        )
        return Measured(conduct(trial), server.end(), 0.0, None)


def collectors_cpu(measured: Measured) -> float | None:
    """Share of a core that they took between their first and their last reading."""
    own = [
        (sample.t_ns, sample.value)
        for sample in measured.run.samples()
        if (sample.name, sample.labels.get("role")) == ("process_cpu_s", "collectors")
    ]
    if len(own) < 2:
        return None
    (begun_ns, before_s), (ended_ns, after_s) = own[0], own[-1]
    return (after_s - before_s) / (ended_ns - begun_ns) * 1e9


def figures(case: Case, measured: Measured) -> dict[str, float]:
    """What is compared, in microseconds: the P99 where there are many."""
    row: StreamRow | RateRow
    row = (instrument.stream_row if case.load == "users" else instrument.rate_row)(
        case.size, measured
    )
    found = {name: getattr(row, name) for name in FIGURES[case.load]}
    plain = {name: getattr(value, "p99", value) for name, value in found.items()}
    plain |= {f"{name} p50": value.p50 for name, value in found.items() if hasattr(value, "p50")}
    share = collectors_cpu(measured)
    return plain if share is None else plain | {"collectors, % of a core": share * 100}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    rounds = parser.parse_args().rounds
    cores = sorted(os.sched_getaffinity(0))
    core = cores[-1] if len(cores) > 1 else None
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    with Server(EngineConfig()) as server, TemporaryDirectory(prefix="servescope-") as folder:
        if core is not None:  # the other cores are the load's, as `servescope doctor` has them
            os.sched_setaffinity(server.process.pid, {core})
            os.sched_setaffinity(0, {*cores} - {core})
        for _ in range(rounds):
            for case in CASES:
                for way, options in ways(server.url).items():
                    measured = measure(case, core, Path(folder), options)
                    for name, value in figures(case, measured).items():
                        found[str(case), name, way].append(value)
    for (case_name, name, way), values in sorted(found.items()):
        line = f"{case_name:12} {name:24} {way:24} {statistics.median(values):10.1f}"
        without = found.get((case_name, name, "without"))
        if without and way != "without":
            differences = [a - b for a, b in zip(values, without, strict=True)]
            least, most = min(differences), max(differences)
            line += f"   {statistics.median(differences):+10.1f} ({least:+.1f} to {most:+.1f})"
        print(line)


if __name__ == "__main__":
    main()
