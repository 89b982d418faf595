"""How well load clients read the truth, and what that costs them: side by side in one run.

    python benchmarks/bench.py                  ours, and a client in C as the limit: two minutes
    python benchmarks/bench.py --peers          the field's clients too: an hour and more
    python benchmarks/bench.py --only NAME ...  some of them

Each client's whole process tree is held to one core; a server in C that keeps the time of every
token it writes has another. Writes a JSON file (--out) with machine and versions, from which
`performance.py` makes docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray  # noqa: TC002
from peers import PEERS, limit
from peers import servescope as ours
from peers.peer import Load, Peer, Row, Skipped
from truth import Truth

import servescope

TTFT_S, ITL_S, TOKENS = 0.05, 0.01, 128
STREAMS = (1, 64, 256)  # and 1024, where the cost is measured
RATES = (50, 200, 500, 1000, 2000)
SAMPLE_S = 0.1
LIMIT_S = 400.0
"""A client that takes longer for one load is ended."""


class Peak(NamedTuple):
    """Largest resident sizes, sampled ten times a second."""

    tree_bytes: int
    load_bytes: int
    """Of servescope's load process alone."""


class Ran(NamedTuple):
    """One run of a client."""

    cpu_s: float
    """Of the whole process tree."""
    wall_s: float
    peak: Peak
    others_ratio: float
    """Cores that neither it nor the server used meanwhile."""
    begun_ns: int
    rows: list[Row]
    truth: Truth


class Failed(Exception):
    """A client that did not carry out its load; says why."""


def drive(
    peer: Peer, core: int, load: dict[str, Any], *, itl_s: float = ITL_S, burn: bool = False
) -> Ran:
    """Have a client put a load on a fresh server; `burn`: with a busy process on its core."""
    scratch = Path(tempfile.mkdtemp(prefix="servescope-bench-"))
    burner = None
    try:
        with Truth(core ^ 1, ttft_s=TTFT_S if itl_s else 0.0, itl_s=itl_s) as truth:
            words = peer.command(Load(url=truth.url, **load), scratch)
            if burn:
                loop = [sys.executable, "-c", "while True: pass"]
                burner = subprocess.Popen(["taskset", "-c", str(core), *loop])
            before = _busy_s()
            used = _cpu_s(truth.process.pid) + (_cpu_s(burner.pid) if burner else 0.0)
            begun_ns = time.monotonic_ns()
            status, cpu_s, peak = _follow(peer, words, scratch, core)
            wall_s = (time.monotonic_ns() - begun_ns) / 1e9
            used = _cpu_s(truth.process.pid) + (_cpu_s(burner.pid) if burner else 0.0) - used
            others = (_busy_s() - before - cpu_s - used) / wall_s
        if status:
            said = (scratch / "output").read_text(errors="replace").strip().splitlines()
            raise Failed(f"exit status {status}: {said[-1][:200] if said else ''}")
        return Ran(cpu_s, wall_s, peak, max(0.0, others), begun_ns, peer.read(scratch), truth)
    finally:
        if burner is not None:
            burner.kill()
            burner.wait()
        shutil.rmtree(scratch, ignore_errors=True)


def _follow(peer: Peer, words: list[str], scratch: Path, core: int) -> tuple[int, float, Peak]:
    """Exit status, CPU seconds and peak memory of a command on one core."""
    with (scratch / "output").open("wb") as output:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *words],
            cwd=scratch,
            env=peer.environ(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        peak, began_s, sampled_s = Peak(0, 0), time.monotonic(), 0.0
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            took_s = time.monotonic() - began_s
            if took_s - sampled_s > SAMPLE_S:
                sampled_s = took_s
                peak = Peak(*map(max, peak, _tree_bytes(process.pid)))
            if took_s > LIMIT_S:
                os.killpg(process.pid, signal.SIGKILL)
                os.wait4(process.pid, 0)
                raise Failed(f"not done after {LIMIT_S:g} s")
            time.sleep(0.005)
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, peak


def _tree_bytes(root: int) -> Peak:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(") ")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat[1])
    total = load = 0
    for pid in parents:
        above = pid
        while above not in (root, 0):
            above = parents.get(above, 0)
        if above == root:
            try:
                resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
                total += resident
                if b"servescope.client.drive" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    load += resident
            except (OSError, IndexError):
                continue
    return Peak(total, load)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _busy_s() -> float:
    ticks = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]))
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


# --- what a run tells -----------------------------------------------------------------------------


def errors(ran: Ran) -> dict[str, Any]:
    """What the client said against what the server did; milliseconds.

    A token was sent some time between the readings before and after its send: an error is how far a
    client's figure lies outside of what these allow.
    """
    ttft, itl, known = [], [], []
    by_order = sorted(ran.truth.log.values(), key=lambda one: one.received)[-len(ran.rows) :]
    in_order = sorted(ran.rows, key=lambda row: row.start_s or 0.0)
    for k, row in enumerate(in_order):
        one = ran.truth.log.get(row.serial or -1)
        if one is None and not row.serial and k < len(by_order) and row.start_s is not None:
            one = by_order[k]
        if one is None or not len(one.before):
            continue
        known.append(one.after - one.before)
        ttft.append(
            _outside(row.ttft_s * 1e9, one.before[0] - one.received, one.after[0] - one.received)
        )
        if row.itl_s and len(row.itl_s) == len(one.before) - 1:
            gaps = np.array(row.itl_s) * 1e9
            low, high = one.before[1:] - one.after[:-1], one.after[1:] - one.before[:-1]
            itl.append(np.maximum(0, np.maximum(low - gaps, gaps - high)))
    told: dict[str, Any] = {"matched": len(ttft), "said": len(ran.rows)}
    if ttft:
        told["truth_known_to_ms"] = _percentiles(np.concatenate(known))
        told["ttft_error_ms"] = _percentiles(np.array(ttft))
    if itl:
        told["itl_error_ms"] = _percentiles(np.concatenate(itl))
    return told


def _outside(value: float, low: float, high: float) -> float:
    """How far a value lies outside an interval."""
    return max(0.0, low - value, value - high)


def _percentiles(ns: NDArray[np.float64]) -> dict[str, float]:
    p50, p99 = np.percentile(ns, [50, 99]) / 1e6
    return {"p50": round(float(p50), 4), "p99": round(float(p99), 4)}


def arrivals(ran: Ran, rate: float, asked: int) -> dict[str, Any]:
    """The requests as the server's kernel got them; warm-ups, which come first, left out."""
    at = np.sort([one.received for one in ran.truth.log.values()])[-asked:]
    gaps = np.sort(np.diff(at)) / 1e9
    cumulative = 1 - np.exp(-gaps * rate)
    steps = np.arange(len(gaps) + 1) / len(gaps)
    distance = max(np.max(steps[1:] - cumulative), np.max(cumulative - steps[:-1]))
    return {
        "requests": len(at),
        "reached": round(float((len(at) - 1) / ((at[-1] - at[0]) / 1e9)), 2),
        "ks": round(float(distance), 4),
        "ks_critical": round(1.358 / len(gaps) ** 0.5, 4),
    }


# --- the figures ----------------------------------------------------------------------------------


def paced(peer: Peer, core: int) -> dict[str, Any]:
    """CPU of each token event of 1024 streams of 100 tokens/s, start-up left out; errors, too."""
    few, many = (
        drive(peer, core, {"streams": 1024, "requests": n * 1024, "tokens": TOKENS}) for n in (1, 3)
    )
    us = (many.cpu_s - few.cpu_s) / (2 * 1024 * TOKENS) * 1e6
    return {
        "cpu_us_per_event": round(us, 2),
        "cpu_s_per_1000_requests": round(us * TOKENS / 1e3, 3),
        **errors(many),
        **_about(many),
    }


def exact(streams: int) -> Callable[[Peer, int], dict[str, Any]]:
    """Errors of TTFT and of gaps between tokens at so many streams."""

    def measure(peer: Peer, core: int) -> dict[str, Any]:
        requests = max(8, 4 * streams)
        ran = drive(peer, core, {"streams": streams, "requests": requests, "tokens": TOKENS})
        return {**errors(ran), **_about(ran)}

    return measure


def busy(peer: Peer, core: int) -> dict[str, Any]:
    """The same at 64 streams while another process wants the core as well."""
    ran = drive(peer, core, {"streams": 64, "requests": 256, "tokens": TOKENS}, burn=True)
    return {**errors(ran), **_about(ran)}


def streamed(peer: Peer, core: int) -> dict[str, Any]:
    """Throughput of 64 streams whose tokens come as fast as they are taken."""
    ran = drive(peer, core, {"streams": 64, "requests": 2048, "tokens": TOKENS}, itl_s=0.0)
    log = [one for one in ran.truth.log.values() if len(one.before)]
    took_s = (max(one.after[-1] for one in log) - min(one.received for one in log)) / 1e9
    events = sum(len(one.before) for one in log)
    return {
        "requests_per_s": round(len(log) / took_s, 1),
        "events_per_s": round(events / took_s),
        **_about(ran),
    }


def poisson(rate: int) -> Callable[[Peer, int], dict[str, Any]]:
    """How the arrivals of a Poisson process came."""

    def measure(peer: Peer, core: int) -> dict[str, Any]:
        asked = min(3000, 6 * rate)
        ran = drive(peer, core, {"rate": float(rate), "requests": asked, "tokens": 2})
        return {**arrivals(ran, rate, asked), **_about(ran)}

    return measure


def startup(peer: Peer, core: int) -> dict[str, Any]:
    """From the command to the first request on the wire, probes and warm-ups left out, and to the
    end of a run of ten."""
    firsts, walls = [], []
    for _ in range(3):
        ran = drive(peer, core, {"streams": 2, "requests": 10, "tokens": 2}, itl_s=0.0)
        first = sorted(one.received for one in ran.truth.log.values())[-10]
        firsts.append((first - ran.begun_ns) / 1e9)
        walls.append(ran.wall_s)
    return {
        "first_request_s": round(statistics.median(firsts), 3),
        "ten_requests_s": round(statistics.median(walls), 3),
    }


def memory(peer: Peer, core: int) -> dict[str, Any]:
    """Peak memory of the whole tree for 10,000 requests of 128 tokens, 256 at a time."""
    ran = drive(peer, core, {"streams": 256, "requests": 10_000, "tokens": TOKENS}, itl_s=0.002)
    load = {"load_process_mb": round(ran.peak.load_bytes / 1e6, 1)} if ran.peak.load_bytes else {}
    return {**load, **_about(ran)}


def installed(peer: Peer, core: int) -> dict[str, Any]:
    """Version, and the size of its own files and of all that it requires."""
    del core
    if not peer.distribution:
        return {}
    version, size_bytes = peer.installed()
    return {"version": version, "installed_mb": round(size_bytes / 1e6, 1)}


def _about(ran: Ran) -> dict[str, Any]:
    return {
        "others_ratio": round(ran.others_ratio, 3),
        "peak_mb": round(ran.peak.tree_bytes / 1e6, 1),
        "wall_s": round(ran.wall_s, 2),
    }


FIGURES: dict[str, Callable[[Peer, int], dict[str, Any]]] = {
    "installed": installed,
    "startup": startup,
    **{f"exact_{streams}": exact(streams) for streams in STREAMS},
    "paced_1024": paced,
    "busy_64": busy,
    "streamed_64": streamed,
    **{f"poisson_{rate}": poisson(rate) for rate in RATES},
    "memory_10000": memory,
}


def main() -> None:
    """Measure and write."""
    known = [limit.PEER, ours.PEER, ours.KEEPS_TEXT, *PEERS]
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--peers", action="store_true", help="the field's clients too")
    parser.add_argument("--only", action="append", choices=[peer.name for peer in known])
    parser.add_argument("--figures", action="append", choices=list(FIGURES))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.json")
    parser.add_argument("--add", action="store_true", help="to what --out holds already")
    asked = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("want two cores: one for the client, one for the server")
    chosen = [peer for peer in known if not asked.only or peer.name in asked.only]
    if not asked.peers and not asked.only:
        chosen = known[:3]
    clients: dict[str, dict[str, Any]] = {peer.name: {} for peer in chosen}
    about = _machine()
    if asked.add:
        clients = json.loads(asked.out.read_text())["clients"]
        names = ", ".join(peer.name for peer in chosen)
        about["added"] = f"Measured again or added later that day: {names}."
    for name in asked.figures or FIGURES:  # the clients side by side, figure by figure
        for peer in chosen:
            found = _figure(peer, cores[0], name)
            clients.setdefault(peer.name, {})[name] = found
            print(f"{name:14}{peer.name:26}{json.dumps(found)}", flush=True)
        asked.out.write_text(json.dumps({**about, "clients": clients}, indent=1) + "\n")


def _figure(peer: Peer, core: int, name: str) -> dict[str, Any]:
    try:
        return FIGURES[name](peer, core)
    except Skipped as why:
        return {"skipped": str(why)}
    except Failed as why:
        return {"failed": str(why)}
    except Exception as why:  # noqa: BLE001 (one peer's odd result must not end the others')
        return {"failed": f"{type(why).__name__}: {why}"[:200]}


def _machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "servescope": servescope.__version__,
        "machine": {
            "cpu": models[0] if models else platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
    }


if __name__ == "__main__":
    main()
