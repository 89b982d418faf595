"""The samples of one source, told in the common vocabulary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from servescope.telemetry.names import (
    ABOUT,
    ENGINES,
    IDLE,
    KINDS,
    RANKS,
    TABLES,
    About,
    Labels,
    Rule,
)
from servescope.telemetry.series import Histogram, Series, rising

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from servescope.records import Sample
    from servescope.telemetry.series import Floats, Kind

    Ints = NDArray[np.int64]

PAGES = "prometheus:"
"""How the sources begin that have names of their own."""
LAG_S = 0.05
"""A server may count an answer a moment after it has sent it, and its page is a moment old."""
MOST = 1e18
"""No figure is larger; a page may say what it likes, and yet what is reckoned stays finite."""
MIXED_FALLS = 2
"""So often a counter falls where several engines answer in turn."""
_SUFFIXES = ("_bucket", "_sum", "_count")

Key = tuple[tuple[str, str], ...]
"""Labels."""
Part = tuple[Labels, "_Points"]
Buckets = dict[Key, dict[float, "_Points"]]


def _known() -> frozenset[str]:
    rules = [IDLE, *(rule for table in TABLES.values() for each in table.values() for rule in each)]
    ends = {rule.kind: _SUFFIXES if rule.kind == "histogram" else ("",) for rule in rules}
    return frozenset(raw + end for rule in rules for raw in rule.raw for end in ends[rule.kind])


_ON_PAGES = _known()


class _Points:
    """A series as it was sampled: where it changed."""

    __slots__ = ("t_ns", "value")

    def __init__(self) -> None:
        self.t_ns: list[int] = []
        self.value: list[float] = []


class Source:
    """One source. Samples are added first; then it is read."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._page = name.startswith(PAGES)
        self._lag_s = LAG_S if self._page else 0.0
        self._known = _ON_PAGES if self._page else KINDS.keys()
        self._raw: dict[str, dict[Key, _Points]] = {}
        self._up = _Points()
        self._any_ns: list[int] = []
        """When anything was sampled: what stands for `up` in runs that have none."""

    def add(self, sample: Sample) -> None:
        """Take in a sample; one whose name nobody asks for is passed over."""
        name = sample.name
        if not self._any_ns or self._any_ns[-1] != sample.t_ns:
            self._any_ns.append(sample.t_ns)
        if name == "up" and not sample.labels:
            points = self._up
        elif name in self._known:
            points = self._raw.setdefault(name, {}).setdefault(_key(sample.labels), _Points())
        else:
            return
        points.t_ns.append(sample.t_ns)
        points.value.append(sample.value)

    @cached_property
    def tables(self) -> list[str]:
        """The tables by which its names are read; none for a source that has the common ones."""
        if not self._page:
            return []
        raw = {name.removesuffix(end) for name in self._raw for end in (*_SUFFIXES, "")}
        return [
            name
            for name, table in TABLES.items()
            if any(raw.intersection(rule.raw) for rules in table.values() for rule in rules)
        ]

    @cached_property
    def times_ns(self) -> Ints:
        """When it was read, as far as that succeeded; rising."""
        if not self._up.t_ns:
            return np.unique(np.array(self._any_ns, np.int64))
        return np.unique(np.array(self._up.t_ns, np.int64)[np.array(self._up.value) > 0])

    @cached_property
    def failed_s(self) -> Floats:
        """When a reading failed; rising."""
        return np.unique(np.array(self._up.t_ns, np.int64)[np.array(self._up.value) <= 0]) / 1e9

    @cached_property
    def mixed(self) -> bool:
        """Whether it is a page that several engines answer in turn: its counters mean nothing.

        One falls again and again, and no reading fails in between as where a server starts anew.
        """
        tables = [TABLES[name] for name in self.tables if name in ENGINES]
        rules = (rule for table in tables for each in table.values() for rule in each)
        raw = {name for rule in rules if rule.kind == "counter" for name in rule.raw}
        return any(
            self._falls(points) >= MIXED_FALLS
            for name in raw
            for points in self._raw.get(name, {}).values()
        )

    def _falls(self, points: _Points) -> int:
        t_s, fell = np.array(points.t_ns) / 1e9, np.diff(points.value) < 0
        failed = np.searchsorted(self.failed_s, t_s)
        return int(np.count_nonzero(fell & (np.diff(failed) == 0)))

    def abouts(self) -> set[About]:
        """What it tells of: an engine, GPUs, a host."""
        if not self._page:
            return {ABOUT[name] for name in self._raw}
        return {ABOUT[name] for table in self.tables for name in TABLES[table]}

    # --- gauges and counters ----------------------------------------------------------------------

    def series(self, name: str) -> list[Series]:
        """The series of a common name, derived from others where the source does not give it."""
        found = self._native(name) if not self._page else self._translated(name)
        return found or self._derived(name)

    def _native(self, name: str) -> list[Series]:
        kind = KINDS[name]
        if kind == "histogram":
            return []
        parts = [(dict(key), points) for key, points in self._raw.get(name, {}).items()]
        found = (self._joined(name, kind, {}, [part]) for part in parts)
        return [series for series in found if series is not None]

    def _translated(self, name: str) -> list[Series]:
        for table in self.tables:
            for rule in TABLES[table].get(name, ()):
                if found := self._by(rule, name):
                    return found
        return []

    def _by(self, rule: Rule, name: str) -> list[Series]:
        if rule.kind == "histogram" or (rule.kind == "counter" and self.mixed):
            return []
        found: list[Series] = []
        groups: dict[Key, list[Part]] = {}
        for raw in rule.raw:
            for apart, alike in _grouped(_once(self._parts(raw, rule)), rule.apart).items():
                # A GPU is one GPU whatever pod has it: the last word holds.
                one = [(alike[0][0], _merged(alike))] if ABOUT[name] == "gpu" else alike
                groups.setdefault(apart, []).extend(one)
        for apart, alike in groups.items():
            series = self._joined(name, rule.kind, dict(apart), alike, rule)
            if series is not None:
                found += _flags(series, rule.bits) if rule.bits else [series]
        return found

    def _parts(self, raw: str, rule: Rule) -> list[Part]:
        """The series of a raw name that the rule means."""
        found = [(dict(key), points) for key, points in self._raw.get(raw, {}).items()]
        return [
            (labels, points)
            for labels, points in found
            if all(labels.get(label) in values for label, values in rule.only.items())
        ]

    def _joined(
        self, name: str, kind: Kind, labels: Labels, parts: list[Part], rule: Rule | None = None
    ) -> Series | None:
        """Several series as the one that the source means by them; None where nothing is left."""
        times = self.times_ns
        gauge = kind == "gauge"
        # A counter that a page did not have before had counted nothing.
        values = [_held(points, times, absent=np.nan if gauge else 0.0) for _, points in parts]
        if rule is not None and rule.value is not None:
            told = [rule.value(labels) for labels, _ in parts]
            values = [
                v * min(said, MOST)
                for v, said in zip(values, told, strict=True)
                if said is not None
            ]
        if not values:
            return None
        each = np.stack(values)
        there = ~np.isnan(each).all(axis=0)
        each, times = each[:, there], times[there]
        if not len(times):
            return None
        if not gauge:
            value = np.sum([rising(one) for one in each], axis=0)
        else:
            value = np.nanmean(each, axis=0) if name.endswith("_ratio") else np.nansum(each, axis=0)
        return Series(
            name=name,
            source=self.name,
            labels={**_shared(parts, rule), **labels},
            kind=kind,
            t_s=times / 1e9,
            value=value * (rule.scale if rule else 1.0),
            failed_s=self.failed_s,
            lag_s=self._lag_s,
        )

    def _derived(self, name: str) -> list[Series]:
        if name == "kv_use_ratio":
            return self._of_two(name, "kv_used_tokens", "kv_capacity_tokens", np.divide)
        if name == "memory_used_bytes":
            return self._of_two(name, "memory_bytes", "memory_available_bytes", np.subtract)
        if name == "cpu_busy_ratio" and self._page:
            return self._busy()
        return []

    def _of_two(self, name: str, left: str, right: str, operation: np.ufunc) -> list[Series]:
        """What two gauges come to, each of one series."""
        one, other = self.series(left), self.series(right)
        if len(one) != 1 or len(other) != 1:
            return []
        t_s, i, j = np.intersect1d(one[0].t_s, other[0].t_s, return_indices=True)
        with np.errstate(all="ignore"):  # what is not finite is left out
            value = operation(one[0].value[i], other[0].value[j])
        told = np.isfinite(value)
        return [replace(one[0], name=name, t_s=t_s[told], value=value[told])] if told.any() else []

    def _busy(self) -> list[Series]:
        """Of each core, and of all, the share of time that was neither idle nor waiting for I/O."""
        idle = [series.rate() for series in self._by(IDLE, "cpu_busy_ratio")]
        cores = [replace(core, value=np.clip(1 - core.value, 0, 1)) for core in idle]
        if not cores or not len(cores[0].t_s):
            return []
        mean = np.mean([core.value for core in cores], axis=0)
        return [replace(cores[0], labels={}, value=mean), *cores]

    # --- histograms -------------------------------------------------------------------------------

    def histograms(self, name: str) -> list[Histogram]:
        """The histograms of a common name."""
        times = self.times_ns
        for table in self.tables if len(times) and not self.mixed else ():
            for rule in TABLES[table].get(name, ()):
                parts = _once(self._parts(f"{rule.raw[0]}_count", rule))
                if parts:
                    grouped, buckets = _grouped(parts, rule.apart), self._buckets(rule.raw[0])
                    return [
                        self._histogram(name, rule, dict(labels), alike, buckets)
                        for labels, alike in grouped.items()
                    ]
        return []

    def _histogram(
        self, name: str, rule: Rule, labels: Labels, parts: list[Part], buckets: Buckets
    ) -> Histogram:
        """Several histograms as the one that the source means by them."""
        times, sums, each, bounds = self.times_ns, self._raw.get(f"{rule.raw[0]}_sum", {}), [], []
        for own, count in parts:
            key = _key(own)
            below = dict(sorted(buckets.get(key, {}).items()))
            points = (count, sums.get(key, _Points()), *below.values())
            columns = np.stack([_held(one, times, absent=0.0) for one in points], axis=1)
            each.append(rising(columns, np.diff(columns[:, 0]) < 0))
            bounds.append(np.array(list(below)))
        alike = all(np.array_equal(bounds[0], other) for other in bounds)
        whole = np.sum([one if alike else one[:, :2] for one in each], axis=0)
        return Histogram(
            name=name,
            source=self.name,
            labels={**_shared(parts, rule), **labels},
            t_s=times / 1e9,
            bounds=(bounds[0] if alike else np.empty(0)) * rule.scale,
            below=whole[:, 2:],
            count=whole[:, 0],
            sum=whole[:, 1] * rule.scale,
            lag_s=self._lag_s,
        )

    def _buckets(self, raw: str) -> Buckets:
        """The counts by finite upper bound, of each histogram of that name by its labels."""
        found: Buckets = {}
        for key, points in self._raw.get(f"{raw}_bucket", {}).items():
            own = dict(key)
            with suppress(ValueError):
                bound = float(own.pop("le", "inf"))
                if math.isfinite(bound):
                    found.setdefault(_key(own), {})[bound] = points
        return found


def _key(labels: Labels) -> Key:
    return tuple(sorted(labels.items()))


def _once(parts: list[Part]) -> list[Part]:
    """Of the ranks of one engine the lowest: each counts the whole."""
    lowest: dict[Key, tuple[list[str], Part]] = {}
    for labels, points in parts:
        rank = [labels.get(name, "").zfill(8) for name in RANKS]
        group = _key({name: text for name, text in labels.items() if name not in RANKS})
        if group not in lowest or rank < lowest[group][0]:
            lowest[group] = rank, (labels, points)
    return [part for _, part in lowest.values()]


def _grouped(parts: list[Part], apart: Mapping[str, str]) -> dict[Key, list[Part]]:
    """By the labels that keep series apart, under their common names."""
    found: dict[Key, list[Part]] = {}
    for labels, points in parts:
        kept = {ours: labels[theirs] for theirs, ours in apart.items() if theirs in labels}
        found.setdefault(_key(kept), []).append((labels, points))
    return found


def _shared(parts: list[Part], rule: Rule | None) -> dict[str, str]:
    """The labels that all have alike, but for those whose meaning is in the common name."""
    shared = set.intersection(*(set(labels.items()) for labels, _ in parts))
    if rule is None:
        return dict(sorted(shared))
    if rule.value is not None:  # they are settings
        return {}
    told = {*rule.apart, *rule.only, *RANKS}
    return {name: text for name, text in sorted(shared) if name not in told}


def _held(points: _Points, times: Ints, absent: float) -> Floats:
    """The value at each time: the last that was sampled; `absent` before the first."""
    at = np.searchsorted(np.array(points.t_ns, np.int64), times, side="right")
    return np.concatenate(([absent], np.clip(points.value, -MOST, MOST)))[at]


def _merged(parts: Sequence[Part]) -> _Points:
    """Several series as one: the last word of any of them."""
    if len(parts) == 1:
        return parts[0][1]
    merged = _Points()
    both = (zip(one.t_ns, one.value, strict=True) for _, one in parts)
    for t_ns, value in sorted(pair for pairs in both for pair in pairs):
        merged.t_ns.append(t_ns)
        merged.value.append(value)
    return merged


def _flags(series: Series, bits: Mapping[str, int]) -> list[Series]:
    flags = series.value.astype(np.int64)
    return [
        replace(
            series,
            labels={**series.labels, "reason": reason},
            value=((flags & bit) > 0).astype(np.float64),
        )
        for reason, bit in bits.items()
    ]
