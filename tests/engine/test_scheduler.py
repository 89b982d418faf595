import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servescope.engine import Work
from servescope.engine.config import EngineConfig
from servescope.engine.cost import LinearCost
from servescope.engine.policies.vllm import Vllm


def engine(**settings):
    costs = {"step": "10ms", "prefill": "1ms", "sequence": "100us", "context": "1us"}
    return Vllm(EngineConfig(**{**costs, **settings}))


def steps(target):
    """The steps to the end, each after a look at the books."""
    taken = []
    while (step := target.step()) is not None:
        check_blocks(target)
        taken.append(step)
    assert not target.waiting
    assert not target.running
    assert target.kv_used_ratio == 0
    return taken


def check_blocks(target):
    """Every block is empty, idle, held alone or held by some: none twice, none lost."""
    pool, held = target.kv, list(target.batch)
    found = {key for work in held for key in work.keys}
    assert found == set(pool._holders)
    assert not found & set(pool._idle)
    assert all(pool._holders[key] == sum(key in w.keys for w in held) for key in found)
    assert sum(pool._idle.values()) == pool._idle_blocks <= pool.available
    alone = 0
    for work in held:
        steps = target.decode_steps - work.since if work.since >= 0 else 0
        blocks = max(work.blocks, -(-(work.computed + steps) // pool.block_tokens))
        assert blocks - work.blocks <= -(-steps // pool.block_tokens)
        alone += blocks - len(work.keys)
    assert pool.available + len(found) + alone == pool.capacity
    assert not any(work.blocks or work.keys for work in target.queue)
    assert 0 <= target.kv_used_ratio <= 1


def attended(step):
    """Tokens in the cache of the batch, at the end of a step."""
    return step.prompt_context + step.context + step.decoding


def prompts(count, length):
    return [tuple(range(1000 * k, 1000 * k + length)) for k in range(count)]


# --- known answers --------------------------------------------------------------------------------


def test_one_request_alone_takes_what_the_formula_says():
    target = engine()
    target.submit(Work((1, 2, 3, 4, 5), 3))
    taken = [step.duration_s for step in steps(target)]
    first = 0.010 + 5 * 0.001 + 0.0001 + 5e-6
    assert taken == pytest.approx([first, 0.010 + 0.0001 + 6e-6, 0.010 + 0.0001 + 7e-6])


def test_equal_requests_go_in_one_batch():
    target = engine()
    works = [Work(prompt, 4) for prompt in prompts(10, 20)]
    assert all(target.submit(work) for work in works)
    taken = steps(target)
    assert [step.sequences for step in taken] == [10] * 4
    assert [step.prefill_tokens for step in taken] == [200, 0, 0, 0]
    assert [attended(step) for step in taken] == [200, 210, 220, 230]
    assert taken[-1].finished == tuple(works)


def test_a_request_beyond_max_num_seqs_waits_for_a_seat():
    target = engine(max_num_seqs=2)
    works = [Work(prompt, tokens) for prompt, tokens in zip(prompts(3, 4), (2, 5, 1), strict=True)]
    for work in works:
        target.submit(work)
    target.step()
    assert (target.running, target.waiting) == (2, 1)
    target.step()
    assert (target.running, target.waiting) == (1, 1)
    assert target.step().made == (works[1], works[2])
    assert target.waiting == 0


def test_a_long_prompt_is_computed_in_chunks_beside_the_decodes():
    target = engine(max_num_batched_tokens=8, max_num_seqs=4)
    short, long = Work((1,), 9), Work(tuple(range(100, 120)), 2)
    target.submit(short)
    target.step()
    target.submit(long)
    taken = steps(target)
    assert [step.prefill_tokens for step in taken[:4]] == [7, 7, 6, 0]
    assert [long in step.made for step in taken[:5]] == [False, False, True, True, False]
    assert [short in step.made for step in taken[:5]] == [True] * 5


@pytest.mark.parametrize(("cached", "recomputed"), [(False, 5), (True, 3)])
def test_a_decode_without_a_block_preempts_the_youngest(cached, recomputed):
    """Four blocks of two tokens; each of two requests wants three at its end.

    In step 3 the older one takes one of the two that the younger gives back, by recency that which
    holds the end of its text. In step 4 a block is free, in step 5 there are four.
    """
    target = engine(block_tokens=2, kv_tokens=8, prefix_cache=cached)
    older, younger = (Work((k, k, k), 4, answer=(9, 9, 9, 9)) for k in (1, 2))
    target.submit(older)
    target.submit(younger)
    taken = steps(target)
    assert [step.prefill_tokens for step in taken] == [6, 0, 0, 0, recomputed, 0]
    assert [len(step.preempted) for step in taken] == [0, 0, 1, 0, 0, 0]
    assert [step.made for step in taken[2:]] == [(older,), (older,), (younger,), (younger,)]
    assert (older.preemptions, younger.preemptions) == (0, 1)
    assert target.totals.preemptions == 1
    assert target.totals.prompt_tokens == 6
    assert target.totals.generation_tokens == 8


def test_a_preempted_request_goes_before_those_that_wait():
    target = engine(block_tokens=2, kv_tokens=8, prefix_cache=False)
    works = [Work((k, k, k), 4) for k in range(3)]
    for work in works:
        target.submit(work)
    ended = [work for step in steps(target) for work in step.finished]
    assert ended == works


def test_a_prefix_is_computed_once():
    target = engine()
    shared = tuple(range(40))
    first, second = Work((*shared, 1, 1), 1), Work((*shared, *[2] * 30), 1)
    target.submit(first)
    target.step()
    target.submit(second)
    assert target.step().prefill_tokens == 70 - 32
    assert (first.cached_tokens, second.cached_tokens) == (0, 32)
    assert target.totals.prefix_query_tokens == 42 + 70
    assert target.totals.prefix_hit_tokens == 32


def test_the_last_token_of_a_prompt_is_computed_even_if_all_of_it_is_cached():
    target = engine()
    for _ in range(2):
        target.submit(Work(tuple(range(32)), 1))
        step = target.step()
    assert step.prefill_tokens == 16


def test_requests_of_one_step_share_a_prefix():
    target = engine()
    for _ in range(2):
        target.submit(Work(tuple(range(40)), 1))
    assert target.step().prefill_tokens == 40 + 8


def test_an_answer_that_is_known_stays_in_the_cache_for_the_next_turn():
    target = engine(block_tokens=4)
    prompt, answer = (1, 2, 3, 4, 5), (6, 7, 8, 9)
    for known in ((), answer):
        target.flush_cache()
        target.submit(Work(prompt, 4, answer=known))
        steps(target)
        following = Work((*prompt, *answer, 10), 1)
        target.submit(following)
        steps(target)
        assert following.cached_tokens == (8 if known else 4)


def test_the_block_unused_for_longest_goes_first():
    target = engine(block_tokens=4, kv_tokens=16)
    a, b, c, d = ((k, k, k, k, k) for k in range(4))
    for prompt in (a, b, a, c, d):  # each leaves one block to be found; `d` wants room for two
        target.submit(Work(prompt, 1))
        steps(target)
    again = [Work(a, 1), Work(b, 1)]
    for work in again:
        target.submit(work)
        steps(target)
    assert [work.cached_tokens for work in again] == [4, 0]


def test_a_flushed_cache_finds_nothing():
    target = engine()
    works = [Work(tuple(range(40)), 1) for _ in range(2)]
    for work in works:
        target.submit(work)
        steps(target)
        target.flush_cache()
    assert works[1].cached_tokens == 0


def test_a_full_queue_turns_away():
    target = engine(max_waiting=2)
    assert [target.submit(Work((1,), 1)) for _ in range(3)] == [True, True, False]
    target.step()
    assert target.submit(Work((1,), 1))
    assert target.totals.turned_away == 1
    assert target.totals.submitted == 3


@pytest.mark.parametrize(
    ("prompt", "tokens", "why"),
    [
        (tuple(range(60)), 5, "maximum context length is 64 tokens"),
        ((), 5, "at least one token"),
        ((1,), 0, "at least one token"),
    ],
)
@pytest.mark.parametrize("limit", [{"kv_tokens": 64}, {"max_model_len": 64}])
def test_what_can_never_be_served_is_refused(prompt, tokens, why, limit):
    target = engine(**limit)
    with pytest.raises(ValueError, match=why):
        target.submit(Work(prompt, tokens))
    assert target.step() is None
    assert target.submit(Work(tuple(range(59)), 5))
    assert len(steps(target)) == 5


def test_a_cancelled_request_gives_all_back_wherever_it_was():
    target = engine(max_num_batched_tokens=8, max_num_seqs=2)
    works = [Work((k,) * 20, 5) for k in range(3)]
    for work in works:
        target.submit(work)
    target.step()  # one has a part of its prompt computed, the others wait
    for work in (*works, Work((1,), 1)):
        target.cancel(work)
        check_blocks(target)
    assert target.step() is None
    assert target.totals.cancelled == 3


# --- properties -----------------------------------------------------------------------------------

CONFIGS = st.fixed_dictionaries(
    {
        "block_tokens": st.integers(1, 5),
        "kv_tokens": st.integers(30, 90),
        "max_num_seqs": st.integers(1, 6),
        "max_num_batched_tokens": st.integers(6, 30),
        "max_waiting": st.none() | st.integers(1, 5),
        "prefix_cache": st.booleans(),
    }
)
SHAPES = st.tuples(
    st.integers(0, 2),  # which prefix
    st.integers(0, 12),  # how much of it
    st.integers(1, 6),  # tokens of its own
    st.integers(1, 8),  # tokens of the answer
    st.integers(0, 3),  # steps before it comes
)


def work_of(number, shape):
    prefix, shared, own, tokens, _ = shape
    prompt = (*range(100 * prefix, 100 * prefix + shared), *(1000 + number,) * own)
    return Work(prompt, tokens, owner=number, answer=(2000 + number,) * (tokens * (number % 2)))


@settings(deadline=None)
@given(CONFIGS, st.lists(SHAPES, max_size=25), st.sets(st.integers(0, 24), max_size=4))
def test_every_request_finishes_once_and_no_block_is_lost(config, shapes, unwanted):
    target = engine(**config)
    cost = LinearCost.of(target.config)
    works = [work_of(number, shape) for number, shape in enumerate(shapes)]
    taken, made, finished = [], dict.fromkeys(works, 0), []
    preempted = 0

    def step():
        nonlocal preempted
        taken_step = target.step()
        check_blocks(target)
        if taken_step is None:
            return False
        preempted += len(taken_step.preempted)
        for work in taken_step.made:
            made[work] += 1
        finished.extend(taken_step.finished)
        assert taken_step.prefill_tokens <= config["max_num_batched_tokens"]
        assert taken_step.sequences <= config["max_num_seqs"]
        assert taken_step.duration_fs == cost.step(taken_step)
        return True

    for work, shape in zip(works, shapes, strict=True):
        for _ in range(shape[-1]):
            step()
        if target.submit(work):
            taken.append(work)
        check_blocks(target)
    gone = [work for work in taken if work.owner in unwanted and work not in finished]
    for work in gone:
        target.cancel(work)
        check_blocks(target)
    while step():
        pass
    assert sorted(work.owner for work in [*finished, *gone]) == [work.owner for work in taken]
    assert all(made[work] == work.made == work.output_tokens for work in finished)
    assert target.kv_used_ratio == 0
    totals = target.totals
    assert totals.generation_tokens == sum(made.values())
    assert totals.prompt_tokens == sum(len(work.prompt) for work in works if made[work])
    assert totals.submitted == len(taken) == totals.finished + totals.cancelled
    assert totals.turned_away == len(works) - len(taken)
    assert totals.preemptions == preempted == sum(work.preemptions for work in works)
    assert totals.prefix_hit_tokens == sum(work.cached_tokens for work in works)


@settings(deadline=None)
@given(CONFIGS, st.lists(SHAPES, max_size=20))
def test_without_preemption_first_tokens_come_in_the_order_of_arrival(config, shapes):
    target = engine(**config | {"kv_tokens": 10_000, "max_waiting": None})
    first = []
    for number, shape in enumerate(shapes):
        target.submit(work_of(number, shape))
    for step in steps(target):
        first += [work.owner for work in step.made if work.owner not in first]
    assert first == list(range(len(shapes)))
    assert target.totals.preemptions == 0


@settings(deadline=None)
@given(CONFIGS, st.lists(SHAPES, max_size=20))
def test_the_prefix_cache_saves_exactly_the_tokens_it_holds(config, shapes):
    """Where no prompt is cut into chunks; there, a saved token may cost another request a step."""
    roomy = {"kv_tokens": 10_000, "max_waiting": None, "max_num_batched_tokens": 10_000}
    total_s = []
    for cached in (False, True):
        target = engine(**config | roomy | {"prefix_cache": cached})
        for number, shape in enumerate(shapes):
            target.submit(work_of(number, shape))
        total_s.append(sum(step.duration_s for step in steps(target)))
    hit_tokens = target.totals.prefix_hit_tokens
    assert total_s[0] - total_s[1] == pytest.approx(hit_tokens * 0.001, abs=1e-9)
