"""How long decode steps take: the largest of a few straight lines over the context they attend to.

From one step to the next each sequence has one more token, so that a run of equal steps climbs
along the lines: its time is a sum of arithmetic series, exact in whole femtoseconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt

Line = tuple[int, int]
"""Duration without any context, and per token of context; fs."""
Lines = tuple[Line, ...]


def at(lines: Lines, context: int) -> int:
    """Duration of a step whose sequences attend to so many tokens at its end, in fs."""
    if len(lines) == 1:
        return lines[0][0] + lines[0][1] * context
    return max([start + slope * context for start, slope in lines])


def upper(lines: Iterable[Line]) -> Lines:
    """Without those that another one is never below."""
    kept: list[Line] = []
    for line in sorted(lines, reverse=True):
        if not kept or line[1] > kept[-1][1]:
            kept.append(line)
    return tuple(kept)


def run(lines: Lines, context: int, growth: int, most: int, until: int) -> tuple[int, int]:
    """So many steps, as (count, duration in fs), that all but the last end before `until` fs.

    They are `most` at most. The first attends to `context + growth` tokens at its end, each next
    one to `growth` more.
    """
    if len(lines) == 1:
        start, slope = lines[0]
        return _along(start + slope * (context + growth), slope * growth, most, until)
    done = total = 0
    while True:
        first, slope, last = _top(lines, context + growth * (done + 1), growth, most - done)
        count, took = _along(first, slope, last, until - total)
        total += took
        done += count
        if done == most or count < last or total >= until:
            return done, total


def _top(lines: Lines, context: int, growth: int, most: int) -> tuple[int, int, int]:
    """The line that is largest at a context: its duration there, how much longer each next step is,
    and for how many steps it stays the largest."""
    (start, slope), *others = lines
    first = start + slope * context
    for one in others:
        value = one[0] + one[1] * context
        if value > first or (value == first and one[1] > slope):
            first, slope = value, one[1]
    last = most
    for start, steeper in others and lines:
        if steeper > slope:
            gap = first - start - steeper * context
            last = min(last, gap // ((steeper - slope) * growth) + 1)
    return first, slope * growth, last


def _along(first: int, slope: int, most: int, until: int) -> tuple[int, int]:
    """As `run`, along one line: the first step takes `first`, each next one `slope` more."""
    took = most * first + slope * (most * (most - 1) // 2)
    if took < until:
        return most, took
    if until <= first:
        return 1, first
    # The least count with count first + slope count (count - 1) / 2 >= until: solved in floats,
    # which are never a step too many, and set right in whole numbers.
    linear = first - slope / 2
    count = int(2 * until / (linear + sqrt(linear * linear + 2 * slope * until)))
    took = count * first + slope * (count * (count - 1) // 2)
    while took < until:
        took += first + slope * count
        count += 1
    return count, took
