"""What a stage took of its engine, GPUs and hosts: figures of each source over the stage's window.

A figure is there if its source tells of the quantity at all, and None if it told nothing of it in
the window.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from servescope.telemetry.names import ABOUT, About

if TYPE_CHECKING:
    from servescope.telemetry import Telemetry
    from servescope.telemetry.series import Floats, Series

Figures = dict[str, float | None]

Statistic = Callable[["Series"], float | None]
Join = Callable[[list[float]], float]

OWN = "gpu"
"""The source of the GPUs of the machine that was measured from."""
COVERED = 0.9
"""Energy is told where readings stand for at least this share of the window."""
BY_COUNTER = "difference of the energy counter, all GPUs, idle power included"
BY_POWER = "power readings over time, all GPUs, idle power included"

_COUNTED = (
    *("preemptions", "requests_finished", "requests_failed", "steps"),
    *("prompt_tokens", "generated_tokens"),
)
_CARRIED = ("network_received_bytes", "network_sent_bytes")


class Work(msgspec.Struct, frozen=True):
    """What the answered requests of a stage came to, as the client counts."""

    requests: int
    input_tokens: int | None = None
    """None where some were not counted; so with those put out."""
    output_tokens: int | None = None
    here: bool = True
    """Whether what answered is on the machine that was measured from, as its URLs tell."""

    @property
    def tokens(self) -> int | None:
        """Of prompts and answers together."""
        known = self.input_tokens is not None and self.output_tokens is not None
        return (self.input_tokens or 0) + (self.output_tokens or 0) if known else None


class Resources(msgspec.Struct, kw_only=True):
    """One source over one stage."""

    source: str
    kind: About
    engine: str | None = None
    """Whose page it is, where it is an engine's: `vllm`, `llamacpp`, ..., `simulated`."""
    figures: Figures = {}
    how: dict[str, str] = {}
    """How a figure was got or what it is of, where that is not always the same."""


def resources(told: Telemetry, start_s: float, end_s: float, work: Work) -> list[Resources]:
    """What each source comes to from `start_s` to `end_s`; engines first, then GPUs, then hosts."""
    found: list[Resources] = []
    for source in told.sources:
        for kind, fill in _KINDS.items():
            if kind in told.abouts(source):
                view = _View(told, source, start_s, end_s)
                fill(view, work)
                engine = told.engine_of(source) if kind == "engine" else None
                found.append(
                    Resources(
                        source=source, kind=kind, engine=engine, figures=view.figures, how=view.how
                    )
                )
    return sorted(found, key=lambda one: list(_KINDS).index(one.kind))


class _View:
    """One source over one window, and the figures made of it so far."""

    def __init__(self, told: Telemetry, source: str, start_s: float, end_s: float) -> None:
        self._told, self.source = told, source
        self.start_s, self.end_s = start_s, end_s
        self.figures: Figures = {}
        self.how: dict[str, str] = {}

    @property
    def span_s(self) -> float:
        return self.end_s - self.start_s

    def of(self, name: str) -> list[Series]:
        return [one for one in self._told.named(name) if one.source == self.source]

    def mean(self, one: Series) -> float | None:
        return one.mean(self.start_s, self.end_s)

    def most(self, one: Series) -> float | None:
        return one.max(self.start_s, self.end_s)

    def least(self, one: Series) -> float | None:
        return one.min(self.start_s, self.end_s)

    def put(self, figure: str, series: Iterable[Series], each: Statistic, join: Join = max) -> None:
        """Note a figure of one or of several series, where there are any."""
        known = [each(one) for one in series]
        told = [value for value in known if value is not None]
        if known:
            self.figures[figure] = float(join(told)) if told else None

    def increase(self, name: str) -> float | None:
        """Of all counters of that name together."""
        each = [one.increase(self.start_s, self.end_s) for one in self.of(name)]
        told = [value for value in each if value is not None]
        return sum(told) if told else None

    def put_histogram(self, name: str) -> None:
        """Note the mean over all histograms of that name, where there are any."""
        found = [one for one in self._told.histograms(name) if one.source == self.source]
        each = [one.over(self.start_s, self.end_s) for one in found]
        told = [(one.count, one.mean) for one in each if one is not None and one.mean is not None]
        total = sum(count * mean for count, mean in told)
        if found:
            self.figures[f"{name}_mean"] = _ratio(total, sum(count for count, _ in told))


def _engine(view: _View, work: Work) -> None:
    figures = view.figures
    _gauges(view)
    view.put("kv_capacity_tokens", view.of("kv_capacity_tokens"), view.most)
    for name in _COUNTED:
        if view.of(name):
            figures[name] = view.increase(name)
    for name in ("prompt_tokens", "generated_tokens"):
        view.put(f"{name}_per_s", view.of(f"{name}_per_s"), view.mean)
        if name in figures:
            figures[f"{name}_per_s"] = _ratio(figures[name], view.span_s)
    if view.of("prefix_query_tokens"):
        asked = view.increase("prefix_query_tokens")
        figures["prefix_hit_ratio"] = _ratio(view.increase("prefix_hit_tokens"), asked)
    for phase in ("prefill", "decode"):
        if view.of(f"{phase}_busy_s"):
            figures[f"{phase}_busy_ratio"] = _ratio(view.increase(f"{phase}_busy_s"), view.span_s)
        if view.of(f"{phase}_requests_s"):
            spent_s = view.increase(f"{phase}_requests_s")
            figures[f"{phase}_s_mean"] = _ratio(spent_s, work.requests)
    for name in ("queue_s", "prefill_s", "decode_s", "ttft_s", "e2e_s", "step_s", "step_tokens"):
        view.put_histogram(name)
    if "step_tokens_mean" not in figures and "steps" in figures:
        figures["step_tokens_mean"] = _ratio(_computed(view), figures["steps"])


def _gauges(view: _View) -> None:
    """What an engine had at once, and how often it was looked at: that is what a mean is worth."""
    for name in ("running_requests", "waiting_requests", "paused_requests", "kv_use_ratio"):
        found = view.of(name)
        view.put(f"{name}_mean", found, view.mean)
        view.put(f"{name}_max", found, view.most)
        for one in found:
            view.figures["readings"] = one.readings(view.start_s, view.end_s)


def _computed(view: _View) -> float | None:
    """Tokens that went through the model: of prompts, those that no cache had."""
    made, asked = view.increase("generated_tokens"), view.increase("prompt_tokens")
    if made is None or asked is None:
        return None
    return made + asked - (view.increase("prefix_hit_tokens") or 0.0)


def _gpu(view: _View, work: Work) -> None:
    power = view.of("gpu_power_w")
    names = (name for name, about in ABOUT.items() if about == "gpu")
    view.figures["gpus"] = len({one.labels.get("gpu") for name in names for one in view.of(name)})
    view.put("gpu_busy_ratio_mean", view.of("gpu_busy_ratio"), view.mean, fmean)
    view.put("gpu_memory_used_bytes_max", view.of("gpu_memory_used_bytes"), view.most)
    view.put("gpu_memory_bytes", view.of("gpu_memory_bytes"), view.most)
    view.put("gpu_power_w_mean", power, view.mean, sum)
    view.put("gpu_power_w_max", _together(power, np.sum), view.most)
    view.put("gpu_sm_clock_hz_min", view.of("gpu_sm_clock_hz"), view.least, min)
    view.put("gpu_temperature_c_max", view.of("gpu_temperature_c"), view.most)
    _throttled(view)
    energy_j, method = _energy(view, power)
    if method is not None:
        view.how["energy"] = method
        view.figures["energy_j"] = energy_j
    if method is not None and (work.here or view.source != OWN):  # else these GPUs served nobody
        view.figures["energy_j_per_output_token"] = _ratio(energy_j, work.output_tokens)
        view.figures["energy_j_per_token"] = _ratio(energy_j, work.tokens)
        view.figures["energy_j_per_request"] = _ratio(energy_j, work.requests)


def _throttled(view: _View) -> None:
    """The share of time in which the worst GPU was slowed down, and that of each reason."""
    flags = view.of("gpu_throttled")
    each = [_together(own, np.max) for own in _by("gpu", flags).values()]
    view.put("gpu_throttled_ratio", [one for own in each for one in own], view.mean)
    for reason, own in sorted(_by("reason", flags).items()):
        if any(one.value.any() for one in own):
            view.put(f"gpu_throttled_{reason}_ratio", own, view.mean)


def _energy(view: _View, power: Sequence[Series]) -> tuple[float | None, str | None]:
    """Energy of all GPUs over the window in J, and how it was got; both None without readings."""
    counters = view.of("gpu_energy_j")
    if counters:
        return _sum(_counted_j(view, one) for one in counters), BY_COUNTER
    if power:
        return _sum(_integral_j(view, one) for one in power), BY_POWER
    return None, None


def _counted_j(view: _View, one: Series) -> float | None:
    """By the counter, which rises evenly enough to be read between readings.

    What little of the window lies outside the readings is taken to be like the rest. An exporter
    asks the driver more seldom than it is read itself: where a reading says nothing new it is old.
    """
    fresh = np.diff(one.value, prepend=np.nan) != 0
    t_s, value_j = one.t_s[fresh], one.value[fresh]
    first, last = max(view.start_s, float(t_s[0])), min(view.end_s, float(t_s[-1]))
    if view.span_s <= 0 or last - first < COVERED * view.span_s:
        return None
    start_j, end_j = np.interp([first, last], t_s, value_j)
    return float(end_j - start_j) * view.span_s / (last - first)


def _integral_j(view: _View, one: Series) -> float | None:
    if view.span_s <= 0 or one.coverage(view.start_s, view.end_s) < COVERED:
        return None
    mean_w = view.mean(one)
    return None if mean_w is None else mean_w * view.span_s


def _host(view: _View, _work: Work) -> None:
    busy = view.of("cpu_busy_ratio")
    view.put("cpu_busy_ratio_mean", [one for one in busy if "core" not in one.labels], view.mean)
    cores = [one for one in busy if "core" in one.labels]
    view.put("cpu_busiest_core_ratio_mean", cores, view.mean)
    if cores:
        view.figures["cpu_cores"] = len(cores)
    view.put("memory_used_bytes_max", view.of("memory_used_bytes"), view.most)
    view.put("memory_bytes", view.of("memory_bytes"), view.most)
    for name in ("disk_read_bytes", "disk_written_bytes"):
        view.put(f"{name}_per_s_mean", view.of(name), view.mean, sum)
    if (nic := _busiest(view)) is not None:
        view.how["network"] = nic
        for name in _CARRIED:
            own = _by("nic", view.of(name)).get(nic, [])
            view.put(f"{name}_per_s_mean", own, view.mean)
            view.put(f"{name}_per_s_max", own, view.most)
    for role, own in _by("role", view.of("process_cpu_s")).items():
        view.put(f"{role}_cpu_cores_mean", own, view.mean, sum)
    for role, own in _by("role", view.of("process_memory_bytes")).items():
        view.put(f"{role}_memory_bytes_max", own, view.most, sum)


def _busiest(view: _View) -> str | None:
    """The network interface that carried the most.

    To add up all would count twice what goes over a bridge or a bond, or into a container.
    """
    carried: defaultdict[str, float] = defaultdict(float)
    for name in _CARRIED:
        for one in view.of(name):
            carried[one.labels.get("nic", "")] += view.mean(one) or 0.0
    return max(sorted(carried), key=carried.__getitem__) if carried else None


def _by(label: str, series: Iterable[Series]) -> dict[str, list[Series]]:
    found: dict[str, list[Series]] = {}
    for one in series:
        found.setdefault(one.labels.get(label, ""), []).append(one)
    return found


def _together(series: Sequence[Series], join: Callable[..., Floats]) -> list[Series]:
    """Several gauges of one source as one, at the readings that all have; none of none."""
    if not series:
        return []
    t_s = series[0].t_s
    for one in series[1:]:
        t_s = np.intersect1d(t_s, one.t_s)
    each = [one.value[np.searchsorted(one.t_s, t_s)] for one in series]
    return [replace(series[0], t_s=t_s, value=join(each, axis=0))]


def _sum(values: Iterable[float | None]) -> float | None:
    """None where one is unknown: the rest would be too little."""
    told = list(values)
    return None if None in told else float(sum(filter(None, told)))


def _ratio(part: float | None, whole: float | None) -> float | None:
    found = part / whole if part is not None and whole else math.inf
    return found if math.isfinite(found) else None


_KINDS: dict[About, Callable[[_View, Work], None]] = {
    "engine": _engine,
    "gpu": _gpu,
    "host": _host,
}
