"""What machines and engines said of themselves, in one vocabulary whoever said it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from servescope.telemetry.names import ENGINES
from servescope.telemetry.series import Histogram, HistogramFigures, Series
from servescope.telemetry.source import Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from servescope.records import Sample
    from servescope.telemetry.names import About

__all__ = ["Histogram", "HistogramFigures", "Series", "Telemetry", "read"]

SIMULATED = "engine"
"""The source that a simulated engine writes."""


class Telemetry:
    """The readings of all sources of a run. A name is one of the common vocabulary."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._sources = sources
        self._series: dict[str, list[Series]] = {}
        self._histograms: dict[str, list[Histogram]] = {}

    @cached_property
    def sources(self) -> list[str]:
        """Who told anything that is in the common vocabulary."""
        return [name for name, source in self._sources.items() if source.abouts()]

    def engine_of(self, source: str) -> str | None:
        """Whose page it is: `vllm`, `sglang`, ...; `simulated`; None where it is no engine's."""
        if source == SIMULATED:
            return "simulated"
        tables = self._sources[source].tables if source in self._sources else []
        return next((name for name in tables if name in ENGINES), None)

    def mixed(self, source: str) -> bool:
        """Whether several engines answer in turn as this source; its counters are not told."""
        return self._sources[source].mixed

    def abouts(self, source: str) -> set[About]:
        """What a source tells of: `engine`, `gpu`, `host`."""
        return self._sources[source].abouts()

    def named(self, name: str) -> list[Series]:
        """The gauges or counters of that name, of all sources; none where nobody gives it."""
        if name not in self._series:
            found = (source.series(name) for source in self._sources.values())
            self._series[name] = [series for each in found for series in each]
        return self._series[name]

    def histograms(self, name: str) -> list[Histogram]:
        """The histograms of that name, of all sources; none where nobody gives it."""
        if name not in self._histograms:
            found = (source.histograms(name) for source in self._sources.values())
            self._histograms[name] = [histogram for each in found for histogram in each]
        return self._histograms[name]


def read(samples: Iterable[Sample]) -> Telemetry:
    """Take in the samples of a run."""
    sources: dict[str, Source] = {}
    for sample in samples:
        source = sources.get(sample.source)
        if source is None:
            source = sources[sample.source] = Source(sample.source)
        source.add(sample)
    return Telemetry(sources)
