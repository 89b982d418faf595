"""How fast workloads are simulated, and in how much memory: `python benchmarks/simulate.py`.

Llama-2 7B on an A100 under vLLM, with a load that keeps about 30 requests in its batch: prompts of
1 to 512 tokens, answers of about 200, Poisson arrivals. `--grid` times 1000 configurations of 2000
requests each, `--vidur` sends one workload through Vidur too, and `--save` keeps the tables for
docs/performance.md (`make bench-sim` does all three).
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import tempfile
import time
import tracemalloc
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from servescope.engine.config import EngineConfig, parse
from servescope.engine.deployment import Deployment, deploy
from servescope.engine.policies import policies
from servescope.engine.replay import Replayed, replay

HERE = Path(__file__).parent
TABLES = HERE / "simulated.md"
TARGET = "sim:vllm?model=llama-2-7b&gpu=a100-sxm-80gb&prefix_cache=false"
RATE_PER_S = 9.5
"""That keeps about 30 requests in the batch."""
GRID_REQUESTS = 2000
GRID = {
    "max_num_seqs": (16, 32, 64, 128, 256),
    "max_num_batched_tokens": (512, 1024, 2048, 4096),
    "memory_utilization": (0.5, 0.6, 0.7, 0.8, 0.9),
}
RATES_PER_S = (5, 6, 7, 8, 9, 10, 11, 12, 13, 14)
"""Each with each point of the grid: 1000 configurations."""


def workload(requests: int, rate_per_s: float = RATE_PER_S, longer: int = 1) -> dict[str, Any]:
    """Poisson arrivals; prompts uniform in 1 to 512; answers exponential, from 10 to 512.

    With all tokens so many times `longer`, requests come more seldom by that and its root, for then
    steps take longer too: about as many are in flight.
    """
    rng = np.random.default_rng(0)
    return {
        "arrivals_s": np.cumsum(rng.exponential(longer**1.5 / rate_per_s, requests)),
        "prompt_tokens": longer * rng.integers(1, 513, requests),
        "output_tokens": longer * np.clip(rng.exponential(200, requests), 10, 512).astype(int),
    }


def served(target: Deployment, asked: dict[str, Any]) -> Replayed:
    """A workload through one replica."""
    return replay(target.engine(), **asked, front_end=target.front_end)


# --- speed and memory -----------------------------------------------------------------------------


def speed(target: Deployment, asked: dict[str, Any], times: int) -> tuple[list[float], Replayed]:
    """Requests per second of the processor, the fastest first, and what came of the workload."""
    taken_s = []
    for _ in range(times):
        began_s = time.process_time()
        replayed = served(target, asked)
        taken_s.append(time.process_time() - began_s)
    return [len(asked["arrivals_s"]) / one_s for one_s in sorted(taken_s)], replayed


def growth_bytes(target: Deployment, asked: dict[str, Any]) -> int:
    """The most memory that a replay takes beside what it is given."""
    tracemalloc.start()
    served(target, asked)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def speeds(config: EngineConfig, names: Iterable[str], times: int) -> Iterable[str]:
    """A row for each policy and workload."""
    yield row("engine", "requests", "tokens", "mean batch", "requests/s: best", "median", "memory")
    yield "|---|---|---|---|---|---|---|"
    each_bytes = {}
    for name in names:
        target, grown = deploy(msgspec.structs.replace(config, engine=name)), {}
        for requests, longer in ((20_000, 1), (20_000, 4), (200_000, 1)):
            asked = workload(requests, longer=longer)
            found, replayed = speed(target, asked, times)
            totals, grown[requests] = replayed.totals, growth_bytes(target, asked)
            tokens = f"{(totals.prompt_tokens + totals.generation_tokens) / 1e6:.1f} million"
            batch = f"{totals.generation_tokens / totals.steps:.1f}"
            best, median = found[0], found[len(found) // 2]
            counted = f"{requests:,}", tokens, batch, f"{best:,.0f}", f"{median:,.0f}"
            yield row(name, *counted, f"{grown[requests] / 2**20:.1f} MiB")
        each_bytes[name] = (grown[200_000] - grown[20_000]) / 180_000
    yield ""
    yield "Best and median by time of the processor, which other work on a machine lengthens too."
    grows = max(each_bytes.values())
    yield f"From 20,000 to 200,000 requests memory grows by {grows:.0f} bytes for each: its row in"
    yield "the columns of numbers that a replay makes and returns."


# --- a grid of configurations ---------------------------------------------------------------------


def point(settings: tuple[EngineConfig, float]) -> int:
    """One configuration from its settings on; returns how many requests were served."""
    config, rate_per_s = settings
    return served(deploy(config), workload(GRID_REQUESTS, rate_per_s)).totals.finished


def grid(config: EngineConfig) -> Iterable[str]:
    """All configurations, in one process and in one for each core."""
    points = [dict(zip(GRID, chosen, strict=True)) for chosen in product(*GRID.values())]
    configs = [msgspec.structs.replace(config, **chosen) for chosen in points]
    settings = list(product(configs, RATES_PER_S))
    yield row("configurations", "requests each", "processes", "seconds", "of processors")
    yield "|---|---|---|---|---|"
    for processes in sorted({1, os.cpu_count() or 1}):
        began_s, before = time.perf_counter(), os.times()
        if processes == 1:
            finished = sum(map(point, settings))
        else:
            with multiprocessing.Pool(processes) as pool:
                finished = sum(pool.imap_unordered(point, settings, chunksize=10))
                pool.close()
                pool.join()
        wall_s, after = time.perf_counter() - began_s, os.times()
        assert finished == GRID_REQUESTS * len(settings), finished
        busy_s = sum(after[:4]) - sum(before[:4])
        counted = f"{len(settings)}", f"{GRID_REQUESTS}", f"{processes}"
        yield row(*counted, f"{wall_s:.1f}", f"{busy_s:.1f}")


# --- beside Vidur ---------------------------------------------------------------------------------


def beside(config: EngineConfig, python: Path, requests: int, times: int) -> Iterable[str]:
    """The same requests, limits and KV cache through both. Vidur has no front end, so no more have
    we; its Sarathi scheduler is what vLLM's has become."""
    target, asked = deploy(config), workload(requests)
    columns = {name: column.tolist() for name, column in asked.items()}
    limits = {
        "max_num_seqs": target.max_num_seqs,
        "max_num_batched_tokens": target.engine().max_num_batched_tokens,
        "kv_blocks": target.kv_blocks,
        "max_model_len": target.max_model_len,
    }
    home = python.absolute().parents[1] / "vidur"
    theirs, ours = [], []
    with tempfile.TemporaryDirectory() as cache:
        given = json.dumps(limits | columns | {"cache": cache})
        for _ in range(times):
            ran = subprocess.run(
                [python.absolute(), HERE / "through_vidur.py"], input=given, cwd=home,
                env={**os.environ, "PYTHONPATH": str(home)},
                stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            theirs.append(json.loads(ran.stdout.splitlines()[-1]))
            began_s = time.perf_counter()
            replayed = replay(target.engine(), **asked)
            ours.append(time.perf_counter() - began_s)
    found: dict[str, Any] = {
        "ttft_s": replayed.first_s - replayed.sent_s,
        "e2e_s": replayed.end_s - replayed.sent_s,
        "makespan_s": replayed.makespan_s,
    }
    yield row("simulator", "requests/s: best", "median", *_PREDICTED)
    yield "|---|---|---|---|---|---|---|---|"
    for name, taken_s, predicted in (
        ("servescope", ours, found),
        ("Vidur", [one["run_s"] for one in theirs], theirs[0]),
    ):
        said = [f"{requests / one_s:,.0f}" for one_s in (min(taken_s), statistics.median(taken_s))]
        said.append(f"{asked['output_tokens'].sum() / predicted['makespan_s']:,.0f}")
        for times_s in (predicted["ttft_s"], predicted["e2e_s"]):
            said += [f"{np.percentile(times_s, rank):.3f}" for rank in (50, 95)]
        yield row(name, *said)
    first_s, again_s = theirs[0]["prepare_s"], theirs[-1]["prepare_s"]
    yield ""
    yield f"{requests} requests, best and median of {times} runs, by the clock, with no front end."
    yield f"Not counted is what Vidur does before, {first_s:.0f} s where it has yet to fit its"
    yield f"model of durations and {again_s:.1f} s with the fits in its cache,"
    yield "nor what it writes afterwards."


_PREDICTED = ("tokens/s", "TTFT P50, s", "P95", "end to end P50, s", "P95")


def about() -> str:
    """Where and when this was measured."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    today = dt.datetime.now(tz=dt.UTC).date()
    return (
        f"Measured on {today}: {os.cpu_count()} cores of {cpu}, Python {platform.python_version()}."
    )


def row(*cells: str) -> str:
    """A table's."""
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default=TARGET, help="what is simulated")
    parser.add_argument("--engine", help="another policy, or 'all'")
    parser.add_argument("--times", type=int, default=7, help="runs of each workload")
    parser.add_argument("--grid", action="store_true", help="1000 configurations, too")
    parser.add_argument("--vidur", type=Path, help="PYTHON of scripts/install-vidur.sh's VENV")
    parser.add_argument("--vidur-requests", type=int, default=5000)
    parser.add_argument("--save", action="store_true", help=f"write {TABLES.name}, too")
    options = parser.parse_args()
    config = parse("--target", options.target)
    names = list(policies()) if options.engine == "all" else [options.engine or config.engine]
    tables = [speeds(config, names, options.times)]
    if options.grid:
        tables.append(grid(config))
    if options.vidur:
        tables.append(beside(config, options.vidur, options.vidur_requests, options.times))
    said = [about()]
    for table in tables:
        said.append("\n".join(table))
        print(said[-1], end="\n\n", flush=True)
    if options.save:
        TABLES.write_text("\n\n".join(said) + "\n")


if __name__ == "__main__":
    main()
