"""evalscope perf."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from peers.peer import MODEL, PROMPT_TOKENS, Load, Peer, Row, tokenizer


def arguments(load: Load, scratch: Path) -> list[str]:
    """Its open loop is another mode than its closed one with a rate."""
    words = ["perf", "--api", "openai", "--url", f"{load.url}/v1/chat/completions"]
    words += ["--model", MODEL, "--tokenizer-path", tokenizer(scratch), "--dataset", "random"]
    words += ["--min-prompt-length", str(PROMPT_TOKENS), "--max-prompt-length", str(PROMPT_TOKENS)]
    words += ["--min-tokens", str(load.tokens), "--max-tokens", str(load.tokens), "--stream"]
    words += ["--prefix-length", "0", "--number", str(load.requests), "--no-test-connection"]
    words += ["--outputs-dir", str(scratch / "said")]
    if load.rate is not None:
        return [*words, "--open-loop", "--rate", str(load.rate)]
    return [*words, "--parallel", str(load.streams)]


def read(scratch: Path) -> list[Row]:
    """Its data base of the requests."""
    (file,) = (scratch / "said").rglob("benchmark_data.db")
    ask = "SELECT start_time, first_chunk_latency, inter_token_latencies, prompt_tokens FROM result"
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as base:
        found = base.execute(f"{ask} WHERE success").fetchall()
    return [Row(start, ttft, json.loads(itl), serial) for start, ttft, itl, serial in found]


PEER = Peer(
    name="evalscope",
    distribution="evalscope[perf]",
    program="peers/evalscope/bin/evalscope",
    clock="monotonic",
    arguments=arguments,
    read=read,
)
