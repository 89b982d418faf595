"""Each doubt is planted and found, and is silent where there is no reason for it."""

from __future__ import annotations

import numpy as np
import pytest

from servescope.doubts import StageFacts
from servescope.doubts.generator import generator
from servescope.records import Sample, columns
from tests.support.planted import CLOSED, MS, OPEN, loop, raised, request, steady, unsent


def test_a_clean_open_stage_raises_no_doubt():
    assert raised(steady(), samples=[loop("cpu_ratio", 0.5), loop("lag_p99_s", 0.001)]) == {}


def test_a_clean_closed_stage_raises_no_doubt():
    assert raised(steady(), CLOSED) == {}


def test_what_touches_all_figures_comes_before_what_touches_one_percentile():
    lost = [request(i, chunks=0, outcome="failed:http_5xx") for i in range(20, 1220)]
    found = raised([*steady(20), *lost], CLOSED)
    assert list(found) == ["errors", "too_few"]
    assert "98.4 % of 1,220 requests did not complete: 1,200 failed" in found["errors"].message


def stamped(kernel, *, turns=900, worker="0"):
    return [loop("kernel_clock", kernel, worker=worker), loop("turns", turns, worker=worker)]


def test_the_times_are_of_the_kernels_clock_if_every_process_that_read_something_had_its_stamps():
    data = columns(steady(2))

    def clock(*samples):
        return generator(data, [one for some in samples for one in some]).clock

    assert clock(stamped(1), stamped(1, worker="1")) == "kernel"
    assert clock(stamped(1), stamped(0, worker="1")) == "user"
    assert clock(stamped(1), stamped(0, turns=0, worker="1")) == "kernel"
    assert clock(stamped(0, turns=0)) is None
    assert clock() is None


def test_a_wall_clock_that_was_set_is_doubted_where_the_kernels_stamps_are_used():
    found = raised(steady(), samples=[*stamped(1), loop("clock_steps", 2)])["clock"]
    assert found.value == 2
    assert "2 times" in found.message
    assert "itl_s" in found.advice
    assert raised(steady(), samples=[*stamped(0), loop("clock_steps", 2)]) == {}


def test_times_without_the_kernels_stamps_are_doubted_only_where_the_loop_lagged():
    def with_lag(kernel, low):
        lag = [loop("lag_p99_s", 0.003), loop("lag_p99_low_s", low)]
        return raised(steady(), samples=[*stamped(kernel), *lag])

    assert "3.00 ms (P99)" in with_lag(0, 0.002)["clock"].message
    assert with_lag(0, 0.0005) == {}
    assert with_lag(1, 0.002) == {}


def test_nodes_whose_clocks_are_too_far_apart_to_compare_are_doubted():
    def unsure(node, s):
        labels = {"stage": "0", "node": node}
        return Sample(t_ns=0, source="clock", name="uncertainty_s", value=s, labels=labels)

    two = [unsure("a", 0.0001), unsure("b", 0.0002), unsure("b", 0.0009)]
    assert raised(steady(), samples=two) == {}
    found = raised(steady(), samples=[*two, unsure("c", 0.004)])["clock"]
    assert (found.value, found.limit) == (pytest.approx(0.0049), pytest.approx(0.001))
    assert "lateness_s" in found.advice
    slow = StageFacts(label="constant:1", open=True, rate=1.0, planned=400)
    assert "clock" not in raised(steady(), slow, [*two, unsure("c", 0.004)])
    assert raised(steady(), samples=[unsure("a", 0.004)]) == {}


def merged(share, *samples):
    shared = [request(i, merged_chunks=1) for i in range(int(400 * 4 * share))]
    return raised([*shared, *steady()[len(shared) :]], samples=samples)


def test_chunks_that_shared_a_read_are_doubted_above_one_in_a_hundred():
    assert merged(0.01) == {}
    found = merged(0.05)["merged_reads"]
    assert found.value == pytest.approx(0.05)
    assert "5.00 %" in found.message


def test_who_merged_chunks_is_told_by_how_late_the_loop_was():
    ours = merged(0.05, loop("behind_ratio", 0.06), loop("lag_p99_s", 0.004))
    assert "--workers" in ours["merged_reads"].advice
    theirs = merged(0.05, loop("behind_ratio", 0.001), loop("lag_p99_s", 0.0002))
    assert "the server, or a proxy before it, sends" in theirs["merged_reads"].advice
    assert "not known" in merged(0.05)["merged_reads"].advice


@pytest.mark.parametrize("stage", [OPEN, CLOSED])
def test_a_latency_that_drifts_under_a_constant_load_is_doubted(stage):
    growing = [request(i, ttft_ms=50 + i) for i in range(400)]
    found = raised(growing, stage)["not_stationary"]
    assert found.value == pytest.approx((30 + 50 + 299.5) / (30 + 50 + 99.5) - 1)
    assert "+111 %" in found.message


def test_advice_on_a_drift_depends_on_its_direction_and_on_the_load():
    growing = [request(i, ttft_ms=50 + i) for i in range(400)]
    shrinking = [request(i, ttft_ms=450 - i) for i in range(400)]
    capped = StageFacts(label="constant:100", open=True, rate=100.0, max_concurrency=8)
    advice = {
        raised(growing, OPEN)["not_stationary"].advice,
        raised(growing, capped)["not_stationary"].advice,
        raised(growing, CLOSED)["not_stationary"].advice,
        raised(shrinking, OPEN)["not_stationary"].advice,
    }
    assert len(advice) == 4
    many = StageFacts(label="users:330", open=False, users=330)
    first = raised(growing, many)["not_stationary"].advice
    assert first.startswith("these are 1.21 rounds of 330 users, who all began at one instant")
    assert "1,320 requests" in first
    assert "--warmup" in raised(shrinking, CLOSED)["not_stationary"].advice


def test_a_load_that_was_meant_to_vary_may_drift():
    ramp = StageFacts(label="ramp:1-100", open=True, planned=400)
    assert "not_stationary" not in raised([request(i, ttft_ms=50 + i) for i in range(400)], ramp)


def test_a_small_drift_or_a_short_stage_is_no_reason():
    assert "not_stationary" not in raised([request(i, ttft_ms=50 + i // 40) for i in range(400)])
    assert "not_stationary" not in raised([request(i, ttft_ms=50 + 20 * i) for i in range(19)])


def test_answers_of_random_length_do_not_look_like_a_drift():
    rng = np.random.default_rng(3)
    stages = [
        [request(i, chunks=1 + int(c)) for i, c in enumerate(rng.exponential(60, size=40))]
        for _ in range(60)
    ]
    assert sum("not_stationary" in raised(stage, CLOSED) for stage in stages) <= 3


def test_a_drift_is_judged_in_the_order_of_sending_and_over_answers_alone():
    growing = [request(i, ttft_ms=50 + i) for i in range(400)]
    assert "not_stationary" in raised(growing[::-1])
    alternating = [request(i, ttft_ms=50 + 300 * (i % 2)) for i in range(400)]
    by_speed = sorted(alternating, key=lambda r: r.chunk_ns[0] - r.sent_ns)
    assert "not_stationary" not in raised(by_speed)


def test_too_few_requests_for_a_percentile_are_doubted_with_how_many_it_wants():
    found = raised(steady(100), CLOSED)["too_few"]
    assert (found.value, found.limit) == (100, 368)
    assert "of P99 (P99 wants 368)" in found.message
    assert "P95 wants 72" in raised(steady(50), CLOSED)["too_few"].message
    assert "P50, P90, P95, P99" in raised(steady(1), CLOSED)["too_few"].message
    assert "too_few" not in raised(steady(368), CLOSED)


def test_only_answers_count_as_enough():
    failed = steady(300, outcome="failed:stalled")
    assert raised([*steady(300), *failed], CLOSED)["too_few"].value == 300


def test_a_stage_without_any_request_says_so():
    assert raised([], CLOSED)["too_few"].value == 0
    assert raised([], OPEN)["not_offered"].value == 1


def test_more_than_one_error_in_a_hundred_is_doubted_with_the_top_outcomes():
    failed = [request(i, chunks=0, outcome="failed:http_5xx") for i in range(396, 400)]
    assert "errors" not in raised([*steady(396), *failed])
    slow = request(400, outcome="failed:timeout_total")
    found = raised([*steady(395), *failed, slow])["errors"]
    assert found.value == pytest.approx(5 / 400)
    assert "1.25 % of 400" in found.message
    assert "4 failed:http_5xx, 1 failed:timeout_total" in found.message


def test_truncated_answers_are_no_errors():
    assert "errors" not in raised(steady(outcome="truncated"))


def test_what_the_end_of_the_run_cut_off_is_missing_unless_the_user_interrupted():
    cut = [request(i, outcome="cancelled") for i in range(380, 400)]
    found = raised([*steady(380), *cut])["errors"]
    assert "20 cancelled" in found.message
    assert "run longer" in found.advice
    stopped = StageFacts(
        label="constant:100", open=True, rate=100.0, planned=10**6, interrupted=True
    )
    assert raised([*steady(380), *cut], stopped) == {}


@pytest.mark.parametrize(
    ("cause", "word"),
    [("timeout_first_token", "timed out"), ("http_429", "rate limit"), ("protocol", "survivors")],
)
def test_advice_on_errors_depends_on_what_happened(cause, word):
    assert word in raised(steady(outcome=f"failed:{cause}"))["errors"].advice


def test_a_pinned_length_that_was_missed_is_doubted_with_share_and_size():
    cut = steady(100, pinned=True, asked_output_tokens=6, outcome="truncated")
    kept = steady(300, pinned=True, asked_output_tokens=4)
    found = raised([*kept, *cut])["lengths_missed"]
    assert found.value == 0.25
    assert "25.0 %" in found.message
    assert "-2.0 output tokens" in found.message
    assert "lengths_missed" not in raised(kept, CLOSED)


def test_a_length_that_was_not_pinned_or_not_counted_by_the_server_is_no_miss():
    assert "lengths_missed" not in raised(steady(asked_output_tokens=6))
    local = {"count_source": "tokenizer", "pinned": True, "asked_output_tokens": 6}
    assert "lengths_missed" not in raised(steady(**local))
    assert "lengths_missed" in raised(steady(outcome="truncated", **local))


def test_prompts_of_another_length_than_asked_are_doubted():
    found = raised(steady(asked_input_tokens=100, input_tokens=103))["lengths_missed"]
    assert found.value == pytest.approx(0.03)
    assert "103.0 input tokens" in found.message
    assert raised(steady(asked_input_tokens=100, input_tokens=101)) == {}
    assert raised(steady(asked_input_tokens=100)) == {}
    assert raised(steady(input_tokens=100)) == {}


def test_chunks_of_several_tokens_are_doubted_whether_counted_or_not():
    assert raised(steady(tokens=4))["chunked"].value == 4
    found = raised(steady(tokens=None, output_tokens=16))["chunked"]
    assert found.value == 4
    assert "estimate" in found.advice
    assert "estimate" not in raised(steady(tokens=4))["chunked"].advice


def test_an_end_token_without_text_does_not_make_an_answer_chunked():
    assert raised(steady(tokens=None, output_tokens=5)) == {}
    assert "chunked" in raised(steady(tokens=None, output_tokens=6))


def test_an_answer_that_came_whole_is_chunked():
    assert raised(steady(chunks=1, tokens=None, output_tokens=128))["chunked"].value == 128


def test_tokens_counted_here_are_doubted():
    local = [request(i, count_source="tokenizer") for i in range(100)]
    assert raised([*steady(300), *local])["counted_locally"].value == 0.25
    failed = [request(i, count_source=None, outcome="failed:tls") for i in range(3)]
    assert "counted_locally" not in raised([*steady(397), *failed])


def test_requests_that_were_due_and_never_sent_are_doubted_in_an_open_load():
    found = raised([*steady(390), *(unsent(i) for i in range(390, 400))])
    assert found["not_offered"].value == pytest.approx(10 / 400)
    assert "10 of 400 requests of constant:100" in found["not_offered"].message
    assert "errors" not in found


def test_a_connection_that_failed_was_not_offered():
    assert "not_offered" in raised([*steady(399), unsent(399, "failed:connect")])


def test_requests_that_left_no_record_were_not_offered():
    assert raised(steady(380))["not_offered"].value == pytest.approx(20 / 400)


def test_a_closed_load_offers_what_it_offers():
    assert "not_offered" not in raised([*steady(390), unsent(390)], CLOSED)


def test_an_interrupted_load_need_not_offer_the_rest():
    stopped = StageFacts(label="constant:100", open=True, rate=100.0, planned=999, interrupted=True)
    assert raised([*steady(390), unsent(390)], stopped) == {}
    assert "not_offered" in raised([*steady(390), unsent(390, "failed:connect")], stopped)


def test_a_rate_below_the_declared_one_is_doubted_and_the_cap_named():
    slow = [request(i, sent_ns=i * 12 * MS, held_ns=i * 2 * MS) for i in range(400)]
    found = raised(slow)["not_offered"]
    assert found.value == pytest.approx(10 / 12)
    assert "83.3 requests/s" in found.message
    assert "open files" in found.advice
    capped = StageFacts(label="constant:100", open=True, rate=100.0, max_concurrency=8)
    assert "cap of 8" in raised(slow, capped)["not_offered"].advice


def test_a_random_schedule_is_not_blamed_for_its_luck():
    """Due over 4 s where the rate says 2 s: the load was sent just as it was due."""
    twice = StageFacts(label="poisson:200", open=True, rate=200.0, planned=400)
    assert raised(steady(), twice) == {}


def test_a_burst_has_no_rate_to_fall_short_of():
    burst = StageFacts(label="burst", open=True, planned=400)
    made = [request(i, late_ms=0.1) for i in range(400)]
    assert "not_offered" not in raised(made, burst)
