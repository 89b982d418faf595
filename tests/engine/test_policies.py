import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from servescope.engine import FS, Work
from servescope.engine.config import EngineConfig
from servescope.engine.policies import policies, policy
from servescope.engine.scheduler import FOREVER
from servescope.errors import BadInput
from tests.engine.test_scheduler import check_blocks

ALL = sorted(policies())
CAREFUL = ("lightllm-2023", "static", "tensorrt-llm", "tgi-1.0")
"""Policies that admit a request only if it can stay to its end, whatever comes."""
MS = FS // 1000


def engine(name, **settings):
    costs = {"step": "1ms", "prefill": "1ms", "sequence": 0, "context": 0}
    return policy(name)(EngineConfig(**{**costs, "block_tokens": 1, **settings}))


def burst(target, *shapes):
    """Requests of so many prompt tokens, output tokens and, it may be, most tokens, all at once."""
    works = [Work((), shape[1], k, (), shape[0], *shape[2:]) for k, shape in enumerate(shapes)]
    assert all(target.submit(work) for work in works)
    return works


def steps(target):
    return list(iter(target.step, None))


def kinds(taken):
    """Of each step how many prompts it computed and how many requests decoded."""
    return [(len(step.prompts), step.decoding) for step in taken]


def makespan_ms(target, *shapes):
    burst(target, *shapes)
    return sum(step.duration_fs for step in steps(target)) / MS


# --- known answers --------------------------------------------------------------------------------


def test_an_unknown_policy_is_told_with_the_likely_one():
    with pytest.raises(BadInput, match="did you mean tgi-1"):
        policy("tgi-1")


def test_limits_that_a_config_leaves_open_are_the_policys():
    config = EngineConfig(max_model_len=3000, kv_tokens=60_000)
    limits = {name: policy(name)(config).max_num_batched_tokens for name in ALL}
    assert limits == {
        "lightllm-2023": 10_000,
        "sglang": 8192,
        "static": FOREVER,
        "tensorrt-llm": 8192,
        "tgi-1.0": 4096,
        "vllm": 8192,
        "vllm-0.1": 2560,
        "vllm-0.2": 3000,
    }
    assert policy("sglang")(config).kv.block_tokens == 1
    assert policy("vllm")(config).kv.block_tokens == 16


@pytest.mark.parametrize("name", ["vllm-0.1", "vllm-0.2", "tgi-1.0", "lightllm-2023", "sglang"])
def test_prompts_are_computed_while_nobody_decodes(name):
    target = engine(name)
    burst(target, (5, 40))
    target.step()
    burst(target, (3, 2))
    taken = steps(target)
    assert (1, 0) in kinds(taken)
    assert (1, 1) not in kinds(taken)


@pytest.mark.parametrize("name", ["vllm", "tensorrt-llm"])
def test_prompts_are_computed_beside_decodes(name):
    target = engine(name)
    burst(target, (5, 3))
    target.step()
    burst(target, (3, 2))
    assert kinds(steps(target)) == [(1, 1), (0, 2)]


def test_vllm_of_2023_fills_a_batch_of_prompts_up_to_its_budget():
    target = engine("vllm-0.1", max_num_seqs=9, max_num_batched_tokens=10)
    burst(target, (4, 1), (5, 1), (3, 1), (10, 1), (1, 1))
    assert [step.prefill_tokens for step in steps(target)] == [9, 3, 10, 1]


def test_vllm_of_2023_refuses_prompts_beyond_its_budget_and_not_answers():
    target = engine("vllm-0.1", max_num_batched_tokens=10)
    burst(target, (10, 20))
    with pytest.raises(ValueError, match=r"11 tokens\) is too long: the limit is 10"):
        burst(target, (11, 1))
    steps(target)
    assert (target.totals.finished, target.totals.generation_tokens) == (1, 20)


def test_vllm_of_2023_computes_what_was_preempted_beyond_its_budget_alone():
    target = engine("vllm-0.1", max_num_batched_tokens=10, kv_tokens=30)
    works = burst(target, (5, 20), (5, 20))
    taken = steps(target)
    assert [work.preemptions for work in works] == [0, 1]
    assert max(step.prefill_tokens for step in taken) > 10
    assert target.totals.finished == 2


def test_vllm_0_2_pads_prompts_and_limits_the_padding():
    target = engine("vllm-0.2")
    burst(target, (300, 1), (100, 1), (240, 1))
    taken = steps(target)
    assert [(step.prefill_tokens, step.padding_tokens) for step in taken] == [(400, 200), (240, 0)]
    assert taken[0].duration_fs == 601 * MS


def test_vllm_of_2023_keeps_a_hundredth_of_its_blocks_free():
    target = engine("vllm-0.1", kv_tokens=300)
    burst(target, (150, 2), (148, 2))
    assert kinds(steps(target)) == [(1, 0), (0, 1), (1, 0), (0, 1)]
    burst(target, (150, 2), (147, 2))
    assert kinds(steps(target)) == [(2, 0), (0, 2)]


def test_tgi_is_joined_after_20_steps_or_by_1_2_times_as_many():
    for coming, decodes in ((5, 19), (6, 0)):
        target = engine("tgi-1.0")
        burst(target, *[(10, 100)] * 5)
        target.step()
        burst(target, *[(10, 100)] * coming)
        assert kinds(target.step() for _ in range(decodes)) == [(0, 5)] * decodes
        assert kinds([target.step(), target.step()]) == [(coming, 0), (0, 5 + coming)]


def test_tgi_admits_what_its_budgets_hold_with_all_tokens_asked_for():
    target = engine("tgi-1.0", block_tokens=16, max_num_batched_tokens=4096)
    burst(target, *[(513, 2)] * 20)  # 33 blocks each, so that 7 are 3696 tokens
    assert len(target.step().prompts) == 7
    target = engine("tgi-1.0", block_tokens=16, kv_tokens=640)
    burst(target, *[(100, 2, 100)] * 4)  # 14 blocks each, of 40
    assert len(target.step().prompts) == 2


def test_lightllm_admits_by_the_peak_that_could_come():
    for room, together in ((100, 1), (101, 2)):
        target = engine("lightllm-2023", kv_tokens=room)
        burst(target, (10, 5, 40), (10, 5, 40))
        assert len(target.step().prompts) == together
    target = engine("lightllm-2023", kv_tokens=60)
    burst(target, (10, 40), (10, 5))  # 65 in all, but the short one has gone by then
    assert len(target.step().prompts) == 2


def test_lightllm_decodes_ten_times_before_it_looks_at_the_queue():
    target = engine("lightllm-2023")
    burst(target, (10, 40))
    target.step()
    burst(target, (10, 40))
    assert kinds(steps(target))[:12] == [*[(0, 1)] * 10, (1, 0), (0, 2)]


def test_sglang_takes_the_longest_cached_prefix_first():
    target = engine("sglang", max_num_seqs=1)
    target.submit(Work(tuple(range(50)), 1))
    steps(target)
    works = [Work((*range(shared), *[-1] * 10), 1, shared) for shared in (0, 20, 40, 30)]
    for work in works:
        target.submit(work)
    taken = steps(target)
    assert [step.finished[0].owner for step in taken] == [40, 30, 20, 0]
    assert [step.prefill_tokens for step in taken] == [10, 10, 10, 10]


def test_sglang_guesses_how_much_will_be_wanted():
    """Of 400 tokens, 350 are free; 0.7 of 250 - 1 are thought to be wanted by who runs."""
    for wanted, prompts in ((174, 1), (176, 0)):
        target = engine("sglang", kv_tokens=400, prefix_cache=False)
        burst(target, (50, 100, 250))
        target.step()
        burst(target, (wanted - 100, 90, 100))
        assert len(target.step().prompts) == prompts


def test_sglang_retracts_those_with_the_fewest_tokens_and_guesses_anew():
    target = engine("sglang", kv_tokens=100, prefix_cache=False)
    (older,) = burst(target, (20, 60))
    for _ in range(4):
        target.step()
    target.share = 0.1
    short, long = burst(target, (10, 25), (11, 25))
    while not (step := target.step()).preempted:
        pass
    assert list(step.preempted) == list(target.queue) == [long, short]  # room is left for 20 steps
    made = older.made + target.decode_steps - older.since - step.count
    assert target.share == (made + 20) / (60 + 1)
    steps(target)
    assert target.totals.finished == 3


def test_tensorrt_llm_reserves_all_that_was_asked_for():
    target = engine("tensorrt-llm", kv_tokens=100)
    burst(target, (10, 2, 50), (10, 2, 30), (10, 2, 30))
    assert kinds(steps(target)) == [(2, 0), (0, 2), (1, 0), (0, 1)]


def test_a_static_batch_waits_for_its_longest_and_pays_for_empty_seats():
    target = engine("static", sequence="1ms", prefill=0)
    burst(target, (7, 2), (4, 4))
    target.step()
    burst(target, (5, 1))
    taken = steps(target)
    assert kinds(taken) == [(0, 2), (0, 1), (0, 1), (1, 0)]
    assert [step.duration_fs // MS for step in taken] == [3, 3, 3, 2]
    assert [step.context for step in taken] == [14, 16, 18, 0]


def test_a_static_batch_pads_its_prompts():
    target = engine("static")
    burst(target, (7, 1), (4, 1))
    (step,) = steps(target)
    assert (step.prefill_tokens, step.padding_tokens, step.duration_fs) == (11, 3, 15 * MS)


def test_a_static_batch_has_room_as_a_rectangle():
    target = engine("static", kv_tokens=30)
    burst(target, (10, 1, 2), (2, 1, 10))  # 12 and 12, but 2 x 20 as a rectangle
    assert kinds(steps(target)) == [(1, 0), (1, 0)]


# --- properties -----------------------------------------------------------------------------------

CONFIGS = st.fixed_dictionaries(
    {
        "block_tokens": st.sampled_from([1, 3, 16]),
        "kv_tokens": st.integers(130, 600),
        "max_num_seqs": st.integers(1, 12),
        "max_num_batched_tokens": st.integers(12, 80),
        "prefix_cache": st.booleans(),
        "context": st.sampled_from([0, "10us"]),
        "sequence": st.sampled_from([0, "100us"]),
    }
)
SHAPES = st.tuples(
    st.integers(0, 60),  # ms after the one before
    st.integers(1, 60),  # prompt tokens
    st.integers(1, 40),  # output tokens
    st.integers(0, 20),  # tokens that it asked for beyond
    st.integers(0, 2),  # 0: only lengths are known; else the prefix it shares
)
LOADS = st.lists(SHAPES, min_size=1, max_size=30)


def longer(name, config):
    """The same with room for every prompt in one step, which vLLM of 2023 insists on."""
    most = config["max_num_batched_tokens"]
    return config | {"max_num_batched_tokens": most + 60 * name.startswith("vllm-0")}


def arrivals(shapes):
    at_fs = 0
    for number, (gap_ms, prompt, output, more, prefix) in enumerate(shapes):
        at_fs += gap_ms * MS
        ids = tuple(range(1000 * prefix, 1000 * prefix + prompt - 1)) if prefix else ()
        ids = (*ids, -number) if prefix else ()
        yield at_fs, Work(ids, output, number, (), prompt, output + more)


def serve(target, shapes, *, together, check=False):
    """When the first and last tokens of all come, the books being looked at after each step."""
    coming, now_fs, first_fs, end_fs = list(arrivals(shapes)), 0, {}, {}
    while True:
        while coming and coming[0][0] <= now_fs:
            assert target.submit(coming.pop(0)[1])
        next_fs = coming[0][0] - now_fs if coming else FOREVER
        step = target.step(FOREVER, next_fs) if together else target.step()
        if check:
            check_blocks(target)
        if step is None:
            assert not target.batch
            assert not target.queue
            if not coming:
                return first_fs, end_fs
            now_fs = coming[0][0]
            continue
        assert step.duration_fs > 0
        ends_fs = list(step.ends_fs())
        assert ends_fs == sorted(ends_fs)
        assert (len(ends_fs), ends_fs[-1]) == (step.count, step.duration_fs)
        now_fs += step.duration_fs
        for work in step.begun:
            first_fs.setdefault(work.owner, now_fs)
        for work in step.finished:
            assert work.owner not in end_fs
            assert work.made == work.output_tokens
            end_fs[work.owner] = now_fs


@pytest.mark.parametrize("name", ALL)
@settings(deadline=None, max_examples=40)
@given(CONFIGS, LOADS)
def test_requests_finish_once_in_time_and_no_block_is_lost(name, config, shapes):
    target = engine(name, **longer(name, config))
    first_fs, end_fs = serve(target, shapes, together=False, check=True)
    assert first_fs.keys() == end_fs.keys() == set(range(len(shapes)))
    for at_fs, work in arrivals(shapes):
        number = work.owner
        assert at_fs < first_fs[number] <= end_fs[number]
        assert (first_fs[number] == end_fs[number]) == (work.output_tokens == 1)
    assert target.kv_used_ratio == 0
    totals = target.totals
    assert totals.submitted == totals.finished == len(shapes)
    assert totals.prompt_tokens == sum(shape[1] for shape in shapes)
    assert totals.generation_tokens == sum(shape[2] for shape in shapes)


@pytest.mark.parametrize("name", ALL)
@settings(deadline=None, max_examples=60)
@given(CONFIGS, LOADS)
def test_steps_taken_together_change_no_time(name, config, shapes):
    alone, together, again = (engine(name, **longer(name, config)) for _ in range(3))
    expected = serve(alone, shapes, together=False)
    assert serve(together, shapes, together=True) == expected
    assert serve(again, shapes, together=True) == expected
    assert together.totals == alone.totals


@pytest.mark.parametrize("name", CAREFUL)
@settings(deadline=None, max_examples=40)
@given(CONFIGS, LOADS)
def test_a_careful_policy_never_preempts(name, config, shapes):
    target = engine(name, **config | {"block_tokens": 1})
    serve(target, shapes, together=True)
    assert target.totals.preemptions == 0


@pytest.mark.parametrize("name", ALL)
@settings(deadline=None, max_examples=20)
@given(CONFIGS, LOADS, st.integers(0, 1000))
def test_memory_beyond_what_all_want_together_changes_nothing(name, config, shapes, more):
    roomy = config | {"kv_tokens": 6000, "max_num_batched_tokens": 80}
    times = [
        serve(engine(name, **roomy | {"kv_tokens": tokens}), shapes, together=True)
        for tokens in (6000, 6000 + more)
    ]
    assert times[0] == times[1]


@pytest.mark.parametrize("name", ["static", "tensorrt-llm"])
@settings(deadline=None, max_examples=40)
@given(CONFIGS, st.integers(1, 60), st.integers(1, 40), st.integers(0, 500))
def test_more_memory_never_makes_equal_requests_slower_where_all_is_reserved(
    name, config, prompt, output, more
):
    assume(prompt <= config["max_num_batched_tokens"])  # or else they are cut: see below
    less, roomy = (engine(name, **config | {"kv_tokens": 130 + extra}) for extra in (0, more))
    shapes = [(prompt, output)] * 30
    assert makespan_ms(roomy, *shapes) <= makespan_ms(less, *shapes)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("seed", range(4))
def test_a_quarter_more_memory_never_lowers_the_throughput_of_a_burst(name, seed):
    """Of hundreds of requests of all lengths at the costs of a 7B model on an A100."""
    rng = random.Random(seed)
    shapes = [
        (rng.randrange(1, 300), min(300, 10 + int(rng.expovariate(0.01)))) for _ in range(400)
    ]
    costs = {"step": "14ms", "prefill": "60us", "sequence": "20us", "context": "350ns"}
    spans = [
        makespan_ms(engine(name, kv_tokens=tokens, **costs), *shapes)
        for tokens in (4000, 5000, 6250, 8000)
    ]
    assert spans == sorted(spans, reverse=True)


def test_a_little_more_memory_can_cost_a_policy_that_cuts_prompts():
    """No fault of the simulation: with two tokens more, a third request is admitted, and what its
    neighbours leave of a step cuts its prompt into more pieces, each a sequence of its step."""
    costs = {"context": 0, "sequence": "100us", "block_tokens": 1, "prefix_cache": False}
    limits = {"max_num_seqs": 3, "max_num_batched_tokens": 23}
    spans = [
        makespan_ms(engine("tensorrt-llm", kv_tokens=tokens, **costs, **limits), *[(42, 2)] * 30)
        for tokens in (130, 132)
    ]
    assert spans[0] < spans[1] < 1.001 * spans[0]


def test_a_little_more_memory_can_cost_a_policy_that_hopes():
    """No fault of the simulation: with two tokens more, a second request is admitted, gives its
    place up at once, and is computed anew."""
    spans = [
        makespan_ms(engine("vllm-0.1", kv_tokens=tokens), (6, 4), (6, 4)) for tokens in (10, 12)
    ]
    assert spans == [12 + 8, 12 + 7 + 7]


def test_tensorrt_llm_cuts_only_prompts_beyond_its_budget():
    engine = policy("tensorrt-llm")(EngineConfig(max_num_batched_tokens=100, kv_tokens=4096))
    for tokens in (60, 60, 250):
        engine.submit(Work((), 3, prompt_tokens=tokens))
    computed = []
    while (step := engine.step()) is not None:
        computed.append(step.prefill_tokens)
    # The second waits for a step of its own; of the third, what the others leave of the budget.
    assert computed == [60, 99, 98, 99, 14, 0, 0]
