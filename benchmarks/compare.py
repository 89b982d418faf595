"""How often `servescope compare` is wrong: pairs of runs of one configuration, and planted changes.

    python benchmarks/compare.py simulated [PAIRS]    # in virtual time, minutes
    python benchmarks/compare.py real [PAIRS]         # over HTTP on loopback, about 25 s a pair

Of two runs of one configuration any verdict at all is a false alarm, which may happen in one pair
of twenty. Of a run with each step's time 10 % longer than the baseline's, a figure of it must come
out worse, and none better.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

from servescope.analysis import conclude
from servescope.analysis.compare import compare, read
from servescope.conduct import conduct
from servescope.engine.config import parse
from servescope.experiment import declare
from servescope.serve import Server

LOADS = ("users:8", "users:32", "poisson:6", "poisson:12", "constant:8", "burst")
REQUESTS = 400
BASE, SLOWER = "sim:vllm", "sim:vllm?step=8.8ms&prefill=93.5us&sequence=22us&context=99ns"


def one(name: Path, target: str, *, load: str, seed: int, requests: int) -> str:
    """Make a run, with prompts and due times of its own; where it is."""
    options = {
        "target": target, "load": [load], "requests": requests, "out": str(name.parent),
        "name": name.name,
        "input_tokens": "exponential:mean=128,max=512", "output_tokens": "uniform:16-64",
        "seed": seed,
    }  # fmt: skip
    found = conduct(declare(options))
    conclude(found)
    return str(found.path)


def judged(a: str, b: str) -> dict[str, str]:
    """The figures of B that compare calls better or worse."""
    found = compare(read([a, b]))
    rows = (row for pair in found.pairs for row in pair.rows)
    return {row.figure: row.verdict for row in rows if row.verdict in ("better", "worse")}


def said(what: str, pairs: list[tuple[str, str]]) -> None:
    """Count what is said of pairs, and print it."""
    named, alarms, seen, wrong = Counter[str](), 0, 0, 0
    for a, b in pairs:
        verdicts = judged(a, b)
        named.update(verdicts.keys())
        alarms += bool(verdicts)
        seen += "worse" in verdicts.values()
        wrong += "better" in verdicts.values()
    most = ", ".join(f"{figure} {n}" for figure, n in named.most_common(6))
    print(f"{what}: {len(pairs)} pairs, a verdict in {alarms}; worse in {seen}, better in {wrong}")
    print(f"    {most or 'no figure'}", flush=True)


def simulated(pairs: int) -> None:
    """Each pair of its own two runs; the slower engine with the first run of each."""
    for load in LOADS:
        with tempfile.TemporaryDirectory() as out:
            runs = [
                [
                    one(
                        Path(out, f"{tag}{k}"), target, load=load, seed=3 * k + j, requests=REQUESTS
                    )
                    for j, (tag, target) in enumerate((("a", BASE), ("b", BASE), ("c", SLOWER)))
                ]
                for k in range(pairs)
            ]
            said(f"simulated {load}, one configuration", [(a, b) for a, b, _ in runs])
            said(f"simulated {load}, steps 10 % longer", [(a, c) for a, _, c in runs])


def real(pairs: int) -> None:
    """Over HTTP, the runs in turn, so that whatever else the machine does falls on all of them."""
    for load in ("users:8", "poisson:12"):
        with tempfile.TemporaryDirectory() as out:
            runs = list(_measured(Path(out), load, pairs))
            said(f"real {load}, one configuration", [(a, b) for a, b, _ in runs])
            every = list(combinations([run for a, b, _ in runs for run in (a, b)], 2))
            said(f"real {load}, one configuration, each with each", every)
            said(f"real {load}, steps 10 % longer", [(a, c) for a, _, c in runs])


def _measured(out: Path, load: str, pairs: int) -> Iterator[tuple[str, str, str]]:
    base, slower = (parse("SIM", text) for text in (BASE, SLOWER))
    with Server(base) as first, Server(slower) as second:
        for k in range(pairs):
            urls = (("a", first.url), ("b", first.url), ("c", second.url))
            a, b, c = (
                one(out / f"{tag}{k}", url, load=load, seed=3 * k + j, requests=300)
                for j, (tag, url) in enumerate(urls)
            )
            yield a, b, c


if __name__ == "__main__":
    kind, many = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 20
    {"simulated": simulated, "real": real}[kind](many)
