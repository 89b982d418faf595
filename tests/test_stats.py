"""Percentiles are numpy's, and a 95 % interval holds the truth about 95 times in 100."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servescope.stats import (
    PERCENTILES,
    binomial_quantile,
    distribution,
    interval_ranks,
    quantile_by_group,
    samples_needed,
)

CALM = settings(deadline=None)
finite = st.floats(-1e6, 1e6, allow_nan=False)


def test_no_samples_make_no_distribution():
    assert distribution([]) is None
    assert distribution([math.nan, math.nan]) is None
    assert distribution([1.0], weights=[0.0]) is None


def test_absent_values_do_not_enter():
    told = distribution([1.0, math.nan, 3.0])
    assert told is not None
    assert (told.n, told.mean, told.min, told.max) == (2, 2.0, 1.0, 3.0)


def test_a_single_value_is_every_percentile_and_has_no_interval():
    told = distribution([0.25])
    assert told is not None
    assert {told.mean, told.min, told.p50, told.p99, told.max} == {0.25}
    assert told.std == 0
    assert set(told.ci95.values()) == {None}


def test_percentiles_and_deviation_of_a_hundred_and_one_numbers_are_known():
    told = distribution(np.arange(101))
    assert told is not None
    assert (told.p50, told.p90, told.p95, told.p99) == (50, 90, 95, 99)
    assert told.std == pytest.approx(np.arange(101).std(ddof=1))


@CALM
@given(st.lists(finite, min_size=1, max_size=60))
def test_percentiles_are_numpys(values):
    told = distribution(values)
    assert told is not None
    for name, q in PERCENTILES.items():
        assert getattr(told, name) == pytest.approx(np.percentile(values, q * 100), abs=1e-9)
    assert told.min <= told.p50 <= told.p90 <= told.p95 <= told.p99 <= told.max
    assert told.min <= told.mean <= told.max


@CALM
@given(st.lists(st.tuples(finite, st.integers(1, 9)), min_size=1, max_size=40))
def test_whole_weights_say_the_same_as_repeated_values(pairs):
    values, weights = zip(*pairs, strict=True)
    weighted, repeated = (
        distribution(values, weights=weights),
        distribution(np.repeat(values, weights)),
    )
    assert weighted is not None
    assert repeated is not None
    assert weighted.n == repeated.n
    for name in ("mean", "std", "min", "p50", "p90", "p95", "p99", "max"):
        assert getattr(weighted, name) == pytest.approx(getattr(repeated, name), abs=1e-6)


@CALM
@given(
    st.lists(finite, min_size=1, max_size=30),
    st.lists(finite, min_size=1, max_size=30),
    st.randoms(),
)
def test_percentiles_of_a_merged_run_are_those_of_the_union(one, other, random):
    union = one + other
    random.shuffle(union)
    a, b = distribution(one + other), distribution(union)
    assert a is not None
    assert b is not None
    assert [getattr(a, p) for p in PERCENTILES] == [getattr(b, p) for p in PERCENTILES]


@CALM
@given(st.lists(st.tuples(finite, st.floats(0.01, 5)), min_size=1, max_size=40))
def test_fractional_weights_keep_percentiles_in_order_and_in_range(pairs):
    values, weights = zip(*pairs, strict=True)
    told = distribution(values, weights=weights)
    assert told is not None
    assert told.min <= told.p50 <= told.p90 <= told.p95 <= told.p99 <= told.max


@pytest.mark.parametrize(("q", "fewest"), [(0.5, 6), (0.9, 36), (0.95, 72), (0.99, 368)])
def test_an_interval_exists_from_the_known_number_of_samples_on(q, fewest):
    assert samples_needed(q) == fewest
    assert interval_ranks(fewest - 1, q) is None
    assert interval_ranks(fewest, q) is not None


def test_too_few_samples_for_p99_still_give_the_median_its_interval():
    told = distribution(np.arange(100.0))
    assert told is not None
    assert told.ci95["p99"] is None
    assert told.ci95["p50"] == (39.0, 60.0)


@CALM
@given(st.integers(1, 3000), st.floats(0.01, 0.99), st.sampled_from([0.025, 0.5, 0.975]))
def test_the_binomial_quantile_is_scipys(n, p, level):
    binomial = pytest.importorskip("scipy.stats").binom(n, p)
    ours = binomial_quantile(n, p, level)
    # Where the probability meets the level to rounding, either neighbour is right.
    assert binomial.cdf(ours) >= level - 1e-9
    assert ours == 0 or binomial.cdf(ours - 1) < level + 1e-9


def test_the_binomial_quantile_of_a_million_is_exact_and_quick():
    stats = pytest.importorskip("scipy.stats")
    began = time.perf_counter()
    found = [binomial_quantile(10**6, p, 0.975) for p in PERCENTILES.values()]
    assert time.perf_counter() - began < 0.5
    assert found == [int(stats.binom(10**6, p).ppf(0.975)) for p in PERCENTILES.values()]


@pytest.mark.parametrize(("name", "n"), [("p50", 25), ("p90", 60), ("p95", 200), ("p99", 600)])
def test_a_percentiles_interval_covers_the_truth_about_95_times_in_100(name, n):
    rng = np.random.default_rng(5)
    truth = -math.log(1 - PERCENTILES[name])
    ranks = interval_ranks(n, PERCENTILES[name])
    assert ranks is not None
    drawn = np.sort(rng.exponential(size=(4000, n)), axis=1)
    held = (drawn[:, ranks[0] - 1] <= truth) & (truth <= drawn[:, ranks[1] - 1])
    assert 0.94 <= held.mean() <= 0.985


def covers(interval, truth):
    return interval is not None and interval[0] <= truth <= interval[1]


@pytest.mark.parametrize(("n", "least"), [(30, 0.89), (500, 0.93)])
def test_a_means_interval_covers_the_truth_about_95_times_in_100(n, least):
    rng = np.random.default_rng(6)
    told = [distribution(rng.exponential(size=n)) for _ in range(400)]
    assert least <= np.mean([covers(t.ci95["mean"], 1.0) for t in told if t]) <= 0.985


def test_an_interval_of_values_that_come_in_groups_still_covers_the_truth():
    """Each group has a speed of its own: 100 alike gaps tell hardly more than one."""
    rng = np.random.default_rng(7)
    groups = np.repeat(np.arange(80), 100)
    held, naive = [], []
    for _ in range(300):
        gaps = rng.normal(size=80)[groups] + 0.1 * rng.normal(size=len(groups))
        honest, blind = distribution(gaps, groups=groups), distribution(gaps)
        assert honest is not None
        assert blind is not None
        held.append(covers(honest.ci95["p50"], 0.0) and covers(honest.ci95["mean"], 0.0))
        naive.append(covers(blind.ci95["p50"], 0.0))
    assert np.mean(held) > 0.88
    assert np.mean(naive) < 0.5


def test_a_value_repeated_by_its_weight_does_not_make_its_interval_narrower():
    values = np.random.default_rng(8).exponential(size=50)
    once, often = distribution(values), distribution(values, weights=np.full(50, 20.0))
    assert once is not None
    assert often is not None
    assert often.n == 1000
    assert often.ci95["p99"] is None
    (low, high), (low_often, high_often) = once.ci95["p50"], often.ci95["p50"]
    assert high_often - low_often >= 0.8 * (high - low)


@CALM
@given(st.lists(finite, min_size=6, max_size=80))
def test_an_interval_encloses_its_own_percentile(values):
    told = distribution(values)
    assert told is not None
    for name in PERCENTILES:
        interval = told.ci95[name]
        assert interval is None or interval[0] <= getattr(told, name) <= interval[1]


def test_the_same_samples_give_the_same_intervals():
    values = np.random.default_rng(9).exponential(size=40)
    assert distribution(values) == distribution(values)


@CALM
@given(st.lists(st.tuples(st.integers(0, 4), finite, st.integers(1, 4)), min_size=1, max_size=60))
def test_a_groups_own_percentile_is_that_of_its_values_alone(rows):
    groups, values, weights = (np.array(column) for column in zip(*rows, strict=True))
    found = quantile_by_group(values, weights.astype(float), groups, 5, 0.95)
    for group in range(5):
        own = np.repeat(values, weights)[np.repeat(groups, weights) == group]
        if len(own):
            assert found[group] == pytest.approx(np.percentile(own, 95), abs=1e-6)
        else:
            assert math.isnan(found[group])


def test_a_million_samples_are_summed_up_within_a_second():
    values = np.random.default_rng(1).exponential(size=10**6)
    began = time.perf_counter()
    distribution(values)
    assert time.perf_counter() - began < 1
