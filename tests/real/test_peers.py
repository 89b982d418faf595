"""The field's load clients run against the simulated server, and count what it counted."""

import json
import os
import re
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest

from servescope.engine.config import parse
from servescope.engine.tokenizer import tokenize
from servescope.serve import Server
from tests.serve.client import Client, samples

pytestmark = pytest.mark.peers

REQUESTS, USERS, INPUT, OUTPUT, STEP_MS = 24, 4, 32, 24, 5
ERROR_WORDS = re.compile(r"\bERROR\b|Traceback|Exception")
OFFLINE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1"}
NO_HUB = {"HF_ENDPOINT": "http://127.0.0.1:1"}
COUNTERS = {
    "vllm": ("request_success_total", "prompt_tokens_total", "generation_tokens_total"),
    "sglang": ("num_requests_total", "prompt_tokens_total", "generation_tokens_total"),
    "tgi": ("request_success", "request_input_length_sum", "request_generated_tokens_sum"),
}
"""Requests, tokens of prompts, tokens made."""
OFFICIAL = Path(__file__).parents[1] / "support" / "official_clients.py"
ANSWERS = [
    *("chat", "chat_streamed", "completion", "completion_streamed"),
    *("response", "response_streamed", "message", "message_streamed"),
]


class Said(NamedTuple):
    """What a peer says of its run."""

    completed: int
    failed: int
    input_tokens: float | None
    """None where it cannot know them."""
    output_tokens: float
    ttft_ms: float
    """Median: some peers' first requests wait for the peers themselves."""
    itl_ms: float
    """Mean."""


@pytest.fixture(scope="session")
def peers() -> Path:
    """The environment that has the peers."""
    folder = os.environ.get("SERVESCOPE_PEERS_VENV")
    if not folder:
        pytest.skip("SERVESCOPE_PEERS_VENV names no environment with the peers (make test-peers)")
    return Path(folder).absolute()


@pytest.fixture(scope="module")
def tokenizer(tiny_model) -> Path:
    """A directory as of Hugging Face's hub; no peer reaches the hub itself."""
    return tiny_model.huggingface


@pytest.fixture
def server(engine):
    """A server of one's own that imitates `engine`."""
    with Server(parse("SIM", f"sim:{engine}?step={STEP_MS}ms&model=tiny")) as started:
        yield started


def run(program: Path, *words: object, **environment: str) -> str:
    """What a program prints; it ends well, in time, and without a word of an error."""
    limited = ["timeout", "--kill-after=5", "100", str(program), *map(str, words)]
    done = subprocess.run(
        limited, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    said = f"{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, said
    assert not ERROR_WORDS.search(said), said
    return done.stdout


def counted(server, engine: str) -> dict[str, float]:
    """The server's samples by name, summed over labels."""
    found = defaultdict(float)
    text = Client(server.url).get("/metrics").body.decode()
    for name, _, value in samples(text):
        found[re.sub(rf"^{engine}[:_]", "", name)] += value
    return found


def check(said: Said, server, engine: str) -> None:
    """A peer's figures are the server's own, and the times are those of the engine's steps."""
    counts = counted(server, engine)
    requests, prompt, output = (counts[name] for name in COUNTERS[engine])
    assert (said.completed, said.failed, requests) == (REQUESTS, 0, REQUESTS)
    assert said.output_tokens == output == REQUESTS * OUTPUT
    assert said.input_tokens in (None, pytest.approx(prompt, abs=0.01))
    # A stream that waits for acknowledgements comes late and then too fast.
    assert 0.9 < said.itl_ms / STEP_MS < 2
    if ended := counts["time_to_first_token_seconds_count"]:
        own_ms = counts["time_to_first_token_seconds_sum"] / ended * 1e3
        assert 0.5 < said.ttft_ms / own_ms < 2.5


@pytest.mark.parametrize("engine", ["vllm"])
@pytest.mark.parametrize(
    ("backend", "path"),
    [
        ("openai", "completions"),
        ("openai-chat", "chat/completions"),
        ("openai-responses", "responses"),
    ],
)
def test_vllm_bench_serve_counts_what_the_server_counted(
    vllm_python, tokenizer, server, tmp_path, *, engine, backend, path
):
    run(
        vllm_python.with_name("vllm"),
        *("bench", "serve", "--backend", backend, "--endpoint", f"/v1/{path}"),
        *("--base-url", server.url, "--model", "tiny", "--tokenizer", tokenizer),
        *("--num-prompts", REQUESTS, "--max-concurrency", USERS, "--ignore-eos"),
        *("--dataset-name", "random", "--random-input-len", INPUT, "--random-output-len", OUTPUT),
        *("--save-result", "--result-dir", tmp_path, "--result-filename", "said.json"),
        **OFFLINE,
        VLLM_TARGET_DEVICE="cpu",
    )
    found = json.loads((tmp_path / "said.json").read_text())
    said = Said(
        found["completed"],
        found["failed"],
        found["total_input_tokens"],
        found["total_output_tokens"],
        found["median_ttft_ms"],
        found["mean_itl_ms"],
    )
    check(said, server, engine)


@pytest.mark.parametrize(
    ("engine", "path"),
    [("vllm", "chat/completions"), ("sglang", "completions"), ("vllm", "responses")],
)
def test_guidellm_counts_what_the_server_counted(
    peers, tokenizer, server, tmp_path, *, engine, path
):
    file = tmp_path / "said.json"
    route = f"kind=openai_http,target={server.url},model=tiny,request_format=/v1/{path}"
    run(
        peers / "bin" / "guidellm",
        *("run", "--disable-console-interactive", "--backend", route),
        *("--profile", f"kind=concurrent,streams={USERS}"),
        *("--constraint", f"kind=max_requests,count={REQUESTS}"),
        *("--tokenizer", f"kind=huggingface_auto,model={tokenizer}"),
        *("--data", f"kind=synthetic_text,prompt_tokens={INPUT},output_tokens={OUTPUT}"),
        *("--output", f"kind=json,path={file}"),
        **OFFLINE,
    )
    found = json.loads(file.read_text())["benchmarks"][0]["metrics"]
    said = Said(
        found["request_totals"]["successful"],
        found["request_totals"]["errored"] + found["request_totals"]["incomplete"],
        found["prompt_token_count"]["successful"]["total_sum"],
        found["output_token_count"]["successful"]["total_sum"],
        found["time_to_first_token_ms"]["successful"]["median"],
        found["inter_token_latency_ms"]["successful"]["mean"],
    )
    check(said, server, engine)


@pytest.mark.parametrize(
    ("engine", "endpoint"),
    [
        ("vllm", "chat"),
        ("sglang", "completions"),
        ("vllm", "responses"),
        ("vllm", "messages"),
        ("tgi", "huggingface-generate"),
    ],
)
def test_aiperf_counts_what_the_server_counted(
    peers, tokenizer, server, tmp_path, *, engine, endpoint
):
    run(
        peers / "bin" / "aiperf",
        *("profile", "--ui", "none", "--artifact-dir", tmp_path, "--model", "tiny"),
        *("--tokenizer", tokenizer, "--url", server.url, "--endpoint-type", endpoint),
        *("--streaming", "--concurrency", USERS, "--request-count", REQUESTS),
        *("--synthetic-input-tokens-mean", INPUT, "--output-tokens-mean", OUTPUT),
        *(() if engine == "tgi" else ("--extra-inputs", "ignore_eos:true")),
        "--use-server-token-count",
        **NO_HUB,  # told to be offline it takes no directory
    )
    found = json.loads((tmp_path / "profile_export_aiperf.json").read_text())
    gaps = found["inter_chunk_latency"]  # TGI counts no prompt for it, and a chunk is a token
    said = Said(
        found["request_count"]["avg"],
        len(found["error_summary"]),
        None if engine == "tgi" else found["total_isl"]["avg"],
        gaps["count"] + REQUESTS if engine == "tgi" else found["total_osl"]["avg"],
        found["time_to_first_token"]["p50"],
        gaps["avg"],
    )
    check(said, server, engine)


@pytest.mark.parametrize(
    ("engine", "path"),
    [("tgi", "chat/completions"), ("sglang", "completions")],
)
def test_evalscope_counts_what_the_server_counted(
    peers, tokenizer, server, tmp_path, *, engine, path
):
    run(
        peers / "evalscope" / "bin" / "evalscope",
        *("perf", "--api", "openai", "--url", f"{server.url}/v1/{path}", "--model", "tiny"),
        *("--tokenizer-path", tokenizer, "--dataset", "random", "--no-test-connection"),
        *("--min-prompt-length", INPUT, "--max-prompt-length", INPUT, "--prefix-length", 0),
        *("--min-tokens", OUTPUT, "--max-tokens", OUTPUT),
        *("--number", REQUESTS, "--parallel", USERS, "--stream", "--outputs-dir", tmp_path),
        **OFFLINE,
    )
    (file,) = tmp_path.rglob("benchmark_summary.json")
    found = json.loads(file.read_text())
    shares = json.loads(file.with_name("benchmark_percentile.json").read_text())
    said = Said(
        found["Success Requests"],
        found["Failed Requests"],
        found["Avg Input Tokens"] * REQUESTS,
        found["Avg Output Tokens"] * REQUESTS,
        next(row["TTFT (ms)"] for row in shares if row["Percentiles"] == "50%"),
        found["Avg ITL (ms)"],
    )
    check(said, server, engine)


@pytest.fixture(scope="module")
def official(peers):
    """What the official clients of OpenAI and Anthropic got, and what the server counted."""
    with Server(parse("SIM", f"sim:vllm?step={STEP_MS}ms&model=tiny")) as server:
        found = json.loads(run(peers / "bin" / "python", "-W", "error", OFFICIAL, server.url))
        return found, counted(server, "vllm")


@pytest.mark.parametrize("call", ANSWERS)
def test_the_official_clients_take_every_answer(official, call):
    text, _, output_tokens = official[0]["answers"][call]
    assert output_tokens == len(tokenize(text)) == 20


def test_the_official_clients_counts_are_the_servers(official):
    found, counts = official
    assert found["models"] == ["tiny"]
    assert sorted(found["answers"]) == sorted(ANSWERS)
    requests, prompt, output = (counts[name] for name in COUNTERS["vllm"])
    assert requests == len(ANSWERS)
    assert prompt == sum(tokens for _, tokens, _ in found["answers"].values())
    assert output == sum(tokens for _, _, tokens in found["answers"].values())


@pytest.mark.parametrize("client", ["openai", "anthropic"])
def test_the_official_clients_know_a_refusal_by_its_class(official, client):
    found, _ = official
    name, words = found["unknown"][client]
    assert name == "NotFoundError"
    assert "`other` does not exist" in words
    name, words = found["too_long"][client]
    assert name == "BadRequestError"
    assert "maximum context length" in words
