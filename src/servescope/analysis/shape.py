"""The shape of a stage's times: two humps and what tells them apart, a heavy tail, a drift.

Of the steady part of a stage. An open load that changes by itself, such as a trace, is looked at
as a whole; other stages without a steady part have no shape to speak of.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from servescope import token_times
from servescope.analysis.drift import P_MOST, batched, trend
from servescope.analysis.humps import Humps, humps
from servescope.findings import Finding
from servescope.metrics import stage_window
from servescope.records import ABSENT
from servescope.stats import Distribution, distribution
from servescope.units import format_seconds, printable, three_digits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from servescope.analysis.evidence import Evidence
    from servescope.analysis.steady import Steady
    from servescope.records import Columns

    Floats = NDArray[np.float64]

LABELS = {"ttft_s": "TTFT", "e2e_s": "end-to-end latency"}
EXPONENTIAL = math.log(100) / math.log(2)
"""P99 / P50 of an exponential distribution: a tail that falls off more slowly is called heavy."""
TAIL_SHARE, TAIL_FEWEST = 0.1, 50
"""Hill's estimator looks at the largest tenth, and wants so many of them."""
TELLS = 0.5
"""What is said to tell the humps apart holds for so much more of the slow ones than of the fast."""
AS_GOOD = 0.05
DRIFTS_RATIO = 0.1
_Z = 1.959963984540054


class Part(NamedTuple):
    """What is looked at of a stage: answered requests in the order of their sending."""

    number: int
    rows: Columns
    order: NDArray[np.intp]
    flying: Floats
    """Requests in flight when each row was sent."""
    start_ns: int
    span_s: float
    targets: list[str]
    steady: bool

    def of(self, name: str) -> Floats:
        """A time of each row, in seconds; NaN where absent."""
        return token_times.per_request(self.rows)[name]


class Trait(NamedTuple):
    """Something that may tell slow requests from fast ones."""

    values: Floats
    """NaN where not known."""
    above: str
    """What those above a bound are said to have; `{}` is the bound."""
    below: str
    """The same of those below; nothing where that would say the same of another trait."""


class Cause(NamedTuple):
    """A trait's bound that tells the humps apart."""

    words: str
    of_slow: float
    of_fast: float


def findings(evidence: Evidence, parts: dict[int, Steady]) -> list[Finding]:
    """What the times of each stage look like, where that is out of the ordinary."""
    found: list[Finding] = []
    streamed = bool(evidence.run.manifest.trial.get("stream", True))
    for stage in evidence.summary.stages:
        part = _part(evidence, stage.number, parts[stage.number])
        if part is None:
            continue
        said = ""
        for name in LABELS if streamed else ("e2e_s",):
            two = humps(part.of(name)[~np.isnan(part.of(name))])
            if two is None:
                found += _tail(part, name)
            else:
                cause = _cause(part, name, two)
                if cause is None or cause.words != said:  # what TTFT tells, e2e need not repeat
                    found.append(_two_humps(part, name, two, cause))
                said = cause.words if cause else said
            found += _drift(part, name)
    return found


def _part(evidence: Evidence, number: int, steady: Steady) -> Part | None:
    columns = evidence.of_stage(number)
    window = steady.window
    if window is None and steady.load_changes and (columns.due_ns != columns.due_ns[:1]).any():
        window = stage_window(columns)
    if window is None:
        return None
    sent = columns.where(columns.sent_ns != ABSENT)
    rows = sent.where(window.holds(sent.sent_ns)).answered()
    ended = token_times.ended_ns(sent)
    went = np.sort(np.where(ended == ABSENT, np.iinfo(np.int64).max, ended))
    came = np.searchsorted(np.sort(sent.sent_ns), rows.sent_ns, "left")
    flying = (came - np.searchsorted(went, rows.sent_ns, "right")).astype(np.float64)
    return Part(
        number,
        rows,
        np.argsort(rows.sent_ns, kind="stable"),
        flying,
        round(window.start_s * 1e9),
        window.span_s,
        evidence.run.manifest.targets,
        steady.window is not None,
    )


def _two_humps(part: Part, name: str, two: Humps, cause: Cause | None) -> Finding:
    share = f"{two.slow_share:.0%}"
    sentence = (
        f"{LABELS[name]} has two humps, around {format_seconds(two.fast)} and "
        f"{format_seconds(two.slow)} ({share} of the answers)"
    )
    if cause is not None:
        sentence += f": {cause.of_slow:.0%} of the slow ones {cause.words}, of the fast "
        sentence += f"{cause.of_fast:.0%}"
    else:
        sentence += ", and nothing that is recorded of the requests tells them apart"
    evidence: dict[str, float | str | None] = {
        "fast_s": two.fast,
        "slow_s": two.slow,
        "parting_s": two.parting,
        "slow_ratio": two.slow_share,
        "dip": two.dip,
    }
    if cause is not None:
        evidence |= {"cause": cause.words}
        evidence |= {"cause_of_slow_ratio": cause.of_slow, "cause_of_fast_ratio": cause.of_fast}
    return Finding(
        kind="shape",
        sentence=sentence,
        strength="shown",
        stage=part.number,
        value=two.slow,
        evidence=evidence,
    )


def _cause(part: Part, name: str, two: Humps) -> Cause | None:
    """What tells the two humps apart best; of traits as good as the best, the first."""
    values = part.of(name)
    is_slow = values[~np.isnan(values)] > two.parting
    known = ~np.isnan(values)
    found = [_told(trait, known, is_slow) for trait in _traits(part, name)]
    causes = [cause for cause in found if cause.of_slow - cause.of_fast >= TELLS]
    best = max((cause.of_slow - cause.of_fast for cause in causes), default=0.0)
    good = (cause for cause in causes if cause.of_slow - cause.of_fast >= best - AS_GOOD)
    return next(good, None)


def _traits(part: Part, name: str) -> Iterator[Trait]:
    rows = part.rows
    if (rows.cached_tokens > 0).any():
        share = np.maximum(rows.cached_tokens, 0) / np.maximum(rows.input_tokens, 1)
        yield Trait(
            share.astype(np.float64) * 100,
            "had more than {} % of their prompt in the prefix cache",
            "had less than {} % of their prompt in the prefix cache",
        )
    yield Trait(
        _counts(rows.input_tokens),
        "had prompts of more than {} tokens",
        "had prompts of fewer than {} tokens",
    )
    if name == "e2e_s":
        yield Trait(
            _counts(rows.output_tokens),
            "had answers of more than {} tokens",
            "had answers of fewer than {} tokens",
        )
    for k, target in enumerate(part.targets if len(part.targets) > 1 else []):
        words = f"went to {printable(target)}".replace("{", "{{").replace("}", "}}")
        yield Trait((rows.target == k).astype(np.float64), words, "")
    yield Trait(
        (rows.turn > 0).astype(np.float64),
        "were later turns of a session",
        "were the first turn of a session",
    )
    yield Trait(
        part.flying,
        "were sent while more than {} were in flight",
        "were sent while fewer than {} were in flight",
    )
    yield Trait(
        (rows.sent_ns - part.start_ns) / 1e9,
        "were sent later than {} s into " + ("the steady part" if part.steady else "the stage"),
        "were sent in the first {} s of " + ("the steady part" if part.steady else "the stage"),
    )


def _counts(column: NDArray[np.int64]) -> Floats:
    return np.where(column == ABSENT, np.nan, column.astype(np.float64))


def _told(trait: Trait, known: NDArray[np.bool_], is_slow: NDArray[np.bool_]) -> Cause:
    """The bound on a trait that most of the slow and fewest of the fast are beyond.

    The difference of those two shares is Youden's index (Cancer 3, 1950).
    """
    values = trait.values[known]
    if np.isnan(values).any() or values.min() == values.max():
        return Cause("", 0.0, 0.0)
    order = np.argsort(values, kind="stable")
    ordered, slow = values[order], is_slow[order]
    # Shares at or below each value that a larger one follows.
    at = np.flatnonzero(np.diff(ordered))
    of_slow = np.cumsum(slow)[at] / slow.sum()
    of_fast = np.cumsum(~slow)[at] / (~slow).sum()
    apart = of_slow - of_fast
    k = int(np.argmax(np.abs(apart)))
    low, high = float(ordered[at[k]]), float(ordered[at[k] + 1])
    if apart[k] > 0 and trait.below:
        words = trait.below.format(f"{_between(low, high, best=high):,g}")
        return Cause(words, float(of_slow[k]), float(of_fast[k]))
    words = trait.above.format(f"{_between(low, high, best=low):,g}")
    return Cause(words, 1 - float(of_slow[k]), 1 - float(of_fast[k]))


def _between(low: float, high: float, *, best: float) -> float:
    """A number of few digits between two, or that one of them which will do."""
    if high - low <= 1:  # of counts there is none
        return best
    middle = (low + high) / 2
    found = (float(f"{middle:.{digits}g}") for digits in (1, 2, 3))
    return next((number for number in found if low < number < high), best)


def _tail(part: Part, name: str) -> list[Finding]:
    """A tail that is surely longer than the lengths of prompts or answers account for."""
    values = part.of(name)
    found = distribution(values)
    lengths = part.rows.input_tokens if name == "ttft_s" else part.rows.output_tokens
    work = distribution(lengths[lengths > 0])
    ratios, explained = _tail_ratio(found), _tail_ratio(work)
    if found is None or ratios is None or explained is None:
        return []
    ratio, low, high = ratios
    if low <= max(EXPONENTIAL, explained[2]):
        return []
    whose = "prompts" if name == "ttft_s" else "answers"
    return [
        Finding(
            kind="shape",
            sentence=f"{LABELS[name]} has a heavy tail: its P99 of {format_seconds(found.p99)} is "
            f"{three_digits(ratio)} times its median (95 %: {three_digits(low)} to "
            f"{three_digits(high)}), that of the {whose}' lengths {three_digits(explained[0])} "
            "times",
            strength="shown",
            stage=part.number,
            value=ratio,
            evidence={
                "p50_s": found.p50,
                "p99_s": found.p99,
                "exponential_ratio": EXPONENTIAL,
                "lengths_ratio": explained[0],
                **_tail_index(values[~np.isnan(values)]),
            },
        )
    ]


def _tail_ratio(found: Distribution | None) -> tuple[float, float, float] | None:
    """P99 / P50 and bounds on it from the intervals of both; None where one has none."""
    if found is None:
        return None
    median, far = found.ci95["p50"], found.ci95["p99"]
    if median is None or far is None or median[0] <= 0:
        return None
    return found.p99 / found.p50, far[0] / median[1], far[1] / median[0]


def _tail_index(values: Floats) -> dict[str, float | str | None]:
    """Hill's estimate of the tail's exponent (Annals of Statistics 3, 1975) with its interval.

    Below 2 there is no variance, and means settle slowly.
    """
    ordered = np.sort(values)[::-1]
    k = int(len(ordered) * TAIL_SHARE)
    if k < TAIL_FEWEST or ordered[k] <= 0:
        return {}
    excess = float(np.log(ordered[:k] / ordered[k]).mean())
    if not excess:
        return {}
    index, error = 1 / excess, _Z / excess / math.sqrt(k)
    return {"tail_index": index, "tail_index_low": index - error, "tail_index_high": index + error}


def _drift(part: Part, name: str) -> list[Finding]:
    """A trend of the medians over the part."""
    if not part.steady:
        return []
    span_s, answer_s = part.span_s, float(np.nanmedian(part.of("e2e_s")))
    values = part.of(name)[part.order]
    line = trend(batched(values[~np.isnan(values)], span_s, answer_s))
    if line is None or line.p >= P_MOST or abs(line.ratio) < DRIFTS_RATIO:
        return []
    lengths = part.rows.input_tokens if name == "ttft_s" else part.rows.output_tokens
    work = trend(batched(lengths[part.order].astype(np.float64), span_s, answer_s))
    also = ""
    if work is not None and work.p < P_MOST:
        whose = "prompts" if name == "ttft_s" else "answers"
        also = f"; the {whose}' lengths changed by {work.ratio:+.0%}"
    was, is_now = format_seconds(line.start), format_seconds(line.end)
    return [
        Finding(
            kind="shape",
            sentence=f"the median {LABELS[name]} drifts from {was} to {is_now} ({line.ratio:+.0%}; "
            f"95 %: {line.low / line.start:+.0%} to {line.high / line.start:+.0%}) over the "
            f"steady part{also}",
            strength="shown",
            stage=part.number,
            value=line.ratio,
            evidence={"start_s": line.start, "end_s": line.end, "p": line.p},
        )
    ]
