import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servescope.datasets import Item, Single
from servescope.deal import Deal
from servescope.engine.config import EngineConfig
from servescope.engine.policies import policies, policy
from servescope.engine.replay import ROUTERS, replay
from servescope.engine.simulate import simulate
from servescope.errors import BadInput
from servescope.load import Closed, Limit, Open
from tests.engine.test_front_end import COSTS, one_by_one

RNG = np.random.default_rng(1)
PROMPTS, ANSWERS = RNG.integers(1, 300, 80), RNG.integers(1, 90, 80)
TIMES_NS = np.cumsum(RNG.integers(0, 2 * 10**8, 80))


def engine(name="vllm", **settings):
    costs = {"step": "5ms", "prefill": "1ms", "sequence": "100us", "context": "1us"}
    return policy(name)(EngineConfig(**{**costs, "turnaround": "1ms", **settings}))


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("closed", [False, True])
def test_replay_and_simulation_agree_to_the_nanosecond(closed, replicas):
    items = Single(lambda i: Item(prompt=(i,) * int(PROMPTS[i]), output_tokens=int(ANSWERS[i])))
    offer = Closed(users=25) if closed else Open(due_ns=TIMES_NS)
    deal = Deal(offer=offer, limit=Limit(requests=80), items=items, first_item=0)
    room = {"kv_tokens": 3000 if replicas == 1 else 500, "prefix_cache": False}
    fleet, again = ([engine(**room) for _ in range(replicas)] for _ in range(2))
    found = simulate(fleet, deal, router="least_loaded")
    records = sorted(found, key=lambda record: record.request)
    load = {"users": 25} if closed else {"arrivals_s": TIMES_NS / 1e9}
    replayed = replay(again, PROMPTS, ANSWERS, router="least_loaded", **load)
    assert any(one.totals.preemptions for one in fleet)
    assert [one.totals for one in again] == [one.totals for one in fleet]
    assert replayed.totals.finished == 80
    for times_s, name in (
        (replayed.sent_s, "sent_ns"),
        (replayed.first_s, "first_output_ns"),
        (replayed.end_s, "end_ns"),
    ):
        recorded_s = [getattr(record, name) / 1e9 for record in records]
        np.testing.assert_allclose(times_s, recorded_s, rtol=0, atol=2e-7)


def test_one_request_alone_takes_what_the_formula_says():
    replayed = replay(engine(sequence=0, context=0), [10], [4], arrivals_s=[2.0])
    assert (replayed.sent_s[0], replayed.makespan_s) == (2.0, pytest.approx(0.031))
    assert replayed.first_s[0] == pytest.approx(2.016)
    assert (replayed.prompt_s, replayed.mixed_s) == (0.015, 0)
    assert replayed.decode_s == replayed.busy_s - 0.015 == 0.015


def test_the_time_of_steps_is_told_by_what_they_do():
    replayed = replay(engine(), [10, 20], [50, 2], arrivals_s=[0, 0.1])
    assert replayed.prompt_s == pytest.approx(0.0151 + 1e-5, abs=1e-9)
    assert replayed.mixed_s == pytest.approx(0.025, abs=1e-3)
    replayed = replay(engine("vllm-0.1"), [10, 20], [50, 2], arrivals_s=[0, 0.1])
    assert replayed.mixed_s == 0


@pytest.mark.parametrize("load", [{"users": 2}, {"arrivals_s": [0.0, 0.1, 0.2, 0.3]}])
def test_what_is_not_taken_has_no_times_and_the_rest_goes_on(load):
    replayed = replay(engine(kv_tokens=64), [10, 100, 10, 10], [4, 4, 4, 4], **load)
    assert np.isnan(replayed.first_s).tolist() == [False, True, False, False]
    assert np.isnan(replayed.end_s).tolist() == [False, True, False, False]
    assert replayed.tokens.tolist() == [4, 0, 4, 4]
    assert not np.isnan(replayed.sent_s).any()


def test_nothing_comes_of_nothing():
    replayed = replay(engine(), [], [], arrivals_s=[])
    assert (replayed.makespan_s, replayed.busy_s, len(replayed.end_s)) == (0, 0, 0)


def test_round_robin_gives_each_replica_its_share():
    load = {"arrivals_s": TIMES_NS / 1e9}
    both = replay([engine(), engine()], PROMPTS, ANSWERS, **load)
    for k in (0, 1):
        part = slice(k, None, 2)
        alone = replay(engine(), PROMPTS[part], ANSWERS[part], arrivals_s=load["arrivals_s"][part])
        assert (both.end_s[part] == alone.end_s).all()


def test_the_least_loaded_replica_is_not_the_one_with_a_long_answer():
    fleet = [engine(), engine()]
    replay(fleet, [1] * 6, [1000, *[1] * 5], arrivals_s=np.arange(6.0), router="least_loaded")
    assert [target.totals.finished for target in fleet] == [1, 5]


def test_a_prefix_is_computed_once_where_the_router_heeds_it():
    groups, times = [0, 1, 1, 0, 0, 1, 1, 0], np.arange(8.0)
    shared = {"groups": groups, "prefix_tokens": [160] * 8, "arrivals_s": times}
    hits = {}
    for router in ROUTERS:
        fleet = [engine(), engine()]
        replayed = replay(fleet, [200] * 8, [5] * 8, router=router, **shared)
        hits[router] = replayed.totals.prefix_hit_tokens
    assert hits["prefix_aware"] == 6 * 160
    assert hits["round_robin"] == 4 * 160


def test_simulated_requests_with_a_long_prefix_in_common_go_where_it_is():
    prompts = [(*range(300 * (k % 5), 300 * (k % 5) + 300), -k) for k in range(40)]
    items = Single(lambda i: Item(prompt=prompts[i], output_tokens=2))
    offer = Open(due_ns=np.arange(40) * 10**9)
    deal = Deal(offer=offer, limit=Limit(requests=40), items=items, first_item=0)
    fleet = [engine() for _ in range(3)]
    list(simulate(fleet, deal, router="prefix_aware"))
    assert sum(one.totals.prefix_hit_tokens for one in fleet) == 35 * 288


def test_a_replica_with_far_more_requests_loses_its_prefixes():
    fleet = [engine(max_num_seqs=1), engine(max_num_seqs=1)]
    groups = {"groups": [3] * 100, "router": "prefix_aware"}
    replay(fleet, [10] * 100, [50] * 100, arrivals_s=[0.0] * 100, **groups)
    assert min(target.totals.finished for target in fleet) > 30


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"arrivals_s": [0.0, 1.0], "users": 3}, "users"),
        ({}, "users"),
        ({"users": 0}, "users"),
        ({"arrivals_s": [1.0, 0.0]}, "arrivals_s"),
        ({"arrivals_s": [1.0]}, "arrivals_s"),
        ({"users": 1, "most_tokens": [1]}, "most_tokens"),
        ({"users": 1, "most_tokens": [1, 0]}, "most_tokens"),
        ({"users": 1, "router": "round"}, "router"),
    ],
)
def test_a_wrong_argument_is_named(wrong, field):
    with pytest.raises(BadInput) as caught:
        replay(engine(), [1, 1], [1, 1], **wrong)
    assert caught.value.field == field


@pytest.mark.parametrize("name", sorted(policies()))
@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 10**6),
    replicas=st.sampled_from([1, 3]),
    router=st.sampled_from(sorted(ROUTERS)),
    closed=st.booleans(),
    front_end=COSTS,
    max_waiting=st.sampled_from([None, 4]),
)
def test_steps_taken_together_change_no_time_of_a_fleet(
    name, *, seed, replicas, router, closed, front_end, max_waiting
):
    rng = np.random.default_rng(seed)
    prompts, answers = rng.integers(1, 60, 40), rng.integers(1, 40, 40)
    load = {"users": 9} if closed else {"arrivals_s": np.cumsum(rng.exponential(0.02, 40))}
    groups = rng.integers(-1, 3, 40)
    config = EngineConfig(
        step="1ms",
        kv_tokens=400,
        max_num_seqs=6,
        max_num_batched_tokens=59,
        max_waiting=max_waiting,
    )
    results = [
        replay(
            [kind(config) for _ in range(replicas)],
            *(prompts, answers),
            **load,
            groups=groups,
            prefix_tokens=np.minimum(20, prompts),
            router=router,
            front_end=front_end,
        )
        for kind in (policy(name), one_by_one(policy(name)))
    ]
    for column in ("sent_s", "first_s", "end_s"):
        np.testing.assert_array_equal(*(getattr(one, column) for one in results))
    assert results[0].totals == results[1].totals
    assert results[0].decode_s == results[1].decode_s
    assert results[0].busy_s <= replicas * results[0].makespan_s
    assert results[0].front_end_s == results[1].front_end_s
    taken = results[0].tokens > 0
    assert (results[0].sent_s < results[0].first_s)[taken].all()
    assert taken.all() or max_waiting
