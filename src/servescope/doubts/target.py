"""Doubts about the target and its answers: drift, errors, lengths, counts, and what was offered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from servescope import metrics, token_times
from servescope.doubts.facts import REMEDIES, Doubt, StageFacts, percent
from servescope.records import ABSENT, ANSWERED, CANCELLED, OUTCOMES, TRUNCATED
from servescope.stats import PERCENTILES, Distribution, distribution, samples_needed
from servescope.units import format_seconds, three_digits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from servescope.records import Columns

DRIFT_RATIO, DRIFT_FEWEST = 0.2, 20
ROUNDS = 4
"""Of so many the first, for which all users ask at once, is less than half of the first half."""
ERRORS_RATIO = 0.01
INPUT_MISS_RATIO = 0.01
TOKENS_PER_CHUNK = 1.1
OFFERED_RATIO, STRETCH_S = 0.99, 0.1
"""An offered rate is too low below this ratio, if sending also took so much longer than due."""


def not_stationary(stage: StageFacts, columns: Columns) -> Doubt | None:
    """The load was constant, and latency drifted."""
    answered = columns.answered()
    e2e = token_times.per_request(answered)["e2e_s"]
    e2e = e2e[np.argsort(answered.sent_ns, kind="stable")]
    e2e = e2e[~np.isnan(e2e)]
    if not stage.constant or len(e2e) < DRIFT_FEWEST:
        return None
    first, second = distribution(e2e[: len(e2e) // 2]), distribution(e2e[len(e2e) // 2 :])
    if first is None or second is None or not first.p50:
        return None
    drift = second.p50 / first.p50 - 1
    if abs(drift) <= DRIFT_RATIO or not _apart(first, second):
        return None
    medians = f"{format_seconds(first.p50)} to {format_seconds(second.p50)}"
    return Doubt(
        kind="not_stationary",
        message=f"the load was constant, yet the median end-to-end latency went from {medians} "
        f"({drift * 100:+,.0f} %) between the two halves of the stage",
        value=drift,
        limit=DRIFT_RATIO,
        advice=_steadier(stage, drift, len(e2e)),
    )


def _apart(a: Distribution, b: Distribution) -> bool:
    """Whether the medians' intervals do not meet: answers of random length differ by chance."""
    one, other = a.ci95["p50"], b.ci95["p50"]
    return one is not None and other is not None and (one[1] < other[0] or other[1] < one[0])


def _steadier(stage: StageFacts, drift: float, answers: int) -> str:
    if drift < 0:
        return "the start was slower: warm up first (--warmup), or longer"
    if stage.open and stage.max_concurrency is None:
        return "a queue is growing: lower the rate, or search for the highest one that lasts"
    if stage.open:
        return "a queue is growing behind the cap on concurrency: lower the rate or raise the cap"
    if stage.users and answers < ROUNDS * stage.users:
        rounds = f"{three_digits(answers / stage.users)} rounds of {stage.users:,} users"
        enough = ROUNDS * stage.users
        return (
            f"these are {rounds}, who all began at one instant: run longer, at least {enough:,} "
            "requests"
        )
    return "the target became slower: run longer, and look for throttling or a full KV cache"


def too_few(figures: Mapping[str, Any]) -> Doubt | None:
    """Too few answers for a percentile that is printed."""
    e2e = figures.get("e2e_s")
    n = e2e.n if isinstance(e2e, Distribution) else 0
    needed = {name: samples_needed(q) for name, q in PERCENTILES.items()}
    short = [name.upper() for name, enough in needed.items() if n < enough]
    if not short:
        return None
    wants = ", ".join(f"{name} wants {needed[name.lower()]}" for name in reversed(short))
    requests = "1 request was" if n == 1 else f"{n:,} requests were"
    return Doubt(
        kind="too_few",
        message=f"{requests} answered, too few for a 95 % interval of {', '.join(short)} ({wants})",
        value=float(n),
        limit=float(needed["p99"]),
        advice=f"ask for at least {needed['p99']} requests, or do not quote {short[-1]}",
    )


def errors(stage: StageFacts, columns: Columns) -> Doubt | None:
    """More than 1 % of the requests did not complete."""
    cancelled = columns.outcome == OUTCOMES.index(CANCELLED)
    # What was never sent is `not_offered`'s matter, and what an interrupt cut off is known.
    ours = cancelled & (stage.interrupted | (columns.sent_ns == ABSENT))
    asked = columns.where(~ours)
    lost = asked.where(~_is_answered(asked))
    if len(lost) <= ERRORS_RATIO * len(asked):
        return None
    share = len(lost) / len(asked)
    causes = {k: v for k, v in metrics.outcomes(lost).items() if v}
    top = sorted(causes, key=lambda name: -causes[name])[:3]
    return Doubt(
        kind="errors",
        message=f"{percent(share)} of {len(asked):,} requests did not complete: "
        + ", ".join(f"{causes[name]:,} {name}" for name in top),
        value=share,
        limit=ERRORS_RATIO,
        advice=_fewer_errors(stage, top[0]),
    )


def _fewer_errors(stage: StageFacts, cause: str) -> str:
    if cause == "failed:connect" and stage.exhausted:
        lacking = " and ".join(stage.exhausted)
        return f"this machine had no more {lacking}; the server is not to blame for those"
    if cause == CANCELLED:
        return "the end of the stage cut these off, long answers first: run longer than they take"
    if cause.startswith("failed:timeout") or cause == "failed:stalled":
        lower = "lower the rate" if stage.open else "use fewer users"
        return f"latencies leave out what timed out and look too good: {lower}, or wait longer"
    if cause == "failed:http_429":
        return "the server's rate limit was measured, not the server: stay below it or lift it"
    return "latencies are those of the survivors: read the reasons in requests.jsonl first"


def output_lengths_missed(columns: Columns) -> Doubt | None:
    """Answers had another length than was required of them."""
    cut = columns.outcome == OUTCOMES.index(TRUNCATED)
    # A local count may differ by itself; that a pinned answer was cut short is beyond that.
    judged = columns.where(
        columns.pinned
        & _is_answered(columns)
        & (columns.counted_by_server | cut)
        & (columns.asked_output_tokens != ABSENT)
        & (columns.output_tokens != ABSENT)
    )
    miss = judged.output_tokens - judged.asked_output_tokens
    if not miss.any():
        return None
    share, mean = float((miss != 0).mean()), float(miss[miss != 0].mean())
    return Doubt(
        kind="lengths_missed",
        message=f"{percent(share)} of the answers with a pinned length missed it, "
        f"by {mean:+.1f} output tokens on average",
        value=share,
        limit=0.0,
        advice="the target ignores ignore_eos or min_tokens, or caps the length: throughput is of "
        "other work than was asked for",
    )


def input_lengths_missed(columns: Columns) -> Doubt | None:
    """The server counted prompts of another length than was asked for."""
    judged = columns.where(
        _is_answered(columns)
        & columns.counted_by_server
        & (columns.asked_input_tokens > 0)
        & (columns.input_tokens != ABSENT)
    )
    if not len(judged):
        return None
    asked, came = judged.asked_input_tokens, judged.input_tokens
    ratio = float(np.mean(np.abs(came - asked) / asked))
    if ratio <= INPUT_MISS_RATIO:
        return None
    return Doubt(
        kind="lengths_missed",
        message=f"the server counted {float(np.mean(came)):.1f} input tokens a request where "
        f"{float(np.mean(asked)):.1f} were asked for (off by {percent(ratio)} on average)",
        value=ratio,
        limit=INPUT_MISS_RATIO,
        advice="make prompts with the model's own tokenizer; a chat template adds its own tokens",
    )


def chunked(columns: Columns) -> Doubt | None:
    """Chunks carry several tokens, so that gaps are not token latencies."""
    answered = columns.answered()
    chunks = len(answered.chunk_ns)
    if not chunks:
        return None
    counted = token_times.chunk_tokens(answered)
    tokens = float(counted.tokens.sum())
    # Where chunks were not counted the total may hold an end token, which has no text of its own.
    guessed = np.bincount(token_times.chunk_rows(answered), counted.guessed) > 0
    if (tokens - np.count_nonzero(guessed)) / chunks <= TOKENS_PER_CHUNK:
        return None
    return Doubt(
        kind="chunked",
        message=f"a chunk carried {three_digits(tokens / chunks)} tokens on average, so the gaps "
        "between chunks (icl_s) are not token latencies",
        value=tokens / chunks,
        limit=TOKENS_PER_CHUNK,
        advice="compare itl_s or tpot_s, not icl_s, with other tools and servers"
        + ("; itl_s is an estimate here" if guessed.any() else ""),
    )


def counted_locally(columns: Columns) -> Doubt | None:
    """The server did not count the tokens."""
    answered = columns.answered()
    local = int(np.count_nonzero(~answered.counted_by_server))
    if not local:
        return None
    share = local / len(answered)
    nobody = bool((answered.output_tokens == ABSENT).any())
    return Doubt(
        kind="counted_locally",
        message=f"the server did not count the tokens of {percent(share)} of the answers; "
        + ("nobody did" if nobody else "they were counted here"),
        value=share,
        limit=0.0,
        advice="have the server send usage with its stream, or give the model's own tokenizer",
    )


def not_offered(stage: StageFacts, columns: Columns) -> Doubt | None:
    """An open load could not be sent as declared."""
    return (_never_sent(stage, columns) or _too_slowly(stage, columns)) if stage.open else None


def _never_sent(stage: StageFacts, columns: Columns) -> Doubt | None:
    # A later turn is due only when the answer before it has come.
    unsent = (columns.sent_ns == ABSENT) & (columns.turn == 0)
    if stage.interrupted:
        unsent &= columns.outcome != OUTCOMES.index(CANCELLED)
    planned = len(columns) if stage.interrupted else max(stage.planned or 0, len(columns))
    missing = int(unsent.sum()) + planned - len(columns)
    if not missing:
        return None
    return Doubt(
        kind="not_offered",
        message=f"{missing:,} of {planned:,} requests of {stage.label} were due and never sent",
        value=missing / planned,
        limit=0.0,
        advice=_offer_all(stage),
    )


def _too_slowly(stage: StageFacts, columns: Columns) -> Doubt | None:
    """Against the schedule's own length, so that a random schedule is not blamed for its luck."""
    sent = columns.where(columns.sent_ns != ABSENT)
    if stage.rate is None or len(sent) < 2:
        return None
    due_s, sent_s = float(np.ptp(sent.due_ns)) / 1e9, float(np.ptp(sent.sent_ns)) / 1e9
    if not stretched(due_s, sent_s):
        return None
    ratio = due_s / sent_s
    return Doubt(
        kind="not_offered",
        message=f"{stage.label} was offered at {three_digits(stage.rate * ratio)} requests/s, "
        f"{percent(ratio)} of the declared rate",
        value=ratio,
        limit=OFFERED_RATIO,
        advice=_offer_all(stage),
    )


def stretched(due_s: float, sent_s: float) -> bool:
    """Whether sending took too much longer than the schedule does."""
    return due_s < OFFERED_RATIO * sent_s and sent_s - due_s >= STRETCH_S


def _offer_all(stage: StageFacts) -> str:
    if stage.exhausted:
        return "; ".join(REMEDIES[lacking] for lacking in stage.exhausted)
    if stage.max_concurrency is not None:
        return (
            f"the cap of {stage.max_concurrency} requests in flight holds requests back: raise it, "
            "or read the run as a closed loop"
        )
    return "raise the limit on open files, use more workers, or check that the target accepts more"


def _is_answered(columns: Columns) -> NDArray[np.bool_]:
    return np.isin(columns.outcome, [OUTCOMES.index(name) for name in ANSWERED])
