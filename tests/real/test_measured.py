"""What is measured of real engines agrees with what the engines say of themselves."""

import re
import urllib.request

import numpy as np
import pytest

from servescope.conduct import conduct
from servescope.experiment import Trial
from servescope.records import ABSENT
from servescope.summary import summarise

PROTOCOLS = ["openai-chat", "openai-completions"]
LLAMA = {
    "prompt": ("llamacpp:prompt_tokens_total", "llamacpp:prompt_tokens_cached_total"),
    "output": ("llamacpp:tokens_predicted_total",),
}
VLLM = {
    "prompt": ("vllm:prompt_tokens_total",),
    "output": ("vllm:generation_tokens_total",),
    "requests": ("vllm:request_success_total",),
}


class Counters:
    """Reads the engine's counters once the target is known: between the probe and the run."""

    def __init__(self, url, names):
        self.url, self.names = url, names

    def read(self):
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            page = answer.read().decode()
        return {
            what: sum(
                float(value)
                for name in names
                for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE)
            )
            for what, names in self.names.items()
        }

    def target(self, *_):
        self.before = self.read()

    def since(self):
        after = self.read()
        return {what: after[what] - self.before[what] for what in self.names}

    def stage(self, *_): ...

    def progress(self, *_): ...

    def samples(self, *_): ...

    def draining(self, *_): ...


def measure(url, tmp_path, watcher=None, **options):
    options = {
        "requests": 40,
        "load": ["users:4"],
        "input_tokens": "48",
        "output_tokens": "24",
    } | options
    run = conduct(Trial(target=url, out=str(tmp_path), **options), watcher)
    return run, summarise(run)


def check_counts(url, names, tmp_path, **options):
    counters = Counters(url, names)
    run, summary = measure(url, tmp_path, counters, **options)
    columns = run.columns()
    assert summary.stages[0].outcomes == {"completed": 40}
    assert set(columns.output_tokens) == {24}
    assert set(columns.input_tokens) == {48}
    assert columns.counted_by_server.all()
    counted = counters.since()
    assert counted["output"] == columns.output_tokens.sum()
    assert counted["prompt"] == columns.input_tokens.sum()
    assert counted.get("requests", 40) == 40
    return run, summary


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("stream", [True, False])
def test_the_counts_of_a_run_equal_those_of_llama_cpp(llama_server, tmp_path, protocol, stream):
    check_counts(llama_server, LLAMA, tmp_path, protocol=protocol, stream=stream)


@pytest.mark.parametrize("data", ["dummy", "dummy:ids=true", "emulated"])
def test_prompts_have_exactly_the_length_that_llama_cpp_counts(llama_server, tmp_path, data):
    run, _ = measure(
        llama_server,
        tmp_path,
        data=data,
        protocol="openai-completions",
        input_tokens="uniform:20-90",
        output_tokens="4",
    )
    columns = run.columns()
    assert np.array_equal(columns.input_tokens, columns.asked_input_tokens)
    assert len(set(columns.input_tokens)) > 5


def test_ttft_is_at_or_above_llama_cpps_own_prefill_time(llama_server, tmp_path):
    run, _ = measure(llama_server, tmp_path, load=["sync"], requests=20)
    for record in run.records():
        ttft_s = (record.chunk_ns[0] - record.sent_ns) / 1e9
        assert ttft_s >= record.server_s["prefill_s"]


def test_more_requests_than_slots_wait_and_none_is_lost(llama_server, tmp_path):
    _, summary = measure(llama_server, tmp_path, load=["burst"], requests=32)
    assert summary.stages[0].outcomes == {"completed": 32}
    assert summary.stages[0].figures["concurrency"]["max"] == 32


def test_a_prompt_beyond_the_context_fails_in_llama_cpps_own_words(llama_server, tmp_path):
    prompts = tmp_path / "long.txt"
    prompts.write_text("word " * 3000)
    _, summary = measure(
        llama_server, tmp_path, data=f"file:{prompts}", input_tokens=None, requests=4
    )
    assert summary.stages[0].outcomes == {"completed": 0, "failed:http_4xx": 4}
    assert "context size" in summary.stages[0].reasons[0].words


def test_prompts_are_not_served_from_the_prefix_cache_of_an_earlier_run(llama_server, tmp_path):
    for _ in range(2):
        run, _ = measure(llama_server, tmp_path, input_tokens="64", requests=16)
        columns = run.columns()
        known = columns.cached_tokens[columns.cached_tokens != ABSENT]
        assert known.mean() < 16  # what the chat template itself shares


@pytest.mark.vllm
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("stream", [True, False])
def test_the_counts_of_a_run_equal_those_of_vllm(vllm_server, tmp_path, protocol, stream):
    check_counts(vllm_server, VLLM, tmp_path, protocol=protocol, stream=stream)


@pytest.mark.vllm
def test_ttft_is_at_or_above_vllms_own_and_close_to_it(vllm_server, tmp_path):
    run, _ = measure(vllm_server, tmp_path, load=["sync"], requests=30)
    gaps = [
        (record.chunk_ns[0] - record.sent_ns) / 1e9 - record.server_s["ttft_s"]
        for record in run.records()
    ]
    assert min(gaps) > 0
    assert np.median(gaps) < 0.02


@pytest.mark.vllm
def test_itl_is_token_true_by_vllms_own_running_counts(vllm_server, tmp_path):
    run, summary = measure(vllm_server, tmp_path)
    columns = run.columns()
    first = columns.chunk_tokens[columns.chunk_start[:-1]]  # 2 where half a character came first
    assert not summary.stages[0].figures["itl_s"].estimated
    # A last token without text comes in no chunk.
    most = columns.output_tokens.sum() - first.sum()
    assert 0.95 * most <= summary.stages[0].figures["itl_s"].n <= most


@pytest.mark.vllm
def test_token_ids_have_exactly_the_length_that_vllm_counts(vllm_server, tmp_path):
    run, _ = measure(vllm_server, tmp_path, data="dummy:ids=true", protocol="openai-completions")
    assert set(run.columns().input_tokens) == {48}
