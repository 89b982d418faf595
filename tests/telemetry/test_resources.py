"""What a stage took of engine, GPUs and host, by known answers."""

import pytest

from servescope.telemetry import read
from servescope.telemetry.names import KINDS
from servescope.telemetry.resources import BY_COUNTER, BY_POWER, Work, resources
from tests.telemetry.told import page, pages, told

WORK = Work(requests=10, input_tokens=100, output_tokens=50)


def gpus(*readings, source="gpu"):
    """What GPUs told: of each second, values by name, a list of one a GPU."""
    rows = [
        None
        if values is None
        else {
            (name, (("gpu", str(k)),)): v
            for name, each in values.items()
            for k, v in enumerate(each)
        }
        for values in readings
    ]
    return read(told(list(enumerate(rows)), source))


def only(telemetry, start_s, end_s, work=WORK):
    (found,) = resources(telemetry, start_s, end_s, work)
    return found


# --- energy ---------------------------------------------------------------------------------------


def test_energy_is_the_difference_of_the_counters_of_all_gpus_over_the_window():
    telemetry = gpus(*({"gpu_energy_j": [100 * t, 1000 + 50 * t]} for t in range(11)))
    found = only(telemetry, 2.5, 7.5)
    assert found.figures["energy_j"] == pytest.approx(150 * 5)
    assert found.figures["energy_j_per_output_token"] == pytest.approx(750 / 50)
    assert found.figures["energy_j_per_token"] == pytest.approx(750 / 150)
    assert found.figures["energy_j_per_request"] == pytest.approx(75)
    assert found.how["energy"] == BY_COUNTER
    assert found.figures["gpus"] == 2


def test_a_counter_that_moves_more_seldom_than_it_is_read_is_told_between_its_moves():
    telemetry = gpus(*({"gpu_energy_j": [500 * (t // 5)]} for t in range(21)))
    assert only(telemetry, 7, 13).figures["energy_j"] == pytest.approx(600)
    # What it has not told yet is not taken for nothing.
    assert only(telemetry, 16, 20).figures["energy_j"] == pytest.approx(400)
    assert only(gpus(*({"gpu_energy_j": [7]} for _ in range(9))), 2, 6).figures["energy_j"] is None


def test_without_a_counter_energy_is_power_over_time():
    telemetry = gpus(*({"gpu_power_w": [300, 100]} for t in range(11)))
    found = only(telemetry, 2.5, 7.5)
    assert found.figures["energy_j"] == pytest.approx(400 * 5)
    assert found.how["energy"] == BY_POWER
    assert found.figures["gpu_power_w_mean"] == 400


def test_there_is_no_energy_where_the_gpus_were_not_read_through_the_window():
    telemetry = gpus(*({"gpu_energy_j": [100 * t]} for t in range(6)))
    found = only(telemetry, 0, 10)
    assert found.figures["energy_j"] is None
    assert found.figures["energy_j_per_request"] is None
    power = gpus(*({"gpu_power_w": [300]} if t < 6 else None for t in range(11)))
    assert only(power, 0, 10).figures["energy_j"] is None


def test_there_is_no_energy_a_token_where_not_all_tokens_were_counted():
    telemetry = gpus(*({"gpu_energy_j": [100 * t]} for t in range(6)))
    found = only(telemetry, 0, 5, Work(requests=5))
    assert found.figures["energy_j_per_output_token"] is None
    assert found.figures["energy_j_per_token"] is None
    assert found.figures["energy_j_per_request"] == 100


def test_gpus_of_this_machine_are_not_divided_by_the_tokens_of_another():
    elsewhere = Work(requests=10, input_tokens=100, output_tokens=50, here=False)
    rows = [{"gpu_energy_j": [100 * t]} for t in range(6)]
    own = only(gpus(*rows), 0, 5, elsewhere).figures
    assert {name for name in own if "energy" in name} == {"energy_j"}
    rows = [(t, page(f'DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{gpu="0"}} {t}e5')) for t in range(6)]
    served = only(read(told(rows)), 0, 5, elsewhere).figures
    assert served["energy_j_per_output_token"] == pytest.approx(500 / 50)


# --- GPUs -----------------------------------------------------------------------------------------


def test_gpus_are_averaged_where_busy_and_told_at_their_worst_where_that_limits():
    telemetry = gpus(
        *(
            {
                "gpu_busy_ratio": [1.0, 0.5],
                "gpu_memory_used_bytes": [10, 10 + t],
                "gpu_memory_bytes": [80, 80],
                "gpu_power_w": [300 + 10 * t, 100 - 10 * t],
                "gpu_sm_clock_hz": [2e9, 1e9 + t],
                "gpu_temperature_c": [50, 60 + t],
            }
            for t in range(5)
        )
    )
    figures = only(telemetry, 0, 4).figures
    assert figures["gpu_busy_ratio_mean"] == 0.75
    assert figures["gpu_memory_used_bytes_max"] == 14
    assert figures["gpu_memory_bytes"] == 80
    # Their sum is the same all the time, however each of them goes up and down.
    assert (figures["gpu_power_w_mean"], figures["gpu_power_w_max"]) == (400, 400)
    assert figures["gpu_sm_clock_hz_min"] == 1e9
    assert figures["gpu_temperature_c_max"] == 64


def test_throttling_is_a_share_of_time_in_all_and_by_reason():
    power, thermal = (("gpu", "0"), ("reason", "power")), (("gpu", "0"), ("reason", "thermal"))
    rows = [
        {("gpu_throttled", power): float(t < 2), ("gpu_throttled", thermal): float(t == 3)}
        for t in range(9)
    ]
    figures = only(read(told(list(enumerate(rows)), "gpu")), 0, 8).figures
    assert figures["gpu_throttled_ratio"] == pytest.approx(2.5 / 8)
    assert figures["gpu_throttled_power_ratio"] == pytest.approx(1.5 / 8)
    assert figures["gpu_throttled_thermal_ratio"] == pytest.approx(1 / 8)


# --- hosts ----------------------------------------------------------------------------------------


def test_of_a_host_the_busiest_core_and_the_busiest_interface_are_told():
    def nic(name):
        return (("nic", name),)

    rows = [
        {
            ("cpu_busy_ratio", ()): 0.5,
            ("cpu_busy_ratio", (("core", "0"),)): 0.1,
            ("cpu_busy_ratio", (("core", "1"),)): 0.9,
            ("memory_used_bytes", ()): 100 + t,
            ("network_received_bytes", nic("eth0")): 1000 * t,
            ("network_received_bytes", nic("docker0")): 900 * t,
            ("network_sent_bytes", nic("eth0")): 10 * t * t,
            ("process_cpu_s", (("role", "load"),)): 0.25 * t,
            ("process_memory_bytes", (("role", "load"),)): 7,
        }
        for t in range(5)
    ]
    found = only(read(told(list(enumerate(rows)), "host")), 0, 4)
    assert found.kind == "host"
    assert found.how == {"network": "eth0"}
    assert found.figures == {
        "cpu_busy_ratio_mean": 0.5,
        "cpu_busiest_core_ratio_mean": pytest.approx(0.9),
        "cpu_cores": 2,
        "memory_used_bytes_max": 104,
        "network_received_bytes_per_s_mean": pytest.approx(1000),
        "network_received_bytes_per_s_max": pytest.approx(1000),
        "network_sent_bytes_per_s_mean": pytest.approx(40),
        "network_sent_bytes_per_s_max": pytest.approx(70),
        "load_cpu_cores_mean": pytest.approx(0.25),
        "load_memory_bytes_max": 7,
    }


# --- engines --------------------------------------------------------------------------------------


def test_an_engine_without_histograms_of_its_steps_has_tokens_a_step_by_its_counters():
    text = """
        llamacpp:prompt_tokens_total {}
        llamacpp:prompt_tokens_cached_total {}
        llamacpp:tokens_predicted_total {}
        llamacpp:n_decode_total {}
        llamacpp:prompt_seconds_total {}
        llamacpp:requests_processing 4
        """
    found = only(pages(text.format(0, 0, 0, 0, 0), text.format(70, 30, 50, 12, 0.25)), 0, 1)
    assert (found.kind, found.engine) == ("engine", "llamacpp")
    assert found.figures["prompt_tokens"] == 100
    assert found.figures["generated_tokens_per_s"] == 50
    assert found.figures["prefix_hit_ratio"] == 0.3
    assert found.figures["step_tokens_mean"] == 10
    assert found.figures["prefill_s_mean"] == 0.025
    assert "kv_use_ratio_mean" not in found.figures
    assert "preemptions" not in found.figures


def test_engines_stand_before_gpus_and_gpus_before_hosts_and_others_do_not_stand_there():
    telemetry = read(
        told([(0, {("memory_bytes", ()): 1})], "host")
        + told([(0, {("gpu_power_w", (("gpu", "0"),)): 1})], "gpu")
        + told([(0, page("vllm:num_requests_running 1"))])
        + told([(0, {("loop_lag_s", ()): 1})], "loop")
    )
    assert [one.kind for one in resources(telemetry, 0, 1, WORK)] == ["engine", "gpu", "host"]


def test_a_window_that_nobody_read_has_no_figures_but_says_that_there_was_a_source():
    telemetry = gpus({"gpu_power_w": [300]}, {"gpu_power_w": [300]})
    figures = only(telemetry, 50, 60).figures
    assert figures["gpu_power_w_mean"] is None
    assert figures["energy_j"] is None


def test_a_page_of_absurdly_little_makes_no_figure_infinite():
    text = "vllm:prefix_cache_queries_total {}\nvllm:prefix_cache_hits_total {}"
    found = only(pages(text.format(0, 0), text.format("1e-320", 5)), 0, 1)
    assert found.figures["prefix_hit_ratio"] is None


@pytest.mark.parametrize("value", ["1e308", "-1e308", "1e19", "-5", "0"])
def test_whatever_numbers_a_page_has_there_are_figures_and_no_exception(value):
    names = (
        "vllm:num_requests_running",
        "vllm:generation_tokens_total",
        "vllm:num_preemptions_total",
    )
    names += ("vllm:time_to_first_token_seconds_sum", "vllm:time_to_first_token_seconds_count")
    names += (
        "vllm:cache_config_info",
        "DCGM_FI_DEV_CLOCKS_EVENT_REASONS",
        "DCGM_FI_DEV_POWER_USAGE",
    )
    names += ("node_memory_MemTotal_bytes", "node_cpu_seconds_total", "tgi_batch_max_total_tokens")
    names += ("tgi_batch_current_max_tokens", "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION")
    labels = '{engine="%s",gpu="0",mode="idle",le="x",num_gpu_blocks="9",block_size="-1"}'
    text = "\n".join(f"{name}{labels % k} {value}" for name in names for k in range(2))
    telemetry = pages(text, text, text.replace(value, "1"))
    assert len(resources(telemetry, 0, 2, WORK)) == 3
    for name in KINDS:
        for histogram in telemetry.histograms(name):
            assert histogram.over(0, 2) is not None
