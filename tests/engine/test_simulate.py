from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servescope.datasets import Item, Message, Single, Turn, answer_to_come
from servescope.deal import Deal
from servescope.engine.config import EngineConfig
from servescope.engine.policies.vllm import Vllm
from servescope.engine.simulate import simulate
from servescope.load import Closed, Limit, Open

MS = 1_000_000
ALONE = Single(lambda i: Item(prompt=(i,) * 10, input_tokens=10, output_tokens=4, pinned=True))
"""Ten tokens in and four out: 15 ms to the first token, then 5 ms each; and 1 ms of way."""


class Conversations:
    alone = False

    """Sessions of three turns, with a second of thought before the last."""

    def __call__(self, i):
        session, number, _ = self.turn(i)
        messages = [Message("user", f"What is {session}?")]
        for k in range(number):
            messages += [Message("assistant", answer_to_come(k)), Message("user", "And then?")]
        return Item(prompt=tuple(messages), output_tokens=30, think_s=1.0 if number == 2 else None)

    def turn(self, i):
        return Turn(i // 3, i % 3, i % 3 == 2)


def engine(**settings):
    costs = {"step": "5ms", "prefill": "1ms", "sequence": 0, "context": 0, "turnaround": "1ms"}
    return Vllm(EngineConfig(**{**costs, **settings}))


def due_at(*ms, rows=None):
    return Open(due_ns=np.array(ms, np.int64) * MS, rows=rows)


def run(target, offer, limit=None, items=ALONE, **more):
    deal = Deal(offer=offer, limit=limit or Limit(requests=10), items=items, first_item=0)
    return list(simulate([target], deal, **more))


def times_ms(record):
    """Due, sent, and each token."""
    tokens = np.cumsum(record.chunk_ns).tolist()
    return [ns / MS for ns in (record.due_ns, record.sent_ns, *tokens)]


def test_a_record_says_of_one_request_alone_what_the_formula_does():
    (record,) = run(engine(), due_at(7), first=3, stage=2, start_ns=100 * MS)
    assert times_ms(record) == [107, 107, 123, 128, 133, 138]
    assert (record.request, record.stage, record.outcome, record.status) == (3, 2, "completed", 200)
    assert record.first_byte_ns == record.first_output_ns == record.chunk_ns[0]
    assert record.end_ns == 138 * MS
    assert (record.input_tokens, record.output_tokens, record.cached_tokens) == (10, 4, 0)
    assert (record.asked_input_tokens, record.asked_output_tokens, record.pinned) == (10, 4, True)
    assert (record.chunk_tokens, record.count_source, record.finish_reason) == (
        1,
        "server",
        "length",
    )
    assert record.prompt_bytes == len("[0,0,0,0,0,0,0,0,0,0]")
    assert len(record.prompt_sha256) == len(record.answer_sha256) == 16
    assert record.prompt is None


def test_what_arrives_just_as_a_step_ends_joins_the_next_batch():
    just, late = run(engine(), due_at(0, 15))[1], run(engine(), due_at(0, 16))[1]
    assert times_ms(just)[2] == 31
    assert times_ms(late)[2] == 36  # it waited for a step of 5 ms, until 20


def test_a_user_asks_again_after_thinking_and_the_turnaround():
    records = run(engine(), Closed(users=1, think_s=0.1), Limit(requests=3))
    assert [times_ms(record)[0] for record in records] == [0, 131.5, 263]
    assert [record.request for record in records] == [0, 1, 2]


def test_no_request_of_a_closed_loop_starts_after_its_duration():
    records = run(engine(), Closed(users=3), Limit(duration_s=0.5))
    assert max(record.sent_ns for record in records) < 500 * MS
    assert max(record.end_ns for record in records) > 500 * MS
    assert len(records) > 20


def test_a_load_without_a_limit_is_simulated_as_far_as_it_is_read():
    endless = Deal(offer=Closed(users=4), limit=Limit(), items=ALONE, first_item=0)
    assert len(list(islice(simulate([engine()], endless), 100))) == 100


def test_at_most_so_many_requests_are_in_flight_and_the_wait_is_said():
    records = run(engine(), due_at(0, 1, 2), cap=1)
    assert [times_ms(record)[:2] for record in records] == [[0, 0], [1, 31], [2, 62]]
    assert [record.held_ns for record in records] == [0, 30 * MS, 60 * MS]


def test_a_place_is_free_only_when_the_step_has_ended():
    records = run(engine(max_num_seqs=1), due_at(0, 0, 26, 26), cap=3)
    assert [times_ms(record)[:2] for record in records] == [[0, 0], [0, 0], [26, 26], [26, 31]]


def test_what_the_cap_held_to_the_end_is_cancelled():
    records = run(engine(), due_at(0, 1, 2), Limit(duration_s=0.05), cap=1)
    assert [record.outcome for record in records] == ["completed", "completed", "cancelled"]
    assert records[2].due_ns == 2 * MS
    assert records[2].reason == "not sent: the cap on concurrency was reached to the end"


def test_a_full_queue_fails_in_a_servers_words():
    records = run(engine(max_waiting=2, max_num_seqs=1), due_at(0, 0, 0, 1))
    assert [record.outcome for record in records] == [
        *("failed:server_error_event", "completed", "completed", "completed")
    ]
    assert records[0].status == 200
    assert records[0].reason.startswith("The engine is currently busy")
    assert records[0].chunk_ns == []
    assert (records[0].sent_ns, records[0].end_ns) == (0, MS)


@pytest.mark.parametrize(
    ("settings", "stream"), [({}, False), ({"engine": "llamacpp"}, True)], ids=["whole", "llamacpp"]
)
def test_a_full_queue_is_told_by_status_where_nothing_is_streamed_and_by_some_engines(
    settings, stream
):
    target = engine(max_waiting=2, max_num_seqs=1, **settings)
    records = run(target, due_at(0, 0, 0, 1), stream=stream)
    assert (records[0].outcome, records[0].status) == ("failed:http_5xx", 503)
    words = "The engine is currently busy" if not settings else "the queue is full"
    assert records[0].reason.startswith(f"HTTP 503; {words}")


def test_a_user_who_is_turned_away_asks_again():
    target = engine(max_waiting=1, max_num_seqs=1)
    records = run(target, Closed(users=3), Limit(requests=60))
    assert len(records) == 60
    assert target.totals.turned_away == sum(not record.chunk_ns for record in records) > 0


def test_what_can_never_fit_fails_and_the_rest_goes_on():
    items = Single(lambda i: Item(prompt=(1,) * (100 if i == 1 else 10), output_tokens=2))
    records = run(engine(kv_tokens=64), due_at(0, 0, 0), items=items)
    assert {record.request: record.outcome for record in records} == {
        0: "completed",
        1: "failed:http_4xx",
        2: "completed",
    }
    assert "maximum context length is 64 tokens" in records[0].reason


def test_the_cache_stays_warm_from_stage_to_stage():
    items, target = Single(lambda _: Item(prompt="word " * 40, output_tokens=1)), engine()
    assert run(target, due_at(0), items=items)[0].cached_tokens == 0
    assert run(target, due_at(0), items=items)[0].cached_tokens == 32


# --- sessions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("offer", [due_at(0, 0), Closed(users=2)], ids=["open", "users"])
def test_a_later_turn_follows_its_answer_and_repeats_it(offer):
    records = run(engine(), offer, Limit(requests=6), Conversations(), keep_text=True)
    turns = {(record.session, record.turn): record for record in records}
    assert sorted(turns) == [(s, t) for s in range(2) for t in range(3)]
    for session in range(2):
        first, second, third = (turns[session, number] for number in range(3))
        assert second.due_ns == first.end_ns + MS // 2  # half the turnaround
        assert third.due_ns == second.end_ns + 1000 * MS + MS // 2
        # Each message is its role, its words and marks, and its end; one more role asks.
        assert first.input_tokens == 1 + 4 + 1 + 1
        assert second.input_tokens == first.input_tokens + 30 + 1 + 1 + 3 + 1 + 1
        assert second.cached_tokens == (first.input_tokens + 29) // 16 * 16


def test_a_session_ends_with_the_turn_that_fails():
    target = engine(max_model_len=60)  # the second turn is too long
    records = run(target, due_at(0), Limit(requests=3), Conversations())
    assert [(record.turn, record.outcome) for record in records] == [
        *((0, "completed"), (1, "failed:http_4xx"), (2, "cancelled"))
    ]
    assert records[2].reason == "the turn before it did not end well"


def test_no_later_turn_starts_after_the_duration():
    records = run(engine(), due_at(0), Limit(duration_s=1.0), Conversations())
    assert [record.turn for record in records] == [0, 1]


def test_rows_of_a_trace_are_due_when_it_says_and_not_before_their_answer():
    class Trace(Conversations):
        def __call__(self, i):
            return Item(prompt=(i,) * 10, output_tokens=4)

    records = run(engine(), due_at(0, 10, 500, 510, rows=4), items=Trace())
    assert [(record.session, record.turn) for record in records] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert [times_ms(record)[0] for record in records] == [0, 31.5, 500, 510]


# --- properties -----------------------------------------------------------------------------------

OFFERS = st.builds(
    Closed, users=st.integers(1, 8), think_s=st.sampled_from([0.0, 0.01])
) | st.builds(
    lambda due: due_at(*sorted(due)), st.lists(st.integers(0, 200), min_size=1, max_size=30)
)
ENGINES = st.fixed_dictionaries(
    {
        "block_tokens": st.sampled_from([1, 4, 16]),
        "kv_tokens": st.sampled_from([150, 300, 10_000]),
        "max_num_seqs": st.integers(1, 6),
        "max_waiting": st.none() | st.integers(1, 3),
        "prefix_cache": st.booleans(),
    }
)


@settings(deadline=None)
@given(
    offer=OFFERS,
    like=ENGINES,
    requests=st.integers(1, 30),
    duration_s=st.none() | st.sampled_from([0.05, 0.3]),
    items=st.sampled_from([ALONE, Conversations()]),
    cap=st.none() | st.integers(1, 4),
)
def test_every_request_comes_back_once_and_in_order(
    *, offer, like, requests, duration_s, items, cap
):
    if isinstance(offer, Open) and duration_s is not None:
        offer = Open(due_ns=offer.due_ns[offer.due_ns < duration_s * 1e9])
    if isinstance(offer, Open) and items is ALONE:
        offer = Open(due_ns=offer.due_ns[:requests])
    limit = Limit(requests=requests, duration_s=duration_s)
    target = engine(**like)
    records = run(target, offer, limit, items, cap=cap)
    numbers = sorted(record.request for record in records)
    if isinstance(offer, Open) and items is ALONE:
        assert numbers == list(range(len(offer.due_ns)))
    elif duration_s is None and isinstance(offer, Closed):
        assert numbers == list(range(requests))
    assert len(set(numbers)) == len(numbers) <= requests
    sent = [record for record in records if record.outcome != "cancelled"]
    for record in sent:
        assert record.due_ns + record.held_ns == record.sent_ns <= record.first_byte_ns
        assert record.first_byte_ns <= record.end_ns
        assert all(gap > 0 for gap in record.chunk_ns[1:])
        assert record.held_ns == 0 or cap
    done = [record for record in records if record.outcome == "completed"]
    assert [record.end_ns for record in done] == sorted(record.end_ns for record in done)
    assert all(len(r.chunk_ns) == r.output_tokens == r.asked_output_tokens for r in done)
    totals = target.totals
    assert totals.finished == len(done)
    assert totals.prompt_tokens == sum(record.input_tokens for record in done)
    assert totals.generation_tokens == sum(record.output_tokens for record in done)
    assert totals.prefix_hit_tokens == sum(record.cached_tokens or 0 for record in done)
    changes = sorted(
        change for r in sent for change in ((r.sent_ns, 1), (r.end_ns, -1)) if r.chunk_ns
    )
    most = offer.users if isinstance(offer, Closed) else cap or len(records)
    assert max(np.cumsum([by for _, by in changes]), default=0) <= most
    assert records == run(engine(**like), offer, limit, items, cap=cap)
