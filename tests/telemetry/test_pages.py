"""Pages of engines and exporters, recorded or as their sources write them, in one vocabulary."""

from pathlib import Path

import pytest

from servescope.telemetry.names import KINDS, TABLES
from tests.telemetry.told import PAGE, last, pages

RECORDED = Path(__file__).parents[1] / "collect" / "pages"
VLLM = RECORDED.joinpath("vllm-0.32.txt").read_text()
SGLANG = RECORDED.joinpath("sglang-0.5.23.txt").read_text()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("running_requests", 0),
        ("waiting_requests", 0),
        ("kv_use_ratio", 0),
        ("kv_capacity_tokens", 2048),
        ("prompt_tokens", 1336),
        ("generated_tokens", 6008),
        ("preemptions", 18),
        ("prefix_query_tokens", 1336),
        ("prefix_hit_tokens", 0),
        ("steps", 1066),
    ],
)
def test_a_page_of_vllm_says_what_it_says(name, value):
    assert last(pages(VLLM), name) == value


def test_vllm_counts_what_it_finished_and_what_it_turned_away_by_reason():
    telemetry = pages(VLLM)
    assert last(telemetry, "requests_finished", reason="length") == 24
    assert last(telemetry, "requests_finished", reason="stop") == 0
    assert last(telemetry, "requests_failed", reason="max_num_queued_reqs") == 4


@pytest.mark.parametrize(
    ("name", "count", "mean"),
    [
        ("queue_s", 24, 14.652828668001803 / 24),
        ("prefill_s", 24, 0.33571296299851383 / 24),
        ("decode_s", 24, 32.59161853399928 / 24),
        ("ttft_s", 24, 15.486340522766113 / 24),
        ("itl_s", 5984, 32.59161853399928 / 5984),
        ("tpot_s", 24, 0.1244307256588749 / 24),
        ("e2e_s", 24, 48.06512188911438 / 24),
        ("step_tokens", 1066, 7344 / 1066),
    ],
)
def test_the_histograms_of_vllm_have_their_counts_and_means(name, count, mean):
    (found,) = pages("", VLLM).histograms(name)
    figures = found.over(0, 1)
    assert (figures.count, figures.mean) == (count, pytest.approx(mean))


def test_a_percentile_is_told_only_where_a_bucket_has_two_ends():
    telemetry = pages("", VLLM)
    (prefill,) = telemetry.histograms("prefill_s")
    figures = prefill.over(0, 1)
    # All took less than 0.3 s, the end of the lowest bucket: nobody knows how much less.
    assert (figures.count, figures.p50, figures.p99) == (24, None, None)
    (ttft,) = telemetry.histograms("ttft_s")
    figures = ttft.over(0, 1)
    assert 0.001 < figures.p50 < figures.p95 < figures.p99 < 2.5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("running_requests", 8),
        ("waiting_requests", 8),
        ("paused_requests", 0),
        ("kv_use_ratio", 0.103515625),
        ("kv_capacity_tokens", 16384),
        ("kv_used_tokens", 1696),
        ("prompt_tokens", 15 + 2383),
        ("generated_tokens", 12 + 2374),
        ("prefix_query_tokens", 2551 + 337),
        ("prefix_hit_tokens", 337),
        ("steps", 39 + 757),
        ("requests_finished", 3 + 77),
    ],
)
def test_a_page_of_sglang_says_what_it_says(name, value):
    assert last(pages(SGLANG), name) == value


@pytest.mark.parametrize(
    ("name", "count", "total"),
    [
        ("queue_s", 90, 0.05058295700564486),
        ("prefill_s", 90, 2.098842331996366),
        ("ttft_s", 88, 0.10706556998138694 + 2.6509336409972093),
        ("itl_s", 3785, 25.38595466798961),
        ("tpot_s", 80, 0.008585884369235179 + 0.44390524822590816),
        ("e2e_s", 80, 0.14649621399985335 + 15.916612246000113),
    ],
)
def test_the_histograms_of_sglang_are_added_up_over_streamed_and_whole_answers(name, count, total):
    (found,) = pages("", SGLANG).histograms(name)
    figures = found.over(0, 1)
    assert (figures.count, figures.mean) == (count, pytest.approx(total / count))


def test_the_engine_of_a_page_is_known_by_its_names():
    assert pages(VLLM).engine_of(PAGE) == "vllm"
    assert pages(SGLANG).engine_of(PAGE) == "sglang"
    assert pages("up_to_something 1").engine_of(PAGE) is None
    assert pages("up_to_something 1").sources == []


# --- one figure out of several series -------------------------------------------------------------


def test_the_engines_of_one_server_add_up_but_for_shares_which_are_averaged():
    telemetry = pages(
        """
        vllm:num_requests_running{engine="0",model_name="m"} 5
        vllm:num_requests_running{engine="1",model_name="m"} 2
        vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
        vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.1
        vllm:generation_tokens_total{engine="0",model_name="m"} 100
        vllm:generation_tokens_total{engine="1",model_name="m"} 11
        vllm:cache_config_info{block_size="16",num_gpu_blocks="10",engine="0"} 1
        vllm:cache_config_info{block_size="16",num_gpu_blocks="10",engine="1"} 1
        """
    )
    assert last(telemetry, "running_requests") == 7
    assert last(telemetry, "kv_use_ratio") == pytest.approx(0.3)
    assert last(telemetry, "generated_tokens") == 111
    assert last(telemetry, "kv_capacity_tokens") == 320
    (running,) = telemetry.named("running_requests")
    assert dict(running.labels) == {"model_name": "m"}


def test_the_ranks_of_one_engine_say_the_same_and_count_once():
    ranks = """
        sglang:num_running_reqs{tp_rank="0",pp_rank="0"} 8
        sglang:num_running_reqs{tp_rank="1",pp_rank="0"} 8
        sglang:num_running_reqs{tp_rank="10",pp_rank="0"} 8
        sglang:queue_time_seconds_count{tp_rank="0"} 4
        sglang:queue_time_seconds_sum{tp_rank="0"} 2
        sglang:queue_time_seconds_count{tp_rank="1"} 4
        sglang:queue_time_seconds_sum{tp_rank="1"} 2
        """
    telemetry = pages("", ranks)
    assert last(telemetry, "running_requests") == 8
    (queue,) = telemetry.histograms("queue_s")
    assert queue.over(0, 1).count == 4


def test_the_replicas_of_sglang_add_up_whatever_ranks_they_have():
    telemetry = pages(
        """
        sglang:num_running_reqs{dp_rank="0",tp_rank="0"} 8
        sglang:num_running_reqs{dp_rank="0",tp_rank="1"} 8
        sglang:num_running_reqs{dp_rank="1",tp_rank="2"} 3
        sglang:num_running_reqs{dp_rank="1",tp_rank="3"} 3
        """
    )
    assert last(telemetry, "running_requests") == 11


def test_where_a_page_has_an_old_and_a_new_name_only_the_new_one_counts():
    telemetry = pages(
        """
        vllm:gpu_cache_usage_perc 0.9
        vllm:kv_cache_usage_perc 0.25
        vllm:gpu_prefix_cache_queries_total 10
        vllm:prefix_cache_queries_total 10
        """
    )
    assert last(telemetry, "kv_use_ratio") == 0.25
    assert last(telemetry, "prefix_query_tokens") == 10


# --- names as the sources of other versions and engines have them ---------------------------------


def test_the_first_vllm_with_metrics_is_understood():
    telemetry = pages(
        """
        vllm:num_requests_running 3
        vllm:num_requests_swapped 2
        vllm:num_requests_waiting 1
        vllm:gpu_cache_usage_perc 0.75
        vllm:cpu_cache_usage_perc 0.5
        vllm:avg_prompt_throughput_toks_per_s 100
        vllm:avg_generation_throughput_toks_per_s 40
        """
    )
    names = ("running_requests", "paused_requests", "waiting_requests", "kv_use_ratio")
    assert [last(telemetry, name) for name in names] == [3, 2, 1, 0.75]
    assert last(telemetry, "prompt_tokens_per_s") == 100
    assert last(telemetry, "generated_tokens_per_s") == 40
    assert telemetry.named("generated_tokens") == []


def test_vllm_before_its_second_scheduler_and_after_is_understood():
    telemetry = pages(
        "",
        """
        vllm:gpu_cache_usage_perc{model_name="m"} 0.5
        vllm:gpu_prefix_cache_queries_total{model_name="m"} 100
        vllm:gpu_prefix_cache_hits_total{model_name="m"} 25
        vllm:cache_config_info{block_size="16",num_gpu_blocks="128"} 1
        vllm:time_in_queue_requests_bucket{le="0.5"} 3
        vllm:time_in_queue_requests_bucket{le="+Inf"} 4
        vllm:time_in_queue_requests_sum 2
        vllm:time_in_queue_requests_count 4
        vllm:time_per_output_token_seconds_sum 2
        vllm:time_per_output_token_seconds_count 100
        vllm:model_execute_time_milliseconds_bucket{le="10"} 1
        vllm:model_execute_time_milliseconds_bucket{le="20"} 4
        vllm:model_execute_time_milliseconds_bucket{le="+Inf"} 4
        vllm:model_execute_time_milliseconds_sum 60
        vllm:model_execute_time_milliseconds_count 4
        """,
    )
    assert last(telemetry, "kv_use_ratio") == 0.5
    assert last(telemetry, "kv_capacity_tokens") == 2048
    assert last(telemetry, "prefix_hit_tokens") == 25
    means = {n: telemetry.histograms(n)[0].over(0, 1).mean for n in ("queue_s", "itl_s", "step_s")}
    assert means == {"queue_s": 0.5, "itl_s": 0.02, "step_s": pytest.approx(0.015)}
    assert telemetry.histograms("step_s")[0].over(0, 1).p50 == pytest.approx(0.01 + 0.01 / 3)


def test_a_label_that_holds_a_number_makes_no_figure_infinite():
    for size in ("9" * 400, "9" * 4):
        text = f'vllm:cache_config_info{{num_gpu_blocks="9",block_size="{size}"}} 1'
        assert last(pages(text), "kv_capacity_tokens") == min(9.0 * float(size), 1e18)


def test_tgi_counts_tokens_in_its_histograms_and_reserves_what_it_calls_used():
    telemetry = pages(
        "",
        """
        tgi_batch_current_size 4
        tgi_queue_size 7
        tgi_batch_current_max_tokens 500
        tgi_batch_max_total_tokens 2000
        tgi_request_input_length_sum 900
        tgi_request_input_length_count 9
        tgi_request_generated_tokens_sum 450
        tgi_request_generated_tokens_count 9
        tgi_batch_inference_count{method="prefill"} 9
        tgi_batch_inference_count{method="decode"} 100
        tgi_request_success 9
        tgi_request_failure{err="overloaded"} 2
        tgi_request_failure{err="validation"} 1
        tgi_batch_inference_duration_bucket{method="decode",le="0.01"} 0
        tgi_batch_inference_duration_bucket{method="decode",le="0.02"} 100
        tgi_batch_inference_duration_bucket{method="decode",le="+Inf"} 100
        tgi_batch_inference_duration_sum{method="decode"} 1.5
        tgi_batch_inference_duration_count{method="decode"} 100
        tgi_batch_inference_duration_sum{method="prefill"} 1.8
        tgi_batch_inference_duration_count{method="prefill"} 9
        tgi_request_skipped_tokens{quantile="0.5"} 1
        """,
    )
    assert last(telemetry, "running_requests") == 4
    assert last(telemetry, "waiting_requests") == 7
    assert last(telemetry, "kv_use_ratio") == 0.25
    assert last(telemetry, "prompt_tokens") == 900
    assert last(telemetry, "generated_tokens") == 450
    assert last(telemetry, "steps") == 109
    assert last(telemetry, "requests_failed", reason="overloaded") == 2
    steps = {one.labels["phase"]: one.over(0, 1) for one in telemetry.histograms("step_s")}
    assert (steps["decode"].mean, steps["decode"].p50) == (0.015, pytest.approx(0.015))
    # Without buckets a histogram has a mean, and no percentiles.
    assert (steps["prefill"].mean, steps["prefill"].p50) == (0.2, None)


def test_llamacpp_counts_cached_prompt_tokens_apart_and_here_they_are_in_the_prompt():
    telemetry = pages(
        """
        llamacpp:prompt_tokens_total 70
        llamacpp:prompt_tokens_cached_total 30
        llamacpp:tokens_predicted_total 50
        llamacpp:requests_processing 8
        llamacpp:requests_deferred 24
        llamacpp:n_decode_total 12
        llamacpp:prompt_seconds_total 0.5
        llamacpp:tokens_predicted_seconds_total 2.5
        """
    )
    assert last(telemetry, "prompt_tokens") == 100
    assert last(telemetry, "prefix_hit_tokens") == 30
    assert last(telemetry, "running_requests") == 8
    assert last(telemetry, "waiting_requests") == 24
    assert last(telemetry, "steps") == 12
    assert last(telemetry, "prefill_requests_s") == 0.5
    assert last(telemetry, "decode_requests_s") == 2.5
    assert pages("llamacpp:prompt_tokens_total 70").named("prompt_tokens")[0].value[-1] == 70


def test_sglangs_timers_of_the_gpu_are_told_by_phase():
    telemetry = pages(
        """
        sglang:forward_execution_seconds_total{category="extend"} 1
        sglang:forward_execution_seconds_total{category="mixed"} 2
        sglang:forward_execution_seconds_total{category="decode"} 4
        """
    )
    assert last(telemetry, "prefill_busy_s") == 3
    assert last(telemetry, "decode_busy_s") == 4


DCGM = """
    DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-a",device="nvidia0",Hostname="h"} 93
    DCGM_FI_DEV_GPU_UTIL{gpu="1",UUID="GPU-b",device="nvidia1",Hostname="h"} 7
    DCGM_FI_DEV_FB_USED{gpu="0"} 1024
    DCGM_FI_DEV_FB_FREE{gpu="0"} 3072
    DCGM_FI_DEV_POWER_USAGE{gpu="0"} 612.5
    DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu="0"} 5000000
    DCGM_FI_DEV_GPU_TEMP{gpu="0"} 61
    DCGM_FI_DEV_SM_CLOCK{gpu="0"} 1980
    DCGM_FI_DEV_MEM_CLOCK{gpu="0"} 2619
    DCGM_FI_DEV_CLOCKS_EVENT_REASONS{gpu="0"} 5
    DCGM_FI_PROF_PCIE_TX_BYTES{gpu="0"} 1000
    """


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gpu_busy_ratio", 0.93),
        ("gpu_memory_used_bytes", 1 << 30),
        ("gpu_memory_bytes", 4 << 30),
        ("gpu_power_w", 612.5),
        ("gpu_energy_j", 5000),
        ("gpu_temperature_c", 61),
        ("gpu_sm_clock_hz", 1.98e9),
        ("gpu_memory_clock_hz", 2.619e9),
        ("gpu_pcie_sent_bytes_per_s", 1000),
    ],
)
def test_dcgm_exporters_page_is_told_in_our_units(name, value):
    assert last(pages(DCGM), name, gpu="0") == pytest.approx(value)


def test_dcgm_exporters_set_of_reasons_is_taken_apart_and_idle_is_none_of_them():
    flags = {one.labels["reason"]: one.value[-1] for one in pages(DCGM).named("gpu_throttled")}
    assert {reason for reason, flag in flags.items() if flag} == {"sw_power_cap"}
    assert len(flags) == 6


def test_a_gpu_that_passes_from_pod_to_pod_stays_one_gpu():
    telemetry = pages(
        'DCGM_FI_DEV_POWER_USAGE{gpu="0",pod="a"} 100',
        'DCGM_FI_DEV_POWER_USAGE{gpu="0",pod="b"} 300',
    )
    (power,) = telemetry.named("gpu_power_w")
    assert list(power.value) == [100, 300]


def test_node_exporters_page_is_told_in_our_names():
    telemetry = pages(
        """
        node_cpu_seconds_total{cpu="0",mode="idle"} 100
        node_cpu_seconds_total{cpu="0",mode="user"} 50
        node_cpu_seconds_total{cpu="0",mode="iowait"} 1
        node_cpu_seconds_total{cpu="1",mode="idle"} 200
        node_memory_MemTotal_bytes 1000
        node_memory_MemAvailable_bytes 400
        node_network_receive_bytes_total{device="eth0"} 0
        node_network_transmit_bytes_total{device="eth0"} 0
        """,
        """
        node_cpu_seconds_total{cpu="0",mode="idle"} 100.2
        node_cpu_seconds_total{cpu="0",mode="user"} 50.7
        node_cpu_seconds_total{cpu="0",mode="iowait"} 1.1
        node_cpu_seconds_total{cpu="1",mode="idle"} 201
        node_memory_MemTotal_bytes 1000
        node_memory_MemAvailable_bytes 300
        node_network_receive_bytes_total{device="eth0"} 2000
        node_network_transmit_bytes_total{device="eth0"} 70
        """,
    )
    assert last(telemetry, "cpu_busy_ratio", core="0") == pytest.approx(0.7)
    assert last(telemetry, "cpu_busy_ratio", core="1") == 0
    whole = [one for one in telemetry.named("cpu_busy_ratio") if "core" not in one.labels]
    assert [one.value[-1] for one in whole] == [pytest.approx(0.35)]
    assert last(telemetry, "memory_used_bytes") == 700
    (received,) = telemetry.named("network_received_bytes")
    assert (received.labels["nic"], received.rate().value[0]) == ("eth0", 2000)


def test_every_name_of_the_table_is_one_of_the_vocabulary_and_of_its_kind():
    for table in TABLES.values():
        for name, rules in table.items():
            assert {rule.kind for rule in rules} == {KINDS[name]}, name


def test_a_name_of_ours_on_a_page_of_somebody_else_means_nothing():
    assert pages("running_requests 5\nsteps 3").sources == []
