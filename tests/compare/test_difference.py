"""Changes are told from chance: known noise is found, and nothing is shown where nothing is."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servescope.analysis.difference import GRID, Blocks, Estimate, apart
from servescope.analysis.estimates import of_values

FIGURES = ("ttft_mean", "ttft_p50", "ttft_p95", "e2e_mean", "e2e_p50", "e2e_p95")
FLOOR = 0.001


def alike(rng, n, correlation):
    """Values of variance 1 of which each is like the one before."""
    fresh = math.sqrt(1 - correlation**2)
    drawn, last = rng.standard_normal(n).tolist(), 0.0
    for k, value in enumerate(drawn):
        last = correlation * last + (fresh if k else 1.0) * value
        drawn[k] = last
    return np.array(drawn)


def run(seed, *, n=400, times=1.0, correlation=0.0):
    """A run's estimates: lognormal times, those of one request alike."""
    rng = np.random.default_rng(seed)
    base = alike(rng, n, correlation)
    values = {
        "ttft_s": times * 0.05 * np.exp(0.3 * base),
        "e2e_s": times * np.exp(0.2 * base + 0.2 * rng.standard_normal(n)),
    }
    return of_values(values, {}, FIGURES)


def verdicts(a, b, floor=FLOOR):
    """1, -1 or 0 for each figure that B has above, below or like A."""
    a, b = ([one] if isinstance(one, dict) else one for one in (a, b))
    changes = apart(
        [[one[name] for one in a] for name in FIGURES],
        [[one[name] for one in b] for name in FIGURES],
        [floor] * len(FIGURES),
    )
    return [
        (change.size > change.below) - (-change.size > change.above) if change else 0
        for change in changes
    ]


def test_the_error_of_a_mean_of_independent_values_is_the_textbooks():
    found = []
    for seed in range(40):
        drawn = np.random.default_rng(seed).standard_normal(1000)
        found.append(Blocks.of(1000, 0.0, "t").error(drawn - drawn.mean())[0])
    assert np.median(found) == pytest.approx(1 / math.sqrt(1000), rel=0.15)


def test_the_error_of_a_mean_of_like_values_is_as_much_wider_as_theory_says():
    found = []
    for seed in range(40):
        drawn = alike(np.random.default_rng(seed), 2000, 0.8)
        found.append(Blocks.of(2000, 0.0, "t").error(drawn - drawn.mean())[0])
    theory = math.sqrt((1 + 0.8) / (1 - 0.8) / 2000)
    assert np.median(found) == pytest.approx(theory, rel=0.2)


def test_blocks_follow_the_order_that_they_are_given():
    drawn = alike(np.random.default_rng(1), 500, 0.9)
    shuffle = np.random.default_rng(2).permutation(500)
    in_order = Blocks.of(500, 0.0, "t").error(drawn - drawn.mean())[0]
    mixed = (drawn - drawn.mean())[shuffle]
    assert Blocks.of(500, 0.0, "t", np.argsort(shuffle)).error(mixed)[0] == pytest.approx(in_order)
    assert Blocks.of(500, 0.0, "t").error(mixed)[0] < 0.7 * in_order


@pytest.mark.parametrize("correlation", [0.0, 0.7])
def test_runs_alike_are_called_different_in_no_more_than_one_pair_of_twenty(correlation):
    alarms = sum(
        any(verdicts(run(2 * k, correlation=correlation), run(2 * k + 1, correlation=correlation)))
        for k in range(80)
    )
    assert alarms <= 6


def test_a_tenth_more_is_found():
    found = [verdicts(run(2 * k, n=800), run(2 * k + 1, n=800, times=1.1)) for k in range(20)]
    assert all(1 in one for one in found)
    assert not any(-1 in one for one in found)


@settings(max_examples=10)
@given(st.integers(0, 1000), st.floats(0.5, 2.0))
def test_a_change_turned_round_is_the_same_change(seed, times):
    a, b = run(seed), run(seed + 1, times=times)
    there = apart([[a[n]] for n in FIGURES], [[b[n]] for n in FIGURES], [FLOOR] * len(FIGURES))
    back = apart([[b[n]] for n in FIGURES], [[a[n]] for n in FIGURES], [FLOOR] * len(FIGURES))
    for one, two in zip(there, back, strict=True):
        assert one.size == pytest.approx(-two.size)
        assert one.below == pytest.approx(two.above)
        assert one.seen == pytest.approx(two.seen)


def test_a_run_against_itself_shows_nothing():
    one = run(3)
    assert verdicts(one, one) == [0] * len(FIGURES)


def test_a_percentile_with_too_few_requests_beyond_it_is_not_judged():
    a, b = (of_values({"ttft_s": np.linspace(k, 2 * k, 60)}, {}, ["ttft_p99"]) for k in (1, 9))
    (change,) = apart([[a["ttft_p99"]]], [[b["ttft_p99"]]], [FLOOR])
    assert math.isinf(change.below)
    assert math.isinf(change.above)


def test_one_value_that_all_requests_have_still_has_noise_as_far_as_others_lie_about():
    values = np.array([1.0] * 12 + [5.0] * 8 + [1.0] * 280)  # more than 1 % at the very top
    found = of_values({"ttft_s": values}, {}, ["ttft_p99"])["ttft_p99"]
    assert found.value == 5.0
    assert found.arm(-4) > 0


def noisy(seed, runs, spread, times=1.0):
    """Runs that differ from each other by more than their own noise tells."""
    rng = np.random.default_rng(seed)
    shifts = np.exp(spread * rng.standard_normal(runs))
    return [run(100 * seed + k, times=times * shift) for k, shift in enumerate(shifts)]


def test_repeats_show_that_runs_differ_by_more_than_one_run_can_tell():
    single = sum(any(verdicts(noisy(k, 1, 0.1), noisy(900 + k, 1, 0.1))) for k in range(20))
    repeated = sum(any(verdicts(noisy(k, 4, 0.1), noisy(900 + k, 4, 0.1))) for k in range(40))
    assert single >= 6  # with noise that a single run cannot see it is wrong ...
    assert repeated <= 4  # ... and that is what repeats are for


def test_repeats_of_steady_runs_find_smaller_changes():
    single = sum(1 in verdicts(noisy(k, 1, 0.0), noisy(900 + k, 1, 0, 1.05)) for k in range(20))
    repeated = sum(1 in verdicts(noisy(k, 4, 0.0), noisy(900 + k, 4, 0, 1.05)) for k in range(20))
    assert repeated > single + 5


def test_without_noise_of_their_own_only_repeats_are_judged():
    def bare(*values):
        return [of_values({}, {"requests_per_s": v}, ["requests_per_s"]) for v in values]

    def change(a, b):
        sides = [[one["requests_per_s"] for one in side] for side in (a, b)]
        return apart([sides[0]], [sides[1]], [FLOOR])[0]

    assert change(bare(10.0), bare(20.0)) is None
    found = change(bare(10.0, 10.1, 9.9), bare(20.0, 20.1, 19.9))
    assert found.size > found.below
    alike_ = change(bare(10.0, 12.0, 8.0), bare(11.0, 13.0, 9.0))
    assert alike_.size < alike_.below


def smooth(value, error):
    """A figure whose noise is normal on the logarithm."""
    return Estimate(value, math.log(value), math.log(value) + GRID * error)


def test_the_floor_widens_every_interval():
    a, b = [smooth(1.0, 0.001)], [smooth(1.02, 0.001)]
    (narrow,), (wide,) = (apart([a], [b], [floor]) for floor in (0.0, 0.01))
    assert narrow.size > narrow.below
    assert wide.size < wide.below
    assert wide.floor < wide.below
