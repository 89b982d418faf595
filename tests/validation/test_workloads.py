"""Workloads are drawn as their sources draw them."""

import numpy as np
import pytest

from servescope.engine.config import EngineConfig
from servescope.validation import llm_infer_bench, published
from servescope.validation.deployment import deployed, serve
from servescope.validation.gaps import inter_token_times
from servescope.validation.gpustack import lengths
from servescope.validation.lengths import log_normal, often_cut


@pytest.mark.parametrize(
    ("most", "mean"), [(32, 17.31), (128, 54.184), (512, 118.811), (1536, 128.61)]
)
def test_the_seed_of_llm_infer_bench_gives_its_answers(most, mean):
    drawn = llm_infer_bench.draw(512, 512, most)
    assert set(drawn.prompts) == {512}
    assert drawn.outputs.mean() == pytest.approx(mean)
    assert drawn.outputs.min() == 10
    assert not drawn.arrivals_s.any()


def test_another_tokenizer_draws_other_answers_and_longer_prompts():
    usual = llm_infer_bench.workload("vllm-0.1", "Poisson 2/s, 1000 req")
    other = llm_infer_bench.workload("lightllm-2023", "Poisson 2/s, 1000 req")
    assert usual.prompts.mean() == pytest.approx(258, abs=0.1)
    assert usual.outputs.mean() == pytest.approx(128.3, abs=0.1)
    assert other.outputs.mean() == pytest.approx(114.4, abs=0.1)
    assert np.median(other.outputs) == 82.5
    assert other.prompts.mean() == pytest.approx(1.9 * usual.prompts.mean(), rel=0.001)
    assert usual.arrivals_s[0] == 0
    assert np.diff(usual.arrivals_s).mean() == pytest.approx(0.5, rel=0.1)


def test_lengths_known_by_their_mean_have_it():
    drawn = log_normal(217.4, 1000, 1024)
    assert drawn.mean() == pytest.approx(217.4, rel=0.01)
    assert 4 <= drawn.min() < np.median(drawn) < 150 < drawn.max() <= 1024
    assert list(drawn) == list(log_normal(217.4, 1000, 1024))
    assert list(drawn) != list(log_normal(217.4, 1000, 1024, stream=1))
    cut = often_cut(230, 256, 3000)
    assert cut.mean() == pytest.approx(230, rel=0.01)
    assert np.median(cut) == cut.max() == 256


def test_lengths_that_a_source_tells_are_taken_as_they_are():
    prompts, answers = lengths(500, 3995.9, 199.6)
    assert set(prompts) == {3996}
    assert set(answers) == {200}


def test_inter_token_times_are_those_of_the_answers_of_a_replay():
    made = deployed(EngineConfig(model="qwen3-14b", gpu="a100-sxm-80gb", max_num_seqs=64))
    prompts, outputs = log_normal(200, 100, 1024, stream=1), log_normal(100, 100, 512, stream=2)
    gaps_s, served = inter_token_times(made, prompts, outputs), serve(made, prompts, outputs)
    assert len(gaps_s) == (outputs - 1).sum()
    assert gaps_s.sum() == pytest.approx((served.end_s - served.first_s).sum(), rel=0.01)
    assert gaps_s.max() > 2 * np.median(gaps_s)  # a prompt in between


def test_every_published_figure_can_be_read():
    rows = published()
    assert len({row.id for row in rows}) == len(rows) == 522
    assert all(row.number > 0 for row in rows)
    assert {row.quality.partition(" ")[0] for row in rows} == {"exact", "digitised", "qualitative"}
