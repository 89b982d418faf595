import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from servescope.lengths import (
    Exponential,
    Fixed,
    Lengths,
    Lognormal,
    Normal,
    Uniform,
    at,
    joint,
    parse,
)
from tests.support.refusal import refused

FIELD = "--input-tokens"

tokens = st.integers(1, 5000)
lengths = st.one_of(
    st.builds(Fixed, tokens),
    st.builds(lambda a, b: Uniform(min(a, b), max(a, b)), tokens, tokens),
    st.builds(Normal, st.floats(1, 5000), st.floats(0, 2000), st.just(3), st.integers(3, 9000)),
    st.builds(Normal, st.floats(1, 5000), st.floats(0, 2000)),
    st.builds(Lognormal, st.floats(0.5, 5000), st.floats(0, 9e6), st.just(3), st.integers(3, 9000)),
    st.builds(Lognormal, st.floats(0.5, 5000), st.floats(0, 2000)),
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


def test_a_lognormal_law_has_its_mean_and_deviation():
    drawn = parse(FIELD, "lognormal:mean=512,std=400").draw(np.random.default_rng(0), 200_000)
    assert drawn.mean() == pytest.approx(512, rel=0.01)
    assert drawn.std() == pytest.approx(400, rel=0.02)
    assert stats.skew(np.log(drawn)) == pytest.approx(0, abs=0.03)


def test_a_lognormal_law_may_be_named_by_its_median():
    drawn = parse(FIELD, "lognormal:median=300,sigma=0.8").draw(np.random.default_rng(0), 200_000)
    assert np.median(drawn) == pytest.approx(300, rel=0.01)
    assert np.log(drawn).std() == pytest.approx(0.8, rel=0.01)


# --- lengths from files


@pytest.mark.parametrize(
    ("name", "content", "setting"),
    [
        ("a.txt", "5\n7\n\n7\n0\n7\n", ""),
        ("a.csv", "tokens\n5\n7\n7\n7\n", ""),
        ("a.csv", "who,tokens\nann,5\nben,7\nann,7\nann,7\n", ",column=tokens"),
        ("a.jsonl", '{"n": 5}\n{"n": 7}\n{"n": 7}\n{"n": 7}\n', ""),
        ("a.jsonl", '{"x": [], "n": 5}\n' + '{"n": 7, "x": {}}\n' * 3, ",column=n"),
    ],
)
def test_empirical_lengths_come_as_often_as_in_their_file(save, name, content, setting):
    law = parse(FIELD, f"empirical:{save(name, content)}{setting}")
    drawn = law.draw(np.random.default_rng(0), 40_000)
    assert (law.smallest(), law.largest()) == (5, 7)
    assert set(drawn.tolist()) == {5, 7}
    assert np.mean(drawn == 7) == pytest.approx(3 / 4, abs=0.01)
    assert parse(FIELD, str(law)) == law


def test_a_file_that_has_changed_gives_other_lengths(save):
    first = parse(FIELD, f"empirical:{save('a.txt', '5')}")
    assert at(first, 0, "input", 0) == 5
    second = parse(FIELD, f"empirical:{save('a.txt', '1234')}")
    assert at(second, 0, "input", 0) == 1234
    assert at(first, 0, "input", 0) == 5


PAIRS = "input_tokens,output_tokens\n" + "".join(f"{k},{1000 + k}\n" for k in range(1, 200))


@pytest.fixture(scope="module")
def paired(tmp_path_factory) -> Lengths:
    path = tmp_path_factory.mktemp("pairs") / "pairs.csv"
    path.write_text(PAIRS)
    return parse(FIELD, f"pairs:{path}")


@given(seed=st.integers(0, 2**40), index=st.integers(0, 10**6))
def test_pairs_give_an_item_the_two_lengths_of_one_row(paired, seed, index):
    both = joint(paired, None)
    one, other = at(both[0], seed, "input", index), at(both[1], seed, "output", index)
    assert other == one + 1000


def test_pairs_are_not_always_the_same_row(paired):
    assert len({at(paired, 0, "input", i) for i in range(1000)}) > 150


def test_pairs_for_the_answers_alone_are_output_lengths(paired):
    inputs, outputs = joint(Fixed(9), paired)
    assert inputs == Fixed(9)
    assert at(outputs, 0, "output", 0) > 1000


def test_answers_may_have_a_length_of_their_own_beside_pairs(paired):
    assert joint(paired, Fixed(9)) == (paired, Fixed(9))
    assert joint(None, None) == (None, None)


def test_a_trace_gives_pairs(save):
    path = save("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00,7,8\n")
    inputs, outputs = joint(parse(FIELD, f"pairs:{path}"), None)
    assert (at(inputs, 0, "input", 5), at(outputs, 0, "output", 5)) == (7, 8)


@pytest.mark.parametrize(
    ("form", "content", "hint"),
    [
        ("empirical:{}", "5\nfive\n", "a.csv:2"),
        ("empirical:{}", "5\n-5\n", "a.csv:2"),
        ("empirical:{}", "0\n0\n", "at least one row"),
        ("empirical:{}", "", "column=..."),
        ("empirical:{}", "a,b\n1,2\n", "one of a, b"),
        ("empirical:{},column=c", "aa,b\n1,2\n", "one of aa, b"),
        ("empirical:{},column=b", "a,b\n1\n", "want 2 cells"),
        ("empirical:{},colunm=b", "a,b\n1,2\n", "did you mean column?"),
        ("pairs:{}", "a,b\n1,2\n", "input_tokens, output_tokens"),
        ("pairs:{}", "input_tokens,output_tokens\n1,x\n", "a.csv:2"),
        ("pairs:{}", "input_tokens,output_tokens\n1,20000000\n", "from 0 to 10000000"),
        ("pairs:{},column=a", PAIRS, "no settings here"),
        ("pairs:{}-no", PAIRS, "can be read"),
        ("pairs", PAIRS, "pairs:FILE"),
    ],
)
def test_a_file_without_lengths_is_refused_with_what_would_be_right(save, form, content, hint):
    with refused(FIELD) as caught:
        parse(FIELD, form.format(save("a.csv", content)))
    assert hint in str(caught.value) + caught.value.value


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
        ("lognormal:mean=5", "std=..."),
        ("lognormal:median=5", "sigma=..."),
        ("lognormal:median=5,sigma=9", "sigma from 0"),
        ("lognormal:median=5,sigma=1,std=3", "one of median"),
        ("exponential:mean=0", "above 0"),
        ("exponential:mean=nan", "mean"),
        ("exponential:mean=5,beyond=redraw", "max=..."),
        ("exponential:mean=5,max=9,beyond=wrap", "beyond=clip or beyond=redraw"),
        ("exponential:mean=100000,max=5,beyond=redraw", "99 times max"),
        ("exponential:mean=5,,max=9", "between the commas"),
    ],
)
def test_a_wrong_length_is_refused_with_what_would_be_right(text, hint):
    with refused(FIELD, hint):
        parse(FIELD, text)
