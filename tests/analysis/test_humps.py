"""Hartigan's dip, and the two humps that it vouches for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from servescope.analysis.humps import dip, humps

SAMPLES = arrays(
    np.float64, st.integers(2, 60), elements=st.integers(-1000, 1000).map(float), unique=True
)


@pytest.mark.parametrize(
    ("values", "known"),
    [
        ([0, 0, 0, 1, 1, 1], 1 / 4),
        (range(10), 1 / 20),
        ([1, 2, 3, 4, 10, 11, 12, 13], 1 / 6),
        ([1, 1, 1, 2, 5, 9, 9, 9], 3 / 16),
    ],
)
def test_the_dip_of_small_samples_is_known(values, known):
    assert dip(np.array(values, float)) == pytest.approx(known)


@pytest.mark.parametrize(
    ("seed", "n", "known"),
    [
        (0, 20, 0.06481494525097191),
        (1, 100, 0.0467449675306152),
        (2, 500, 0.008612962610848896),
        (3, 2000, 0.0090866076110499),
    ],
)
def test_the_dip_agrees_with_the_field(seed, n, known):
    # As the package diptest 0.12.0 has it, a port of Maechler's C code.
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.normal(0, 1, n // 2), rng.normal(2.5, 1, n // 2)])
    assert dip(values) == pytest.approx(known, rel=1e-12)


@given(SAMPLES)
def test_the_dip_lies_between_that_of_one_hump_and_that_of_two_points(values):
    assert 1 / (2 * len(values)) - 1e-12 <= dip(values) <= 1 / 4 + 1e-12


@given(SAMPLES)
def test_the_dip_is_the_same_for_the_mirrored_and_the_stretched_sample(values):
    assert dip(-values) == pytest.approx(dip(values))
    assert dip(2 * values + 7) == pytest.approx(dip(values))


@pytest.mark.parametrize("n", [100, 400, 5000])
@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, n: rng.exponential(1, n),
        lambda rng, n: rng.lognormal(0, 0.3, n),
        lambda rng, n: rng.lognormal(0, 1.5, n),
        lambda rng, n: rng.uniform(0.1, 10, n),
        lambda rng, n: 0.02 + rng.pareto(1.2, n),
        lambda rng, n: 0.03 + 0.008 * rng.integers(0, 6, n),
    ],
    ids=["exponential", "narrow", "wide", "uniform", "heavy", "steps"],
)
def test_one_hump_is_not_taken_for_two(draw, n):
    rng = np.random.default_rng(n)
    assert [humps(draw(rng, n)) for _ in range(40)] == [None] * 40


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("n", [500, 5000])
def test_two_humps_are_found_where_they_are(share, n):
    rng = np.random.default_rng(n)
    is_slow = rng.random(n) < share
    values = np.where(is_slow, rng.lognormal(-0.1, 0.2, n), rng.lognormal(-3.2, 0.2, n))
    found = humps(values)
    assert found.fast == pytest.approx(np.exp(-3.2), rel=0.15)
    assert found.slow == pytest.approx(np.exp(-0.1), rel=0.15)
    assert ((values > found.parting) == is_slow).all()
    assert found.slow_share == is_slow.mean()


def test_humps_that_nobody_would_feel_are_none():
    rng = np.random.default_rng(1)
    near = np.concatenate([rng.normal(0.100, 0.003, 500), rng.normal(0.150, 0.003, 500)])
    few = np.concatenate([rng.normal(0.1, 0.01, 980), rng.normal(1.0, 0.01, 20)])
    assert humps(near) is None
    assert humps(few) is None
