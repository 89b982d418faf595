"""What cannot serve the requests is left out, and says why; the rest is answered."""

import msgspec
import pytest

from servescope.engine.config import EngineConfig
from servescope.errors import BadInput
from servescope.plan.answers import Question, answer, compare, sizes_of
from servescope.plan.fleet import MOST_REPLICAS, Traffic
from servescope.plan.workload import saturated
from servescope.report.plan import plan
from servescope.report.plan_sides import comparison
from tests.plan.asked import LLAMA, SMALL, bounds, with_, workload

LLAMA_8B = EngineConfig(model="llama-3.1-8b", gpu="l4")


def asked(config, inputs="256", outputs="64", **options):
    return Question(config=config, workload=workload(inputs, outputs), **options)


def test_a_share_of_memory_that_holds_no_such_request_does_not_refuse_the_plan():
    config = EngineConfig(model="llama-2-7b", gpu="h100-sxm-80gb")
    found = answer(asked(config, "3500", sizes=(1,)))
    least, *others = found.utilization
    assert least.memory.fits
    assert least.output_tokens_per_s is None
    assert "serves at most 3,472 tokens" in least.why_not
    assert all(one.output_tokens_per_s for one in others)
    (row,) = (line for line in plan(found).splitlines() if line.startswith("0.2 "))
    assert least.why_not in row


def test_a_size_whose_kv_cache_holds_no_such_request_is_left_out_of_the_choice():
    found = answer(asked(LLAMA_8B, "40000", sizes=(1, 2)))
    assert found.choice.tp == 2
    assert "l4 with tp=1 serves at most 33,872 tokens" in plan(found)


def test_requests_that_no_size_serves_are_refused_naming_gpu_and_size():
    with pytest.raises(BadInput, match="want shorter ones: l4 with tp=1 serves at most 33,872"):
        answer(asked(LLAMA_8B, "40000", sizes=(1,)))


def test_a_side_that_serves_no_such_request_says_why_beside_those_that_do():
    question = asked(LLAMA_8B, "60000", sizes=(1,))
    found = compare(question, "--compare", "gpu=l4,h100-sxm-80gb")
    small, large = found.sides
    assert "l4 with tp=1 serves at most" in small.why_not
    assert large.ratio == 1
    assert f"gpu=l4             {small.why_not}" in comparison(found).splitlines()
    with pytest.raises(BadInput, match="want shorter ones"):
        compare(question, "--compare", "gpu=l4,rtx-4090")


def test_sizes_that_a_node_has_no_gpus_for_are_not_tried():
    eight = with_(LLAMA_8B, gpu="h100-sxm-80gb")
    assert sizes_of(asked(eight)) == [1, 2, 4, 8]
    assert sizes_of(asked(with_(eight, pp=2))) == [1, 2, 4]
    assert sizes_of(asked(with_(eight, pp=2, nodes=2))) == [1, 2, 4, 8]
    with pytest.raises(BadInput, match=r"--tp: '8': want nodes=2 or more"):
        sizes_of(asked(with_(eight, pp=2), sizes=(4, 8)))


def test_a_side_that_cannot_be_says_why_and_wrong_values_are_refused():
    question = asked(with_(LLAMA_8B, gpu="h100-sxm-80gb"))
    one, many, odd = compare(question, "--compare", "tp=1,16,3").sides
    assert one.output_tokens_per_s
    assert "want nodes=2 or more" in many.why_not
    assert "want a divisor of the 32 heads" in odd.why_not
    with pytest.raises(BadInput, match=r"pp: '99': want at most 32"):
        compare(question, "--compare", "pp=1,99")


def test_contexts_beyond_a_models_positions_are_refused():
    with pytest.raises(BadInput, match="want at most 4096, as many as llama-2-13b has positions"):
        answer(asked(LLAMA, context_tokens=5000))


def test_a_fleet_too_large_to_simulate_leaves_the_other_answers():
    full_per_s = saturated(SMALL, workload()).requests_per_s
    question = asked(SMALL, traffic=Traffic(rate=2 * MOST_REPLICAS * full_per_s))
    found = answer(question)
    assert found.fleet is None
    assert found.shares is not None
    assert "More than 512 replicas" in plan(found)
    near = msgspec.structs.replace(question, traffic=Traffic(rate=0.9 * 512 * full_per_s))
    found = answer(near)
    assert found.fleet.replicas <= MOST_REPLICAS
    assert "as little as the error bar allows, it takes more than 512 replicas." in plan(found)
    sides = comparison(compare(question, "--compare", "max_num_seqs=16,32"))
    assert "> 512" in sides


def test_an_slo_that_no_size_meets_is_not_said_to_be_met():
    found = answer(asked(LLAMA, sizes=(1, 2), bounds=bounds("tpot_p95<1ms")))
    told = plan(found).split("Which tensor-parallel size?\n")[1]
    assert told.startswith("No size meets the SLO, even with one request at a time")


def test_answers_of_one_token_have_no_tpot():
    question = asked(LLAMA, outputs="1", sizes=(1,), bounds=bounds("ttft_p99<2s"))
    assert " 0 ms" not in plan(answer(question))
    assert " 0 ms" not in comparison(compare(question, "--compare", "max_num_seqs=8,16"))


def test_without_a_gpu_nothing_is_said_of_weights_or_of_tokens_that_nobody_declared():
    told = plan(answer(asked(SMALL)))
    assert "The KV cache holds 20,000 tokens, as it was said" in told
    assert "0.0 GB" not in told
    unsaid = asked(with_(SMALL, kv_tokens=None))
    assert "Nothing says how large the KV cache is" in plan(answer(unsaid))
    side = compare(unsaid, "--compare", "max_num_seqs=8,16").sides[0]
    assert side.kv_tokens is side.sequences is None
