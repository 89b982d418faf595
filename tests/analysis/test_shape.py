"""The shape of times: two humps and their cause, a heavy tail, a drift; none of them by chance."""

import numpy as np
import pytest

from servescope.store import Stage
from tests.analysis.runs import planted, said, simulated

EVERY = np.arange(600) * 0.1


def noisy(rng, scale_s, n=600):
    """Times around a scale, a tenth of it wide."""
    return scale_s * rng.gamma(100, 0.01, n)


def test_what_is_not_in_the_prefix_cache_makes_the_second_hump(tmp_path):
    found = simulated(
        tmp_path,
        "sim:vllm?kv_tokens=65536",
        load=["poisson:2"],
        requests=500,
        data="shared_prefix:prefix=2000,groups=60",
    )
    (finding,) = said(found, "shape")
    assert finding.sentence.startswith("TTFT has two humps, around 22.9 ms and 194 ms (60% of")
    assert "of the slow ones had less than 60 % of their prompt in the prefix cache" in (
        finding.sentence
    )
    assert finding.evidence["cause_of_slow_ratio"] > 0.8
    assert finding.evidence["cause_of_fast_ratio"] < 0.05


CAUSES = {
    "had prompts of more than": lambda slow: {"input_tokens": np.where(slow, 4000, 100)},
    "had less than": lambda slow: {"cached_tokens": np.where(slow, 0, 96)},
    "went to http://two/": lambda slow: {"target": slow.astype(int)},
    "were the first turn of a session": lambda slow: {"session": 1, "turn": (~slow).astype(int)},
}


@pytest.mark.parametrize("words", CAUSES)
def test_the_cause_of_the_second_hump_is_named(tmp_path, words):
    rng = np.random.default_rng(1)
    slow = rng.random(600) < 0.3
    ttft = np.where(slow, noisy(rng, 0.9), noisy(rng, 0.04))
    found = planted(
        tmp_path,
        EVERY,
        ttft,
        ttft + 3,
        targets=("http://one/", "http://two/"),
        **CAUSES[words](slow),
    )
    (finding,) = said(found, "shape")
    assert f": 100% of the slow ones {words}" in finding.sentence
    assert finding.sentence.endswith("of the fast 0%")
    assert finding.evidence["fast_s"] == pytest.approx(0.04, rel=0.02)
    assert finding.evidence["slow_s"] == pytest.approx(0.9, rel=0.02)


def test_humps_that_nothing_explains_are_said_to_be_so(tmp_path):
    rng = np.random.default_rng(1)
    ttft = np.where(rng.random(600) < 0.3, noisy(rng, 0.9), noisy(rng, 0.04))
    (finding,) = said(planted(tmp_path, EVERY, ttft, ttft + 3), "shape")
    assert "nothing that is recorded of the requests tells them apart" in finding.sentence


def test_answers_of_two_lengths_make_two_humps_of_the_end_to_end_latency(tmp_path):
    rng = np.random.default_rng(2)
    long = rng.random(600) < 0.5
    e2e = np.where(long, noisy(rng, 4), noisy(rng, 0.5))
    tokens = np.where(long, 400, 50)
    found = planted(tmp_path, EVERY, noisy(rng, 0.04), e2e, output_tokens=tokens)
    (finding,) = said(found, "shape")
    assert "100% of the slow ones had answers of more than 200 tokens" in finding.sentence


@pytest.mark.parametrize("index", [1.1, 1.6])
def test_a_heavy_tail_is_told_with_its_index(tmp_path, index):
    rng = np.random.default_rng(4)
    ttft = 0.02 * (1 + rng.pareto(index, 2000))
    found = planted(tmp_path, np.arange(2000) * 10, ttft, ttft + 100)
    (finding,) = said(found, "shape")
    assert finding.sentence.startswith("TTFT has a heavy tail: its P99 of")
    assert finding.value == pytest.approx(50 ** (1 / index), rel=0.5)
    assert finding.evidence["tail_index_low"] < index < finding.evidence["tail_index_high"]


def test_a_tail_no_longer_than_that_of_the_answers_is_not_called_heavy(tmp_path):
    rng = np.random.default_rng(4)
    tokens = np.maximum(2, rng.pareto(1.1, 2000) * 20).astype(int)
    e2e = tokens * 0.01 * rng.gamma(100, 0.01, 2000) + 0.01
    found = planted(tmp_path, np.arange(2000) * 20, np.full(2000, 0.005), e2e, output_tokens=tokens)
    assert (
        found.summary.stages[0].steady["e2e_s"].p99
        > 20 * found.summary.stages[0].steady["e2e_s"].p50
    )
    assert said(found, "shape") == []


@pytest.mark.parametrize("grows", [0.15, -0.13])
def test_a_drift_is_told_with_its_interval(tmp_path, grows):
    rng = np.random.default_rng(6)
    ttft = np.linspace(1, 1 + grows, 600) * noisy(rng, 0.2)
    (finding,) = said(planted(tmp_path, EVERY, ttft, ttft + 3), "shape")
    assert finding.sentence.startswith("the median TTFT drifts from")
    assert finding.value == pytest.approx(grows, abs=0.03)
    assert finding.evidence["p"] < 0.001


def test_a_drift_of_the_prompts_is_said_with_that_of_the_times(tmp_path):
    rng = np.random.default_rng(6)
    tokens = (np.linspace(1000, 1150, 600) * rng.gamma(400, 1 / 400, 600)).astype(int)
    ttft = tokens * 2e-4
    (finding,) = said(planted(tmp_path, EVERY, ttft, ttft + 3, input_tokens=tokens), "shape")
    assert "the prompts' lengths changed by +1" in finding.sentence


def test_a_stage_of_which_a_kill_has_left_nothing_has_no_shape(tmp_path):
    stage = Stage(load="burst", open=True)
    assert planted(tmp_path, [], [], [], stage=stage).summary.findings == []


@pytest.mark.parametrize(
    "options",
    [
        {"load": ["poisson:8"], "output_tokens": "uniform:16-64"},
        {"load": ["users:16"], "output_tokens": "uniform:16-64"},
        {"load": ["poisson:30"], "input_tokens": "uniform:50-200"},
        {"load": ["gamma:rate=10,cv=2"]},
    ],
    ids=lambda options: options["load"][0],
)
def test_of_40_runs_that_are_steady_none_is_said_to_drift_to_have_two_humps_or_a_queue(
    tmp_path, options
):
    for seed in range(10):
        found = simulated(tmp_path / str(seed), requests=300, seed=seed, **options)
        stage = found.summary.stages[0]
        assert stage.steady is not None, (seed, stage.unsteady)
        assert said(found, "shape") == []
        assert said(found, "conservation") == []
