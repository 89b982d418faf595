"""How often `servescope compare` is wrong: pairs of runs of one configuration, and planted changes.

    python benchmarks/compare.py simulated [PAIRS]    # in virtual time; 50 pairs: 5 minutes
    python benchmarks/compare.py real [PAIRS]         # over HTTP on loopback; 20 pairs: 20 minutes

Of two runs of one configuration any verdict at all is a false alarm, which may happen in one pair
of twenty. Of a run with each step's time 10 % longer than the baseline's, a figure of it must come
out worse, and none better.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from servescope.analysis import conclude
from servescope.analysis.compare import compare, read
from servescope.conduct import conduct
from servescope.engine.config import parse
from servescope.experiment import declare
from servescope.serve import Server

LOADS = ("users:8", "users:32", "poisson:6", "poisson:12", "constant:8", "burst")
REQUESTS = 400
REAL_LOADS = ("users:8", "poisson:32")
REAL = {"requests": 280, "output_tokens": "uniform:8-24"}
"""Short answers: many rounds in ten seconds."""
REPEATS = 3
BASE, SLOWER = "sim:vllm", "sim:vllm?step=8.8ms&prefill=93.5us&sequence=22us&context=99ns"


def one(name: Path, target: str, *, load: str, seed: int, **more: object) -> str:
    """Make a run, with prompts and due times of its own; where it is."""
    options = {
        "target": target, "load": [load], "requests": REQUESTS, "out": str(name.parent),
        "name": name.name,
        "input_tokens": "exponential:mean=128,max=512", "output_tokens": "uniform:16-64",
        "seed": seed,
    }  # fmt: skip
    found = conduct(declare(options | more))
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
    """Each pair of its own two runs; the slower engine with the first run of each. A burst, which
    says little of its noise, with repeats too."""
    for load in LOADS:
        with tempfile.TemporaryDirectory() as out:
            runs = [
                [
                    one(Path(out, f"{tag}{k}"), target, load=load, seed=3 * k + j)
                    for j, (tag, target) in enumerate((("a", BASE), ("b", BASE), ("c", SLOWER)))
                ]
                for k in range(pairs)
            ]
            said(f"simulated {load}, one configuration", [(a, b) for a, b, _ in runs])
            said(f"simulated {load}, steps 10 % longer", [(a, c) for a, _, c in runs])
            if load == "burst":
                groups = [list(zip(*group, strict=True)) for group in _batched(runs, REPEATS)]
                a, b, c = ([",".join(group[k]) for group in groups] for k in range(3))
                many = f"simulated {load}, {REPEATS} repeats a side"
                said(f"{many}, one configuration", list(zip(a, b, strict=True)))
                said(f"{many}, steps 10 % longer", list(zip(a, c, strict=True)))


def _batched(runs: list[list[str]], size: int) -> list[list[list[str]]]:
    """Whole groups of `size`."""
    return [runs[k : k + size] for k in range(0, len(runs) - size + 1, size)]


def real(pairs: int) -> None:
    """Over HTTP, the runs in turn, so that whatever else the machine does falls on all of them."""
    for load in REAL_LOADS:
        with tempfile.TemporaryDirectory() as out:
            runs = list(_measured(Path(out), load, pairs))
            said(f"real {load}, one configuration", [(a, b) for a, b, _ in runs])
            said(f"real {load}, steps 10 % longer", [(a, c) for a, _, c in runs])


def _measured(out: Path, load: str, pairs: int) -> Iterator[tuple[str, str, str]]:
    base, slower = (parse("SIM", text) for text in (BASE, SLOWER))
    with Server(base) as first, Server(slower) as second:
        for k in range(pairs):
            urls = (("a", first.url), ("b", first.url), ("c", second.url))
            a, b, c = (
                one(out / f"{tag}{k}", url, load=load, seed=3 * k + j, **REAL)
                for j, (tag, url) in enumerate(urls)
            )
            yield a, b, c


if __name__ == "__main__":
    kind, many = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 20
    {"simulated": simulated, "real": real}[kind](many)
