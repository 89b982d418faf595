"""GuideLLM. It keeps of each request the first and last token's time alone."""

from __future__ import annotations

import json
from pathlib import Path

from peers.peer import PROMPT_TOKENS, Load, Peer, Row, tokenizer


def arguments(load: Load, scratch: Path) -> list[str]:
    """Chat completions are what it asks for."""
    backend = f"kind=openai_http,target={load.url}"
    backend += ",request_format=/v1/chat/completions"
    data = f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={load.tokens}"
    if load.rate is not None:
        profile = f"kind=poisson,rate={load.rate}"
    else:
        profile = f"kind=concurrent,streams={load.streams}"
    words = ["run", "--disable-console-interactive", "--backend", backend, "--profile", profile]
    words += ["--constraint", f"kind=max_requests,count={load.requests}", "--data", data]
    words += ["--tokenizer", f"kind=huggingface_auto,model={tokenizer(scratch)}"]
    return [*words, "--output", f"kind=json,path={scratch / 'said.json'}"]


def read(scratch: Path) -> list[Row]:
    """Its report has every request."""
    said = json.loads((scratch / "said.json").read_text())["benchmarks"][0]
    rows = []
    for one in said["requests"]["successful"]:
        times = one["info"]["timings"]
        start_s = times["request_start"]
        ttft_s = times["first_token_iteration"] - start_s
        rows.append(Row(start_s, ttft_s, None, one["input_metrics"]["text_tokens"]))
    return rows


PEER = Peer(
    name="GuideLLM",
    distribution="guidellm",
    program="peers/bin/guidellm",
    clock="epoch",
    arguments=arguments,
    read=read,
)
