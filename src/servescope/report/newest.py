"""What the machines and the engines said last, in a few words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from servescope import telemetry
from servescope.units import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from servescope.records import Sample

MOST_GPUS = 4
_OF_HISTOGRAMS = ("_bucket", "_sum", "_count", "_created")


class Newest:
    """The newest value of every series."""

    def __init__(self) -> None:
        self._newest: dict[tuple[str, str, tuple[tuple[str, str], ...]], Sample] = {}
        self._read_ns: dict[str, int] = {}
        self._told: tuple[str, str] | None = ("", "")

    def note(self, samples: Sequence[Sample]) -> None:
        """Keep the newest of each series, but for parts of histograms."""
        for sample in samples:
            if not sample.name.endswith(_OF_HISTOGRAMS):
                key = (sample.source, sample.name, tuple(sorted(sample.labels.items())))
                self._newest[key] = sample
                self._read_ns[sample.source] = sample.t_ns
        self._told = None

    def told(self) -> tuple[str, str]:
        """The engines in words, and the GPUs."""
        if self._told is None:
            # A value holds until a newer one is written: all are of the newest reading.
            found = telemetry.read(
                [
                    msgspec.structs.replace(sample, t_ns=self._read_ns[sample.source])
                    for sample in self._newest.values()
                ]
            )
            self._told = ", ".join(_engine(found)), "; ".join(_gpus(found))
        return self._told


def _engine(found: telemetry.Telemetry) -> Iterator[str]:
    for name, label in (("running_requests", "running"), ("waiting_requests", "waiting")):
        values = [series.value[-1] for series in found.named(name) if len(series.value)]
        if values:
            yield f"{round(sum(values)):,} {label}"
    used = [series.value[-1] for series in found.named("kv_use_ratio") if len(series.value)]
    if used:
        yield f"KV cache {float(max(used)):.0%}"


def _gpus(found: telemetry.Telemetry) -> Iterator[str]:
    memory = {
        name: {
            series.labels.get("gpu", ""): float(series.value[-1]) for series in found.named(name)
        }
        for name in ("gpu_busy_ratio", "gpu_memory_used_bytes", "gpu_memory_bytes", "gpu_power_w")
    }
    busy, used, total, power = memory.values()
    gpus = list(dict.fromkeys([*busy, *used]))
    for gpu in gpus[:MOST_GPUS]:
        parts = [f"GPU {printable(gpu)}"]
        if gpu in busy:
            parts.append(f"{busy[gpu]:.0%} busy")
        if gpu in used:
            of = f" of {total[gpu] / 2**30:.0f}" if gpu in total else ""
            parts.append(f"{used[gpu] / 2**30:.1f}{of} GiB")
        if gpu in power:
            parts.append(f"{power[gpu]:.0f} W")
        yield " ".join(parts)
    if len(gpus) > MOST_GPUS:
        yield f"and {len(gpus) - MOST_GPUS} more"
