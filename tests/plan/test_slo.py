"""Requests that are refused, and the figures that an SLO bounds."""

import msgspec
import numpy as np
import pytest

from servescope.engine.deployment import deploy
from servescope.plan.answers import Question, answer
from servescope.plan.fleet import Traffic, fleet
from servescope.plan.rate import highest_rate, point
from servescope.plan.workload import at_rate, saturated
from servescope.report.plan import plan
from tests.plan.asked import SMALL, bounds, with_, workload


def test_a_request_that_finds_the_queue_full_misses_every_bound():
    shy, wanted = with_(SMALL, max_waiting=1), bounds("ttft_p99<2s")
    free, limited = (highest_rate(one, workload(), wanted, seeds=1) for one in (SMALL, shy))
    assert limited.saturation_per_s == pytest.approx(free.saturation_per_s, rel=0.02)
    assert limited.requests_per_s < 0.9 * free.requests_per_s
    assert limited.limited_by == "ttft_p99<2s"
    assert limited.curve[-1].refused > 0.01
    assert limited.curve[-1].times_s["ttft p99"] is None


def test_a_rate_within_an_slo_is_of_answered_requests():
    shy = with_(SMALL, max_waiting=1, max_num_seqs=8)
    found = highest_rate(shy, workload(), bounds("ttft_p50<10s"), seeds=1)
    last = found.curve[-1]
    assert last.missed is None
    assert last.refused > 0.05
    assert found.requests_per_s == pytest.approx(last.requests_per_s * (1 - last.refused))


def test_hardly_any_requests_refused_are_not_said_to_be_none():
    found = answer(Question(config=SMALL, workload=workload(), bounds=bounds("ttft_p99<2s")))
    first, *others = found.rate.curve
    few = msgspec.structs.replace(first, refused=2e-4)
    rate = msgspec.structs.replace(found.rate, curve=[few, *others])
    told = plan(msgspec.structs.replace(found, rate=rate))
    assert "<0.1% refused" in told
    assert "0.0% refused" not in told


def test_replicas_that_refuse_are_not_enough():
    shy = with_(SMALL, max_waiting=1)
    rate = 0.9 * saturated(SMALL, workload()).requests_per_s
    assert fleet(SMALL, workload(), Traffic(rate=rate), ()).replicas == 1
    found = fleet(shy, workload(), Traffic(rate=rate), ())
    assert found.replicas > 1
    assert found.found.refused == 0
    assert found.one_fewer.refused > 0


def test_costs_of_a_traffic_are_for_what_is_answered():
    shy, free = (
        answer(
            Question(
                config=with_(SMALL, max_waiting=limit, max_num_seqs=8),
                workload=workload(),
                price_per_gpu_hour=1.0,
                bounds=bounds("ttft_p50<10s"),
                traffic=Traffic(rate=20.0),
            )
        )
        for limit in (1, None)
    )
    refused = shy.fleet.found.refused
    assert refused > 0.05
    assert shy.fleet.replicas == free.fleet.replicas
    served = shy.costs[-1].per_million_output_tokens / free.costs[-1].per_million_output_tokens
    assert served == pytest.approx(1 / (1 - refused), rel=0.02)


@pytest.mark.parametrize(
    ("slo", "figure", "of"),
    [
        ("e2e_p90<5s", "e2e p90", lambda served: np.percentile(served.e2e_s, 90)),
        ("e2e<5s", "e2e max", lambda served: served.e2e_s.max()),
        ("tpot_mean<50ms", "tpot mean", lambda served: np.nanmean(served.tpot_s)),
    ],
)
def test_the_figure_that_an_slo_bounds_is_shown(slo, figure, of):
    served = at_rate(deploy(SMALL), workload(), 10.0, 2000)
    assert point(served, 10.0, bounds(slo)).times_s[figure] == pytest.approx(of(served))
    question = Question(config=SMALL, workload=workload(), bounds=bounds(slo))
    told = plan(answer(question)).split("How many requests/s")[1]
    metric, which = figure.split()
    header = told.split("requests/s  ")[1].splitlines()[0]
    assert which in header.split(metric if metric == "e2e" else metric.upper(), 1)[1].split()
