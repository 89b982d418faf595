"""What figures are called in tables and plots, in the order in which they are shown."""

from __future__ import annotations

import re
from collections.abc import Callable

from servescope.units import format_seconds, three_digits

LATENCIES = (
    ("ttft_s", "TTFT"),
    ("ttfo_s", "first output token"),
    ("ttft_from_due_s", "TTFT from due"),
    ("itl_s", "ITL, a token"),
    ("icl_s", "ICL, a chunk"),
    ("tpot_s", "TPOT"),
    ("e2e_s", "end-to-end"),
    ("e2e_from_due_s", "end-to-end from due"),
    ("normalized_latency_s_per_token", "end-to-end / token"),
    ("connect_s", "connect"),
    ("lateness_s", "sent after due"),
)
COUNTS = (
    ("input_tokens", "input tokens"),
    ("cached_tokens", "of them cached"),
    ("output_tokens", "output tokens"),
    ("reasoning_tokens", "of them reasoning"),
    ("tool_tokens", "of them tool calls"),
)
SHOWN_IF_ANY = ("cached_tokens", "reasoning_tokens", "tool_tokens")
"""Counts that most servers know nothing of: left out where they are absent."""
SHOWN_IF_DIFFERENT = ("ttft_from_due_s", "e2e_from_due_s")
"""Latencies left out where they say what those from the sending say."""
STATISTICS = ("mean", "p50", "p90", "p95", "p99", "max")
_WORDS = (
    ("energy_j_", "energy "), ("kv_", "KV "), ("gpu_", "GPU "), ("cpu_", "CPU "), ("ttft", "TTFT"),
    ("itl", "ITL"),
    ("icl", "ICL"), ("tpot", "TPOT"), ("e2e", "end-to-end"), ("slo", "SLO"), ("sm_", "SM "),
    ("pcie", "PCIe"), ("nvlink", "NVLink"), ("p50", "P50"), ("p90", "P90"), ("p95", "P95"),
    ("p99", "P99"),
)  # fmt: skip
_STATISTIC = re.compile(r"(?:_(?:mean|max|min|p50|p90|p95|p99|total|steady|whole))+$")
_KEPT = ("_j_per_output_token", "_j_per_token", "_j_per_request")
"""Endings that are more than a unit: they stay in the name."""
_UNITS: tuple[tuple[str, Callable[[float], str]], ...] = (
    *((ending, lambda x: f"{three_digits(x)} J") for ending in _KEPT),
    ("_bytes_per_s", lambda x: f"{_metric(x)}B/s"),
    ("_per_s", lambda x: f"{three_digits(x)}/s"),
    ("_bytes", lambda x: f"{_metric(x)}B"),
    ("_ratio", lambda x: f"{three_digits(x * 100)} %"),
    ("_hz", lambda x: f"{_metric(x)}Hz"),
    ("_w", lambda x: f"{three_digits(x)} W"),
    ("_j", lambda x: f"{_metric(x)}J"),
    ("_c", lambda x: f"{three_digits(x)} °C"),
    ("_s", format_seconds),
)
"""The units that end a name, and how an amount in them is shown."""


def quantity(name: str, value: float | str | None) -> tuple[str, str]:
    """A name with its unit in it, and a value, as people read them: ('TTFT, P99', '12.3 ms')."""
    statistic = _STATISTIC.search(name)
    base = name[: statistic.start()] if statistic else name
    ending, show = next(((end, show) for end, show in _UNITS if base.endswith(end)), ("", _plain))
    if ending not in _KEPT:
        base = base.removesuffix(ending)
    label = _worded(base) + ("/s" if ending == "_per_s" else "")
    label += f", {_worded(statistic[0])}" if statistic else ""
    if value is None or isinstance(value, str):
        return label, value or "-"
    return label, show(float(value))


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else three_digits(value)


def _worded(name: str) -> str:
    for word, said in _WORDS:
        name = name.replace(word, said)
    return name.replace("_", " ").strip()


def _metric(value: float) -> str:
    """Three digits with a prefix of the SI: '12.3 M'."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{three_digits(value / size)} {prefix}"
    return f"{three_digits(value)} "
