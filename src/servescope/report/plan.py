"""Answers of `servescope plan` and a calibration's residuals as text: words first, then tables."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from servescope.engine.config import EngineConfig
from servescope.engine.cost import sizes
from servescope.plan.fleet import MOST_REPLICAS
from servescope.units import format_seconds, three_digits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from servescope.engine.calibration import Calibration, Residual
    from servescope.plan.answers import Answers
    from servescope.plan.error_bars import ErrorBar
    from servescope.plan.fleet import Fleet, Traffic
    from servescope.plan.rate import Point, Rate
    from servescope.plan.shares import Shares

GB = 1e9
_NAMES = {
    "compute": "compute",
    "hbm_weights": "HBM, weights",
    "hbm_kv": "HBM, KV cache",
    "kv_capacity": "KV capacity",
    "interconnect": "interconnect",
    "host": "host",
    "front_end": "front end",
    "transfer": "KV transfer",
    "step": "each step",
    "prefill": "prompt tokens",
    "sequence": "sequences",
    "context": "context",
}
_METRICS = {"ttft": "TTFT", "tpot": "TPOT"}
_NOT_TOLD = 0.5
"""A constant of this relative standard error and more is not told by the runs."""


def plan(answers: Answers) -> str:
    """All answers."""
    return "\n".join(_plan(answers))


def _plan(answers: Answers) -> Iterator[str]:
    inputs, outputs = answers.mean_input_tokens, answers.mean_output_tokens
    yield answers.target
    yield (
        f"prompts {answers.input_tokens} (mean {inputs:.0f} tokens), answers "
        f"{answers.output_tokens} (mean {outputs:.0f})"
        + (f", SLO {','.join(answers.slo)}" if answers.slo else "")
    )
    if answers.unit == "group":
        group = f"a group is {_some(answers.replicas, 'replica')}"
        if answers.prefill_replicas:
            only = "only computes" if answers.prefill_replicas == 1 else "only compute"
            group += f" and {_some(answers.prefill_replicas, 'replica')} that {only} prompts"
        yield group
    if answers.refused:
        yield (
            f"{_share(answers.refused)} of the requests are longer than what it can serve (at most "
            f"{answers.longest:,} tokens), and refused; the answers are for the others"
        )
    yield from _memory(answers)
    yield from _size(answers)
    if answers.rate is not None:
        yield from _rate(answers.rate, answers.latency_error)
    if answers.traffic and (answers.rate is None or answers.rate.requests_per_s):
        yield from _fleet(answers.traffic, answers.fleet, answers.unit)
    if answers.costs:
        yield from _costs(answers)
    if answers.utilization:
        yield from _utilization(answers)
    if answers.shares is not None:
        yield from _shares(answers.shares, answers.unit)
    if answers.choice.tp is not None:
        yield from _errors(answers)


def _memory(answers: Answers) -> Iterator[str]:
    each = [one.memory for one in answers.choice.sizes]
    context = each[0].context_tokens
    yield from heading("Does it fit?")
    fit = [one for one in each if one.fits]
    if fit and fit[0].memory_bytes:
        least = fit[0]
        yield (
            f"Yes, from tp={least.tp}: weights {least.weight_bytes / GB:.1f} GB of each GPU's "
            f"{least.memory_bytes / GB:.1f}, left for the KV cache {least.kv_bytes / GB:.1f}."
        )
    elif fit and fit[0].assumed:
        yield (
            f"Nothing says how large the KV cache is: {fit[0].kv_tokens:,} tokens are assumed; "
            "kv_tokens=N in --engine says it."
        )
    elif fit:
        yield (
            f"The KV cache holds {fit[0].kv_tokens:,} tokens, as it was said: "
            f"{fit[0].sequences} sequences of {context}."
        )
    else:
        yield f"No: with tp={each[-1].tp} {each[-1].why_not}."
        yield from answers.choice.reasons
    if not each[0].memory_bytes:
        return
    rows = [("tp", "weights", "KV cache", "KV tokens", f"x {context} tokens", "theoretical")]
    for one in each:
        if one.fits:
            bound = f" (max_num_seqs {one.max_num_seqs})" * (one.sequences > one.max_num_seqs)
            sequences = f"{one.sequences}{bound}"
            kv = (f"{one.kv_bytes / GB:.1f} GB", f"{one.kv_tokens:,}", sequences)
        else:
            kv = ("does not fit", "", "")
        held = (f"{one.weight_bytes / GB:.1f} GB", *kv, f"{one.theoretical_sequences}")
        rows.append((f"{one.tp}", *held))
    yield from table(rows)
    yield "theoretical: memory as sold, all of it, nothing but weights beside the KV cache"


def _size(answers: Answers) -> Iterator[str]:
    choice = answers.choice
    if choice.tp is None:
        return
    yield from heading("Which tensor-parallel size?")
    chosen = next(one for one in choice.sizes if one.tp == choice.tp)
    yield " ".join([f"tp={choice.tp}."] * bool(chosen.per_gpu) + choice.reasons)
    rows = [
        ("tp", "batch", "alone: TTFT", "TPOT", "full: requests/s", "output tok/s")
        + (("within SLO", "of a GPU") if answers.slo else ("of a GPU",))
    ]
    for one in choice.sizes:
        if not one.serves:
            continue
        alone = (format_seconds(one.alone_ttft_s), duration(one.alone_tpot_s))
        full = (three_digits(one.requests_per_s), f"{one.output_tokens_per_s:,.0f}")
        most = "<= " * bool(answers.slo and not one.rate)
        each = (one.per_gpu * one.gpus, one.per_gpu) if answers.slo else (one.per_gpu,)
        served = (f"{most}{three_digits(rate)}/s" for rate in each)
        rows.append((f"{one.tp}", f"{one.batch:.0f}", *alone, *full, *served))
    yield from table(rows)


def _rate(rate: Rate, latency: ErrorBar | None) -> Iterator[str]:
    yield from heading("How many requests/s within the SLO?")
    if not rate.requests_per_s:
        yield f"None: even one request at a time misses {rate.limited_by}; no number of GPUs helps."
        return
    answer, *_ = told_apart([rate.requests_per_s, *(one.requests_per_s for one in rate.curve)])
    yield (
        f"{answer} requests/s, {_bar(rate.requests_per_s, rate.error)}; "
        f"beyond, {_limit(rate.limited_by)}. Full, it answers "
        f"{three_digits(rate.saturation_per_s)}/s. The search itself is good to "
        f"{rate.noise:.1%} (Poisson arrivals, the same requests at every rate)."
    )
    rows = _points("requests/s", rate.curve)
    met = max((k for k, one in enumerate(rate.curve, 1) if not one.missed), default=0)
    if met:
        rows[met] = (*rows[met][:-1], ", ".join(["the answer", *filter(None, rows[met][-1:])]))
    yield from table(rows)
    if latency is not None:
        yield f"times: +-{latency.p50:.0%} at the median, +-{latency.p90:.0%} in nine of ten"


def _points(rate: str, points: Sequence[Point]) -> list[tuple[str, ...]]:
    """A row each, under a header; a metric's name stands above the first of its columns."""
    heads, before = [], ""
    for name in points[0].times_s:
        metric, _, which = name.rpartition(" ")
        heads.append(which if metric == before else f"{_METRICS.get(metric, metric)} {which}")
        before = metric
    rows = [(rate, *heads, "")]
    rates = told_apart([one.requests_per_s for one in points])
    for each, one in zip(rates, points, strict=True):
        said = [f"{_share(one.refused)} refused"] if one.refused else []
        said += [f"misses {one.missed}"] if one.missed else []
        rows.append((each, *map(duration, one.times_s.values()), ", ".join(said)))
    return rows


def told_apart(values: Sequence[float]) -> list[str]:
    """Values above 0 to three digits, or to four where others would read alike."""
    short = [three_digits(value) for value in values]
    exact = [f"{value:.6g}" for value in values]  # sums of the same differ in the last bits
    read = {text: {v for v, t in zip(exact, short, strict=True) if t == text} for text in short}
    return [
        text if len(read[text]) == 1 else f"{value:,.{max(0, 3 - math.floor(math.log10(value)))}f}"
        for value, text in zip(values, short, strict=True)
    ]


def duration(seconds: float | None) -> str:
    """A time in a table. None: of a request that was refused; 0: no answer has one."""
    if seconds is None:
        return "refused"
    return format_seconds(seconds) if seconds else "-"


def _share(of_all: float) -> str:
    return "<0.1%" if 0 < of_all < 1e-3 else f"{of_all:.1%}"


def _limit(limit: str) -> str:
    return "the queue only grows" if limit == "saturation" else f"{limit} is missed"


def _fleet(traffic: Traffic, needed: Fleet | None, unit: str) -> Iterator[str]:
    yield from heading(f"How many GPUs for {traffic}?")
    if needed is None:
        yield f"More than {_most(unit)}: larger fleets are not simulated."
        return
    count, fewer, cautious = needed.replicas, needed.one_fewer, needed.cautious_replicas
    said = (
        f"{_some(needed.gpus, 'GPU')}: {_some(count, unit)}, busy to "
        f"{needed.load:.0%} of what {'it' if count == 1 else 'they'} can answer."
    )
    if traffic.rate is not None:
        takes = f"{cautious}" if cautious else f"more than {_most(unit)}"
        said += f" If each serves as little as the error bar allows, it takes {takes}."
    yield said
    rows = _points("answered/s", [needed.found, *([fewer] if fewer else [])])
    if fewer is not None and not fewer.missed and not fewer.refused:
        asked = 1.0 if traffic.rate else fewer.requests_per_s / needed.found.requests_per_s
        busy = needed.load * asked * count / (count - 1)
        rows[-1] = (*rows[-1][:-1], f"busy to {busy:.1%}")
    counts = [f"{unit}s", f"{count}", f"{count - 1}"]
    yield from table([(each, *row) for each, row in zip(counts, rows, strict=False)])


def _most(unit: str) -> str:
    return _some(MOST_REPLICAS, unit)


def _costs(answers: Answers) -> Iterator[str]:
    yield from heading("What does it cost?")
    price = answers.costs[0].price_per_gpu_hour
    rows = [("load", "GPUs", "$/h", "$ per 1M tokens in+out", "output alone")]
    for one in answers.costs:
        both, output = one.per_million_tokens, one.per_million_output_tokens
        dollars = (_dollars(both, one.error), _dollars(output, one.error))
        rows.append((one.at, f"{one.gpus}", f"{one.per_hour:.2f}", *dollars))
    yield from table(rows)
    yield f"at ${_price(price)} a GPU and hour"


def _price(dollars: float) -> str:
    """With cents, or all the digits that it has."""
    return max(f"{dollars:.2f}", f"{dollars:g}", key=len)


def _dollars(value: float | None, error: ErrorBar | None) -> str:
    if value is None or error is None:
        return "-" if value is None else f"{value:.3g}"
    low, high = error.around(value)
    return f"{value:.3g} ({low:.3g} to {high:.3g})"


def _utilization(answers: Answers) -> Iterator[str]:
    yield from heading("What does memory utilisation do?")
    rows: list[tuple[str, ...]] = [
        ("utilisation", "KV tokens", "sequences", "output tok/s when full", "")
    ]
    best = max(one.output_tokens_per_s or 0.0 for one in answers.utilization)
    for one in answers.utilization:
        held, served = one.memory, one.output_tokens_per_s
        said: tuple[str, ...] = (one.why_not or "does not fit",)
        if served is not None:
            tokens = (f"{held.kv_tokens:,}", f"{held.sequences}")
            said = (*tokens, f"{served:,.0f}", f"{served / best:.0%}")
        rows.append((f"{one.memory_utilization:g}", *said))
    yield from table(rows)


def _shares(found: Shares, unit: str) -> Iterator[str]:
    yield from heading("Where does the time go?")
    phases = ", ".join(f"{name} {share:.0%}" for name, share in found.phases.items())
    most = found.limit
    yield (
        f"With {found.users} users of one {unit}: {phases}. Throughput depends most on "
        f"{_NAMES.get(most, most)}: 1 % more of it gives {found.elasticity[most]:.2f} % more."
    )
    rows = [("limit", "share of the time", f"elasticity of throughput, +-{found.noise:.2f}")]
    beside = {
        "kv_capacity": f"full, others waiting: {found.kv_full:.0%}",
        "front_end": f"busy: {found.front_end:.0%}",
    }
    for name, elasticity in found.elasticity.items():
        share = found.resources.get(name)
        said = beside.get(name, "") if share is None else f"{share:.0%}"
        rows.append((_NAMES.get(name, name), said, f"{round(elasticity, 2) + 0.0:.2f}"))
    yield from table(rows)


def _errors(answers: Answers) -> Iterator[str]:
    chosen = next(one for one in answers.choice.sizes if one.tp == answers.choice.tp)
    if chosen.error is not None:
        error = chosen.error
        yield from heading("How far may this be off?")
        yield (
            f"Throughput, rates and cost +-{error.p50:.0%} at the median, +-{error.p90:.0%} in "
            f"nine of ten: {error.source}."
        )
        if answers.prefill_replicas:
            yield "No deployment of which some replicas only compute prompts is among them."


def _some(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _bar(value: float, error: ErrorBar) -> str:
    low, high = error.around(value)
    return f"nine in ten between {three_digits(low)} and {three_digits(high)}"


def calibration(found: Calibration) -> str:
    """The constants, and what they leave."""
    lines = ["constants:"]
    values = found.settings | found.constants
    rows = [("", "fitted", "standard error")]
    for name, value in values.items():
        if isinstance(value, float):
            doubt = found.uncertainty.get(name)
            told = "" if doubt is None else f"{doubt:.1%}"
            told = "not told by these runs" if doubt is not None and doubt > _NOT_TOLD else told
            seconds = name.endswith("_s") or (name in found.settings and name in found.uncertainty)
            rows.append((name, format_seconds(value) if seconds else f"{value:.3g}", told))
    lines += table(rows)
    if scaling := msgspec.convert(found.settings, EngineConfig).scaling:
        worth = zip(sizes(len(scaling)), scaling, strict=True)
        each = ", ".join(f"{size} as {one:.3g}" for size, one in worth)
        lines.append(f"batch_scaling: sequences in a batch cost as much as so many alone: {each}")
    lines += ["", "simulated against measured:", *residuals(found.residual)]
    lines += ["", f"doubtful: {found.doubts}"] if found.doubts else []
    return "\n".join(lines)


def residuals(found: Sequence[Residual]) -> list[str]:
    """Predicted against measured, a row for each metric of each load."""
    names = list(dict.fromkeys(one.statistic for one in found))
    rows = [("load", "metric", *names)]
    for load, metric in dict.fromkeys((one.load, one.metric) for one in found):
        cells = {
            one.statistic: f"{format_seconds(one.predicted_s)} ({one.error:+.1%})"
            for one in found
            if (one.load, one.metric) == (load, metric)
        }
        metric_name = metric.removesuffix("_s")
        rows.append((load, metric_name, *(cells.get(name, "") for name in names)))
    return table(rows)


def table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns of text: the first to the left, the others to the right. A row of two cells has words
    in place of its columns."""
    whole = [row for row in rows if len(row) == len(rows[0])]
    widths = [max(len(cell) for cell in column) for column in zip(*whole, strict=True)]
    widths[0] = max(len(row[0]) for row in rows)
    lines = []
    for first, *rest in rows:
        cells = [first.ljust(widths[0])]
        if len(rest) < len(widths) - 1:
            cells += rest
        else:
            cells += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def heading(words: str) -> Iterator[str]:
    """Above an answer."""
    yield from ("", words)
