"""What is counted while a run goes on, and the doubts that are told then."""

import io
import re

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from servescope import loads, records, simulated
from servescope.client.workers import Live
from servescope.conduct import conduct
from servescope.deal import Deal
from servescope.doubts import StageFacts, target
from servescope.doubts.early import early_doubts
from servescope.doubts.generator import Generator, client_limited
from servescope.experiment import Trial
from servescope.load import Limit
from servescope.report import progress
from servescope.seeds import generator
from servescope.stage import Moment
from servescope.stats import distribution
from servescope.store import Stage
from servescope.tally import Tally
from servescope.token_times import token_gaps
from tests.support.items import source
from tests.support.served import Served, healthy
from tests.support.tallied import MS, failed, record, tallied

# --- what is counted ------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.integers(1, 10**11),
            st.lists(st.integers(1, 10**10), max_size=20),
            st.integers(1, 5),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_percentiles_so_far_are_the_final_ones_to_a_bucket(answers):
    found = [
        record(k, first=first, gaps=gaps, tokens=tokens)
        for k, (first, gaps, tokens) in enumerate(answers)
    ]
    tally = tallied(*found)
    columns = records.columns(found)
    firsts = sorted(one.chunk_ns[0] / 1e9 for one in found)
    assert tally.ttft.quantile_s(0.5) == pytest.approx(firsts[(len(firsts) - 1) // 2], rel=0.012)
    gaps = token_gaps(columns)
    assert tally.itl.n == pytest.approx(gaps.weight.sum())
    if len(gaps.seconds):
        each = distribution(gaps.seconds, weights=gaps.weight)
        assert tally.itl.nth_s(tally.itl.n) == pytest.approx(each.max, rel=0.012, abs=1.1e-9)
        assert tally.itl.nth_s(1) == pytest.approx(each.min, rel=0.012, abs=1.1e-9)


def test_of_long_answers_a_part_stands_for_all_and_no_beat_is_missed():
    # every 32nd gap is slow, and of each answer every 32nd is looked at
    found = [record(k, gaps=([10 * MS] * 31 + [500 * MS]) * 32) for k in range(64)]
    itl = tallied(*found).itl
    assert itl.n == 64 * 1024
    assert itl.quantile_s(0.5) == pytest.approx(0.010, rel=0.02)
    assert itl.quantile_s(0.96) == pytest.approx(0.010, rel=0.02)
    assert itl.quantile_s(0.98) == pytest.approx(0.500, rel=0.02)


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=50), st.integers(0, 50))
def test_two_tallies_added_are_the_tally_of_both(times, cut):
    found = [record(k, first=first, gaps=[first, 2 * first]) for k, first in enumerate(times)]
    found.append(failed(99))
    both = tallied(*found[:cut])
    both.add(tallied(*found[cut:]))
    one = tallied(*found)
    for q in (0.01, 0.5, 0.99):
        assert both.ttft.quantile_s(q) == one.ttft.quantile_s(q)
        assert both.itl.quantile_s(q) == one.itl.quantile_s(q)
    assert (both.requests, both.answered, both.failures) == (
        one.requests,
        one.answered,
        one.failures,
    )
    assert both.output_tokens_per_s == one.output_tokens_per_s


def test_the_newest_reason_is_the_one_that_is_told():
    tally = tallied(failed(0, reason="old"), failed(1, "failed:stalled", "silent"))
    tally.add(tallied(failed(2, reason="new")))
    assert list(tally.words.values()) == ["silent", "new"]


def moment(load, elapsed_s, **limit):
    (load,) = loads.parse("--load", load)
    wanted = Limit(**limit)
    offer = load.offer(wanted, generator(7, "arrivals"))
    deal = Deal(offer=offer, limit=wanted, items=source("dummy"), first_item=0)
    return Moment.of(deal, elapsed_s, Live(0, 0, 0), Tally())


def test_what_is_due_by_now_is_told_of_an_open_load_alone():
    assert moment("constant:2", 2.6, requests=100).due == 6
    assert moment("constant:2", 99.0, requests=100).due == 100
    assert moment("constant:2", 2.6, requests=100).ends_s == pytest.approx(49.5)
    assert moment("users:2", 2.6, duration_s=10.0)[3:] == (None, 10.0, None)
    assert moment("users:2", 2.6, requests=10)[3:] == (None, None, None)


# --- doubts so far --------------------------------------------------------------------------------


OPEN = Stage(load="constant:100", open=True, rate=100.0)
USERS = Stage(load="users:64", open=False, users=64)


def kinds(stage, tally, **known):
    return [doubt.kind for doubt in early_doubts(stage, tally, **({"elapsed_s": 10.0} | known))]


def late(count, ns, n=1000):
    return tallied(*(record(k, due_ns=-ns if k < count else 0) for k in range(n)))


def test_a_good_stage_raises_no_doubt():
    assert kinds(OPEN, late(0, 0)) == []


def test_a_generator_that_is_late_with_more_than_one_in_a_hundred_is_doubted():
    assert kinds(OPEN, late(40, 5 * MS)) == ["client_limited"]
    assert kinds(OPEN, late(8, 5 * MS)) == []
    assert kinds(OPEN, late(40, MS // 2)) == []
    assert kinds(OPEN, late(9, 5 * MS, n=10)) == []


def test_that_all_users_cannot_begin_at_one_instant_is_no_doubt():
    assert kinds(USERS, late(64, 5 * MS)) == []
    assert kinds(USERS, late(120, 5 * MS)) == ["client_limited"]
    assert kinds(USERS, late(120, 5 * MS), loads=2) == []


def test_more_than_one_error_in_a_hundred_is_doubted():
    good = [record(k) for k in range(99)]
    assert kinds(OPEN, tallied(*good, failed(99))) == []
    assert kinds(OPEN, tallied(*good, failed(99), failed(100))) == ["errors"]


def test_errors_are_doubted_when_the_requests_to_come_can_make_up_for_them_no_more():
    stage = Stage(load="constant:100", open=True, rate=100.0, planned=1000)
    assert kinds(stage, tallied(*map(failed, range(10)))) == []
    assert kinds(stage, tallied(*map(failed, range(11)))) == ["errors"]


def test_a_request_that_waits_for_long_is_doubted_not_one_that_is_just_due():
    assert kinds(OPEN, late(0, 0), waits_s=8.0) == ["not_offered"]
    assert kinds(OPEN, late(0, 0), waits_s=9.2) == []
    assert kinds(OPEN, late(0, 0), waits_s=0.0, elapsed_s=1.05) == []
    assert kinds(OPEN, late(0, 0), waits_s=None) == []


def final(stage, found):
    """The doubts of a stage that ended now."""
    facts = StageFacts(label=stage.load, open=stage.open, rate=stage.rate, users=stage.users)
    columns = records.columns(found)
    late = client_limited(facts, columns, {}, Generator())
    each = (late, target.errors(facts, columns), target.not_offered(facts, columns))
    return {doubt.kind for doubt in each if doubt is not None}


@given(
    seed=st.integers(0, 1000),
    n=st.integers(50, 600),
    is_open=st.booleans(),
    late=st.tuples(st.floats(0, 0.2), st.integers(0, 5 * MS)),
    slower=st.sampled_from([1.0, 1.005, 1.05, 1.5]),
    failing=st.floats(0, 0.05),
    over=st.floats(0, 1),
)
def test_no_doubt_is_raised_early_that_would_not_be_raised_if_the_stage_ended_then(
    *, seed, n, is_open, late, slower, failing, over
):
    rng = generator(seed, "early")
    users = 1 + n // 10
    due = np.cumsum(rng.exponential(20 * MS, n)).astype(np.int64) + np.arange(n)
    sent = (due * slower).astype(np.int64) + (rng.random(n) < late[0]) * late[1]
    if not is_open:  # all begin at one instant, and leave one after the other
        due[:users] = 0
        sent[:users] = np.arange(users) * MS // 2
    bad = rng.random(n) < failing
    now_ns = int(over * sent[-1])
    found = [
        (failed if bad[k] else record)(k, due_ns=due_ns, sent_ns=sent_ns, end_ns=sent_ns + MS)
        for k, (due_ns, sent_ns) in enumerate(zip(due.tolist(), sent.tolist(), strict=True))
        if sent_ns <= now_ns
    ]
    waiting = np.flatnonzero(sent > now_ns)[:1] if is_open else []
    stage = Stage(
        load="-", open=is_open, rate=50.0 if is_open else None, users=None if is_open else users
    )
    waits_s = float(due[waiting[0]] - due[0]) / 1e9 if len(waiting) else None
    known = {"elapsed_s": max(now_ns, 1) / 1e9, "waits_s": waits_s}
    early = set(kinds(stage, tallied(*found), **known))
    event("+".join(sorted(early)) or "none")
    found += [record(n, due_ns=int(due[k]), sent_ns=now_ns) for k in waiting]
    assert early <= final(stage, found)


def doubted(monkeypatch, tmp_path, **options):
    """The kinds of doubt that were raised while a run went on, looked at as often as can be."""
    monkeypatch.setattr(progress, "PLAIN_S", -1.0)
    monkeypatch.setattr(simulated, "LOOK_S", -1.0)
    out = io.StringIO()
    watcher = progress.Progress(out)
    known = {"collect": ["none"], "data": "dummy", "input_tokens": "20", "output_tokens": "10"}
    conduct(Trial(out=str(tmp_path), **known | options), watcher)
    watcher.clear()
    assert " done" in out.getvalue()
    return set(re.findall("doubt: ([a-z_]+)", out.getvalue()))


@pytest.mark.parametrize("load", ["poisson:4", "constant:4", "gamma:4,2", "burst", "users:4"])
def test_no_doubt_is_raised_while_a_healthy_engine_is_simulated(monkeypatch, tmp_path, load):
    limit = {"requests": 120} if load == "burst" else {"duration": "40s"}
    for seed in range(3):
        options = {"target": "sim:vllm", "load": [load], "seed": seed}
        assert doubted(monkeypatch, tmp_path, **options, **limit) == set()


@pytest.mark.slow
def test_none_is_raised_of_a_healthy_server_and_load(monkeypatch, tmp_path):
    found = set()
    with Served(healthy(0.02, 0.002), tokenize=True) as server:
        for load in ("poisson:20", "constant:20", "users:3"):
            options = {"target": server.url, "load": [load], "duration": "2s", "seed": 7}
            found |= doubted(monkeypatch, tmp_path, **options)
    assert found <= {"client_limited"}  # which a busy machine really is


def test_a_cap_that_holds_the_load_back_is_doubted_while_it_does(monkeypatch, tmp_path):
    options = {"target": "sim:vllm", "load": ["constant:50"], "max_concurrency": 1}
    assert "not_offered" in doubted(monkeypatch, tmp_path, **options, requests=500)
