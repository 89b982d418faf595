"""What a comparison does not judge, why, and how much more it wants."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from servescope.analysis.comparison import TOO_FEW
from servescope.analysis.difference import apart
from servescope.analysis.estimates import of_values
from servescope.analysis.gate import judge, parse
from servescope.analysis.sides import read
from tests.compare.runs import simulated, written
from tests.compare.test_compare import compared, invoked

README = Path(__file__).parents[2] / "README.md"
RATES = ("requests_per_s", "output_tokens_per_s", "total_tokens_per_s")


def rows(*sides):
    (pair,) = compared(*sides)["pairs"]
    return {row["figure"]: row for row in pair["rows"]}


def said(*words):
    return " ".join(invoked(*words)[1].split())


# --- how many requests ----------------------------------------------------------------------------


def tail(seed, n):
    """A P99 of `n` independent times."""
    drawn = np.exp(0.3 * np.random.default_rng(seed).standard_normal(n))
    return [of_values({"ttft_s": drawn}, {}, ["ttft_p99"])["ttft_p99"]]


def test_so_many_times_the_requests_give_a_percentile_its_limits():
    (few,) = apart([tail(1, 300)], [tail(2, 300)], [0.01])
    assert np.isinf([few.below, few.above]).all()
    # Independent requests want critical value squared, 2.4 or so, times 0.99 / 0.01.
    assert [300 * more for more in few.more] == pytest.approx([99 * 2.4**2] * 2, rel=0.3)
    enough = [round(1.3 * 300 * more) for more in few.more]
    (change,) = apart([tail(3, enough[0])], [tail(4, enough[1])], [0.01])
    assert np.isfinite([change.below, change.above]).all()
    assert change.more == (1.0, 1.0)


def test_what_has_too_few_requests_says_how_many_it_wants(tmp_path):
    a, b = (simulated(tmp_path, name, seed=k, requests=150) for k, name in enumerate("ab"))
    row = rows(a, b)["ttft_p99"]
    assert row["note"] == TOO_FEW
    assert 500 < row["requests_wanted"] < 10_000
    count = r"wants about [\d,]+( to [\d,]+)? a side"
    assert re.search(rf"TTFT p99.*: {TOO_FEW}: {count}", invoked(a, b)[1])
    assert re.search(rf"not decided: .*: {count}", invoked(a, b, "--gate", "ttft_p99<+5%")[1])
    assert f"{TOO_FEW}: wants about" in invoked(a, b, "--format", "markdown")[1]


def test_few_rounds_say_how_many_requests_they_want(tmp_path):
    a, b = (
        simulated(tmp_path, name, seed=k, requests=120, load=["users:32"])
        for k, name in enumerate("ab")
    )
    found = re.search(
        r"only [\d.]+ rounds .*: wants 8 rounds, about (\d+) requests a run", said(a, b)
    )
    assert 240 <= int(found[1]) < 400
    c, d = (
        simulated(tmp_path, name, seed=k, requests=int(found[1]), load=["users:32"])
        for k, name in enumerate("cd")
    )
    assert "rounds of those in flight" not in said(c, d)


def test_of_a_burst_only_repeats_are_wanted(tmp_path):
    a, b = (simulated(tmp_path, n, seed=k, load=["burst"]) for k, n in enumerate("ab"))
    assert "says little of the noise: wants three repeats a side" in said(a, b)


def test_the_requests_that_would_decide_a_bound_on_failures_decide_it(tmp_path):
    def outcome(name, n):
        a, b = (written(tmp_path, f"{name}{k}", times_ms=[50] * n) for k in range(2))
        (found,) = judge(read([str(a), str(b)]), parse("error_ratio<+1%"))
        return found

    few = outcome("few", 100)
    assert few.outcome == "not decided"
    n = int(
        re.search(r"about ([\d,]+) requests a side would decide it", few.sentence)[1].replace(
            ",", ""
        )
    )
    assert outcome("most", n // 2).outcome == "not decided"
    assert outcome("enough", n).outcome == "kept"


# --- whose rate it is -----------------------------------------------------------------------------


def test_the_rate_of_an_open_load_that_both_keep_up_with_is_not_judged(tmp_path):
    a, b = (simulated(tmp_path, n, seed=k, load=["poisson:6"]) for k, n in enumerate("ab"))
    found = rows(a, b)
    for figure in RATES:
        assert found[figure]["change_ratio"] is not None
        assert found[figure]["verdict"] is found[figure]["low"] is None
        assert "both sides keep up and the load makes this rate" in found[figure]["note"]
    status, text = invoked(a, b, "--gate", "output_tokens_per_s>-3%")
    assert status == 0
    assert "not decided: output tokens/s changed by" in text
    assert "wants users:N" in text


def test_the_rate_of_a_side_that_does_not_keep_up_is_judged(tmp_path):
    a = written(tmp_path, "a", times_ms=[50] * 400)
    b = written(tmp_path, "b", times_ms=[50 + 8 * k for k in range(400)])
    row = rows(a, b)["requests_per_s"]
    assert row["low"] < row["change_ratio"] < row["high"]
    assert row["note"] == ""


# --- one story ------------------------------------------------------------------------------------


def test_the_gate_of_the_readme_is_decided_by_the_load_beside_it(tmp_path):
    text = README.read_text()
    load, gate = (
        re.search(rf"^servescope {words}.*", text, re.MULTILINE)[0].partition("  #")[0]
        for words in ("run URL .*--name before", "compare .*--gate")
    )
    given = dict(zip(*[iter(shlex.split(load)[3:])] * 2, strict=True))
    a, b = (
        simulated(
            tmp_path, name, seed=k, load=[given["--load"]], requests=int(given["--requests"]),
            input_tokens="128", output_tokens=given["--output-tokens"],
        )
        for k, name in enumerate(("before", "after"))
    )  # fmt: skip
    sides = read([str(a), str(b)])
    for one in sides:
        one.side.kind = "measured"  # with the noise that runs on a machine are taken to have
    bounds = parse(shlex.split(gate)[-1])
    assert [one.outcome for one in judge(sides, bounds)] == ["kept"] * len(bounds)
