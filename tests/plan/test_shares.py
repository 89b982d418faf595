"""Where time goes, and what a better part would buy."""

import numpy as np
import pytest

from servescope.engine.config import EngineConfig
from servescope.engine.deployment import deploy, hardware
from servescope.plan.shares import shares
from servescope.plan.workload import with_users
from tests.plan.asked import LLAMA, SMALL, with_, workload


def test_shares_add_up_and_elasticities_too():
    found = shares(LLAMA, workload())
    assert sum(found.resources.values()) == pytest.approx(1, abs=1e-6)
    assert sum(found.phases.values()) == pytest.approx(1)
    assert 0.8 < sum(found.elasticity.values()) < 1.3
    assert set(found.elasticity) >= {"compute", "hbm_weights", "hbm_kv", "kv_capacity", "host"}


@pytest.mark.parametrize(
    ("settings", "users"),
    [
        ({"model": "llama-3.1-8b", "gpu": "h100-sxm-80gb"}, 40),
        ({"model": "llama-2-13b", "gpu": "a40", "memory_utilization": 0.7}, None),
        ({"model": "qwen2-7b", "gpu": "l4"}, None),
    ],
)
def test_elasticities_are_as_good_as_they_say_whatever_is_drawn(settings, users):
    drawn = [
        shares(EngineConfig(**settings), workload("512", "128", seed), users) for seed in (0, 1, 2)
    ]
    for name in drawn[0].elasticity:
        each = [found.elasticity[name] for found in drawn]
        assert np.std(each, ddof=1) < max(found.noise for found in drawn)
        assert min(each) > -0.1


def test_a_closed_loop_that_comes_in_waves_is_not_faster_than_its_front_end():
    # All of a batch end together, since lengths are alike and prompts go first.
    config = EngineConfig(engine="sglang", model="qwen3-30b-a3b", gpu="h100-sxm-80gb")
    config = with_(config, memory_utilization=0.9)
    software = hardware(config)[1]
    most = 1 / (software.request_s + 128 * software.token_s)
    served = with_users(deploy(config), workload("512", "128"), 500)
    assert served.requests_per_s < 1.01 * most


def test_one_user_is_bound_by_reading_weights():
    found = shares(LLAMA, workload("32", "256"), users=1)
    assert found.limit == "hbm_weights"
    assert found.elasticity["hbm_weights"] > 0.7
    assert found.elasticity["kv_capacity"] == 0


def test_a_small_kv_cache_limits_throughput_and_is_seen_to():
    tight = shares(with_(LLAMA, memory_utilization=0.4), workload("512", "256"))
    assert tight.kv_full > 0.3
    assert tight.elasticity["kv_capacity"] > 0.3


def test_linear_costs_have_shares_of_their_own():
    found = shares(SMALL, workload())
    assert set(found.resources) == {"step", "prefill", "sequence", "context"}
    assert sum(found.resources.values()) == pytest.approx(1, abs=1e-3)


def test_the_shares_of_a_batch_that_does_not_cost_as_its_sequences_alone_add_up():
    found = shares(with_(SMALL, sequence="5ms", batch_scaling="1.5,1.8,2,2.1"), workload())
    assert sum(found.resources.values()) == pytest.approx(1, abs=1e-3)
    assert sum(found.phases.values()) == pytest.approx(1)
    assert found.phases["decode"] > 0


def test_a_front_end_that_is_slower_than_the_engine_caps_its_throughput():
    config = with_(LLAMA, model="smollm2-135m", gpu="h100-sxm-80gb")
    found = shares(config, workload("64", "16"))
    assert found.limit == "front_end"
    assert found.elasticity["front_end"] == pytest.approx(1, abs=0.05)
    assert found.front_end == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("network_bytes_per_s", [3e9, 12.5e9])
def test_a_network_between_nodes_is_part_of_the_interconnect(network_bytes_per_s):
    # Beyond 12.5 GB/s it is taken for another kind, of less latency, which is no better bandwidth.
    config = EngineConfig(model="llama-2-70b", gpu="h100-sxm-80gb", tp=16, nodes=2)
    config = with_(config, network_bytes_per_s=network_bytes_per_s)
    found = shares(config, workload("512", "32"))
    spent = found.resources["interconnect"]
    assert spent > 0.5
    assert found.elasticity["interconnect"] == pytest.approx(spent, abs=0.15)
