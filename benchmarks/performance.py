"""docs/performance.md from the figures of `bench.py`: python benchmarks/performance.py [RESULTS]"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
SIMULATED = HERE / "simulated.md"
OURS, LIMIT, TEXT = "servescope", "C, epoll", "servescope --keep-text"
Client = dict[str, Any]

ABOUT = """\
# How well the instrument measures, beside others

Made by `make bench` (servescope, and a client in C as the limit) or `make bench-peers` (the field's
load clients too), which run `benchmarks/bench.py`, and by `benchmarks/performance.py`, which writes
this page from `benchmarks/results.json` and `benchmarks/simulated.md`. Do not edit it.

Each client's whole process tree is held to one core. A server in C has the other: it streams tokens
on a schedule (TTFT 50 ms, ITL 10 ms, one send a token) and keeps the time before and after each of
its sends, and the kernel's time of each request's arrival. An **error** is how far what a client
says lies outside of what these times allow. All clients run one after the other, figure by figure.
"""
NOTES = """\
A dash: not measured, or the client has no such load or keeps no such figure. An error of 0 is one
that lies within what is known of the truth: a token was sent between two readings of the clock that
are 5 us apart at the median, 15 to 130 us at P99 (`truth_known_to_ms` in results.json).

CPU is the difference between 3072 and 1024 requests, so that start-up is left out. It is no merit
of a client that cannot keep up: it reads several tokens at once, which is cheap, and its errors are
the price. SGLang's Rust client is started by Python for seconds, which vary by more than that.
Both of vLLM's are asked for text completions, since in chat they take the role for the first token.
SGLang's and vLLM's sizes leave out what only a GPU needs. Locust has a user class of this project.
"""
SIMULATOR = """\
## The simulator

Made by `make bench-sim`, which runs `benchmarks/simulate.py`: Llama-2 7B on an A100 with
80 GB under vLLM's scheduler, roofline and front end, in virtual time. Prompts have 1 to 512 tokens,
answers about 200, arrivals are Poisson at a rate that keeps about 30 requests in the batch. Equal
decode steps are taken at once, so that requests cost time, tokens do not: nor do they cost memory.
"""
COLUMNS: list[tuple[str, Callable[[Client], str]]] = [
    ("CPU, us per event, 1024 streams", lambda c: _said(c, "paced_1024", "cpu_us_per_event")),
    ("requests/s of 128 tokens, 64 streams", lambda c: _said(c, "streamed_64", "requests_per_s")),
    ("TTFT error, ms, P50 / P99: 1 stream", lambda c: _error(c, "exact_1", "ttft_error_ms")),
    ("64", lambda c: _error(c, "exact_64", "ttft_error_ms")),
    ("256", lambda c: _error(c, "exact_256", "ttft_error_ms")),
    ("1024", lambda c: _error(c, "paced_1024", "ttft_error_ms")),
    ("64, core shared with a busy process", lambda c: _error(c, "busy_64", "ttft_error_ms")),
    ("ITL error, ms, P50 / P99: 64 streams", lambda c: _error(c, "exact_64", "itl_error_ms")),
    ("1024", lambda c: _error(c, "paced_1024", "itl_error_ms")),
]
LOUD_RATIO = 0.1
ARRIVALS = (50, 200, 500, 1000, 2000)
COSTS: list[tuple[str, Callable[[Client], str]]] = [
    ("command to first request, s", lambda c: _said(c, "startup", "first_request_s")),
    ("a run of 10 requests, s", lambda c: _said(c, "startup", "ten_requests_s")),
    ("peak memory at 1024 streams, MB", lambda c: _said(c, "paced_1024", "peak_mb")),
    ("installed, MB", lambda c: _said(c, "installed", "installed_mb")),
    ("version", lambda c: _said(c, "installed", "version")),
]


def _said(client: Client, figure: str, name: str) -> str:
    found = client.get(figure, {})
    if "skipped" in found or "failed" in found:
        return "failed" if "failed" in found else "-"
    return f"{found[name]:g}" if isinstance(found.get(name), int | float) else found.get(name, "-")


def _error(client: Client, figure: str, name: str) -> str:
    found = client.get(figure, {})
    if name not in found:
        return "failed" if "failed" in found else "-"
    return f"{found[name]['p50']:.3g} / {found[name]['p99']:.3g}"


def _arrivals(client: Client, rate: int) -> str:
    found = client.get(f"poisson_{rate}", {})
    if "ks" not in found:
        return "failed" if "failed" in found else "-"
    verdict = "" if found["ks"] <= found["ks_critical"] else " no"
    return f"{found['reached']:.0f}, {found['ks']:.3f}{verdict}"


def table(clients: dict[str, Client], columns: list[tuple[str, Callable[[Client], str]]]) -> str:
    """Markdown, a row a client."""
    lines = ["| client | " + " | ".join(name for name, _ in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name, client in clients.items():
        lines.append(f"| {name} | " + " | ".join(cell(client) for _, cell in columns) + " |")
    return "\n".join(lines)


def page(results: dict[str, Any]) -> str:
    """The whole page."""
    machine, clients = results["machine"], results["clients"]
    parts = [ABOUT.rstrip()]
    parts.append(
        f"Measured on {results['date']} with servescope {results['servescope']}: "
        f"{machine['cores']} cores of {machine['cpu']}, Linux {machine['kernel']}, "
        f"Python {machine['python']}. {_noise(clients)} {results.get('added', '')}".rstrip()
    )
    parts.append("## What they read, and what that costs them\n\n" + table(clients, COLUMNS))
    parts.append(NOTES.rstrip())
    each = [(f"{rate}/s", lambda c, r=rate: _arrivals(c, r)) for rate in ARRIVALS]
    parts.append(
        "## Poisson arrivals, as the server's kernel saw them\n\nRate reached, and the largest "
        "distance between the distribution of the gaps and the exponential one that was asked for; "
        "`no` where that is above the critical value of the Kolmogorov-Smirnov test at 5 % (0.025 "
        "for the 3000 requests at 500/s and more).\n\n" + table(clients, each)
    )
    parts.append("## What it takes to have them\n\n" + table(clients, COSTS))
    if OURS in clients and LIMIT in clients:
        parts.append("## Against the limit\n\n" + _against(clients))
    if SIMULATED.exists():
        parts.append(SIMULATOR.rstrip() + "\n\n" + SIMULATED.read_text().rstrip())
    return "\n\n".join(parts) + "\n"


def _noise(clients: dict[str, Client]) -> str:
    shares = [
        found["others_ratio"]
        for client in clients.values()
        for found in client.values()
        if "others_ratio" in found
    ]
    loud = sum(share > LOUD_RATIO for share in shares)
    return (
        f"In {loud} of {len(shares)} readings other work took more than {LOUD_RATIO:.0%} of a "
        f"core, at most {max(shares, default=0.0):.0%}."
    )


def _against(clients: dict[str, Client]) -> str:
    ours, limit, text = (clients.get(name, {}) for name in (OURS, LIMIT, TEXT))
    floor = limit["paced_1024"]["cpu_us_per_event"]
    ratio = ours["paced_1024"]["cpu_us_per_event"] / floor
    what = "CPU per paced token event at 1024 streams, records written and progress shown"
    lines = [f"- {what}: {ratio:.2f} x that of C"]
    if "cpu_us_per_event" in text.get("paced_1024", {}):
        ratio = text["paced_1024"]["cpu_us_per_event"] / floor
        lines.append(f"- the same with the text of every event kept: {ratio:.2f} x")
    memory = ours.get("memory_10000", {})
    if "load_process_mb" in memory:
        lines.append(
            f"- memory of the load process, 10,000 requests of 128 tokens, every time kept: "
            f"{memory['load_process_mb']:.0f} MB ({memory['peak_mb']:.0f} MB with the process that "
            f"reads the answers and makes the figures)"
        )
    speed = ours["streamed_64"]["requests_per_s"] / limit["streamed_64"]["requests_per_s"]
    lines.append(f"- streamed throughput of 64 streams, one send a token: {speed:.2f} x")
    return "\n".join(lines)


def main() -> None:
    """Write the page."""
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "results.json"
    PAGE.write_text(page(json.loads(source.read_text())))


if __name__ == "__main__":
    main()
