"""The 50-column block of `vllm bench serve`, which people paste into issues.

Labels and layout are vLLM's; the figures are ours. Its ITL line shows token-true gaps, which differ
from vLLM's where a chunk holds several tokens.
"""

from __future__ import annotations

from typing import Any

import msgspec

from servescope.summary import StageSummary

WIDTH = 50
_SECTIONS = (
    ("Time to First Token", "TTFT", "ttft_s"),
    ("Time per Output Token (excl. 1st token)", "TPOT", "tpot_s"),
    ("Inter-token Latency", "ITL", "itl_s"),
    ("End-to-end Latency", "E2EL", "e2e_s"),
)


def block(stage: StageSummary, *, cap: int | None = None, rate: float | None = None) -> str:
    """One stage as vLLM's block."""
    figures: dict[str, Any] = msgspec.to_builtins(stage.figures)
    answered = stage.outcomes.get("completed", 0) + stage.outcomes.get("truncated", 0)
    lines = [_rule(" Serving Benchmark Result ", "=")]
    lines.append(_count("Successful requests:", answered))
    lines.append(_count("Failed requests:", sum(stage.outcomes.values()) - answered))
    if cap is not None:
        lines.append(_count("Maximum request concurrency:", cap))
    if rate is not None:
        lines.append(_line("Request rate configured (RPS):", rate))
    window = figures.get("window") or {"start_s": 0.0, "end_s": 0.0}
    lines.append(_line("Benchmark duration (s):", window["end_s"] - window["start_s"]))
    lines.append(_count("Total input tokens:", _total(figures.get("input_tokens"))))
    lines.append(_count("Total generated tokens:", _total(figures.get("output_tokens"))))
    lines.append(_line("Request throughput (req/s):", figures.get("requests_per_s")))
    if "goodput_requests_per_s" in figures:
        lines.append(_line("Request goodput (req/s):", figures["goodput_requests_per_s"]))
    lines.append(_line("Output token throughput (tok/s):", figures.get("output_tokens_per_s")))
    peak = figures.get("peak_output_tokens_per_s")
    lines.append(_line("Peak output token throughput (tok/s):", peak))
    most = (figures.get("concurrency") or {}).get("max")
    lines.append(_count("Peak concurrent requests:", most))
    lines.append(_line("Total token throughput (tok/s):", figures.get("total_tokens_per_s")))
    for title, short, key in _SECTIONS:
        lines.append(_rule(title, "-"))
        found = figures.get(key) or {}
        for name, statistic in (("Mean", "mean"), ("Median", "p50"), ("P99", "p99")):
            seconds = found.get(statistic)
            lines.append(_line(f"{name} {short} (ms):", None if seconds is None else seconds * 1e3))
    lines.append(_rule("", "="))
    return "\n".join(lines)


def _rule(title: str, fill: str) -> str:
    return title.center(WIDTH, fill)


def _line(label: str, value: float | None) -> str:
    return _text(label, "-" if value is None else f"{value:.2f}")


def _count(label: str, value: float | None) -> str:
    return _text(label, "-" if value is None else f"{value:.0f}")


def _text(label: str, shown: str) -> str:
    return f"{label:<40} {shown:<10}".rstrip()


def _total(found: dict[str, Any] | None) -> int | None:
    return None if found is None else round(found["mean"] * found["n"])
