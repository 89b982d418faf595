import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from servescope.errors import BadInput
from servescope.lengths import Exponential, Fixed, Lengths, Normal, Uniform, at, parse

FIELD = "--input-tokens"

tokens = st.integers(1, 5000)
lengths = st.one_of(
    st.builds(Fixed, tokens),
    st.builds(lambda a, b: Uniform(min(a, b), max(a, b)), tokens, tokens),
    st.builds(Normal, st.floats(1, 5000), st.floats(0, 2000), st.just(3), st.integers(3, 9000)),
    st.builds(Normal, st.floats(1, 5000), st.floats(0, 2000)),
    st.builds(Exponential, st.floats(0.5, 5000), st.none() | tokens),
    st.builds(Exponential, st.floats(0.5, 900), st.integers(10, 5000), st.just("redraw")),
)


@given(lengths)
def test_what_is_written_is_read_back(law: Lengths):
    assert parse(FIELD, str(law)) == law


@given(lengths, st.integers(0, 2**63))
def test_every_sample_is_a_length_within_the_bounds(law: Lengths, seed: int):
    drawn = law.draw(np.random.default_rng(seed), 200)
    assert drawn.dtype == np.int64
    assert drawn.shape == (200,)
    assert drawn.min() >= law.smallest() >= 1
    assert law.largest() is None or drawn.max() <= law.largest()


@given(lengths, st.integers(0, 2**40), st.lists(st.integers(0, 5000), min_size=2))
def test_item_i_has_the_same_length_in_whatever_order_it_is_asked(law, seed, order):
    first = {i: at(law, seed, "input", i) for i in order}
    assert first == {i: at(law, seed, "input", i) for i in reversed(order)}


def test_seeds_and_purposes_give_different_lengths():
    law = Uniform(1, 1000)

    def drawn(seed: int, purpose: str) -> list[int]:
        return [at(law, seed, purpose, i) for i in range(100)]

    assert drawn(1, "input") == drawn(1, "input")
    assert drawn(1, "input") != drawn(2, "input")
    assert drawn(1, "input") != drawn(1, "output")


def test_a_uniform_law_reaches_both_ends_equally_often():
    drawn = parse(FIELD, "uniform:1-4").draw(np.random.default_rng(0), 40_000)
    assert np.bincount(drawn)[1:] == pytest.approx([10_000] * 4, rel=0.05)


def test_a_normal_law_has_its_mean_and_deviation():
    drawn = parse(FIELD, "normal:mean=256,std=64").draw(np.random.default_rng(0), 100_000)
    assert drawn.mean() == pytest.approx(256, rel=0.01)
    assert drawn.std() == pytest.approx(64, rel=0.02)


def test_clipping_an_exponential_piles_up_at_its_maximum():
    drawn = parse(FIELD, "exponential:mean=128,max=512").draw(np.random.default_rng(0), 400_000)
    assert drawn.mean() == pytest.approx(128 * (1 - np.exp(-4)), rel=0.01)
    assert np.mean(drawn == 512) == pytest.approx(np.exp(-4), rel=0.1)


def test_drawing_an_exponential_again_shortens_it_and_piles_nothing_up():
    law = parse(FIELD, "exponential:mean=128,max=512,beyond=redraw")
    drawn = law.draw(np.random.default_rng(0), 400_000)
    assert drawn.mean() == pytest.approx(128 - 512 / np.expm1(4), rel=0.01)
    assert np.mean(drawn == 512) < 0.001


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "want a length such as 512"),
        ("0", "from 1"),
        ("-5", "want a length such as"),
        ("1.5", "want a length such as"),
        ("nan", "want a number of tokens"),
        ("10000001", "10000000"),
        ("9" * 400, "want"),
        ("unifrom:1-5", "did you mean uniform?"),
        ("uniform", "uniform:1-512"),
        ("uniform:5-1", "LOW not above HIGH"),
        ("uniform:0-5", "from 1"),
        ("uniform:-3-5", "LOW-HIGH"),
        ("uniform:1-5,6", "LOW-HIGH"),
        ("normal:mean=5", "std=..."),
        ("normal:mean=5,sdt=1", "did you mean std?"),
        ("normal:mean=5,std=-1", "std"),
        ("normal:mean=inf,std=1", "mean"),
        ("normal:mean=5,std=1,min=9,max=3", "min not above max"),
        ("normal:mean=5,std=1,min=0", "min"),
        ("normal:mean=5,mean=6,std=1", "only once"),
        ("exponential:mean=0", "above 0"),
        ("exponential:mean=nan", "mean"),
        ("exponential:mean=5,beyond=redraw", "max=..."),
        ("exponential:mean=5,max=9,beyond=wrap", "beyond=clip or beyond=redraw"),
        ("exponential:mean=100000,max=5,beyond=redraw", "99 times max"),
        ("exponential:mean=5,,max=9", "between the commas"),
    ],
)
def test_a_wrong_length_is_refused_with_what_would_be_right(text, hint):
    with pytest.raises(BadInput) as caught:
        parse(FIELD, text)
    assert caught.value.field == FIELD
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)
