"""Readings over time: what is held, what is left open, and what they come to over a window."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from servescope.records import Sample
from servescope.telemetry import read
from servescope.telemetry.series import Histogram, Series
from tests.telemetry.told import PAGE, last, pages, told

RUNNING = ("running_requests", ())
TOKENS = ("generated_tokens", ())
TIMES = st.lists(st.integers(0, 10**6), min_size=2, max_size=30, unique=True).map(sorted)


def gauge(*points, failed=()):
    t_s, value = zip(*points, strict=True)
    failed_s = np.array(failed, float)
    return Series("running_requests", "engine", {}, "gauge", np.array(t_s, float),
                  np.array(value, float), failed_s)  # fmt: skip


def counter(*points):
    """A counter, read as a source would tell it."""
    readings = [(t_s, {TOKENS: value}) for t_s, value in points]
    (found,) = read(told(readings, "engine")).named("generated_tokens")
    return found


# --- what is held and what is not -----------------------------------------------------------------


def test_a_value_that_is_not_written_again_holds_at_every_reading():
    readings = [(0, {RUNNING: 3}), (1, {RUNNING: 3}), (2, {RUNNING: 3}), (3, {RUNNING: 5})]
    samples = told(readings, "engine")
    assert sum(one.name == "running_requests" for one in samples) == 2
    (found,) = read(samples).named("running_requests")
    assert (list(found.t_s), list(found.value)) == ([0, 1, 2, 3], [3, 3, 3, 5])


def test_a_reading_that_failed_leaves_a_gap_and_does_not_end_what_is_held():
    readings = [(0, {RUNNING: 3}), (1, None), (2, {RUNNING: 3}), (3, {RUNNING: 4})]
    (found,) = read(told(readings, "engine")).named("running_requests")
    assert (list(found.t_s), list(found.value)) == ([0, 2, 3], [3, 3, 4])
    assert list(found.failed_s) == [1]


def test_a_gauge_that_comes_later_is_not_there_before_but_a_counter_was_at_nothing():
    samples = told([(0, {}), (1, {RUNNING: 2, TOKENS: 7})], "engine")
    (running,) = read(samples).named("running_requests")
    (tokens,) = read(samples).named("generated_tokens")
    assert (list(running.t_s), list(running.value)) == ([1], [2])
    assert (list(tokens.t_s), list(tokens.value)) == ([0, 1], [0, 7])


def test_a_run_without_up_has_a_reading_whenever_anything_was_sampled():
    samples = [
        Sample(t_ns=k * 10**9, source="engine", name=name, value=value)
        for k, values in enumerate([(1, 0), (1, 5)])
        for name, value in zip(("running_requests", "generated_tokens"), values, strict=True)
    ]
    (found,) = read(samples).named("running_requests")
    assert list(found.t_s) == [0, 1]


@given(TIMES, st.data())
def test_writing_only_what_changed_tells_the_same_as_writing_everything(times, data):
    values = data.draw(st.lists(st.integers(0, 3), min_size=len(times), max_size=len(times)))
    readings = [(t, {RUNNING: v}) for t, v in zip(times, values, strict=True)]
    (found,) = read(told(readings, "engine")).named("running_requests")
    assert list(found.value) == values
    assert list(found.t_s) == times


def test_the_sources_of_a_name_are_told_apart():
    samples = told([(0, {RUNNING: 3})], "engine") + told(
        [(0, {("llamacpp:requests_processing", ()): 8})], PAGE
    )
    found = read(samples).named("running_requests")
    assert {one.source: one.value[0] for one in found} == {"engine": 3, PAGE: 8}


# --- gauges over a window -------------------------------------------------------------------------


def test_the_mean_of_a_gauge_is_weighted_by_time():
    # 1 stands from 0 to 0.5 s, 3 until 2.5 s, 5 until the end.
    found = gauge((0, 1), (1, 3), (4, 5))
    assert found.mean(0, 4) == pytest.approx((0.5 * 1 + 2 * 3 + 1.5 * 5) / 4)
    assert (found.max(0, 4), found.min(0, 4)) == (5, 1)


def test_the_time_of_failed_readings_is_nobodys():
    whole = gauge((0, 0), (1, 0), (2, 0), (3, 0), (8, 9), (9, 9))
    gap = gauge((0, 0), (1, 0), (2, 0), (3, 0), (8, 9), (9, 9), failed=(4, 5, 6, 7))
    assert whole.mean(0, 9) == pytest.approx(3.5)
    assert gap.mean(0, 9) == pytest.approx(9 * 1.5 / 5)
    assert gap.coverage(0, 9) == pytest.approx(5 / 9)


def test_there_is_no_mean_where_most_readings_failed_and_none_outside_the_readings():
    assert gauge((0, 1), (9, 1), failed=range(1, 9)).mean(0, 9) is None
    found = gauge((0, 1), (1, 1), (2, 1))
    assert found.mean(5, 6) is None
    assert found.max(5, 6) is None
    assert found.mean(0, 100) is None
    assert found.mean(0, 2.5) == 1


@given(st.lists(st.tuples(st.integers(0, 1000), st.floats(-1e6, 1e6)), min_size=1, max_size=30,
                unique_by=lambda point: point[0]).map(sorted),
       st.integers(0, 1000), st.integers(0, 1000))  # fmt: skip
def test_a_mean_lies_between_the_least_and_the_most(points, start, end):
    found, (start, end) = gauge(*points), sorted((start, end))
    mean = found.mean(start, end)
    if mean is not None:
        least, most = found.min(start, end), found.max(start, end)
        assert least - 1e-6 <= mean <= most + 1e-6


# --- counters -------------------------------------------------------------------------------------


def test_an_increase_spans_the_readings_around_the_window():
    found = counter((0, 10), (1, 10), (2, 40), (3, 70), (4, 70))
    assert found.increase(1.2, 2.9) == 60
    assert found.increase(1, 3) == 60
    assert found.increase(2, 3) == 30


def test_an_increase_wants_a_reading_on_either_side_or_next_to_nothing_is_missed():
    found = counter((0, 10), (1, 20), (2, 40))
    assert found.increase(-0.01, 2) == 30
    assert found.increase(0, 2.01) == 30
    assert found.increase(-1, 2) is None
    assert found.increase(0, 3) is None
    assert counter((0, 10)).increase(0, 1) is None


def test_a_counter_that_began_anew_goes_on_where_it_was():
    found = counter((0, 90), (1, 100), (2, 5), (3, 25))
    assert list(found.value) == [90, 100, 105, 125]
    assert found.increase(0, 3) == 35


@given(st.lists(st.lists(st.integers(0, 1000), min_size=1, max_size=10), min_size=1, max_size=5))
def test_what_is_counted_over_restarts_is_what_was_added_and_seen(lives):
    """Each life of a server counts from nothing; what it adds before its first reading is seen."""
    points, t = [], 0
    for life in lives:
        total = 0
        for added in life:
            total += added
            points.append((t, total))
            t += 1
    values = [value for _, value in points]
    seen = sum(b - a if b >= a else b for a, b in pairwise(values))
    found = counter(*points)
    assert found.value[-1] - found.value[0] == seen
    assert (np.diff(found.value) >= 0).all()


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=30), TIMES)
def test_rates_times_their_spans_are_the_increase(added, times):
    times = times[: len(added)]
    values = np.cumsum(added[: len(times)])
    found = counter(*zip(times, values.tolist(), strict=True))
    rate = found.rate()
    assert rate.kind == "gauge"
    at_s, total = found.t_s[0], 0.0
    for middle_s, value in zip(rate.t_s, rate.value, strict=True):
        span_s = 2 * (middle_s - at_s)
        at_s, total = at_s + span_s, total + value * span_s
    assert at_s == pytest.approx(found.t_s[-1])
    assert total == pytest.approx(values[-1] - values[0])
    assert (rate.value >= 0).all()


def test_a_reading_close_to_another_makes_no_spike_of_what_is_counted_in_lumps():
    # An answer's 128 tokens are counted when it ends: at a look out of rhythm, or at the end.
    found = counter((0, 0), (1, 128), (2, 256), (2.04, 384), (3.04, 512), (4, 640), (4.037, 768))
    assert found.max(0, 4.037) < 3 * 128
    assert found.increase(0, 4.037) == 768
    assert found.increase(2, 2.04) == 128
    assert float(found.rate().t_s[-1]) == pytest.approx((3.04 + 4.037) / 2)


@pytest.mark.parametrize("last_s", [0.01, 1])
def test_two_readings_are_a_rate_however_close(last_s):
    assert counter((0, 0), (last_s, 5)).rate().value == pytest.approx([5 / last_s])


def test_the_mean_and_the_most_of_a_counter_are_those_of_its_rate():
    found = counter((0, 0), (1, 10), (2, 40), (3, 50))
    assert found.mean(0, 3) == pytest.approx(50 / 3)
    assert found.max(0, 3) == 30


def test_series_that_restart_at_different_times_are_mended_before_they_are_added():
    text = """
        vllm:generation_tokens_total{{engine="0"}} {}
        vllm:generation_tokens_total{{engine="1"}} {}
        """
    telemetry = pages(text.format(10, 100), text.format(3, 150), text.format(5, 20))
    assert list(telemetry.named("generated_tokens")[0].value) == [110, 163, 185]
    assert last(telemetry, "generated_tokens") == 185


def test_counters_of_a_page_that_servers_answer_in_turn_are_not_told():
    text = "vllm:generation_tokens_total {}\nvllm:num_requests_running {}\n"
    ours = [text.format(tokens, 1) for tokens in (500, 10, 600, 20, 700)]
    telemetry = pages(*ours)
    assert telemetry.mixed(PAGE)
    assert telemetry.named("generated_tokens") == []
    assert last(telemetry, "running_requests") == 1
    # A server that starts anew cannot be read meanwhile.
    restarted = pages(ours[0], None, ours[1], ours[2], None, ours[3])
    assert not restarted.mixed(PAGE)
    assert last(restarted, "generated_tokens") == 500 + 10 + 590 + 20


# --- histograms -----------------------------------------------------------------------------------


def histogram(bounds, *values):
    """One that had nothing at 0 s and these values at 1 s."""
    below = np.array([[0] * len(bounds), [sum(v <= b for v in values) for b in bounds]], float)
    count = np.array([0.0, len(values)])
    total = np.array([0.0, sum(values)])
    return Histogram("ttft_s", "engine", {}, np.array([0.0, 1.0]), np.array(bounds, float), below,
                     count, total)  # fmt: skip


def test_a_percentile_is_read_off_inside_its_bucket():
    found = histogram([1, 2, 4], 0.5, 1.5, 3, 3).over(0, 1)
    assert (found.count, found.mean, found.rate_per_s) == (4, 2, 4)
    assert found.p50 == 2
    assert found.p95 == pytest.approx(2 + 2 * (3.8 - 2) / 2)


def test_a_percentile_in_the_lowest_or_the_highest_bucket_is_not_told():
    found = histogram([1, 2], 0.1, 0.2, 0.3, 9).over(0, 1)
    assert (found.p50, found.p95, found.p99) == (None, None, None)
    assert histogram([0, 1], 0, 0, 0).over(0, 1).p50 == 0


def test_a_window_in_which_nothing_was_counted_has_no_mean():
    found = histogram([1, 2]).over(0, 1)
    assert (found.count, found.mean, found.p50) == (0, None, None)
    assert histogram([1, 2], 1.5).over(5, 6) is None


@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=200))
def test_a_percentile_lies_in_the_bucket_of_the_true_one(values):
    bounds = [0.0001, *(0.001 * 1.5**k for k in range(30)), 200]
    found = histogram(bounds, *values).over(0, 1)
    for q, told_value in ((50, found.p50), (95, found.p95), (99, found.p99)):
        true = np.percentile(values, q, method="inverted_cdf")
        k = int(np.searchsorted(bounds, true))
        slack = 1e-9 * bounds[k]
        assert bounds[k - 1] - slack <= told_value <= bounds[k] + slack


def test_a_histogram_that_began_anew_counts_all_that_it_shows():
    text = """
        vllm:time_to_first_token_seconds_bucket{{le="0.1"}} {}
        vllm:time_to_first_token_seconds_bucket{{le="1"}} {}
        vllm:time_to_first_token_seconds_bucket{{le="+Inf"}} {}
        vllm:time_to_first_token_seconds_sum {}
        vllm:time_to_first_token_seconds_count {}
        """
    telemetry = pages(text.format(8, 10, 10, 1.5, 10), text.format(0, 9, 9, 4.5, 9))
    figures = telemetry.histograms("ttft_s")[0].over(0, 1)
    assert (figures.count, figures.mean) == (9, 0.5)
    assert figures.p50 == pytest.approx(0.55)
