"""What real engines say of themselves while they are measured agrees with what the client saw."""

import pytest

from servescope.analysis.evidence import Evidence
from servescope.conduct import conduct
from servescope.engines import vllm
from servescope.experiment import Trial
from servescope.records import ABSENT

USERS, REQUESTS, TOKENS = 4, 60, 96
ENGINES = ["llama_server", pytest.param("vllm_server", marks=pytest.mark.vllm)]
VLLM_START = pytest.mark.timeout(400)  # the first test pays for the start of a session's server


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.getfixturevalue(request.param)


def measured(url, out, **options):
    """A run, and what its engine told of its only stage."""
    options = {
        "load": [f"users:{USERS}"],
        "requests": REQUESTS,
        "input_tokens": "48",
        "output_tokens": str(TOKENS),
        "collect": [f"prometheus:{url}/metrics,every=50ms"],
    } | options
    evidence = Evidence.of(conduct(Trial(target=[url], out=str(out), seed=7, **options)))
    (stage,) = evidence.summary.stages
    (found,) = [one for one in stage.resources if one.kind == "engine"]
    return evidence, stage, found


@VLLM_START
def test_the_engines_counters_agree_with_the_clients_to_the_token(engine, tmp_path):
    evidence, stage, found = measured(engine, tmp_path)
    assert stage.outcomes == {"completed": REQUESTS}
    assert (evidence.columns.output_tokens != ABSENT).all()
    assert found.figures["generated_tokens"] == evidence.columns.output_tokens.sum()
    assert found.figures["prompt_tokens"] == evidence.columns.input_tokens.sum()


@VLLM_START
def test_the_engines_batch_is_as_large_as_the_client_has_requests_in_flight(engine, tmp_path):
    _, stage, found = measured(engine, tmp_path)
    figures, flying = found.figures, stage.figures["concurrency"]
    assert figures["running_requests_max"] == USERS
    assert figures["waiting_requests_max"] <= USERS
    inside = figures["running_requests_mean"] + figures["waiting_requests_mean"]
    assert inside == pytest.approx(flying["mean"], rel=0.25)
    assert inside <= flying["max"]
    assert figures["step_tokens_mean"] > 1


def test_llamacpps_queue_is_seen_where_users_outnumber_its_slots(llama_server, tmp_path):
    _, stage, found = measured(llama_server, tmp_path, load=["users:24"], requests=60)
    assert found.engine == "llamacpp"
    assert found.figures["running_requests_max"] == 8
    assert 12 <= found.figures["waiting_requests_max"] <= 16
    assert 0 < found.figures["decode_s_mean"] < stage.figures["e2e_s"].mean


@pytest.mark.vllm
@VLLM_START
def test_vllms_full_cache_its_queue_and_its_preemptions_are_seen(vllm_python, tiny_model, tmp_path):
    few = ["--num-gpu-blocks-override=16"]  # of 128 tokens each
    with vllm.started(vllm_python, tiny_model.huggingface, max_model_len=1024, extra=few) as url:
        evidence, stage, found = measured(
            url, tmp_path, load=["users:16"], requests=48, output_tokens="256"
        )
    figures = found.figures
    assert found.engine == "vllm"
    assert figures["kv_capacity_tokens"] == 16 * 128
    assert figures["kv_use_ratio_max"] > 0.9
    assert figures["waiting_requests_max"] > 0
    assert figures["preemptions"] > 0
    assert figures["generated_tokens"] == evidence.columns.output_tokens.sum()
    assert figures["requests_finished"] == stage.outcomes["completed"] == 48
    (ttft,) = evidence.telemetry.histograms("ttft_s")
    window = stage.figures["window"]
    inside = ttft.over(window["start_s"], window["end_s"])
    assert inside.count == 48
    assert inside.mean <= stage.figures["ttft_s"].mean
