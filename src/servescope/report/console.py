"""A run as text for a terminal: doubts first, then what came of the requests, then the figures.

At most 100 columns wide. What servers sent is shown with control characters escaped and is never
taken for markup.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from typing import Any, TextIO

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from servescope.doubts import KINDS, Doubt
from servescope.doubts.facts import percent
from servescope.findings import Finding
from servescope.metrics import from_due_differs
from servescope.report.labels import (
    COUNTS,
    LATENCIES,
    SHOWN_IF_ANY,
    SHOWN_IF_DIFFERENT,
    STATISTICS,
    quantity,
)
from servescope.summary import StageSummary, Summary, TargetSummary
from servescope.telemetry.resources import Resources
from servescope.units import format_seconds, printable, three_digits

WIDTH = 100
MOST_REASONS = 8
SPREAD_SHOWN_S = 1e-3
"""A burst that took longer than this to send is said to have."""
CLOCKS = {
    "kernel": ", times from the kernel",
    "user": ", times from user space: the lag is in them",
    None: "",
}
RESOURCES = {
    "engine": (
        ("running requests", "running_requests_mean", "running_requests_max"),
        ("waiting requests", "waiting_requests_mean", "waiting_requests_max"),
        ("KV cache in use", "kv_use_ratio_mean", "kv_use_ratio_max"),
        ("readings of these", "readings"),
        ("prefix-cache hits", "prefix_hit_ratio"),
        ("preemptions", "preemptions"),
        ("tokens a step", "step_tokens_mean"),
        ("prompt tokens", "prompt_tokens_per_s"),
        ("generated tokens", "generated_tokens_per_s"),
        ("time in queue", "queue_s_mean"),
        ("prefill", "prefill_s_mean"),
        ("decode", "decode_s_mean"),
        ("busy with prefill", "prefill_busy_ratio"),
        ("busy with decode", "decode_busy_ratio"),
    ),
    "gpu": (
        ("busy", "gpu_busy_ratio_mean"),
        ("memory, most", "gpu_memory_used_bytes_max"),
        ("power", "gpu_power_w_mean", "gpu_power_w_max"),
        ("SM clock, least", "gpu_sm_clock_hz_min"),
        ("temperature, most", "gpu_temperature_c_max"),
        ("slowed down", "gpu_throttled_ratio"),
        ("energy an output token", "energy_j_per_output_token"),
        ("energy a request", "energy_j_per_request"),
    ),
    "host": (
        ("CPU", "cpu_busy_ratio_mean"),
        ("busiest core", "cpu_busiest_core_ratio_mean"),
        ("memory, most", "memory_used_bytes_max"),
        ("cores of the load", "load_cpu_cores_mean"),
        ("cores of the engine", "engine_cpu_cores_mean"),
        ("memory of the engine, most", "engine_memory_bytes_max"),
        ("network in", "network_received_bytes_per_s_mean", "network_received_bytes_per_s_max"),
        ("network out", "network_sent_bytes_per_s_mean", "network_sent_bytes_per_s_max"),
    ),
}
"""Figures of a source as they are shown: the mean, then the most where there are two."""


def table(summary: Summary, *, colour: bool = False, width: int = WIDTH) -> str:
    """The whole text; `width` columns at most, never above 100."""
    out = StringIO()
    print_table(summary, out, colour=colour, width=width)
    return out.getvalue()


def print_table(summary: Summary, out: TextIO, *, colour: bool, width: int = WIDTH) -> None:
    """Write the text of a summary."""
    console = Console(
        file=out,
        width=min(width, WIDTH),
        force_terminal=colour,
        no_color=not colour,
        highlight=False,
        markup=False,
        emoji=False,
    )
    if summary.target:
        when = f"{summary.started_utc[:16].replace('T', ' ')} UTC"
        title = Text(printable(summary.target), "dim")
        fits = title.cell_len + len(f", {when}") <= console.width  # else a line of its own
        console.print(title.append(f"{', ' if fits else chr(10)}{when}"))
    if not summary.complete:
        why = printable(summary.ended_by or "")
        console.print(Text(f"INCOMPLETE: ended before its plan was done ({why})", "bold red"))
    for note in summary.notes:
        console.print(Text(f"note: {printable(note)}", "yellow"))
    if summary.collected:
        console.print(Text(_collected(summary.collected), "dim"))
    for stage in summary.stages:
        _print_stage(console, summary, stage)
    if len(summary.stages) > 1:  # in the end, where the eye is
        console.print()
        console.print(_overview([(stage.load, stage) for stage in summary.stages], "load"))
        if summary.doubts:
            console.print(Text(_where_doubted(summary.stages), "yellow"))
        _print_findings(console, summary.findings, {s.number: s.load for s in summary.stages})


def _print_stage(console: Console, summary: Summary, stage: StageSummary) -> None:
    kind = "" if summary.kind == "measured" else f"{summary.kind} "
    console.print()
    console.print(Text(printable(f"{kind}{stage.load}"), "bold"), Text(_window(stage)))
    if stage.doubts:
        console.print(_doubts(stage.doubts))
    if len(summary.stages) == 1:
        _print_findings(console, summary.findings)
    console.print(_outcomes(stage))
    for line in _reasons(stage):
        console.print(line)
    console.print(_rates(stage))
    console.print(_latencies(stage.figures))
    if stage.targets:
        rows = [(part.target.partition("://")[2], part) for part in stage.targets]
        console.print(_overview(rows, "target"))
    if any(getattr(figure, "estimated", False) for figure in stage.figures.values()):
        console.print(Text("~ estimated: the server did not count each chunk's tokens", "dim"))
    for part in stage.resources:
        console.print(Text(_whose(part), "dim"))
        console.print(_resources(part))
    for said in _measured_how(stage):
        console.print(Text(said, "dim"))
    for bound in stage.slo:
        value = "not measured" if bound.value is None else format_seconds(bound.value)
        verdict = ("met", "green") if bound.met else ("missed", "bold red")
        console.print(Text.assemble(f"SLO {bound.bound}: {value}, ", verdict))


def _doubts(doubts: list[Doubt]) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True, style="bold yellow")
    for doubt in doubts:
        said = Text.assemble(
            printable(doubt.message), ("\n-> ", "bold"), (printable(doubt.advice), "italic")
        )
        grid.add_row(f"doubt: {doubt.kind}", said)
    return grid


def _where_doubted(stages: Sequence[StageSummary]) -> str:
    """How many stages each kind of doubt is about, by weight: what they say stands with each."""
    counts = Counter(kind for stage in stages for kind in {doubt.kind for doubt in stage.doubts})
    told = [f"{kind} in {counts[kind]} of {len(stages)} stages" for kind in KINDS if counts[kind]]
    return f"doubts, told above: {', '.join(told)}"


def _print_findings(
    console: Console, findings: Sequence[Finding], loads: Mapping[int, str] | None = None
) -> None:
    """All of a run; `loads` name the stages where there are several."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True, style="bold cyan")
    for finding in findings:
        sure = "" if finding.strength == "shown" else f" ({finding.strength})"
        about = f"{loads[finding.stage]}: " if loads and finding.stage is not None else ""
        grid.add_row(f"found: {finding.kind}", Text(printable(about + finding.sentence) + sure))
    if grid.row_count:
        console.print(grid)


def _window(stage: StageSummary) -> str:
    window = stage.figures.get("window")
    return f"over {format_seconds(window['end_s'] - window['start_s'])}" if window else ""


def _outcomes(stage: StageSummary) -> Text:
    text = Text("requests: ")
    parts = [
        (f"{count:,} {name}", "" if name == "completed" else "bold red" if count else "")
        for name, count in stage.outcomes.items()
    ]
    for k, part in enumerate(parts):
        text.append(", " if k else "")
        text.append(*part)
    requests = sum(stage.outcomes.values()) - stage.never_sent
    if stage.attempts > requests:
        text.append(f" ({stage.attempts - requests:,} sent again)")
    return text


def _reasons(stage: StageSummary) -> Iterable[Text]:
    for reason in stage.reasons[:MOST_REASONS]:
        words = printable(reason.words)
        yield Text.assemble(
            (f"  {reason.count:,} x {reason.outcome}: ", "red"), words[:300], no_wrap=False
        )
    if len(stage.reasons) > MOST_REASONS:
        yield Text(f"  and {len(stage.reasons) - MOST_REASONS} more reasons, in summary.json")


def _rates(stage: StageSummary) -> Table:
    figures = stage.figures
    grid = Table.grid(padding=(0, 2))
    concurrency = figures.get("concurrency") or {}
    goodput = figures.get("goodput_requests_per_s")
    cells = [
        ("requests/s", _number(figures.get("requests_per_s")) + _asked(stage, " of {} asked")),
        ("output tokens/s", _number(figures.get("output_tokens_per_s"))),
        ("input + output tokens/s", _number(figures.get("total_tokens_per_s"))),
        ("peak output tokens/s", _number(figures.get("peak_output_tokens_per_s"))),
        ("in flight, mean", _number(concurrency.get("mean"))),
        ("in flight, most", _number(concurrency.get("max"))),
    ]
    if "goodput_ratio" in figures:
        ratio = figures["goodput_ratio"]
        cells.append(("goodput, requests/s", _number(goodput)))
        cells.append(("goodput", "-" if ratio is None else f"{percent(ratio)} of all due"))
    for left, right in zip(cells[::2], cells[1::2], strict=True):
        grid.add_row(left[0], Text(left[1], "bold"), right[0], Text(right[1], "bold"))
    return grid


def _latencies(figures: dict[str, Any]) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    grid.add_column("")
    for name in STATISTICS:
        grid.add_column(name, justify="right")
    differs = from_due_differs(figures)
    for key, label in LATENCIES:
        if key == "ttfo_s" and figures.get("reasoning_tokens") is None:
            continue  # the first token is the first of the output
        if key == "connect_s" and not getattr(figures.get(key), "max", 1):
            continue  # all connections were kept alive
        if differs or key not in SHOWN_IF_DIFFERENT:
            grid.add_row(*_row(label, figures.get(key), format_seconds))
    for key, label in COUNTS:
        if key in SHOWN_IF_ANY and figures.get(key) is None:
            continue
        grid.add_row(*_row(label, figures.get(key), three_digits))
    return grid


def _row(label: str, found: Any, show: Any) -> list[str]:  # noqa: ANN401 (a figure and a function)
    if found is None:
        return [label, *("-" for _ in STATISTICS)]
    shown = msgspec.to_builtins(found)
    mark = " ~" if shown.get("estimated") else ""
    return [label + mark, *(show(shown[name]) for name in STATISTICS)]


def _measured_how(stage: StageSummary) -> Iterable[str]:
    """What the load generator says of itself, and of the times that it took."""
    merged, ours = stage.figures.get("merged_reads_ratio"), stage.generator
    if merged:
        yield (
            f"~ {three_digits(merged * 100)} % of the chunks came out of one read with the chunk "
            "before: their times are upper bounds"
        )
    if ours.together and (ours.spread_s or 0.0) > SPREAD_SHOWN_S:
        each = format_seconds((ours.spread_s or 0.0) / (ours.together - 1))
        yield (
            f"{ours.together:,} requests due at one instant were sent over "
            f"{format_seconds(ours.spread_s or 0.0)}, one each {each}"
        )
    if ours.cpu_ratio:
        many = "process" if len(ours.cpu_ratio) == 1 else "processes"
        used = ", ".join(f"{ratio * 100:.0f} %" for ratio in ours.cpu_ratio[:MOST_REASONS])
        yield (
            f"load generator: {len(ours.cpu_ratio)} {many}, {used} of a core, loop lag P99 "
            f"{format_seconds(ours.lag_p99_s or 0.0)}{CLOCKS[ours.clock]}"
        )


def _collected(sources: dict[str, str]) -> str:
    """What was read beside the load, and why the rest was not."""
    was = [name for name, what in sources.items() if what == "read"]
    not_read = [f"{name}: {what}" for name, what in sources.items() if what != "read"]
    return printable("; ".join([f"also read: {', '.join(was)}"] * bool(was) + not_read))


def _whose(part: Resources) -> str:
    what = part.engine or {"gpu": "GPUs"}.get(part.kind, part.kind)
    where = [part.source] if part.source.startswith("prometheus:") else []
    how = [f"{of}: {said}" for of, said in part.how.items()]
    return printable("; ".join([", ".join([what, *where]), *how]))


def _resources(part: Resources) -> Table:
    """What a source told over the stage, two figures a row; only those that it has."""
    grid, figures = Table.grid(padding=(0, 2)), part.figures
    cells: list[tuple[str, Text]] = []
    for label, *named in RESOURCES[part.kind]:
        told = [(name, figures[name]) for name in named if figures.get(name) is not None]
        if told:
            said = ", most ".join(quantity(name, value)[1] for name, value in told)
            cells.append((label, Text(said, "bold")))
    for k in range(0, len(cells), 2):
        grid.add_row(*(word for pair in cells[k : k + 2] for word in pair))
    return grid


def _overview(rows: Sequence[tuple[str, StageSummary | TargetSummary]], what: str) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    grid.add_column(what, overflow="fold")
    asked = any(isinstance(part, StageSummary) and part.asked_per_s for _, part in rows)
    grid.add_column("req/s\nof asked" if asked else "req/s", justify="right")
    for name in ("tok/s", "in flight", "TTFT p50", "TTFT p99", "ITL p50", "e2e p50", "failed"):
        grid.add_column(name, justify="right")
    for label, part in rows:
        figures = msgspec.to_builtins(part.figures)
        grid.add_row(
            printable(label),
            _number(figures.get("requests_per_s")) + _asked(part, "/{}"),
            _number(figures.get("output_tokens_per_s")),
            _number((figures.get("concurrency") or {}).get("mean")),
            _time(figures, "ttft_s", "p50"),
            _time(figures, "ttft_s", "p99"),
            _time(figures, "itl_s", "p50"),
            _time(figures, "e2e_s", "p50"),
            f"{sum(n for name, n in part.outcomes.items() if name.startswith('failed')):,}",
        )
    return grid


def _asked(part: StageSummary | TargetSummary, how: str) -> str:
    """What an open load asked meanwhile, beside what was reached."""
    asked = part.asked_per_s if isinstance(part, StageSummary) else None
    return how.format(three_digits(asked)) if asked else ""


def _time(figures: dict[str, Any], key: str, statistic: str) -> str:
    found = figures.get(key)
    return "-" if found is None else format_seconds(found[statistic])


def _number(value: float | None) -> str:
    return "-" if value is None else three_digits(value)
