"""Every figure on requests worked out by hand, and what must hold for any requests at all."""

from __future__ import annotations

import time

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servescope import metrics, token_times
from servescope.goodput import parse_slo
from servescope.metrics import Window, figures, from_due_differs, outcomes, peak_rate
from servescope.records import Record, columns

CALM = settings(deadline=None)
MS = 1_000_000
S = 1_000_000_000

ALWAYS = {
    *("lateness_s", "connect_s", "ttfb_s", "ttft_s", "ttft_from_due_s", "e2e_from_due_s", "e2e_s"),
    *("icl_s", "itl_s", "tpot_s", "normalized_latency_s_per_token", "output_tokens_per_s"),
    *("total_tokens_per_s", "peak_output_tokens_per_s", "requests_per_s", "input_tokens"),
    *(
        "output_tokens",
        "cached_tokens",
        "reasoning_tokens",
        "tool_tokens",
        "ttfo_s",
        "concurrency",
        "tokens_per_chunk",
        "merged_reads_ratio",
        "window",
    ),
}


def request(times_ms=(100, 120, 140), *, sent_ms=0, due_ms=None, end_ms=None, **fields):
    """A request sent at `sent_ms` whose chunks came at `times_ms`, all in ms of the run."""
    chunks = np.diff(times_ms, prepend=0) * MS
    last = times_ms[-1] if len(times_ms) else sent_ms
    fields = {"request": 0, "stage": 0, "count_source": "server", **fields}
    fields.setdefault("output_tokens", len(times_ms))
    return Record(
        due_ns=int((sent_ms if due_ms is None else due_ms) * MS),
        sent_ns=int(sent_ms * MS),
        chunk_ns=[int(c) for c in chunks],
        end_ns=int((last if end_ms is None else end_ms) * MS),
        **fields,
    )


def never_sent(outcome="cancelled", **fields):
    return Record(request=9, stage=0, due_ns=0, outcome=outcome, **fields)


def told(*records, **options):
    return figures(columns(records), **options)


def test_the_figures_have_exactly_the_declared_names():
    assert set(told(request())) == ALWAYS
    with_slo = told(request(), slo=parse_slo("slo", "e2e<1s"))
    assert set(with_slo) == ALWAYS | {"goodput_requests_per_s", "goodput_ratio"}


def test_the_times_of_one_request_are_those_worked_by_hand():
    found = told(
        request(
            (110, 130, 170), sent_ms=10, due_ms=4, connect_ns=2 * MS, first_byte_ns=100 * MS,
            end_ms=180, input_tokens=50, chunk_tokens=[1, 1, 2], output_tokens=4,
        )
    )  # fmt: skip
    expected = {
        "lateness_s": 0.006, "connect_s": 0.002, "ttfb_s": 0.090, "ttft_s": 0.100,
        "ttft_from_due_s": 0.106, "e2e_from_due_s": 0.166, "e2e_s": 0.160,
        "tpot_s": 0.060 / 3, "normalized_latency_s_per_token": 0.040,
        "input_tokens": 50, "output_tokens": 4, "icl_s": 0.030, "itl_s": 0.020,
    }  # fmt: skip
    assert {name: found[name].mean for name in expected} == pytest.approx(expected)
    assert found["window"] == {"name": "stage", "start_s": 0.01, "end_s": 0.18}
    assert found["output_tokens_per_s"] == pytest.approx(4 / 0.17)
    assert found["total_tokens_per_s"] == pytest.approx(54 / 0.17)
    assert found["requests_per_s"] == pytest.approx(1 / 0.17)
    assert found["tokens_per_chunk"] == pytest.approx(4 / 3)
    assert found["concurrency"] == {"mean": 1.0, "max": 1.0}


@pytest.mark.parametrize("known", [True, False])
def test_a_token_each_20_ms_in_chunks_of_4_reads_itl_20_ms_and_icl_80_ms(known):
    times = 500 + 80 * np.arange(32)
    found = told(request(times, chunk_tokens=4 if known else None, output_tokens=128))
    assert found["icl_s"].p50 == pytest.approx(0.080)
    assert found["icl_s"].n == 31
    assert found["itl_s"].p50 == pytest.approx(0.020)
    assert found["itl_s"].n == 124
    assert found["itl_s"].estimated is not known
    # An uncounted first chunk is one token to TPOT: 127 tokens in 31 gaps of 80 ms.
    assert found["tpot_s"].mean == pytest.approx(0.020 if known else 31 * 0.080 / 127)


def test_an_uneven_chunk_gives_as_many_samples_as_it_has_tokens():
    found = told(request((0, 10, 70), chunk_tokens=[5, 1, 3], output_tokens=9))
    # Samples: 10 ms once, 20 ms three times; the first chunk's five tokens give none.
    assert found["itl_s"].n == 4
    assert found["itl_s"].p50 == pytest.approx(0.020)
    assert found["itl_s"].min == pytest.approx(0.010)
    assert found["itl_s"].mean == pytest.approx(0.0175)


def test_the_gap_of_a_chunk_without_a_token_goes_to_the_next_token():
    gaps = token_times.token_gaps(columns([request((0, 10, 30, 60), chunk_tokens=[1, 0, 1, 1])]))
    assert gaps.seconds == pytest.approx([0.030, 0.030])
    assert not gaps.estimated


def test_gaps_never_cross_from_one_request_to_the_next():
    data = columns([request((0, 10)), request(()), request((500, 530))])
    gaps = token_times.chunk_gaps(data)
    assert gaps.row.tolist() == [0, 2]
    assert gaps.seconds == pytest.approx([0.010, 0.030])


def test_chunks_counted_in_part_share_what_the_counts_leave():
    data = columns([request((0, 10, 20, 30), chunk_tokens=[1, 4, -1, -1], output_tokens=11)])
    assert token_times.chunk_tokens(data).tokens.tolist() == [1, 4, 3, 3]
    assert token_times.token_gaps(data).estimated


def test_where_an_answer_was_not_counted_no_rate_of_tokens_is_told():
    found = told(request((0,), output_tokens=None), request((0, 20), output_tokens=2))
    assert found["output_tokens"].n == 1
    for name in ("output_tokens_per_s", "total_tokens_per_s", "tokens_per_chunk"):
        assert found[name] is None
    assert found["peak_output_tokens_per_s"] is None
    assert found["normalized_latency_s_per_token"].n == 1


def test_a_server_that_tells_of_some_cached_prompts_had_nothing_of_the_others():
    found = told(request((0,), cached_tokens=30), request((0,)), request((0,)))
    assert (found["cached_tokens"].n, found["cached_tokens"].mean) == (3, 10)
    assert told(request((0,)))["cached_tokens"] is None


def test_an_answer_in_one_chunk_has_neither_tpot_nor_gaps():
    found = told(request((50,), output_tokens=20))
    assert found["tpot_s"] is None
    assert found["icl_s"] is None
    assert found["itl_s"] is None
    assert found["ttft_s"].mean == pytest.approx(0.050)


def test_figures_without_any_request_are_absent_and_not_zero():
    found = told()
    assert set(found) == ALWAYS
    assert set(found.values()) == {None}


def test_latencies_are_over_answers_and_lateness_over_all_that_were_sent():
    failed = request((), sent_ms=40, due_ms=10, end_ms=900, outcome="failed:http_5xx")
    cut = request((300,), outcome="truncated")
    found = told(request((100,)), cut, failed, never_sent())
    assert found["ttft_s"].n == 2
    assert found["e2e_s"].max == pytest.approx(0.3)
    assert found["lateness_s"].n == 3
    assert found["lateness_s"].max == pytest.approx(0.030)
    assert found["window"]["end_s"] == 0.9
    assert found["requests_per_s"] == pytest.approx(2 / 0.9)


def test_throughput_is_zero_and_not_absent_when_every_request_failed():
    found = told(request((), end_ms=500, outcome="failed:http_5xx"))
    assert found["requests_per_s"] == 0.0
    assert found["output_tokens_per_s"] == 0.0
    assert found["ttft_s"] is None


def test_total_tokens_are_absent_when_a_prompt_was_not_counted():
    assert told(request(), request(input_tokens=5))["total_tokens_per_s"] is None
    assert told(request(), request(input_tokens=5))["output_tokens_per_s"] is not None


def test_a_cut_window_counts_only_what_arrived_in_it():
    one = request(
        (500, 1500, 2500, 3500), output_tokens=8, chunk_tokens=2, input_tokens=7, end_ms=3500
    )
    two = request((1600, 1700), sent_ms=1200, input_tokens=9)
    found = told(one, two, window=Window("steady", 1.0, 3.0))
    assert found["output_tokens_per_s"] == pytest.approx((4 + 2) / 2)
    assert found["total_tokens_per_s"] == pytest.approx((4 + 2 + 9) / 2)
    assert found["requests_per_s"] == pytest.approx(0.5)
    assert found["ttft_s"].n == 1
    assert found["concurrency"] == pytest.approx({"mean": 1.25, "max": 2})
    assert found["window"]["name"] == "steady"


def test_tokens_that_the_last_count_adds_are_not_lost_from_throughput():
    found = told(request((0, 500, 1000), chunk_tokens=1, output_tokens=4))
    assert found["output_tokens_per_s"] == pytest.approx(4)


def test_the_peak_is_the_busiest_second():
    times = np.concatenate((np.arange(10) * 100, 5000 + np.arange(40) * 25, [10_000]))
    found = told(request(times))
    assert found["peak_output_tokens_per_s"] == 40
    assert found["output_tokens_per_s"] == pytest.approx(5.1)


def test_a_steady_stream_peaks_at_its_own_rate():
    t = np.arange(1000) * 10 * MS
    assert peak_rate(t, np.ones(1000), Window("stage", 0.0, 10.0)) == 100


@CALM
@given(
    st.lists(st.tuples(st.integers(0, 5 * S), st.floats(0, 9)), max_size=50),
    st.integers(1, 5 * S),
)
def test_the_peak_is_never_below_the_mean(arrivals, span):
    inside = [(t, w) for t, w in arrivals if t <= span]
    t, w = np.array([t for t, _ in inside], np.int64), np.array([w for _, w in inside])
    window = Window("stage", 0.0, span / 1e9)
    peak = peak_rate(t, w, window)
    assert peak is not None
    assert peak >= w.sum() / window.span_s


def test_merged_reads_are_a_share_of_all_chunks():
    assert told(request(merged_chunks=2), request((1,)))["merged_reads_ratio"] == 0.5


def test_a_user_whose_requests_follow_each_other_is_never_two():
    back_to_back = [request((t + 50, t + 100), sent_ms=t) for t in range(0, 1000, 100)]
    assert told(*back_to_back)["concurrency"] == pytest.approx({"mean": 1, "max": 1})


def test_a_request_without_an_end_is_in_flight_until_the_window_ends():
    lost = Record(request=1, stage=0, due_ns=0, sent_ns=500 * MS, outcome="cancelled")
    assert told(request((1000,)), lost)["concurrency"] == pytest.approx({"mean": 1.5, "max": 2})


@CALM
@given(
    st.integers(1, 8), st.integers(1, 12), st.integers(1, 200), st.randoms(use_true_random=False)
)
def test_littles_law_holds_in_a_closed_system(users, turns, longest, random):
    """Concurrency equals throughput times mean time in the system, once nobody is left inside."""
    made = []
    for _ in range(users):
        now = 0
        for _ in range(turns):
            first, last = random.randint(1, longest), random.randint(0, longest)
            made.append(request((now + first, now + first + last), sent_ms=now))
            now += first + last
    found = told(*made)
    law = found["requests_per_s"] * found["e2e_s"].mean
    assert found["concurrency"]["mean"] == pytest.approx(law)
    assert found["concurrency"]["max"] <= users


@CALM
@given(
    st.lists(
        st.tuples(
            st.integers(0, 1000),
            st.integers(0, 50),
            st.lists(st.integers(0, 90), min_size=1, max_size=9),
            st.none() | st.integers(0, 5),
            st.none() | st.integers(0, 50),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_times_in_order_never_give_a_negative_figure(asked):
    made = [
        request(
            np.cumsum([due + late, *gaps])[1:], due_ms=due, sent_ms=due + late,
            chunk_tokens=tokens, output_tokens=total,
        )
        for due, late, gaps, tokens, total in asked
    ]  # fmt: skip
    found = told(*made)
    for value in found.values():
        if hasattr(value, "min"):
            assert value.min >= 0
        elif isinstance(value, float):
            assert value >= 0
    if found["output_tokens_per_s"] is not None:
        assert found["peak_output_tokens_per_s"] >= found["output_tokens_per_s"]
    msgspec.json.decode(msgspec.json.encode(found))


@CALM
@given(st.lists(st.integers(1, 6), min_size=2, max_size=9), st.integers(1, 40))
def test_token_gaps_add_up_to_the_time_between_first_and_last_chunk(tokens, gap):
    times = gap * np.arange(len(tokens))
    data = columns([request(times, chunk_tokens=tokens, output_tokens=sum(tokens))])
    gaps = token_times.token_gaps(data)
    assert (gaps.seconds * gaps.weight).sum() == pytest.approx(times[-1] / 1e3)
    mean = np.average(gaps.seconds, weights=gaps.weight)
    assert token_times.per_request(data)["tpot_s"][0] == pytest.approx(mean)


def test_outcomes_name_what_occurred_and_always_the_completed():
    failed = request((), outcome="failed:http_429")
    data = columns([request(), failed, failed, never_sent()])
    assert outcomes(data) == {"completed": 1, "failed:http_429": 2, "cancelled": 1}
    assert outcomes(columns([])) == {"completed": 0}


def test_from_due_latencies_are_shown_only_where_they_differ():
    assert not from_due_differs(told(request(sent_ms=10, due_ms=9.5)))
    assert from_due_differs(told(request(sent_ms=10, due_ms=0)))
    assert not from_due_differs(told())


def test_generator_delay_leaves_out_connection_and_declared_waiting():
    late = request(sent_ms=30, due_ms=0, connect_ns=12 * MS, held_ns=15 * MS)
    assert token_times.generator_delay_s(columns([late, never_sent()])) == pytest.approx([0.003])


def test_goodput_counts_every_request_that_was_due():
    failed = request((), outcome="failed:stalled", end_ms=1000)
    found = told(
        request((100, 1000)), request((300, 1000)), failed, never_sent(),
        slo=parse_slo("slo", "ttft<200ms"),
    )  # fmt: skip
    assert found["goodput_ratio"] == 0.25
    assert found["goodput_requests_per_s"] == pytest.approx(1.0)


def test_goodput_in_a_cut_window_counts_what_was_due_in_it():
    made = [request((t + 100,), sent_ms=t) for t in range(0, 4000, 500)]
    slo, steady = parse_slo("slo", "ttft<200ms"), Window("steady", 1.0, 3.0)
    found = told(*made, slo=slo, window=steady)
    assert found["goodput_ratio"] == 1.0
    assert found["goodput_requests_per_s"] == 2.0


def test_goodput_of_a_stage_where_nothing_was_sent_is_none_of_it():
    found = told(never_sent(), slo=parse_slo("slo", "ttft<200ms"))
    assert found["goodput_ratio"] == 0.0
    assert found["goodput_requests_per_s"] is None


def test_figures_of_ten_times_as_many_requests_take_about_ten_times_as_long():
    one = request(100 + 10 * np.arange(128), chunk_tokens=2, output_tokens=256, input_tokens=10)
    took = []
    for count in (1000, 10_000):
        data = columns([one] * count)
        began = time.process_time()
        figures(data)
        took.append(time.process_time() - began)
    assert took[1] < 40 * took[0]
    assert metrics.stage_window(data) is not None
