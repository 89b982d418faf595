"""How a stage stands, for the person who waits: a panel that is drawn over itself, or one line."""

from __future__ import annotations

import os
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple, TextIO

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from servescope.units import format_seconds, printable, three_digits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servescope.doubts import Doubt
    from servescope.tally import Buckets, Tally

WIDEST = 100
NARROWEST, LOWEST = 32, 5
"""Columns and lines below which a panel shows less than a line does."""
LABEL = len("requests")
LINE, LEAST = 132, 40
"""Columns of a line where no terminal says how many there are; the least of a stage's last one."""
BAR, NARROW = 20, 70
"""Columns of the bar, and of a panel in which it has half of them."""
SECONDS_S, MINUTES_S = 9.95, 119.5
"""From here on a time goes on in whole seconds, and in minutes."""
SYNCHRONISED, SHOWN = "\x1b[?2026h", "\x1b[?2026l"
"""A terminal that knows these shows all between them at once; others ignore them."""


class Standing(NamedTuple):
    """How a stage stands."""

    title: str
    """Model and target."""
    stage: str
    """'stage 2 of 5'."""
    load: str
    tally: Tally
    elapsed_s: float
    planned: int | None
    progress: float | None
    """Share of the stage that is over."""
    in_flight: int
    asked: float | None
    """Requests per second that the load asks for."""
    recent: float | None
    """Requests answered per second of late."""
    left_s: float | None
    run_left_s: float | None
    """At most, until the last stage is over."""
    server: str = ""
    """What the engine says of itself."""
    gpu: str = ""
    doubts: tuple[Doubt, ...] = ()


def line(now: Standing, columns: int = LINE) -> str:
    """All in one line, most important first; what does not fit in is left out."""
    tally = now.tally
    planned = f"/{now.planned:,}" if now.planned else ""
    parts = [
        f"{_clock(now.elapsed_s)}: {tally.requests:,}{planned} done",
        f"{tally.failed:,} failed" if tally.failed else "",
        f"{now.in_flight:,} in flight" if now.in_flight else "",
        f"{_number(tally.requests_per_s)}/s" + (f" of {_number(now.asked)}" if now.asked else ""),
        f"{_number(tally.output_tokens_per_s)} tokens/s" if tally.output_tokens else "",
        _pair("TTFT P50/P99", tally.ttft),
        _left(now.left_s) if now.left_s else "",
        _pair("ITL", tally.itl),
        now.server,
        now.gpu,
    ]
    text = " "
    for part in filter(None, parts):
        longer = f"{text}{',' if text.strip() else ''} {part}"
        text = longer if cell_len(longer) <= columns else text
    return text if cell_len(text) <= columns else text[:columns]


def over(now: Standing, columns: int | None = None) -> str:
    """The line that stays of a stage after it, in so many columns if that is enough for the most.

    Where no terminal says how many there are, nothing is left out for the stage's name.
    """
    name = f"{now.stage}, {printable(now.load)}: "
    whole = now._replace(
        elapsed_s=max(now.elapsed_s, now.tally.span_s),
        asked=None,
        in_flight=0,
        left_s=None,
        server="",
        gpu="",
    )
    room = LINE if columns is None else max(LEAST, columns - cell_len(name) + 1)
    return name + line(whole, room).strip()


def news(now: Standing) -> Iterator[tuple[str, str]]:
    """What is said once, when it appears: what it is about, and a line."""
    for outcome, words in now.tally.words.items():
        yield outcome, f"  {outcome}: {printable(words)[:LINE]}"
    for doubt in now.doubts:
        yield doubt.kind, f"  doubt: {doubt.kind}: {doubt.message}"


def _rows(now: Standing, *, bar: int, marks: str) -> list[tuple[int, str, Text]]:
    """How much each matters (0 the most), a label, and what there is to say."""
    tally, tokens = now.tally, now.tally.output_tokens_per_s
    rate = Text(no_wrap=False)
    if now.asked:
        rate.append(f"{_number(now.asked)}/s asked, ")
    rate.append(f"{_number(tally.requests_per_s)}/s answered", "bold")
    if now.recent is not None:
        rate.append(f" ({_number(now.recent)}/s of late)")
    rate.append(f", {now.in_flight:,} in flight")
    rows = [
        (0, "done", _progress(now, bar, marks)),
        (1, "requests", rate),
        (2, "TTFT", Text(_times(tally.ttft))),
        (4, "ITL", Text(_times(tally.itl))),
        (5, "tokens", Text(f"{_number(tokens)}/s out" if tokens else "-")),
    ]
    if now.server:
        rows.append((6, "server", Text(now.server, no_wrap=False)))
    if now.gpu:
        rows.append((7, "GPU", Text(now.gpu, no_wrap=False)))
    if tally.failures:
        counts = ", ".join(f"{count:,} {name}" for name, count in tally.failures.most_common())
        rows.append((3, "errors", Text(counts, "bold red", no_wrap=False)))
        newest = printable(next(reversed(tally.words.values()), ""))
        rows.append((8, "", Text(newest, "red")))
    for doubt in now.doubts:
        told = Text(f"{doubt.kind}: {doubt.message}", "yellow", no_wrap=False)
        rows.append((3, "doubt", told))
    return rows


def _progress(now: Standing, bar: int, marks: str) -> Text:
    text = Text(no_wrap=False)
    if now.progress is not None:
        full = round(bar * now.progress)
        text.append(marks[0] * full, "green")
        text.append(marks[1] * (bar - full) + " ", "bright_black")
    planned = f" of {now.planned:,}" if now.planned else ""
    text.append(f"{now.tally.requests:,}{planned}", "bold")
    text.append(f" after {_clock(now.elapsed_s)}")
    if now.left_s is not None:
        text.append(f", {_left(now.left_s)}")
    if now.run_left_s is not None:
        text.append(f" (run: {_clock(now.run_left_s)} at most)")
    return text


def _left(left_s: float) -> str:
    return f"{_clock(left_s)} left" if left_s > 0 else "last answers"


def _clock(seconds: float) -> str:
    """A time that goes on: '0.6 s', '12 s', '2 m 05 s'."""
    if seconds >= MINUTES_S:
        return format_seconds(seconds)
    return f"{seconds:.1f} s" if seconds < SECONDS_S else f"{seconds:.0f} s"


def _times(buckets: Buckets) -> str:
    """Median and P99 so far."""
    p50, p99 = buckets.quantile_s(0.5), buckets.quantile_s(0.99)
    if p50 is None or p99 is None:
        return "-"
    return f"P50 {format_seconds(p50)}, P99 {format_seconds(p99)}"


def _pair(label: str, buckets: Buckets) -> str:
    """The same in short: 'TTFT P50/P99 95.9/130 ms'; empty where there are none."""
    p50, p99 = buckets.quantile_s(0.5), buckets.quantile_s(0.99)
    if p50 is None or p99 is None:
        return ""
    low, high = format_seconds(p50), format_seconds(p99)
    number, _, unit = low.partition(" ")
    return f"{label} {number if high.partition(' ')[2] == unit else low}/{high}"


def _number(value: float | None) -> str:
    return "-" if value is None else three_digits(value)


class Screen:
    """The lines at the end of a terminal, which are written anew each time."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._drawn: list[int] = []
        """Columns of each line that stands there."""
        self._console = Console(file=out, force_terminal=True, highlight=False, emoji=False)
        utf = (getattr(out, "encoding", None) or "").lower().startswith("utf")
        self._marks, self._box = ("━─", box.ROUNDED) if utf else ("#-", box.ASCII)

    def draw(self, now: Standing) -> None:
        """Show how a stage stands, as the terminal's size allows."""
        columns, height = self._size()
        lines = self._panel(now, columns - 1, height - 1)
        text = "".join(f"\x1b[K{one}\n" for one in lines)
        self._write(self._back(columns) + text + "\x1b[J")
        self._drawn = [cell_len(Text.from_ansi(one).plain) for one in lines]

    @property
    def columns(self) -> int:
        """How wide the terminal is now."""
        return self._size()[0]

    def clear(self) -> None:
        """Take it away."""
        if self._drawn:
            self._write(self._back(self._size()[0]) + "\x1b[J")
            self._drawn = []

    def _back(self, columns: int) -> str:
        """To the first line; a terminal that became narrower has broken long ones."""
        lines = sum(max(1, -(-width // columns)) for width in self._drawn)
        return f"\r\x1b[{lines}A" if lines else "\r"

    def _panel(self, now: Standing, columns: int, height: int) -> list[str]:
        if columns < NARROWEST or height < LOWEST:
            return [line(now, max(columns, 1))] if height > 0 else []
        rows = _rows(now, bar=BAR if columns > NARROW else BAR // 2, marks=self._marks)
        lines = self._framed(now, rows, columns)
        while len(lines) > height and len(rows) > 1:
            rows.remove(max(rows, key=itemgetter(0)))
            lines = self._framed(now, rows, columns)
        return lines[:height]

    def _framed(self, now: Standing, rows: list[tuple[int, str, Text]], columns: int) -> list[str]:
        width = min(columns, WIDEST)
        grid = Table.grid(padding=(0, 1))
        grid.add_column(no_wrap=True, style="bright_black", width=LABEL)
        grid.add_column(no_wrap=True, overflow="ellipsis", width=width - LABEL - len("│  │ "))
        for _, label, text in rows:
            grid.add_row(label, text)
        panel = Panel(
            Group(grid),
            box=self._box,
            title=Text(f"{now.stage}: {printable(now.load)}", "bold", no_wrap=True),
            title_align="left",
            subtitle=Text(printable(now.title), no_wrap=True),
            subtitle_align="left",
            border_style="bright_black",
        )
        self._console.width = width  # not what the environment says
        with self._console.capture() as captured:
            self._console.print(panel)
        return captured.get().rstrip("\n").split("\n")

    def _size(self) -> tuple[int, int]:
        try:
            found = os.get_terminal_size(self._out.fileno())
        except OSError:
            return 80, 24
        return found.columns or 80, found.lines or 24

    def _write(self, text: str) -> None:
        self._out.write(f"{SYNCHRONISED}{text}{SHOWN}")
        self._out.flush()
