"""SLOs are read strictly, and mean one thing for a request and one for a stage."""

from __future__ import annotations

import numpy as np
import pytest

from servescope.errors import BadInput
from servescope.goodput import Verdict, check_slo, meets, parse_slo, parse_vllm_goodput
from servescope.metrics import figures
from servescope.records import Record, columns

MS = 1_000_000


def request(times_ms=(100, 120, 140), *, tokens=1, outcome="completed", **fields):
    return Record(
        request=0, stage=0, due_ns=0, sent_ns=0, outcome=outcome, count_source="server",
        chunk_ns=[int(gap) * MS for gap in np.diff(times_ms, prepend=0)], chunk_tokens=tokens,
        output_tokens=tokens * len(times_ms), **fields,
    )  # fmt: skip


def good(slo, *records):
    found = meets(parse_slo("slo", slo), columns(records))
    return None if found is None else found.tolist()


def test_an_slo_is_read_bound_by_bound():
    slo = parse_slo(
        "slo", "ttft_p99<200ms, tpot_p95 < 50ms,e2e<2s,itl_p99<=30ms,e2e_from_due_max<1m"
    )
    assert [(b.metric, b.statistic, b.limit_s, b.inclusive) for b in slo.bounds] == [
        ("ttft", "p99", 0.2, False),
        ("tpot", "p95", 0.05, False),
        ("e2e", None, 2.0, False),
        ("itl", "p99", 0.03, True),
        ("e2e_from_due", "max", 60.0, False),
    ]
    assert str(parse_slo("slo", "ttft<200ms,e2e<2s")) == "ttft<200ms,e2e<2s"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("tftt_p99<200ms", "did you mean ttft?"),
        ("ttft_p98<200ms", "did you mean p9"),
        ("ttft_p99>200ms", "want bounds such as"),
        ("ttft_p99<200", "with its unit"),
        ("ttft_p99<soon", "want a time"),
        ("ttft<0ms", "above 0"),
        ("ttft<200ms,", "want bounds such as"),
        ("", "want bounds such as"),
    ],
)
def test_a_bound_that_cannot_be_read_is_refused_with_what_would_be_right(text, hint):
    with pytest.raises(BadInput, match=r"^slo: ") as refused:
        parse_slo("slo", text)
    assert hint in str(refused.value)


def test_vllms_spelling_is_in_milliseconds_and_binds_every_request():
    slo = parse_vllm_goodput("ttft:200", "tpot:50", "e2el:2000.5")
    assert [(b.metric, b.statistic, b.limit_s) for b in slo.bounds] == [
        ("ttft", None, 0.2),
        ("tpot", None, 0.05),
        ("e2e", None, 2.0005),
    ]
    assert str(slo) == "ttft<=200ms,tpot<=50ms,e2e<=2000.5ms"


@pytest.mark.parametrize("pair", ["itl:5", "ttft", "ttft:", "ttft:fast", "ttft:-1", "ttft:nan"])
def test_a_pair_in_vllms_spelling_that_cannot_be_read_is_refused(pair):
    with pytest.raises(BadInput, match="goodput"):
        parse_vllm_goodput(pair)


def test_a_request_is_good_when_it_meets_every_bound():
    fast, slow_start, slow_end = request(), request((300, 320)), request((100, 900))
    assert good("ttft_p99<200ms", fast, slow_start, slow_end) == [True, False, True]
    assert good("ttft<200ms,e2e<500ms", fast, slow_start, slow_end) == [True, False, False]
    assert good("tpot_p95<50ms", fast, slow_start, slow_end) == [True, True, False]


@pytest.mark.parametrize("outcome", ["failed:incomplete", "failed:overrun", "cancelled"])
def test_a_request_that_was_not_answered_is_never_good(outcome):
    unsent = Record(request=1, stage=0, due_ns=0, outcome="cancelled")
    assert good("ttft<200ms", request(), request(outcome=outcome), unsent) == [True, False, False]


def test_a_truncated_answer_is_an_answer():
    assert good("ttft<200ms", request(outcome="truncated")) == [True]


def test_a_bound_sharp_or_not_decides_at_the_limit():
    assert good("ttft<100ms", request((100, 120))) == [False]
    assert good("ttft<=100ms", request((100, 120))) == [True]


def test_gaps_are_judged_by_the_bounds_statistic_over_the_requests_own():
    one_stall = request(np.concatenate((20 * np.arange(300), [6_980])))  # 299 of 20 ms, 1 of 1 s
    assert good("itl<30ms", one_stall) == [False]
    assert good("itl_max<30ms", one_stall) == [False]
    assert good("itl_p99<30ms", one_stall) == [True]
    assert good("itl_mean<22ms", one_stall) == [False]
    assert good("itl_mean<24ms", one_stall) == [True]


def test_token_gaps_are_judged_by_tokens_and_chunk_gaps_by_chunks():
    fours = request(80 * np.arange(1, 9), tokens=4)
    assert good("itl<25ms", fours) == [True]
    assert good("icl<25ms", fours) == [False]


def test_an_answer_with_nothing_after_its_first_chunk_cannot_miss_a_gap():
    assert good("tpot<50ms", request(), request((70,))) == [True, True]
    assert good("itl_p99<50ms,ttft<60ms", request((40, 60)), request((70,))) == [True, False]


def test_goodput_is_absent_when_no_answer_has_the_bounds_figure():
    assert good("tpot<50ms", request((70,), tokens=30), request((80,), tokens=30)) is None


def test_goodput_stays_when_the_only_answer_with_gaps_misses_another_bound():
    assert good("ttft<60ms,tpot<50ms", request((70, 90)), request((40,))) == [False, True]


def test_goodput_without_any_answer_is_nobody():
    assert good("ttft<200ms", request(outcome="cancelled")) == [False]
    assert good("ttft<200ms") == []


def test_checking_holds_the_stages_own_statistic_against_the_bound():
    stage = figures(columns([request((100 + i, 200 + i)) for i in range(101)]))
    verdicts = check_slo(parse_slo("slo", "ttft_p50<=150ms,ttft_p99<199ms,ttft_mean<1ms"), stage)
    assert [(v.bound, v.met) for v in verdicts] == [
        ("ttft_p50<=150ms", True),
        ("ttft_p99<199ms", False),
        ("ttft_mean<1ms", False),
    ]
    assert [v.value for v in verdicts] == pytest.approx([0.150, 0.199, 0.150])


def test_a_bound_without_a_statistic_is_met_when_every_request_meets_it():
    stage = figures(columns([request((100, 200)), request((300, 400))]))
    assert [v.met for v in check_slo(parse_slo("slo", "ttft<301ms,ttft<300ms"), stage)] == [
        True,
        False,
    ]


def test_a_bound_on_a_figure_that_was_not_measured_is_undecided():
    verdicts = check_slo(parse_slo("slo", "tpot_p95<50ms"), figures(columns([request((70,))])))
    assert verdicts == [Verdict("tpot_p95<50ms", None, None)]
