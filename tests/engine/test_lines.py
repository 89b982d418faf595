from hypothesis import given, settings
from hypothesis import strategies as st

from servescope.engine.lines import at, run, upper

LINES = st.lists(
    st.tuples(st.integers(1, 10**14), st.one_of(st.just(0), st.integers(0, 10**10))),
    min_size=1,
    max_size=3,
)


def one_by_one(lines, context, growth, most, until):
    steps = total = 0
    while steps < most and (steps == 0 or total < until):
        steps += 1
        total += at(lines, context + growth * steps)
    return steps, total


@settings(max_examples=400)
@given(LINES, st.integers(0, 10**5), st.integers(1, 300), st.integers(1, 60), st.data())
def test_a_run_of_steps_is_what_its_steps_are_one_by_one(lines, context, growth, most, data):
    _, total = one_by_one(lines, context, growth, data.draw(st.integers(1, most)), 1 << 90)
    until = data.draw(st.sampled_from([1, total - 1, total, total + 1, 2 * total, 1 << 90]))
    expected = one_by_one(lines, context, growth, most, until)
    assert run(tuple(lines), context, growth, most, until) == expected
    assert run(upper(lines), context, growth, most, until) == expected


def test_lines_that_are_never_above_the_others_go():
    assert upper([(3, 1), (9, 2), (9, 1), (5, 4)]) == ((9, 2), (5, 4))
