"""Prompts computed by some replicas, answers made by others."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servescope.datasets import Item, Single
from servescope.deal import Deal
from servescope.engine.config import EngineConfig, parse
from servescope.engine.deployment import deploy
from servescope.engine.disaggregation import Transfer
from servescope.engine.front_end import FrontEndCost
from servescope.engine.policies import policies, policy
from servescope.engine.replay import replay
from servescope.engine.simulate import simulate
from servescope.errors import BadInput
from servescope.load import Closed, Limit, Open
from tests.engine.test_front_end import engine, one_by_one

ABLE = sorted(name for name, kind in policies().items() if kind.disaggregates)
TRANSFER = Transfer(token_s=2e-3, latency_s=3e-3)


def records(fleet, prefill, offer, prompts, answers, **more):
    items = Single(lambda i: Item(prompt=(i,) * int(prompts[i]), output_tokens=int(answers[i])))
    deal = Deal(offer=offer, limit=Limit(requests=len(prompts)), items=items, first_item=0)
    found = simulate(fleet, deal, prefill=prefill, transfer=TRANSFER, **more)
    return sorted(found, key=lambda record: record.request)


def test_a_first_token_waits_for_the_prompt_and_its_kv():
    (record,) = records([engine()], [engine()], Open(due_ns=np.array([0])), [10], [3])
    # 15 ms for the prompt, 20 and 3 for its KV, 6 for its last token again, 1 of way.
    assert record.chunk_ns == [45_000_000, 5_000_000, 5_000_000]


def test_a_replica_sends_the_kv_of_one_prompt_after_the_other():
    found = replay(
        [engine(), engine()],
        [10, 10],
        [2, 2],
        arrivals_s=[0, 0],
        prefill=[engine()],
        transfer=TRANSFER,
    )
    # Both are computed in one step of 25 ms.
    assert found.first_s.tolist() == pytest.approx([0.055, 0.075])


def test_two_prefill_replicas_share_the_prompts():
    load = {"arrivals_s": [0.0] * 8, "transfer": TRANSFER}
    one, two = (
        replay([engine()], [50] * 8, [2] * 8, prefill=[engine() for _ in range(n)], **load)
        for n in (1, 2)
    )
    assert np.sort(two.first_s)[-1] < 0.6 * np.sort(one.first_s)[-1]


def test_prompts_hold_up_no_answer():
    prompts, answers = [20] + [400] * 5, [100] + [2] * 5
    due_ns = np.array([0, *range(100, 600, 100)]) * 10**6
    together = records([engine(), engine()], [], Open(due_ns=due_ns), prompts, answers)
    apart = records([engine()], [engine()], Open(due_ns=due_ns), prompts, answers)
    assert max(together[0].chunk_ns[1:]) > 200e6
    assert max(apart[0].chunk_ns[1:]) <= 7e6


def test_cached_tokens_are_those_that_the_prefill_replica_found():
    fleet = engine(prefix_cache=None, block_tokens=4), engine(prefix_cache=None, block_tokens=4)
    items = Single(lambda _: Item(prompt=(7,) * 41, output_tokens=2))
    offer = Open(due_ns=np.array([0, 10**9]))
    deal = Deal(offer=offer, limit=Limit(requests=2), items=items, first_item=0)
    found = list(simulate(fleet[:1], deal, prefill=fleet[1:], transfer=TRANSFER))
    assert [record.cached_tokens for record in found] == [0, 40]


def test_readings_are_of_the_replicas_that_answer():
    kept, due_ns = [], np.array([0, 1, 2, 3]) * 10**7
    records([engine()], [engine()], Open(due_ns=due_ns), [50] * 4, [1] * 4, keep=kept.extend)
    running = [sample.value for sample in kept if sample.name == "running_requests"]
    assert max(running) == 1  # their KV comes 100 ms after that of the one before


@pytest.mark.parametrize("said", ["sim:vllm?", "sim:tgi-1.0?model=qwen2-7b&gpu=l40s&"])
def test_what_cannot_be_disaggregated_is_refused(said):
    with pytest.raises(BadInput, match="prefill_replicas"):
        deploy(parse("TARGET", said + "prefill_replicas=1"))


def test_kv_is_as_many_bytes_as_the_model_has_over_the_adapters():
    said = "sim:vllm?model=llama-3.1-8b&gpu=h100-sxm-80gb&prefill_replicas=1&tp=2"
    # 32 layers x 2 x 8 heads x 128 x 2 bytes, half of them on each GPU.
    assert deploy(parse("TARGET", said)).transfer.token_s == pytest.approx(65536 / 50e9)


@pytest.mark.parametrize("name", ABLE)
@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    request_s=st.sampled_from([0.0, 0.004]),
    closed=st.booleans(),
)
def test_all_is_served_once_whole_and_alike_however_steps_are_taken(
    name, *, seed, sizes, request_s, closed
):
    rng = np.random.default_rng(seed)
    prompts, answers = rng.integers(1, 60, 40), rng.integers(1, 40, 40)
    due_ns = np.cumsum(rng.exponential(0.02, 40) * 1e9).astype(np.int64)
    offer = Closed(users=9) if closed else Open(due_ns=due_ns)
    config = EngineConfig(
        step="1ms", kv_tokens=400, max_num_seqs=6, max_num_batched_tokens=50, prefix_cache=False
    )
    front = FrontEndCost(request_s=request_s)
    found = []
    for kind in (policy(name), one_by_one(policy(name))):
        fleet, prefill = ([kind(config) for _ in range(n)] for n in sizes)
        found.append(records(fleet, prefill, offer, prompts, answers, front_end=front))
        for one in (*fleet, *prefill):
            assert (one.waiting, one.running, one.kv.used) == (0, 0, 0)
        assert sum(one.totals.finished for one in prefill) == 40
        assert sum(one.totals.generation_tokens for one in fleet) >= answers.sum()
    assert found[0] == found[1]
    for record, prompt, answer in zip(found[0], prompts, answers, strict=True):
        assert record.outcome == "completed"
        assert len(record.chunk_ns) == answer
        least_ns = (TRANSFER.token_s * prompt + TRANSFER.latency_s + request_s) * 1e9
        assert record.chunk_ns[0] >= record.sent_ns + least_ns
        assert all(gap >= 0 for gap in record.chunk_ns[1:])
    load = {"users": 9} if closed else {"arrivals_s": due_ns / 1e9}
    fleet, prefill = ([policy(name)(config) for _ in range(n)] for n in sizes)
    again = replay(
        fleet, prompts, answers, front_end=front, prefill=prefill, transfer=TRANSFER, **load
    )
    ends_s = [record.end_ns / 1e9 for record in found[0]]
    np.testing.assert_allclose(again.end_s, ends_s, rtol=0, atol=2e-7)
