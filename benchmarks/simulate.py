"""How fast workloads are replayed, and in how much memory: `python benchmarks/simulate.py`.

A 7B model on an A100 under a load that keeps about 30 requests in its batch: prompts of 1 to 512
tokens, answers of about 200.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc

import numpy as np

from servescope.engine.config import EngineConfig
from servescope.engine.policies import policies, policy
from servescope.engine.replay import Replayed, replay
from servescope.engine.scheduler import Engine

RATE_PER_S = 7.0


def workload(requests: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Poisson arrivals; prompts uniform in 1 to 512; answers exponential, from 10 to 512."""
    rng = np.random.default_rng(seed)
    return {
        "arrivals_s": np.cumsum(rng.exponential(1 / RATE_PER_S, requests)),
        "prompt_tokens": rng.integers(1, 513, requests),
        "output_tokens": np.clip(rng.exponential(200, requests), 10, 512).astype(int),
    }


def engine(name: str) -> Engine:
    """A 7B model on an A100 with 80 GB, roughly: 14 ms a step, 60 us a prompt token."""
    costs = {"step": "14ms", "prefill": "60us", "sequence": "20us", "context": "350ns"}
    return policy(name)(EngineConfig(**costs, kv_tokens=110_000, prefix_cache=False))


def served(name: str, requests: int) -> tuple[float, Replayed]:
    """Seconds of the processor for a workload, and what came of it."""
    asked, target = workload(requests), engine(name)
    began_s = time.process_time()
    replayed = replay(target, **asked)
    return time.process_time() - began_s, replayed


def growth_bytes(name: str, requests: int) -> int:
    """The most memory that a replay takes beside what it is given."""
    asked, target = workload(requests), engine(name)
    tracemalloc.start()
    replay(target, **asked)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def main() -> None:
    """Print a row for each size, or each policy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="vllm", help="a policy, or 'all'")
    parser.add_argument("--requests", type=int, nargs="+", default=[20_000, 200_000])
    options = parser.parse_args()
    names = list(policies()) if options.engine == "all" else [options.engine]
    print(f"{'engine':<15}{'requests':>9}{'requests/s':>12}{'mean batch':>12}{'peak memory':>13}")
    for name in names:
        for requests in options.requests:
            taken_s, replayed = served(name, requests)
            totals = replayed.totals
            batch = totals.generation_tokens / totals.steps
            mib = growth_bytes(name, requests) / 2**20
            row = f"{name:<15}{requests:>9}{requests / taken_s:>12,.0f}{batch:>12.1f}"
            print(f"{row}{mib:>9.1f} MiB", flush=True)


if __name__ == "__main__":
    main()
