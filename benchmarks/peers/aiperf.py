"""AIPerf."""

from __future__ import annotations

import json
from pathlib import Path

from peers.peer import MODEL, PROMPT_TOKENS, Load, Peer, Row, tokenizer


def arguments(load: Load, scratch: Path) -> list[str]:
    """Its records of each request are what it writes by default."""
    words = ["profile", "--ui", "none", "--artifact-dir", str(scratch / "said")]
    words += ["--model", MODEL, "--tokenizer", tokenizer(scratch), "--url", load.url]
    words += ["--endpoint-type", "chat", "--streaming", "--request-count", str(load.requests)]
    words += ["--synthetic-input-tokens-mean", str(PROMPT_TOKENS)]
    words += ["--output-tokens-mean", str(load.tokens), "--extra-inputs", "ignore_eos:true"]
    words += ["--use-server-token-count"]
    if load.rate is not None:
        return [*words, "--request-rate", str(load.rate), "--arrival-pattern", "poisson"]
    return [*words, "--concurrency", str(load.streams)]


def read(scratch: Path) -> list[Row]:
    """Its records."""
    with (scratch / "said" / "profile_export.jsonl").open() as lines:
        said = [json.loads(line) for line in lines]
    rows = []
    for one in said:
        if one.get("error"):
            continue
        told = one["metrics"]
        start_s = one["metadata"]["request_start_ns"] / 1e9
        gaps = told.get("inter_chunk_latency", {}).get("value")
        serial = told.get("input_sequence_length", {}).get("value")
        ttft_s = told["time_to_first_token"]["value"] / 1e3
        rows.append(Row(start_s, ttft_s, gaps and [gap / 1e3 for gap in gaps], serial))
    return rows


PEER = Peer(
    name="AIPerf",
    distribution="aiperf",
    program="peers/bin/aiperf",
    clock="epoch",
    arguments=arguments,
    read=read,
    environment={"HF_HUB_OFFLINE": "", "HF_ENDPOINT": "http://127.0.0.1:1"},
)
"""Told to be offline it takes no directory for a tokenizer."""
