"""What engines and exporters call the quantities of the common vocabulary: one table.

Of the rules of one table for one common name, the first that a page has a value for is taken, so
that older names stand below newer ones. The names of one rule add up. Labels that the rule names
keep series apart; over all others they are joined: added up over the engines of a server, averaged
where they are shares, and taken once of the ranks of one engine, which all say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["gauge", "counter", "histogram"]
Labels = Mapping[str, str]
About = Literal["engine", "gpu", "host"]

RANKS = ("tp_rank", "pp_rank", "moe_ep_rank", "pid")
"""Labels of processes that are one engine together, and of which each counts the whole."""

VOCABULARY: dict[About, dict[Kind, str]] = {
    "engine": {
        "gauge": """running_requests waiting_requests paused_requests kv_use_ratio
            kv_capacity_tokens kv_used_tokens prompt_tokens_per_s generated_tokens_per_s""",
        "counter": """prompt_tokens generated_tokens preemptions prefix_query_tokens
            prefix_hit_tokens steps requests_finished requests_failed prefill_busy_s
            decode_busy_s prefill_requests_s decode_requests_s""",
        "histogram": """queue_s prefill_s decode_s ttft_s itl_s tpot_s e2e_s step_s step_tokens
            batch_requests""",
    },
    "gpu": {
        "gauge": """gpu_busy_ratio gpu_memory_used_bytes gpu_memory_bytes gpu_power_w
            gpu_power_limit_w gpu_temperature_c gpu_sm_clock_hz gpu_memory_clock_hz
            gpu_pcie_sent_bytes_per_s gpu_pcie_received_bytes_per_s gpu_throttled""",
        "counter": "gpu_energy_j gpu_nvlink_sent_bytes gpu_nvlink_received_bytes",
    },
    "host": {
        "gauge": """cpu_busy_ratio memory_used_bytes memory_available_bytes memory_bytes
            process_memory_bytes""",
        "counter": """disk_read_bytes disk_written_bytes network_received_bytes network_sent_bytes
            process_cpu_s""",
    },
}
"""The common names. Our own collectors and the simulator write them themselves."""

KINDS: dict[str, Kind] = {
    name: kind
    for kinds in VOCABULARY.values()
    for kind, names in kinds.items()
    for name in names.split()
}
ABOUT: dict[str, About] = {
    name: about
    for about, kinds in VOCABULARY.items()
    for names in kinds.values()
    for name in names.split()
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How a common name is made of a page's own."""

    raw: tuple[str, ...]
    """Names on the page, a histogram's without `_bucket`, `_sum` and `_count`."""
    kind: Kind
    scale: float = 1.0
    """From the page's unit to ours."""
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Values that labels must have."""
    apart: Mapping[str, str] = field(default_factory=dict)
    """Labels that keep series apart, and their common names."""
    value: Callable[[Labels], float | None] | None = None
    """Reads the value from the labels, where the page has it there."""
    bits: Mapping[str, int] = field(default_factory=dict)
    """The value is a set of flags: `reason` and its bit. Each becomes a series, 0 or 1."""


def _gauge(*raw: str) -> Rule:
    return Rule(raw=raw, kind="gauge")


def _counter(*raw: str, **labels: str) -> Rule:
    return Rule(raw=raw, kind="counter", apart=_turned(labels))


def _histogram(raw: str, scale: float = 1.0, **labels: str) -> Rule:
    return Rule(raw=(raw,), kind="histogram", scale=scale, apart=_turned(labels))


def _turned(labels: Mapping[str, str]) -> dict[str, str]:
    """`reason="err"`, as the table says it, is our name first; a page is read the other way."""
    return {theirs: ours for ours, theirs in labels.items()}


def _gpu(
    *raw: str,
    kind: Kind = "gauge",
    scale: float = 1.0,
    bits: Mapping[str, int] | None = None,
) -> Rule:
    return Rule(raw=raw, kind=kind, scale=scale, apart={"gpu": "gpu"}, bits=bits or {})


def _vllm_capacity(labels: Labels) -> float | None:
    """The KV cache's tokens, out of labels; older versions give blocks and their size."""
    tokens = labels.get("kv_cache_size_tokens", "")
    blocks, size = labels.get("num_gpu_blocks", ""), labels.get("block_size", "")
    if tokens.isdecimal():
        return float(tokens)
    return float(blocks) * float(size) if blocks.isdecimal() and size.isdecimal() else None


_MODES = "sglang:realtime_tokens_total"
_CACHED = ("prefill_cache",)

THROTTLES = {
    "sw_power_cap": 0x04,
    "hw_slowdown": 0x08,
    "sync_boost": 0x10,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake_slowdown": 0x80,
}
"""NVIDIA's reasons to slow a GPU down, and their bits. That it is idle, or set to a fixed clock, is
no throttling."""

_MIB, _MHZ = float(1 << 20), 1e6

TABLES: dict[str, dict[str, tuple[Rule, ...]]] = {
    "vllm": {
        "running_requests": (_gauge("vllm:num_requests_running"),),
        "waiting_requests": (_gauge("vllm:num_requests_waiting"),),
        "paused_requests": (_gauge("vllm:num_requests_swapped"),),
        "kv_use_ratio": (_gauge("vllm:kv_cache_usage_perc"), _gauge("vllm:gpu_cache_usage_perc")),
        "kv_capacity_tokens": (
            Rule(raw=("vllm:cache_config_info",), kind="gauge", value=_vllm_capacity),
        ),
        "prompt_tokens": (_counter("vllm:prompt_tokens_total"),),
        "generated_tokens": (_counter("vllm:generation_tokens_total"),),
        # Before 0.3 there were only averages over the last five seconds.
        "prompt_tokens_per_s": (_gauge("vllm:avg_prompt_throughput_toks_per_s"),),
        "generated_tokens_per_s": (_gauge("vllm:avg_generation_throughput_toks_per_s"),),
        "preemptions": (_counter("vllm:num_preemptions_total"),),
        "prefix_query_tokens": (
            _counter("vllm:prefix_cache_queries_total"),
            _counter("vllm:gpu_prefix_cache_queries_total"),
            _counter("vllm:gpu_prefix_cache_queries"),
        ),
        "prefix_hit_tokens": (
            _counter("vllm:prefix_cache_hits_total"),
            _counter("vllm:gpu_prefix_cache_hits_total"),
            _counter("vllm:gpu_prefix_cache_hits"),
        ),
        "steps": (_counter("vllm:iteration_tokens_total_count"),),
        "requests_finished": (_counter("vllm:request_success_total", reason="finished_reason"),),
        "requests_failed": (_counter("vllm:admission_rejections_total", reason="reason"),),
        "queue_s": (
            _histogram("vllm:request_queue_time_seconds"),
            _histogram("vllm:time_in_queue_requests"),
        ),
        "prefill_s": (_histogram("vllm:request_prefill_time_seconds"),),
        "decode_s": (_histogram("vllm:request_decode_time_seconds"),),
        "ttft_s": (_histogram("vllm:time_to_first_token_seconds"),),
        # The second name was for one value a token, whatever it says.
        "itl_s": (
            _histogram("vllm:inter_token_latency_seconds"),
            _histogram("vllm:time_per_output_token_seconds"),
        ),
        "tpot_s": (_histogram("vllm:request_time_per_output_token_seconds"),),
        "e2e_s": (_histogram("vllm:e2e_request_latency_seconds"),),
        "step_s": (
            _histogram("vllm:model_execute_time_milliseconds", 1e-3),
            _histogram("vllm:model_forward_time_milliseconds", 1e-3),
        ),
        "step_tokens": (_histogram("vllm:iteration_tokens_total"),),
    },
    "sglang": {
        "running_requests": (_gauge("sglang:num_running_reqs"),),
        "waiting_requests": (_gauge("sglang:num_queue_reqs", "sglang:num_grammar_queue_reqs"),),
        "paused_requests": (_gauge("sglang:num_retracted_reqs"),),
        # The second is rounded to a hundredth.
        "kv_use_ratio": (_gauge("sglang:full_token_usage"), _gauge("sglang:token_usage")),
        "kv_capacity_tokens": (_gauge("sglang:max_total_num_tokens"),),
        "kv_used_tokens": (_gauge("sglang:kv_used_tokens"), _gauge("sglang:num_used_tokens")),
        "prompt_tokens": (_counter("sglang:prompt_tokens_total"),),
        "generated_tokens": (_counter("sglang:generation_tokens_total"),),
        "preemptions": (_counter("sglang:num_retracted_requests_total"),),
        "prefix_query_tokens": (
            Rule(raw=(_MODES,), kind="counter", only={"mode": ("prefill_compute", *_CACHED)}),
        ),
        "prefix_hit_tokens": (
            Rule(raw=(_MODES,), kind="counter", only={"mode": _CACHED}),
            _counter("sglang:cached_tokens_total"),
        ),
        "steps": (_counter("sglang:cuda_graph_passes_total"),),
        "requests_finished": (_counter("sglang:num_requests_total"),),
        "requests_failed": (_counter("sglang:num_aborted_requests_total"),),
        "prefill_busy_s": (
            Rule(
                raw=("sglang:forward_execution_seconds_total",),
                kind="counter",
                only={"category": ("extend", "mixed")},
            ),
        ),
        "decode_busy_s": (
            Rule(
                raw=("sglang:forward_execution_seconds_total",),
                kind="counter",
                only={"category": ("decode",)},
            ),
        ),
        "queue_s": (_histogram("sglang:queue_time_seconds"),),
        "prefill_s": (
            Rule(
                raw=("sglang:per_stage_req_latency_seconds",),
                kind="histogram",
                only={"stage": ("prefill_forward",)},
            ),
        ),
        "ttft_s": (_histogram("sglang:time_to_first_token_seconds"),),
        "itl_s": (_histogram("sglang:inter_token_latency_seconds"),),
        "tpot_s": (_histogram("sglang:request_time_per_output_token_seconds"),),
        "e2e_s": (_histogram("sglang:e2e_request_latency_seconds"),),
    },
    "tgi": {
        "running_requests": (_gauge("tgi_batch_current_size"),),
        "waiting_requests": (_gauge("tgi_queue_size"),),
        # Reserved, which is more than used: TGI sets aside all that a request may come to.
        "kv_used_tokens": (_gauge("tgi_batch_current_max_tokens"),),
        "kv_capacity_tokens": (_gauge("tgi_batch_max_total_tokens"),),
        "prompt_tokens": (_counter("tgi_request_input_length_sum"),),
        "generated_tokens": (_counter("tgi_request_generated_tokens_sum"),),
        "steps": (_counter("tgi_batch_inference_count"),),
        "requests_finished": (_counter("tgi_request_success"),),
        "requests_failed": (_counter("tgi_request_failure", reason="err"),),
        "queue_s": (_histogram("tgi_request_queue_duration"),),
        "tpot_s": (_histogram("tgi_request_mean_time_per_token_duration"),),
        "e2e_s": (_histogram("tgi_request_duration"),),
        "step_s": (_histogram("tgi_batch_inference_duration", phase="method"),),
        "batch_requests": (_histogram("tgi_batch_next_size"),),
    },
    "lightllm": {
        "running_requests": (_gauge("lightllm_batch_current_size"),),
        "waiting_requests": (_gauge("lightllm_queue_size"),),
        "paused_requests": (_gauge("lightllm_batch_pause_size"),),
        "kv_used_tokens": (_gauge("lightllm_batch_current_max_tokens"),),
        "prompt_tokens": (_counter("lightllm_request_input_length_sum"),),
        "generated_tokens": (_counter("lightllm_request_generated_tokens_sum"),),
        "prefix_query_tokens": (_counter("lightllm_request_input_length_sum"),),
        "prefix_hit_tokens": (_counter("lightllm_cache_length_sum"),),
        "requests_finished": (
            _counter("lightllm_request_success_total"),
            _counter("lightllm_request_success"),
        ),
        "requests_failed": (
            _counter("lightllm_request_failure_total"),
            _counter("lightllm_request_failure"),
        ),
        "ttft_s": (_histogram("lightllm_request_first_token_duration"),),
        "tpot_s": (_histogram("lightllm_request_mean_time_per_token_duration"),),
        "e2e_s": (_histogram("lightllm_request_inference_duration"),),
    },
    "llamacpp": {
        "running_requests": (_gauge("llamacpp:requests_processing"),),
        "waiting_requests": (_gauge("llamacpp:requests_deferred"),),
        "kv_use_ratio": (_gauge("llamacpp:kv_cache_usage_ratio"),),  # until 2025
        "kv_used_tokens": (_gauge("llamacpp:kv_cache_tokens"),),
        # Those from its cache are counted apart; other engines count them with the prompt.
        "prompt_tokens": (
            _counter("llamacpp:prompt_tokens_total", "llamacpp:prompt_tokens_cached_total"),
        ),
        "generated_tokens": (_counter("llamacpp:tokens_predicted_total"),),
        "prefix_query_tokens": (
            _counter("llamacpp:prompt_tokens_total", "llamacpp:prompt_tokens_cached_total"),
        ),
        "prefix_hit_tokens": (_counter("llamacpp:prompt_tokens_cached_total"),),
        "steps": (_counter("llamacpp:n_decode_total"),),
        # Not how long it was busy: the times of requests that it worked on together add up.
        "prefill_requests_s": (_counter("llamacpp:prompt_seconds_total"),),
        "decode_requests_s": (_counter("llamacpp:tokens_predicted_seconds_total"),),
    },
    "dcgm": {
        "gpu_busy_ratio": (_gpu("DCGM_FI_DEV_GPU_UTIL", scale=0.01),),
        "gpu_memory_used_bytes": (_gpu("DCGM_FI_DEV_FB_USED", scale=_MIB),),
        "gpu_memory_bytes": (
            _gpu("DCGM_FI_DEV_FB_TOTAL", scale=_MIB),
            _gpu(*(f"DCGM_FI_DEV_FB_{part}" for part in ("USED", "FREE", "RESERVED")), scale=_MIB),
        ),
        "gpu_power_w": (_gpu("DCGM_FI_DEV_POWER_USAGE"),),
        "gpu_power_limit_w": (_gpu("DCGM_FI_DEV_POWER_MGMT_LIMIT"),),
        "gpu_temperature_c": (_gpu("DCGM_FI_DEV_GPU_TEMP"),),
        "gpu_sm_clock_hz": (_gpu("DCGM_FI_DEV_SM_CLOCK", scale=_MHZ),),
        "gpu_memory_clock_hz": (_gpu("DCGM_FI_DEV_MEM_CLOCK", scale=_MHZ),),
        # Rates, although some lists of fields call them counters.
        "gpu_pcie_sent_bytes_per_s": (_gpu("DCGM_FI_PROF_PCIE_TX_BYTES"),),
        "gpu_pcie_received_bytes_per_s": (_gpu("DCGM_FI_PROF_PCIE_RX_BYTES"),),
        "gpu_throttled": (
            _gpu("DCGM_FI_DEV_CLOCKS_EVENT_REASONS", bits=THROTTLES),
            _gpu("DCGM_FI_DEV_CLOCK_THROTTLE_REASONS", bits=THROTTLES),
        ),
        "gpu_energy_j": (_gpu("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", kind="counter", scale=1e-3),),
    },
    "node": {
        "memory_bytes": (_gauge("node_memory_MemTotal_bytes"),),
        "memory_available_bytes": (_gauge("node_memory_MemAvailable_bytes"),),
        "disk_read_bytes": (_counter("node_disk_read_bytes_total"),),
        "disk_written_bytes": (_counter("node_disk_written_bytes_total"),),
        "network_received_bytes": (_counter("node_network_receive_bytes_total", nic="device"),),
        "network_sent_bytes": (_counter("node_network_transmit_bytes_total", nic="device"),),
    },
}
"""By whose page it is, the rules of each common name; the best first."""

ENGINES = ("vllm", "sglang", "tgi", "lightllm", "llamacpp")
"""Tables of engines; the others are of exporters."""

IDLE = Rule(
    raw=("node_cpu_seconds_total",),
    kind="counter",
    only={"mode": ("idle", "iowait")},
    apart={"cpu": "core"},
)
"""Of what node_exporter's `cpu_busy_ratio` is the rest."""
