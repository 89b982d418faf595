"""What the servers of a run told of themselves, each of them once."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from servescope.analysis.evidence import Evidence
    from servescope.telemetry import Histogram, Series, Telemetry


class Told(NamedTuple):
    """Telemetry of a run's servers alone."""

    telemetry: Telemetry
    servers: frozenset[str]
    """Sources; none where they are not those of all targets."""

    def named(self, *names: str) -> list[Series]:
        """Their gauges or counters of these names."""
        found = (one for name in names for one in self.telemetry.named(name))
        return [one for one in found if one.source in self.servers]

    def histograms(self, name: str) -> list[Histogram]:
        """Their histograms of that name."""
        return [one for one in self.telemetry.histograms(name) if one.source in self.servers]


def told(evidence: Evidence) -> Told:
    """The pages of the servers, without what is another's by a second address.

    A page that is read through a proxy as well as at the server itself says the same to the last
    digit of its sums of times, as no two servers do. The one that was read more often stands.
    """
    telemetry, once = evidence.telemetry, dict[tuple[float, ...], str]()
    sources = [
        source
        for source in telemetry.sources
        if telemetry.engine_of(source) and not telemetry.mixed(source)
    ]
    targets = len(evidence.run.manifest.targets)
    if len(sources) > targets:
        sums = [*telemetry.histograms("ttft_s"), *telemetry.histograms("e2e_s")]
        readings = {one.source: len(one.t_s) for one in sums}
        for source in sorted(sources, key=lambda one: readings.get(one, 0), reverse=True):
            mine = tuple(float(one.sum[-1]) for one in sums if one.source == source)
            if not any(mine):
                return Told(telemetry, frozenset())
            once.setdefault(mine, source)
        sources = list(once.values())
    return Told(telemetry, frozenset(sources) if len(sources) >= targets else frozenset())
