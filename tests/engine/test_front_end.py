"""The API server's queue: first come, first served, and the same in replay and simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servescope.datasets import Item, Single
from servescope.deal import Deal
from servescope.engine import FS
from servescope.engine.config import EngineConfig
from servescope.engine.deployment import deploy
from servescope.engine.front_end import FrontEnd, FrontEndCost
from servescope.engine.policies import policies, policy
from servescope.engine.replay import replay
from servescope.engine.simulate import simulate
from servescope.load import Closed, Limit, Open

COST = FrontEndCost(request_s=20e-3, token_s=100e-6)
"""10 ms to take a request in, and 10 ms to open its answer."""
MS = 10**6


def engine(name="vllm", **said):
    """5 ms a step and 1 ms a prompt token; 1 ms of way."""
    costs = {"step": "5ms", "prefill": "1ms", "sequence": 0, "context": 0, "turnaround": "1ms"}
    return policy(name)(EngineConfig(**{**costs, "prefix_cache": False, **said}))


def records(fleet, offer, prompts, answers, cost=COST, **more):
    items = Single(lambda i: Item(prompt=(i,) * int(prompts[i]), output_tokens=int(answers[i])))
    deal = Deal(offer=offer, limit=Limit(requests=len(prompts)), items=items, first_item=0)
    found = list(simulate(fleet, deal, front_end=cost, **more))
    assert [record.end_ns for record in found] == sorted(record.end_ns for record in found)
    return sorted(found, key=lambda record: record.request)


def tokens_ms(record):
    return (np.cumsum(record.chunk_ns) / MS).tolist()


# --- known answers --------------------------------------------------------------------------------


def test_one_request_alone_is_taken_in_and_opened():
    (record,) = records([engine()], Open(due_ns=np.array([7 * MS])), [10], [4])
    # 7, half a ms of way, 10 to take it in, 15 for the prompt, 10 to open the answer, and back.
    # The second token, made at 37.5, waits for the first to go out at 42.5, with the third.
    assert tokens_ms(record) == [43, 43, 43, 48]
    assert record.end_ns == 48 * MS


def test_a_burst_comes_to_the_engine_when_all_of_it_has_been_taken_in():
    count = 1000
    quick = engine(prefill=0)
    replayed = replay(quick, [1] * count, [1] * count, arrivals_s=[0.0] * count, front_end=COST)
    first_s = np.sort(replayed.first_s)
    # 10 s, a step of 5 ms, 10 ms to open the first answer, and a millisecond on the way.
    assert first_s[0] == pytest.approx(count * 10e-3 + 16e-3, abs=1e-6)
    # Then one is opened each 10 ms; each token of a whole answer is 100 us more.
    assert first_s[-1] == pytest.approx(count * 20e-3, rel=0.01)
    assert replayed.front_end_s == pytest.approx(count * 20.1e-3)


def test_what_is_more_to_take_in_delays_a_burst_but_not_its_opening():
    load = {"arrivals_s": [0.0] * 100}
    little, more = (
        np.sort(replay(engine(), [1] * 100, [1] * 100, front_end=cost, **load).first_s)
        for cost in (COST, COST._replace(intake_s=30e-3))
    )
    np.testing.assert_allclose(more - little, 100 * 30e-3, atol=1e-6)


def test_users_get_no_more_answers_than_the_front_end_can_give():
    replayed = replay(engine(), [1] * 500, [5] * 500, users=20, front_end=COST)
    # It is idle when all 20 are in the engine, a few ms of each turn.
    assert 500 * 20.5e-3 < replayed.makespan_s < 500 * 22e-3


def test_a_first_token_waits_like_a_customer_of_one_server():
    rng = np.random.default_rng(4)
    times_s = np.cumsum(rng.exponential(1 / 25, 20_000))
    quick = engine(step="1us", prefill=0)
    ones = np.ones(len(times_s), int)
    free, held = (
        replay(quick, ones, ones, arrivals_s=times_s, front_end=cost)
        for cost in (FrontEndCost(), FrontEndCost(request_s=20e-3))
    )
    wait_s = (held.first_s - held.sent_s).mean() - (free.first_s - free.sent_s).mean()
    # Half loaded with 20 ms each: 30 ms if they were done at once (M/D/1), 40 if all went on at
    # once (processor sharing). They are done by halves.
    assert 30e-3 < wait_s < 40e-3


def test_each_replica_has_a_front_end_of_its_own():
    load = {"arrivals_s": np.zeros(100), "front_end": COST}
    one, two = (replay([engine() for _ in range(n)], [1] * 100, [2] * 100, **load) for n in (1, 2))
    assert one.makespan_s / two.makespan_s == pytest.approx(2, rel=0.02)


def test_what_is_in_the_front_end_does_not_wait_in_the_engine():
    kept = []
    offer = Open(due_ns=np.zeros(50, np.int64))
    records([engine(max_num_seqs=2)], offer, [1] * 50, [40] * 50, keep=kept.extend)
    waiting = [sample.value for sample in kept if sample.name == "waiting_requests"]
    assert max(waiting) == 48  # all but two, in one go, and none while they were taken in
    assert waiting[: waiting.index(48)] == [0] * waiting.index(48)


def test_a_request_that_is_refused_is_told_so_when_it_has_been_taken_in():
    offer = Open(due_ns=np.zeros(3, np.int64))
    found = records([engine(kv_tokens=64)], offer, [10, 100, 10], [2, 2, 2])
    assert found[1].outcome == "failed:http_4xx"
    assert found[1].end_ns == 31 * MS  # as were the others
    assert [record.outcome for record in found].count("completed") == 2


@pytest.mark.parametrize(
    ("said", "request_s"),
    [
        ({"gpu": "h100-sxm-80gb", "model": "llama-3.1-8b"}, 2e-3),
        ({"gpu": "h100-sxm-80gb", "model": "llama-3.1-8b", "engine": "vllm-0.1"}, 0),
        ({"step": "5ms"}, 0),
    ],
    ids=["today", "of 2023", "linear costs"],
)
def test_engines_of_the_catalogue_have_the_front_end_that_it_says(said, request_s):
    assert deploy(EngineConfig(**said)).front_end.request_s == request_s


# --- properties -----------------------------------------------------------------------------------

COSTS = st.builds(
    FrontEndCost,
    st.sampled_from([0.0, 1e-3, 7.3e-3, 40e-3]),
    st.sampled_from([0.0, 1e-5, 1e-3]),
    st.sampled_from([0.0, 5e-3]),
)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=40))
def test_jobs_are_done_in_turn_and_none_is_lost(jobs):
    front, now, work, last = FrontEnd(FrontEndCost(4, 1), per_s=1), 0, 0, 0
    for wait, kind in jobs:
        now += wait
        if kind == 3:
            front.charge(now, 5)
            work, done = work + 5, front.free
        else:
            done = front.take_in(now) if kind else front.open(now)
            work += 2
        assert done == max(now, last) + (5 if kind == 3 else 2) == front.free
        assert front.out(now) == done
        last = done
    assert front.busy == work <= front.free


def one_by_one(kind):
    class OneByOne(kind):
        def step(self, until_fs=None, arrival_fs=0):
            return super().step(1)

    return OneByOne


@pytest.mark.parametrize("name", sorted(policies()))
@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 10**6),
    cost=COSTS,
    replicas=st.sampled_from([1, 3]),
    router=st.sampled_from(["round_robin", "least_loaded", "prefix_aware"]),
    closed=st.booleans(),
    cap=st.none() | st.integers(1, 5),
)
def test_steps_taken_together_change_no_token_and_replaying_agrees(
    name, *, seed, cost, replicas, router, closed, cap
):
    rng = np.random.default_rng(seed)
    prompts, answers = rng.integers(1, 60, 40), rng.integers(1, 40, 40)
    due_ns = np.cumsum(rng.exponential(0.02, 40) * 1e9).astype(np.int64)
    offer = Closed(users=9) if closed else Open(due_ns=due_ns)
    config = EngineConfig(
        step="1ms", kv_tokens=400, max_num_seqs=6, max_num_batched_tokens=59, prefix_cache=False
    )
    if router == "prefix_aware":  # the ids of a prompt are a group there, which a replay has not
        config, cap = EngineConfig(step="1ms", kv_tokens=400, max_num_seqs=6), cap or 9
    fleets = [
        [kind(config) for _ in range(replicas)] for kind in (policy(name), one_by_one(policy(name)))
    ]
    found = [
        records(fleet, offer, prompts, answers, cost, router=router, cap=cap) for fleet in fleets
    ]
    assert found[0] == found[1]
    assert [one.totals for one in fleets[0]] == [one.totals for one in fleets[1]]
    least_ns = round((cost.request_s + cost.intake_s + config.turnaround_s) * 1e9)
    assert len(found[0]) == 40
    for record, answer in zip(found[0], answers, strict=True):
        assert record.outcome == "completed"
        assert len(record.chunk_ns) == record.output_tokens == answer
        assert record.chunk_ns[0] >= record.sent_ns + least_ns - 1
        assert all(gap >= 0 for gap in record.chunk_ns[1:])
        assert sum(record.chunk_ns) == record.end_ns
    if (cap is None or closed) and router != "prefix_aware":
        load = {"users": 9} if closed else {"arrivals_s": due_ns / 1e9}
        fleet = [policy(name)(config) for _ in range(replicas)]
        replayed = replay(fleet, prompts, answers, router=router, front_end=cost, **load)
        for times_s, field in (
            (replayed.sent_s, "sent_ns"),
            (replayed.first_s, "first_output_ns"),
            (replayed.end_s, "end_ns"),
        ):
            recorded_s = [getattr(record, field) / 1e9 for record in found[0]]
            np.testing.assert_allclose(times_s, recorded_s, rtol=0, atol=2e-7)
        work_s = 40 * (cost.request_s + cost.intake_s) + answers.sum() * cost.token_s
        assert replayed.front_end_s == pytest.approx(work_s)
        assert replayed.front_end_s <= replicas * (
            replayed.makespan_s + answers.sum() * cost.token_s
        )


def test_femtoseconds_are_exact():
    assert FrontEnd(FrontEndCost(22e-3, 10e-6)).half == 11 * FS // 1000
