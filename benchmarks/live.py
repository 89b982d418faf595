"""What watching costs: a run with a panel in a terminal beside the same run unwatched, in turns.

    python benchmarks/live.py [ROUNDS] [RATE]

The server is the null server, so that the generator is what limits. Of each figure the median of
the rounds is printed, and of the tally the CPU time per record beside that of reading its answer.
"""

from __future__ import annotations

import os
import pty
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import msgspec
from reading import STREAMS, exchange

from servescope.client.answer import Asked, record
from servescope.protocols import known
from servescope.serve.null import NullServer
from servescope.store import Run
from servescope.tally import Tally

SECONDS, TOKENS, TIMES = 8, 16, 15
WATCHED, QUIET = "panel", "--quiet"


def run(url: str, rate: float, out: Path, *, watched: bool) -> dict[str, float]:
    """One run; what its load process and its conductor say of themselves."""
    ours, theirs = pty.openpty()
    reader = threading.Thread(target=_drain, args=(ours,))
    reader.start()
    name = f"run-{time.monotonic_ns()}"
    words = [url, "--load", f"constant:{rate:g}", "--duration", f"{SECONDS}s", "--seed", "1"]
    words += ["--data", "dummy", "--input-tokens", "16", "--output-tokens", str(TOKENS)]
    words += ["--workers", "1", "--out", str(out), "--name", name] + ([] if watched else [QUIET])
    subprocess.run(
        [sys.executable, "-m", "servescope", "run", *words],
        stderr=theirs,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm-256color"},
        check=True,
    )
    os.close(theirs)
    reader.join()
    os.close(ours)
    summary = msgspec.json.decode((out / name / "summary.json").read_bytes())
    (stage,) = summary["stages"]
    conductor = [
        sample.value
        for sample in Run(out / name).samples()
        if sample.name == "process_cpu_s" and sample.labels.get("role") == "conductor"
    ]
    return {
        "requests_per_s": stage["figures"]["requests_per_s"],
        "sent_late_p99_us": stage["figures"]["lateness_s"]["p99"] * 1e6,
        "loop_lag_p99_us": stage["generator"]["lag_p99_s"] * 1e6,
        "load_cpu_percent": stage["generator"]["cpu_ratio"][0] * 100,
        "conductor_cpu_percent": (conductor[-1] - conductor[0]) / SECONDS * 100,
    }


def _drain(terminal: int) -> None:
    """Be a terminal that shows nothing."""
    try:
        while os.read(terminal, 1 << 16):
            pass
    except OSError:  # the other end is closed
        return


def tally_us() -> tuple[float, float]:
    """CPU time per record: of the tally, and of reading the answer that the record is of."""
    wire = known()["openai-chat"]
    exchanges = [exchange("openai-chat", 128, seed, each=True) for seed in range(STREAMS)]
    asked = Asked(0, 30, 128, True, True, "0" * 16, 100, None)
    best = [float("inf")] * 2
    for _ in range(TIMES):
        begun = time.process_time()
        records = [record(one, asked, wire, 0) for one in exchanges]
        read = time.process_time()
        total, batch = Tally(), Tally()
        for one in records:
            batch.note(one)
        total.add(batch)
        best = [
            *(min(best[0], time.process_time() - read), min(best[1], read - begun)),
        ]
    tally, reading = (round(seconds / STREAMS * 1e6, 1) for seconds in best)
    return tally, reading


def main(rounds: int = 6, rate: float = 400.0) -> None:
    """Print the figures of both."""
    found: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    with NullServer(ttft_s=0.005, itl_s=0.001) as server, tempfile.TemporaryDirectory() as folder:
        for k in range(rounds):
            for watched in (True, False) if k % 2 else (False, True):
                found[watched].append(run(server.url, rate, Path(folder), watched=watched))
    for name in found[True][0]:
        panel, quiet = ([one[name] for one in found[watched]] for watched in (True, False))
        print(f"{name:24}", *(_told(label, of) for label, of in ((WATCHED, panel), (QUIET, quiet))))
    tally, reading = tally_us()
    print(f"tally, us a record of 128 tokens: {tally} beside {reading} to read it")


def _told(label: str, values: list[float]) -> str:
    return f"{label} {statistics.median(values):8.1f} ({min(values):.1f}-{max(values):.1f})"


if __name__ == "__main__":
    main(*(kind(word) for kind, word in zip((int, float), sys.argv[1:], strict=False)))
