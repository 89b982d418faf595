"""Deployments side by side, and several replicas as one."""

import msgspec
import pytest

from servescope.errors import BadInput
from servescope.plan.answers import Question, answer, compare
from servescope.plan.fleet import Traffic
from servescope.report.plan import plan
from servescope.report.plan_sides import comparison
from tests.plan.asked import LLAMA, bounds, with_, workload


def test_sides_are_compared_with_the_first():
    question = Question(config=LLAMA, workload=workload(), sizes=(1,))
    found = compare(question, "--compare", "gpu=a800-sxm-80gb,h100-sxm-80gb")
    first, second = found.sides
    assert first.ratio == 1
    assert 1.3 < second.ratio < 3.5
    with pytest.raises(BadInput, match="did you mean gpu"):
        compare(question, "--compare", "gpus=a,b")


def test_declared_replicas_are_a_group_and_all_of_them_count():
    question = Question(config=LLAMA, workload=workload(), sizes=(1,))
    one, four = compare(question, "--compare", "replicas=1,4").sides
    assert (one.gpus, four.gpus) == (1, 4)
    assert four.ratio == pytest.approx(4, rel=0.05)
    assert four.per_million_tokens == pytest.approx(one.per_million_tokens, rel=0.05)
    pair = msgspec.structs.replace(
        question, config=with_(LLAMA, replicas=2), traffic=Traffic(rate=20.0)
    )
    found = answer(pair)
    assert found.fleet.gpus == 2 * found.fleet.replicas
    assert found.fleet.load == pytest.approx(
        20.0 / found.fleet.replicas / found.choice.sizes[0].requests_per_s
    )
    assert "a group is 2 replicas" in plan(found)


def test_a_comparison_says_what_its_figures_are_and_plans_the_traffic():
    question = Question(
        config=with_(LLAMA, max_num_seqs=8),
        workload=workload(),
        sizes=(1,),
        bounds=bounds("ttft_p99<2s"),
        traffic=Traffic(rate=9.0),
        context_tokens=1024,
    )
    found = compare(question, "--compare", "gpu=a800-sxm-80gb,h100-sxm-80gb")
    assert [side.sequences for side in found.sides] == [8, 8]
    slow, fast = (side.fleet.gpus for side in found.sides)
    assert slow > fast
    told = comparison(found)
    for words in ("within SLO: requests/s a GPU", "x 1024 tokens", "GPUs for 9 requests/s"):
        assert words in told
    assert "limits" not in told
    question = msgspec.structs.replace(question, bounds=(), traffic=None)
    assert "full: requests/s a GPU" in comparison(compare(question, "--compare", "tp=1,2"))


def test_sides_that_the_api_server_limits_say_so():
    question = Question(
        config=with_(LLAMA, model="smollm2-135m", gpu="h100-sxm-80gb"),
        workload=workload("64", "16"),
        sizes=(1,),
    )
    found = compare(question, "--compare", "gpu=h100-sxm-80gb,b200")
    assert [round(side.front_end, 2) for side in found.sides] == [1, 1]
    told = comparison(found)
    assert "front end busy" in told
    assert "the API server's process limits it" in told
