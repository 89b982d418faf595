"""SGLang's bench_serving, in Python and in Rust: one command line, one result file."""

from __future__ import annotations

import json
from pathlib import Path

from peers.peer import MODEL, PROMPT_TOKENS, Load, Peer, Row, tokenizer


def arguments(load: Load, scratch: Path) -> list[str]:
    """Of both, after their module's name."""
    words = ["--backend", "sglang-oai-chat", "--base-url", load.url, "--model", MODEL]
    words += ["--tokenizer", tokenizer(scratch), "--dataset-name", "random-ids"]
    words += ["--random-input-len", str(PROMPT_TOKENS), "--random-output-len", str(load.tokens)]
    words += ["--random-range-ratio", "1", "--num-prompts", str(load.requests)]
    words += ["--output-file", str(scratch / "said.jsonl"), "--output-details"]
    words += ["--extra-request-body", '{"stream_options": {"include_usage": true}}']
    if load.rate is not None:
        return [*words, "--request-rate", str(load.rate)]
    return [*words, "--max-concurrency", str(load.streams)]


def read(scratch: Path) -> list[Row]:
    """It writes no start times, and for `input_lens` what the server counted if it was asked to."""
    said = json.loads((scratch / "said.jsonl").read_text())
    columns = zip(said["ttfts"], said["itls"], said["input_lens"], said["errors"], strict=True)
    return [Row(None, *row) for *row, error in columns if not error]


PYTHON = Peer(
    name="SGLang bench_serving",
    distribution="sglang",
    program="peers/sglang/bin/python",
    clock=None,
    arguments=lambda load, scratch: ["-m", "sglang.bench_serving", *arguments(load, scratch)],
    read=read,
)
RUST = Peer(
    name="SGLang bench (Rust)",
    distribution="sglang",
    program="peers/sglang/bin/python",
    clock=None,
    arguments=lambda load, scratch: [
        *("-m", "sglang.benchmark.rust_client"),
        *arguments(load, scratch),
    ],
    read=read,
)
