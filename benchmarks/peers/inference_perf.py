"""inference-perf. It needs Python 3.12."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peers.peer import MODEL, PROMPT_TOKENS, Load, Peer, Row, tokenizer


def arguments(load: Load, scratch: Path) -> list[str]:
    """It takes a file; its limits of 100 requests a worker and of a stage in seconds are raised."""
    if load.rate is not None:
        kind = "poisson"
        stage = {"rate": load.rate, "duration": max(1, round(load.requests / load.rate))}
    else:
        kind = "concurrent"
        stage = {"num_requests": load.requests, "concurrency_level": load.streams or 1}
    prompts = {"num_groups": 1, "num_prompts_per_group": load.requests, "system_prompt_len": 1}
    prompts |= {"question_len": PROMPT_TOKENS - 1, "output_len": load.tokens}
    fields = dict.fromkeys(("request", "response", "response_chunks"), False)
    report = {"per_request": True, "per_request_fields": {**fields, "computed_metrics": True}}
    settings: dict[str, Any] = {
        "api": {"type": "chat", "streaming": True},
        "data": {"type": "shared_prefix", "shared_prefix": prompts},
        "load": {"type": kind, "stages": [stage], "worker_max_concurrency": 4096},
        "server": {"type": "vllm", "model_name": MODEL, "base_url": load.url},
        "tokenizer": {"pretrained_model_name_or_path": tokenizer(scratch)},
        "report": {"request_lifecycle": {**report, "use_server_output_tokens": True}},
        "storage": {"local_storage": {"path": str(scratch / "said")}},
    }
    file = scratch / "config.yml"
    file.write_text(json.dumps(settings))  # which is YAML
    return ["--config_file", str(file)]


def read(scratch: Path) -> list[Row]:
    """Its report of each request."""
    said = json.loads((scratch / "said" / "per_request_lifecycle_metrics.json").read_text())
    return [_row(one) for one in said if not one["error"]]


def _row(one: dict[str, Any]) -> Row:
    told = one["computed_metrics"]
    return Row(
        one["start_time"],
        told["time_to_first_token"],
        told["inter_token_latencies"],
        one["info"]["response_metrics"]["server_usage"]["prompt_tokens"],
    )


PEER = Peer(
    name="inference-perf",
    distribution="inference-perf",
    program="peers/inference-perf/bin/inference-perf",
    clock="monotonic",
    arguments=arguments,
    read=read,
)
