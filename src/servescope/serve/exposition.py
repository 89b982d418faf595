"""The /metrics page of each engine: its own names, labels and buckets for the same quantities."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from servescope.engine.deployment import Deployment
from servescope.serve.metrics import Bounds, Family, Histogram, Labels, Requests, Tally, page
from servescope.serve.realtime import RealTime

_TENTHS = (0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400)
_VLLM_REQUEST = (
    *(0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60),
    *(120, 240, 480, 960, 1920, 7680),
)
_VLLM_TOKEN = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80),
)
_VLLM_TTFT = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
_SGLANG_ITL = (
    *(0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035),
    *(0.04, 0.06, 0.08, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8),
)
_SGLANG_QUEUE = (
    *(0, 0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 3, 4, 5, 10, 15, 20, 30, 40, 50),
    *(60, 70, 80, 90, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000),
    *(1200, 1400, 1600, 1800, 2000, 2500, 3000),
)


def _powers(first: float) -> tuple[float, ...]:
    return tuple(first * 1.5**n for n in range(35))


def _lengths(most: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50 ... up to `most`."""
    return tuple(k * 10**n for n in range(12) for k in (1, 2, 5) if k * 10**n <= most)


@dataclass(slots=True)
class State:
    """What there is to tell of a server."""

    config: Deployment
    realtime: RealTime
    tally: Tally

    @property
    def running(self) -> int:
        """Requests in the batch; those that end with the step that is being computed too."""
        return max(self.realtime.sequences, self.realtime.engine.running)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self.realtime.engine.waiting

    @property
    def kv_used_ratio(self) -> float:
        """Share of the KV cache that is in use."""
        return self.realtime.engine.kv_used_ratio

    @property
    def kv_tokens(self) -> float:
        """Tokens for which the KV cache is in use."""
        return self.kv_used_ratio * self.config.kv_tokens

    @property
    def pool_tokens(self) -> int:
        """Tokens that the KV cache has room for, in whole blocks."""
        return self.config.kv_blocks * self.config.block_tokens


def bounds(config: Deployment) -> Bounds:
    """The histogram bounds of the imitated engine."""
    tokens = _lengths(config.max_model_len)
    if config.wire in ("tgi", "lightllm"):
        times = _powers(0.00015 if config.wire == "tgi" else 0.0015)
        return Bounds(times, times, times, times, times, tokens)
    if config.wire == "sglang":
        e2e = (*_TENTHS, 600, 1200, 1800, 2400)
        return Bounds(_TENTHS, _SGLANG_ITL, _SGLANG_ITL, e2e, _SGLANG_QUEUE, tokens)
    return Bounds(_VLLM_TTFT, _VLLM_TOKEN, _VLLM_TOKEN, _VLLM_REQUEST, _VLLM_REQUEST, tokens)


def metrics(state: State) -> bytes:
    """The page, in the imitated engine's names."""
    families, labels = _ENGINES[state.config.wire]
    if labels:
        labels = {**labels, "model_name": state.config.model}
    about = "Time by which the simulation fell behind the clock and that it gave up."
    own: _Rows = {"lost_seconds_total": (about, state.realtime.lost_ns / 1e9)}
    return page([*families(state), *_families("servescope_", own)], labels)


_Value = float | Histogram | list[tuple[Labels, float | Histogram]]
_Rows = dict[str, tuple[str, _Value]]
"""By name: what it is, and the value or the values."""


_COUNTERS = ("_total", "_count", "_success", "_failure")
"""How the names of counters end; TGI's do not end in `_total`."""


def _families(prefix: str, rows: _Rows, labels: Labels | None = None) -> Iterator[Family]:
    """`labels`: more of each sample."""
    for name, (about, value) in rows.items():
        samples = value if isinstance(value, list) else [({}, value)]
        kind = "counter" if name.endswith(_COUNTERS) else "gauge"
        if isinstance(samples[0][1], Histogram):
            kind = "histogram"
        merged = [({**(labels or {}), **own}, number) for own, number in samples]
        yield Family(kind, prefix + name, about, merged)


def _each(label: str, values: Mapping[str, float | Histogram]) -> _Value:
    return [({label: word}, value) for word, value in values.items()]


def _vllm(state: State) -> Iterator[Family]:
    tally, config, totals = state.tally, state.config, state.realtime.engine.totals
    done = tally.requests
    by_reason = _each("reason", {"capacity": state.waiting, "deferred": 0})
    by_finish = {"stop": 0, "length": done.e2e.count, "abort": tally.aborted, "error": 0}
    rejections = _each("reason", {"max_num_queued_reqs": tally.turned_away})
    rows: _Rows = {
        "num_requests_running": ("Requests in model execution batches.", state.running),
        "num_requests_waiting": ("Requests waiting to be processed.", state.waiting),
        "num_requests_waiting_by_reason": ("Waiting requests by reason.", by_reason),
        "kv_cache_usage_perc": ("KV-cache usage. 1 means 100 percent usage.", state.kv_used_ratio),
        "prefix_cache_queries_total": ("Prefix cache queries, tokens.", totals.prefix_query_tokens),
        "prefix_cache_hits_total": ("Prefix cache hits, in tokens.", totals.prefix_hit_tokens),
        "num_preemptions_total": ("Preemptions by the engine.", totals.preemptions),
        "prompt_tokens_total": ("Prefill tokens processed.", tally.prompt_tokens),
        "prompt_tokens_cached_total": ("Cached prompt tokens.", tally.cached_tokens),
        "generation_tokens_total": ("Generation tokens processed.", tally.output_tokens),
        "request_success_total": ("Requests processed.", _each("finished_reason", by_finish)),
        "admission_rejections_total": ("Requests rejected by a queue limit.", rejections),
        "request_prompt_tokens": ("Prefill tokens of a request.", done.prompt),
        "request_generation_tokens": ("Generation tokens of a request.", done.output),
        "iteration_tokens_total": ("Tokens per engine_step.", tally.step_tokens),
        "time_to_first_token_seconds": ("Time to first token.", done.ttft),
        "inter_token_latency_seconds": ("Inter-token latency.", tally.itl),
        "request_time_per_output_token_seconds": ("Mean time per output token.", done.tpot),
        "e2e_request_latency_seconds": ("End to end request latency.", done.e2e),
        "request_queue_time_seconds": ("Time in WAITING phase.", tally.queue),
        "request_prefill_time_seconds": ("Time in PREFILL phase.", tally.prefill),
        "request_decode_time_seconds": ("Time in DECODE phase.", tally.decode),
        "request_num_preemptions": ("How often a request was preempted.", tally.preemptions),
    }
    cache = {
        "block_size": config.block_tokens,
        "num_gpu_blocks": config.kv_blocks,
        "kv_cache_size_tokens": state.pool_tokens,
        "kv_cache_max_concurrency": config.kv_tokens / config.max_model_len,
        "enable_prefix_caching": config.prefix_cache,
    }
    labels = {name: str(value) for name, value in cache.items()}
    rows["cache_config_info"] = "The cache's settings.", [(labels, 1)]
    yield from _families("vllm:", rows)


def _sglang(state: State) -> Iterator[Family]:
    tally, config, totals = state.tally, state.config, state.realtime.engine.totals
    used, pool_tokens = state.kv_used_ratio, state.pool_tokens
    modes = {
        "prefill_compute": tally.prompt_tokens - tally.cached_tokens,
        "prefill_cache": tally.cached_tokens,
        "decode": tally.output_tokens,
    }
    scheduler: _Rows = {
        "num_running_reqs": ("Running requests.", state.running),
        "num_queue_reqs": ("Requests in the waiting queue.", state.waiting),
        "token_usage": ("The token usage.", round(used, 2)),
        "full_token_usage": ("The token usage for full attention layers.", used),
        "num_used_tokens": ("Used tokens.", used * pool_tokens),
        "max_total_num_tokens": ("Tokens in the KV cache pool.", pool_tokens),
        "page_size": ("KV cache page size in tokens.", config.block_tokens),
        "context_len": ("Maximum context length.", config.max_model_len),
        "num_retracted_requests_total": ("Retracted requests.", totals.preemptions),
        "realtime_tokens_total": ("Tokens processed, by mode.", _each("mode", modes)),
        "queue_time_seconds": ("Queueing time.", tally.queue),
    }
    yield from _families("sglang:", scheduler, _RANKS)

    def by_stream(value_of: Callable[[Requests], float | Histogram]) -> _Value:
        values = {"true": value_of(tally.streamed), "false": value_of(tally.whole)}
        return _each("is_streaming", values)

    cached = _each("cache_source", {"device": tally.cached_tokens})
    tpot = "Mean time per output token."
    rows: _Rows = {
        "num_requests_total": ("Requests processed.", by_stream(lambda r: r.e2e.count)),
        "num_aborted_requests_total": ("Requests aborted.", tally.aborted),
        "prompt_tokens_total": ("Prefill tokens processed.", by_stream(lambda r: r.prompt.sum)),
        "generation_tokens_total": ("Tokens made.", by_stream(lambda r: r.output.sum)),
        "cached_tokens_total": ("Cached prompt tokens by source.", cached),
        "inter_token_latency_seconds": ("Inter-token latency.", tally.itl),
        "time_to_first_token_seconds": ("Time to first token.", by_stream(lambda r: r.ttft)),
        "request_time_per_output_token_seconds": (tpot, by_stream(lambda r: r.tpot)),
        "e2e_request_latency_seconds": ("End-to-end latency.", by_stream(lambda r: r.e2e)),
    }
    yield from _families("sglang:", rows)


def _tgi(state: State) -> Iterator[Family]:
    tally, done = state.tally, state.tally.requests
    yield from _batches(state, "tgi")
    failures = {"overloaded": tally.turned_away, "validation": tally.refused}
    asked = done.e2e.count + sum(failures.values()) + tally.aborted
    batches = {"prefill": tally.prefill_steps, "decode": tally.decode_steps}
    counts = _each("method", {method: steps.count for method, steps in batches.items()})
    rows: _Rows = {
        "request_count": ("Requests.", asked),
        "request_success": ("Requests answered.", done.e2e.count),
        "request_failure": ("Requests not answered.", _each("err", failures)),
        "batch_inference_count": ("Batches computed.", counts),
        "batch_inference_success": ("Batches computed.", counts),
        "batch_max_total_tokens": ("Tokens that a batch may hold.", state.pool_tokens),
        "request_duration": ("Seconds from asking to the end.", done.e2e),
        "request_queue_duration": ("Seconds in the queue.", tally.queue),
        "batch_inference_duration": ("Seconds of a batch.", _each("method", batches)),
    }
    yield from _families("tgi_", rows)


def _lightllm(state: State) -> Iterator[Family]:
    tally, done = state.tally, state.tally.requests
    yield from _batches(state, "lightllm")
    failures = tally.turned_away + tally.refused + tally.aborted
    rows: _Rows = {
        "request_count_total": ("Requests.", done.e2e.count + failures),
        "request_success_total": ("Requests answered.", done.e2e.count),
        "request_failure_total": ("Requests not answered.", failures),
        "batch_pause_size": ("Requests paused.", 0),
        "request_first_token_duration": ("Seconds to the first token.", done.ttft),
        "cache_length": ("Cached prompt tokens of a request.", done.cached),
    }
    yield from _families("lightllm_", rows)


def _batches(state: State, engine: str) -> Iterator[Family]:
    """What TGI and LightLLM, which copied it, name alike."""
    done = state.tally.requests
    rows: _Rows = {
        "batch_current_size": ("Requests in the batch.", state.running),
        "batch_current_max_tokens": ("Tokens that the batch holds.", state.kv_tokens),
        "queue_size": ("Requests in the queue.", state.waiting),
        "request_input_length": ("Prompt tokens of a request.", done.prompt),
        "request_generated_tokens": ("Tokens made for a request.", done.output),
        "request_inference_duration": ("Seconds from asking to the end.", done.e2e),
        "request_mean_time_per_token_duration": ("Mean seconds a token.", done.tpot),
    }
    yield from _families(f"{engine}_", rows)


def _llamacpp(state: State) -> Iterator[Family]:
    tally = state.tally
    steps = tally.step_tokens.count
    prompt_s, decode_s = tally.prefill_steps.sum, tally.decode_steps.sum
    computed = tally.prompt_tokens - tally.cached_tokens
    prompt_rate, rate = _ratio(computed, prompt_s), _ratio(tally.output_tokens, decode_s)
    busy = _ratio(tally.sequence_steps, steps)
    rows: _Rows = {
        "prompt_tokens_total": ("Prompt tokens processed, excluding cached tokens", computed),
        "prompt_tokens_cached_total": ("Prompt tokens reused from the cache", tally.cached_tokens),
        "prompt_seconds_total": ("Total time spent processing prompts", prompt_s),
        "tokens_predicted_total": ("Generation tokens processed", tally.output_tokens),
        "tokens_predicted_seconds_total": ("Total time spent generating tokens", decode_s),
        "n_decode_total": ("Total number of llama_decode() calls", steps),
        "prompt_tokens_seconds": ("Average prompt throughput in tokens/s", prompt_rate),
        "predicted_tokens_seconds": ("Average generation throughput in tokens/s", rate),
        "requests_processing": ("Number of requests processing", state.running),
        "requests_deferred": ("Number of requests deferred", state.waiting),
        "n_busy_slots_per_decode": ("Average number of busy slots per llama_decode() call", busy),
    }
    yield from _families("llamacpp:", rows)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


_RANKS = {"moe_ep_rank": "0", "pp_rank": "0", "tp_rank": "0"}
_ENGINES: dict[str, tuple[Callable[[State], Iterator[Family]], Labels]] = {
    "vllm": (_vllm, {"engine": "0"}),
    "sglang": (_sglang, {"engine_type": "unified"}),
    "tgi": (_tgi, {}),
    "lightllm": (_lightllm, {}),
    "llamacpp": (_llamacpp, {}),
}
