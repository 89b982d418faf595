"""What runs tell of their engines, in real and in virtual time, agrees with what clients saw."""

import json
import urllib.request

import pytest

from servescope.analysis.evidence import Evidence
from servescope.conduct import conduct
from servescope.engine.config import ENGINES, EngineConfig
from servescope.experiment import Trial
from servescope.report import console
from servescope.serve import Server
from servescope.telemetry.names import TABLES
from tests.telemetry.told import PAGE, pages

NOT_IMITATED = {
    "sglang": {"paused_requests", "prefill_busy_s", "decode_busy_s", "prefill_s", "steps"},
    "vllm": {"paused_requests", "prompt_tokens_per_s", "generated_tokens_per_s", "step_s"},
    "tgi": {"batch_requests"},
    "lightllm": set(),
    "llamacpp": {"kv_use_ratio", "kv_used_tokens"},
}
"""Names of the table for which the imitated page has nothing."""
FAST = {"step": "1ms", "prefill": "1us", "sequence": "1us", "context": 0}


def measured(out, **options):
    options = {"load": ["users:4"], "requests": 24, "input_tokens": "16", "output_tokens": "12"} | (
        options
    )
    return Evidence.of(conduct(Trial(out=str(out), seed=5, **options)))


def engine_of(evidence, number=0):
    (found,) = [one for one in evidence.summary.stages[number].resources if one.kind == "engine"]
    return found


def asked(url, body=None):
    request = urllib.request.Request(url, body and json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read().decode()


@pytest.mark.parametrize("engine", ENGINES)
def test_the_page_of_each_engine_that_is_imitated_is_told_whole_and_counts_as_the_client(engine):
    body = {"model": "servescope-sim", "prompt": "to be or not", "max_tokens": 12}
    with Server(EngineConfig(engine=engine, **FAST)) as server:
        before = asked(f"{server.url}/metrics")
        answers = [json.loads(asked(f"{server.url}/v1/completions", body)) for _ in range(6)]
        telemetry = pages(before, asked(f"{server.url}/metrics"))
    assert telemetry.engine_of(PAGE) == engine
    for name, counted in (("generated_tokens", "completion"), ("prompt_tokens", "prompt")):
        (found,) = telemetry.named(name)
        assert found.increase(0, 1) == sum(one["usage"][f"{counted}_tokens"] for one in answers) > 0
    there = {n for n in TABLES[engine] if telemetry.named(n) or telemetry.histograms(n)}
    assert TABLES[engine].keys() - there == NOT_IMITATED[engine]


def test_a_simulated_engine_tells_of_itself_as_a_real_one_does(tmp_path):
    evidence = measured(
        tmp_path,
        target=["sim:vllm?kv_tokens=1024&max_num_seqs=8"],
        load=["poisson:12", "users:16"],
        requests=400,
        output_tokens="64",
    )
    for number, stage in enumerate(evidence.summary.stages):
        found = engine_of(evidence, number)
        assert (found.engine, found.source) == ("simulated", "engine")
        assert found.figures["generated_tokens"] == 400 * 64
        assert found.figures["prompt_tokens"] == 400 * 16
        assert found.figures["requests_finished"] == 400
        assert found.figures["kv_capacity_tokens"] == 1024
        inside = found.figures["running_requests_mean"] + found.figures["waiting_requests_mean"]
        assert inside == pytest.approx(stage.figures["concurrency"]["mean"], rel=0.05)
        assert found.figures["running_requests_max"] <= 8
    assert engine_of(evidence, 1).figures["running_requests_max"] == 8
    assert engine_of(evidence, 1).figures["waiting_requests_max"] >= 8
    assert engine_of(evidence, 1).figures["kv_use_ratio_max"] > 0.5


@pytest.mark.parametrize("load", ["poisson:0.5", "poisson:5", "users:2"])
def test_a_simulated_engine_is_read_evenly_through_a_stage_and_at_its_ends(load, tmp_path):
    evidence = measured(tmp_path, target=["sim:vllm?step=30ms"], load=[load], requests=300)
    (running,) = evidence.telemetry.named("running_requests")
    (stage,) = evidence.summary.stages
    start_s, end_s = (stage.figures["window"][name] for name in ("start_s", "end_s"))
    assert running.t_s[0] <= start_s
    assert running.t_s[-1] == pytest.approx(end_s, abs=0.001)
    mean = running.mean(start_s, end_s)
    assert mean == pytest.approx(stage.figures["concurrency"]["mean"], rel=0.15)
    assert len(running.t_s) <= 10 * end_s + 2


def test_a_simulated_engine_is_read_in_order_though_it_refuses_what_comes_last(tmp_path):
    found = measured(
        tmp_path,
        target=["sim:vllm?max_model_len=120"],
        load=["poisson:0.5"],
        input_tokens="uniform:10-160",
        requests=20,
    )
    assert list(found.run.records())[-1].outcome == "failed:http_4xx"
    times = [one.t_ns for one in found.run.samples() if one.name == "up"]
    assert times == sorted(times)


def test_the_table_of_a_run_shows_what_its_engine_said(tmp_path):
    summary = measured(tmp_path, target=["sim:vllm"]).summary
    text = console.table(summary)
    for words in ("simulated", "running requests", "KV cache in use", "prefix-cache hits"):
        assert words in text
    assert "time in queue" not in text, "it did not say"
