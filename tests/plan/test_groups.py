"""Groups: replicas that answer, and replicas that only compute their prompts."""

import msgspec
import pytest

from servescope import lengths
from servescope.engine.config import EngineConfig
from servescope.goodput import parse_slo
from servescope.plan.answers import Question, answer, compare
from servescope.plan.fleet import Traffic
from servescope.plan.rate import highest_rate
from servescope.plan.shares import shares
from servescope.plan.workload import Workload
from servescope.report.plan import plan
from servescope.report.plan_sides import comparison

ONE = EngineConfig(model="llama-3.1-8b", gpu="h100-sxm-80gb", router="least_loaded")
TWO = msgspec.structs.replace(ONE, replicas=2)
GROUP = msgspec.structs.replace(ONE, prefill_replicas=1)
LONG = Workload(lengths.parse("in", "8000"), lengths.parse("out", "128"), 0)


def bounds(text):
    return parse_slo("--slo", text).bounds


def question(**options):
    options = {
        "config": GROUP,
        "workload": LONG,
        "sizes": (1,),
        "price_per_gpu_hour": 1.0,
    } | options
    return Question(**options)


def rate(config, slo):
    return highest_rate(config, LONG, bounds(slo), seeds=1).requests_per_s


def test_with_long_prompts_a_group_of_two_keeps_a_tpot_at_higher_rates_than_two_replicas():
    slo = "ttft_p99<2s,tpot_p95<10ms"
    assert rate(GROUP, slo) > 1.5 * rate(TWO, slo) > 1.5 * rate(ONE, slo)


def test_without_a_bound_on_tpot_two_replicas_serve_more_than_a_group_of_two():
    assert rate(TWO, "ttft_p99<2s") > 1.2 * rate(GROUP, "ttft_p99<2s")


def test_gpus_and_cost_of_a_group_count_those_that_only_compute_prompts():
    wide = msgspec.structs.replace(GROUP, replicas=2, max_num_seqs=16)
    found = answer(question(config=wide, sizes=(2,)))
    (size,) = found.choice.sizes
    assert size.gpus == 2 * (2 + 1)
    assert size.per_gpu == size.requests_per_s / 6
    assert found.costs[0].per_hour == 6.0
    assert found.costs[0].at == "one group, always full"


def test_a_fleet_is_of_whole_groups():
    asked = question(traffic=Traffic(rate=9.0), bounds=bounds("ttft_p99<2s,tpot_p95<10ms"))
    found = answer(asked)
    assert found.fleet.replicas >= 2
    assert found.fleet.gpus == 2 * found.fleet.replicas
    assert found.fleet.found.missed is None
    assert found.fleet.one_fewer.missed
    told = plan(found)
    assert "a group is 1 replica and 1 replica that only computes prompts" in told
    assert f"{found.fleet.gpus} GPUs: {found.fleet.replicas} groups, busy to" in told
    assert "No deployment of which some replicas only compute prompts is among them." in told


def test_shares_of_a_group_are_of_all_its_replicas():
    found = shares(GROUP, LONG)
    assert sum(found.resources.values()) == pytest.approx(1, abs=1e-6)
    assert found.phases["prefill"] > 0.3
    assert found.limit == "compute"  # of the replica that computes prompts
    assert found.elasticity["transfer"] == pytest.approx(0, abs=0.05)
    assert 0.5 < found.busy <= 1


def test_a_slow_network_limits_a_group():
    slow = msgspec.structs.replace(GROUP, transfer_bytes_per_s=2e9)
    found = shares(slow, LONG)
    assert found.limit == "transfer"
    assert found.elasticity["transfer"] == pytest.approx(1, abs=0.1)


def test_groups_are_compared_with_replicas_gpu_by_gpu():
    asked = question(config=ONE, bounds=bounds("ttft_p99<2s,tpot_p95<10ms"))
    found = compare(asked, "--compare", "prefill_replicas=0,1")
    one, group = found.sides
    assert (one.gpus, group.gpus) == (1, 2)
    assert group.per_gpu > one.per_gpu
    assert group.per_million_tokens < one.per_million_tokens
    assert "prefill_replicas=1" in comparison(found)
