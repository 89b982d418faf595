"""What is planned agrees with known answers, and moves the right way."""

import re

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servescope import catalog, lengths
from servescope.conduct import conduct
from servescope.engine.config import EngineConfig
from servescope.engine.deployment import deploy, hardware
from servescope.engine.replay import replay
from servescope.errors import BadInput
from servescope.experiment import Trial
from servescope.plan import fleet as fleet_module
from servescope.plan.answers import Question, answer
from servescope.plan.cost import cost
from servescope.plan.error_bars import error_bar
from servescope.plan.fleet import Traffic, fleet
from servescope.plan.memory import memory, would_fit
from servescope.plan.rate import highest_rate
from servescope.plan.shares import shares
from servescope.plan.size import choose
from servescope.plan.workload import Workload, at_rate, for_long, saturated, statistic, with_users
from servescope.report.plan import plan, told_apart
from tests.plan.asked import LLAMA, SMALL, bounds, with_, workload

# --- memory ---------------------------------------------------------------------------------------


def test_internlm_20b_on_eight_a100_of_40_gb_holds_111_contexts_of_2048_tokens_in_theory():
    config = EngineConfig(model="internlm-20b", gpu="a100-sxm-40gb", tp=8)
    assert memory(config, 2048).theoretical_sequences == 111


def test_13b_in_16_bits_fits_an_a800_and_not_a_4090():
    assert memory(LLAMA, 2048).fits
    on_4090 = memory(with_(LLAMA, gpu="rtx-4090"), 2048)
    assert not on_4090.fits
    assert "nothing is left for the KV cache" in on_4090.why_not


def test_weights_and_kv_cache_of_13b_are_what_arithmetic_says():
    held = memory(LLAMA, 2048)
    assert held.weight_bytes == pytest.approx(26.03e9, rel=0.001)
    assert held.kv_bytes_per_token == 2 * 40 * 5120 * 2
    assert held.sequences == held.kv_tokens // 2048


@given(st.floats(0.35, 0.99), st.floats(0.0, 0.01), st.sampled_from([1, 2, 4, 8]))
@settings(max_examples=30, deadline=None)
def test_more_memory_never_holds_fewer_sequences(share, more, tp):
    less = memory(with_(LLAMA, memory_utilization=share, tp=tp), 1024)
    most = memory(with_(LLAMA, memory_utilization=share + more, tp=tp), 1024)
    assert most.sequences >= less.sequences
    assert most.fits >= less.fits


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({"model": "llama-3.1-70b", "gpu": "rtx-4090"}, (1, 2)),
        ({"model": "llama-3.1-405b", "gpu": "h100-sxm-80gb"}, (1, 2, 4, 8)),
    ],
)
def test_where_a_model_does_not_fit_what_is_suggested_does(settings, sizes):
    config = EngineConfig(**settings)
    told = would_fit(config, sizes)
    suggested = re.findall(r"(?:(in|on) (\S+) )?with tp=(\d+)", told)
    assert suggested
    for kind, name, size in suggested:
        named = {"in": {"dtype": name}, "on": {"gpu": name}, "": {}}[kind]
        assert memory(with_(config, tp=int(size), **named), 2048).fits
        if int(size) > 1 and kind:
            assert not memory(with_(config, tp=int(size) // 2, **named), 2048).fits
    found = answer(Question(config=config, workload=workload(), sizes=sizes))
    assert found.choice.tp is None
    assert told in plan(found)


def test_a_size_too_small_for_the_tokens_that_are_asked_for_is_passed_over():
    config = with_(EngineConfig(model="llama-3.1-8b", gpu="a100-sxm-80gb"), kv_tokens=600_000)
    found = answer(Question(config=config, workload=workload(), sizes=(1, 2)))
    assert [one.memory.fits for one in found.choice.sizes] == [False, True]
    assert found.choice.tp == 2
    assert found.utilization == []  # it has so many tokens, whatever the share


# --- rates ----------------------------------------------------------------------------------------


def test_a_looser_slo_never_allows_a_lower_rate():
    limits = (60, 90, 120, 200, 400, 1000, 3000)
    rates = [
        highest_rate(SMALL, workload(), bounds(f"ttft_p99<{limit}ms"), seeds=1).requests_per_s
        for limit in limits
    ]
    assert rates == sorted(rates)
    assert rates[0] < rates[-1]


def test_the_rate_that_is_found_meets_the_slo_and_a_tenth_more_does_not():
    wanted = bounds("ttft_p99<200ms,tpot_p95<20ms")
    found = highest_rate(SMALL, workload(), wanted, seeds=1)
    deployment = deploy(SMALL)
    assert at_rate(deployment, workload(), found.requests_per_s, 3000).missed(wanted) is None
    assert at_rate(deployment, workload(), 1.1 * found.requests_per_s, 3000).missed(wanted)
    assert found.curve[-1].missed or found.limited_by == "saturation"


def test_the_answer_has_a_row_of_its_own_and_reads_unlike_the_rate_that_misses():
    wanted = bounds("ttft_p99<300ms,tpot_p95<12ms")
    question = Question(config=SMALL, workload=workload(), bounds=wanted)
    found = answer(question)
    *_, met, missed = found.rate.curve
    assert (met.requests_per_s, met.missed) == (found.rate.requests_per_s, None)
    assert missed.missed
    told = plan(found).split("How many requests/s within the SLO?\n")[1].splitlines()
    (row,) = (line for line in told if line.endswith("the answer"))
    first = [line.split()[0] for line in told[2 : 2 + len(found.rate.curve)]]
    assert len(set(first)) == len(first)
    assert told[0].split()[0] == row.split()[0]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([14.16, 14.23, 9.8], ["14.16", "14.23", "9.80"]),
        ([0.3, 0.1 + 0.2, 12.0], ["0.300", "0.300", "12.0"]),
        ([1234.2, 1235.4, 12.0], ["1,234", "1,235", "12.0"]),
    ],
)
def test_rates_have_three_digits_or_as_many_as_tell_them_apart(values, told):
    assert told_apart(values) == told


def test_a_queue_near_saturation_is_simulated_for_long_however_few_the_seats():
    deployment = deploy(with_(SMALL, max_num_seqs=8))
    full_per_s = saturated(deployment.declared, workload()).requests_per_s
    found = for_long(deployment, workload(), 0.98 * full_per_s, full_per_s)
    settled = at_rate(deployment, workload(), 0.98 * full_per_s, 20_000)
    assert statistic(found.ttft_s, "p99") > 0.7 * statistic(settled.ttft_s, "p99")


def test_an_slo_that_a_request_alone_misses_allows_no_rate():
    found = highest_rate(SMALL, workload(), bounds("ttft_p99<1ms"), seeds=1)
    assert found.requests_per_s == 0
    assert found.limited_by == "ttft_p99<1ms"


def test_a_bound_on_single_tokens_is_refused():
    with pytest.raises(BadInput, match="times of single tokens"):
        highest_rate(SMALL, workload(), bounds("itl_p99<50ms"))


def test_one_user_gets_what_the_costs_say():
    # 8 ms + 256 x 85 us + 20 us + 256 x 90 ns, and the way; then 63 steps.
    alone = with_users(deploy(SMALL), workload(), 1, requests=100)
    assert alone.ttft_s.mean() == pytest.approx(8e-3 + 256 * 85e-6 + 20e-6 + 256 * 90e-9 + 8e-4)
    assert alone.tpot_s.mean() == pytest.approx(8e-3 + 20e-6 + (256 + 32) * 90e-9)


LLAMA_8B = EngineConfig(model="llama-3.1-8b", gpu="h100-sxm-80gb")
TINY = with_(LLAMA_8B, model="smollm2-135m")
"""Its API server is slower than the GPU."""
LENGTHS = {"input_tokens": "uniform:64-512", "output_tokens": "uniform:16-128"}


def simulated(config, tmp_path, load, requests):
    """Records of `servescope run` in virtual time, without what `plan` leaves out as a warm-up."""
    trial = Trial(
        target=str(config), load=[load], requests=requests, seed=3, out=str(tmp_path), **LENGTHS
    )
    records = sorted(conduct(trial).records(), key=lambda record: record.request)
    sent, first = (
        np.array([getattr(record, name) / 1e9 for record in records])
        for name in ("sent_ns", "first_output_ns")
    )
    return records, sent, first - sent


def test_a_run_in_virtual_time_has_the_ttft_that_is_planned(tmp_path):
    records, sent_s, ttft_s = simulated(LLAMA_8B, tmp_path, "poisson:30", 300)
    deployment = deploy(LLAMA_8B)
    replayed = replay(
        deployment.engines(),
        [record.input_tokens for record in records],
        [record.output_tokens for record in records],
        arrivals_s=sent_s,
        front_end=deployment.front_end,
    )
    planned_s = replayed.first_s - replayed.sent_s
    assert np.median(planned_s) == pytest.approx(np.median(ttft_s), rel=1e-6)
    assert planned_s == pytest.approx(ttft_s, rel=1e-5)


def test_one_user_in_virtual_time_waits_as_long_as_is_planned(tmp_path):
    wanted = Workload(*(lengths.parse("", text) for text in LENGTHS.values()), seed=3)
    alone = with_users(deploy(LLAMA_8B), wanted, 1, requests=50)
    _, _, ttft_s = simulated(LLAMA_8B, tmp_path, "users:1", 50)
    assert statistic(alone.ttft_s, "p50") == pytest.approx(np.median(ttft_s[5:]), rel=1e-6)
    assert min(ttft_s) > 2e-3


def test_a_front_end_that_is_faster_than_the_engine_delays_and_takes_no_throughput():
    gpu, software = hardware(LLAMA_8B)
    none = msgspec.structs.replace(software, request_s=0.0, token_s=0.0)
    free, held = (
        at_rate(deploy(LLAMA_8B, (gpu, one)), workload(), 15.0, 2000) for one in (none, software)
    )
    assert 2e-3 < held.ttft_s.mean() - free.ttft_s.mean() < 4e-3
    assert held.replayed.makespan_s == pytest.approx(free.replayed.makespan_s, rel=0.01)
    # 2 ms a request and 20 us for each of its 64 tokens.
    assert held.replayed.front_end_s == pytest.approx(2000 * 3.28e-3)


def test_a_full_replica_answers_no_more_than_its_front_end_can():
    _, software = hardware(TINY)
    full = saturated(TINY, workload("64", "16"))
    most = 1 / (software.request_s + 16 * software.token_s)
    assert 0.95 * most < full.requests_per_s < 1.002 * most


# --- sizes, fleets, costs -------------------------------------------------------------------------


def test_memory_decides_the_size_before_speed():
    sizes = choose(with_(LLAMA, gpu="rtx-4090", dtype="int8"), [1, 2], workload("512", "256"))
    small, large = sizes.sizes
    assert small.batch < large.batch / 3
    assert sizes.tp == 2
    assert "the KV cache holds only" in sizes.reasons[0]


def test_a_small_model_on_a_large_gpu_needs_no_tensor_parallelism():
    found = choose(with_(LLAMA, model="qwen2-7b", gpu="a100-sxm-80gb"), [1, 2, 4], workload())
    assert found.tp == 1
    assert found.sizes[2].alone_tpot_s < found.sizes[0].alone_tpot_s


def test_a_size_whose_gpus_cannot_win_is_not_searched_and_said_to_serve_at_most_so_much():
    question = Question(
        config=LLAMA, workload=workload(), sizes=(2, 8), bounds=bounds("ttft_p99<2s")
    )
    found = answer(question)
    won, lost = found.choice.sizes
    assert found.choice.tp == 2
    assert won.rate.requests_per_s > 0
    assert lost.rate is None
    assert won.per_gpu > lost.per_gpu == lost.requests_per_s / 8
    assert f"serves within the SLO at most {lost.per_gpu / won.per_gpu:.2f} times" in plan(found)
    assert "  <= " in plan(found)


def test_where_the_api_server_limits_a_replica_the_size_advice_says_so():
    small = choose(TINY, [1, 3], workload("64", "16"))
    large = choose(LLAMA, [1, 2], workload())
    assert any("the API server's process limits it" in reason for reason in small.reasons)
    assert not any("API server" in reason for reason in large.reasons)


def test_an_a100_serves_long_tasks_two_to_three_times_as_fast_as_a_4090():
    # LLMPerf's finding with SGLang and Qwen2-7B; its lengths are not published.
    served = [
        saturated(
            EngineConfig(engine="sglang", model="qwen2-7b", gpu=gpu),
            workload("512", "256"),
        ).requests_per_s
        for gpu in ("rtx-4090", "a100-sxm-80gb")
    ]
    assert 2 < served[1] / served[0] < 3


def test_a_fleet_is_the_smallest_that_meets_the_slo():
    wanted = bounds("ttft_p99<300ms")
    found = fleet(SMALL, workload(), Traffic(rate=60.0), wanted)
    assert found.found.missed is None
    assert found.one_fewer.missed
    assert found.gpus == found.replicas
    assert found.cautious_replicas >= found.replicas


def test_the_error_bar_never_allows_fewer_replicas(monkeypatch):
    traffic = Traffic(rate=60.0)

    def by_chance(search, _each_per_s):
        return 3 if search._traffic == traffic else 1

    monkeypatch.setattr(fleet_module._Search, "fewest", by_chance)
    found = fleet(SMALL, workload(), traffic, ())
    assert (found.replicas, found.cautious_replicas) == (3, 3)


def test_one_replica_fewer_answers_no_more_than_it_can():
    full_per_s = saturated(SMALL, workload()).requests_per_s
    found = fleet(SMALL, workload(), Traffic(rate=1.3 * full_per_s), bounds("ttft_p99<300ms"))
    assert found.replicas == 2
    assert found.found.requests_per_s == pytest.approx(1.3 * full_per_s)
    assert found.one_fewer.requests_per_s == pytest.approx(full_per_s)
    tokens_per_s = 64 * full_per_s
    assert found.one_fewer.output_tokens_per_s == pytest.approx(tokens_per_s, rel=0.01)


def test_twice_the_users_never_need_fewer_replicas():
    wanted = bounds("ttft_p95<300ms,tpot_p95<12ms")
    counts = [
        fleet(SMALL, workload(), Traffic(users=users), wanted).replicas for users in (8, 16, 32, 64)
    ]
    assert counts == sorted(counts)


def test_cost_is_price_over_tokens():
    found = cost(3.6, 2, 800.0, 200.0, at="full")
    assert found.per_million_tokens == pytest.approx(2.0)
    assert found.per_million_output_tokens == pytest.approx(10.0)


@given(st.floats(0.01, 100), st.floats(1.1, 10))
def test_cost_scales_with_the_price(price, times):
    one, more = (cost(p, 4, 500.0, 100.0, at="") for p in (price, price * times))
    assert more.per_million_tokens == pytest.approx(times * one.per_million_tokens)


# --- all together ---------------------------------------------------------------------------------


def test_error_bars_grow_where_less_is_known():
    def p90(**settings):
        return error_bar(with_(LLAMA, **settings), "throughput").p90

    assert p90() == p90(tp=4)
    assert p90(tp=8) > p90(tp=4)
    assert p90(dtype="int4") > p90()
    assert p90(gpu="l40s", tp=2) > p90(gpu="l40s")
    assert p90(model="qwen3-30b-a3b") > p90()


def test_more_memory_utilisation_gives_more_throughput():
    question = Question(config=LLAMA, workload=workload(), sizes=(1,))
    served = [one.output_tokens_per_s for one in answer(question).utilization]
    assert served[0] is None  # the weights take 0.3
    assert served[1] < served[2]


def test_the_same_question_has_the_same_answer():
    question = Question(config=LLAMA, workload=workload(), sizes=(1,), bounds=bounds("ttft_p99<2s"))
    assert msgspec.json.encode(answer(question)) == msgspec.json.encode(answer(question))


def test_what_can_never_be_served_is_refused():
    with pytest.raises(BadInput, match="want shorter ones"):
        saturated(SMALL, workload("30000", "10"))


def test_an_slo_that_nobody_can_meet_is_said_and_no_fleet_is_searched():
    question = Question(
        config=LLAMA,
        workload=workload(),
        sizes=(1,),
        bounds=bounds("tpot_p95<1ms"),
        traffic=Traffic(rate=5.0),
    )
    found = answer(question)
    assert found.rate.requests_per_s == 0
    assert found.fleet is None
    assert "even one request at a time misses tpot_p95<1ms" in plan(found)


@pytest.mark.parametrize("engine", sorted(catalog.names()["engines"]))
def test_every_engine_of_the_catalogue_is_planned_with(engine):
    found = shares(with_(LLAMA, engine=engine), workload())
    assert found.output_tokens_per_s > 0
    assert sum(found.resources.values()) == pytest.approx(1, abs=1e-3)


def test_requests_that_are_too_long_are_told_of():
    question = Question(
        config=EngineConfig(model="qwen2-7b", gpu="rtx-4090", max_model_len=1024),
        workload=workload("uniform:512-1536", "1"),
        sizes=(1,),
    )
    found = answer(question)
    assert found.refused == pytest.approx(0.5, abs=0.05)
    assert "longer than what it can serve (at most 1,024 tokens)" in plan(found)


def test_prompts_longer_than_an_engine_takes_are_not_counted_as_a_full_queue():
    config = with_(LLAMA, engine="vllm-0.1")
    found = at_rate(deploy(config), workload("uniform:1-3200"), 1.0, 500)
    assert found.refused == 0
    assert 300 < len(found.ttft_s) < 400  # without the warm-up and a fifth
    with pytest.raises(BadInput, match=r"want shorter ones: .* limit is 2560"):
        saturated(config, workload("3000"))
