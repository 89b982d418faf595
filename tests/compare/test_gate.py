"""The gate: broken where it is shown, kept where it is shown, and never by chance."""

import json
from xml.etree import ElementTree as ET

import pytest

from servescope.analysis.comparison import SideDoubt
from servescope.analysis.gate import judge, parse
from servescope.analysis.sides import read
from servescope.errors import BadInput
from tests.compare.runs import simulated, written
from tests.compare.test_compare import invoked

LONG = [50 + (k * 7919 % 13) for k in range(400)]


@pytest.fixture
def pair(tmp_path):
    """Two runs, the second with `times` the first's times to the first token."""

    def make(times, n=400, **more):
        a = written(tmp_path, "a", times_ms=LONG[:n])
        return a, written(tmp_path, "b", times_ms=[times * t for t in LONG[:n]], **more)

    return make


def cases(path):
    """A JUnit file's root."""
    return ET.parse(path).getroot()  # noqa: S314 (we wrote it)


def gate(pair, bounds, *words):
    status, text = invoked(*pair, "--gate", bounds, *words)
    return status, " ".join(text.split())


def test_bounds_are_read_with_their_sign_and_unit():
    first, second, third = parse("ttft_p99<+5%, output_tokens_per_s > -3%,error_ratio<=1%")
    assert (first.figure, first.below, first.limit) == ("ttft_p99", True, 0.05)
    assert (second.figure, second.below, second.limit) == ("output_tokens_per_s", False, -0.03)
    assert (third.figure, third.below, third.limit) == ("error_ratio", True, 0.01)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("ttft_p98<+5%", "did you mean ttft_p9"),
        ("ttft<+5%", "want a statistic too, such as ttft_p99"),
        ("output_token_per_s>-3%", "did you mean output_tokens_per_s?"),
        ("ttft_p99<5", "want bounds on changes such as"),
        ("ttft_p99<200ms", "want bounds on changes such as"),
        ("ttft_p99>-5%", "want ttft_p99<+5%"),
        ("output_tokens_per_s<+3%", "want output_tokens_per_s>-3%"),
        ("ttft_p99<+5%,", "want bounds on changes such as"),
        ("", "want bounds on changes such as"),
        ("requests_per_s>-100%", "above -100%"),
    ],
)
def test_a_bound_that_cannot_be_read_is_refused_with_what_would_be_right(text, hint):
    with pytest.raises(BadInput, match=r"^--gate: ") as refused:
        parse(text)
    assert hint in str(refused.value)


def test_a_change_shown_to_be_beyond_the_bound_breaks_it(pair):
    status, text = gate(pair(1.2), "ttft_mean<+5%")
    assert status == 4
    assert "gate ttft_mean<+5% at constant:100: broken: TTFT mean changed by +20.0 %" in text


def test_a_change_shown_to_be_within_the_bound_keeps_it(pair):
    status, text = gate(pair(1.01), "ttft_mean<+10%,e2e_mean<+10%")
    assert status == 0
    assert text.count(": kept: ") == 2


def test_getting_better_keeps_a_bound(pair):
    assert gate(pair(0.5), "ttft_p50<+0%")[0] == 0


def test_a_change_near_the_bound_is_not_decided_and_says_what_would_decide_it(pair):
    status, text = gate(pair(1.05), "ttft_mean<+3%")
    assert status == 0
    assert "not decided" in text
    assert "repeats a side would decide it" in text


def test_a_change_at_the_bound_is_not_said_to_be_decided_by_thousands_of_repeats(pair):
    assert "so near the bound" in gate(pair(1.03), "ttft_mean<+3%")[1]


def test_what_is_not_decided_fails_only_where_that_is_asked_for(tmp_path):
    a = written(tmp_path, "a", times_ms=LONG)
    b = written(tmp_path, "b", times_ms=[1.05 * t for t in LONG])
    assert invoked(a, b, "--gate", "ttft_mean<+3%")[0] == 0
    assert invoked(a, b, "--gate", "ttft_mean<+3%", "--gate-undecided", "fail")[0] == 4


def test_a_percentile_that_cannot_be_judged_keeps_nothing(pair):
    status, text = gate(pair(1.0, n=100), "ttft_p99<+5%")
    assert status == 0
    assert "not decided: TTFT p99 changed by +0.0 %; too few requests" in text


def test_what_was_not_measured_breaks_its_bound(pair, tmp_path):
    status, text = gate(pair(1.0), "goodput_ratio>-3%")
    assert status == 4
    assert "broken: goodput, of all due: not measured on A and B" in text
    other = written(tmp_path, "other", times_ms=LONG, load="constant:7")
    status, text = gate((tmp_path / "a", other), "ttft_mean<+5%")
    assert status == 4
    assert "not measured: other has no stage constant:100" in text


def test_an_incomplete_run_keeps_no_bound_but_may_break_one(tmp_path):
    a = written(tmp_path, "a", times_ms=LONG)
    b = written(tmp_path, "b", times_ms=LONG, interrupted="SIGINT")
    c = written(tmp_path, "c", times_ms=[2 * t for t in LONG], interrupted="SIGINT")
    status, text = gate((a, b), "ttft_mean<+10%")
    assert status == 0
    assert "not decided" in text
    assert "B is incomplete (b: SIGINT)" in text
    assert gate((a, c), "ttft_mean<+10%")[0] == 4


def test_a_run_that_answered_only_some_keeps_no_bound_on_the_times_of_those(tmp_path):
    a = written(tmp_path, "a", times_ms=LONG)
    b = written(
        tmp_path, "b", times_ms=LONG,
        outcome=lambda k: "failed:http_5xx" if k % 8 == 0 else "completed",
    )  # fmt: skip
    status, text = gate((a, b), "ttft_mean<+20%,error_ratio<+30%", "--gate-undecided", "fail")
    assert status == 4
    assert "B is in doubt (errors: 12.5 % of 400 requests did not complete" in text
    assert "error_ratio<+30% at constant:100: kept" in text  # it counts all requests


def test_a_doubt_about_one_load_is_none_about_another(tmp_path):
    loads = ["constant:1", "constant:12"]
    a = written(tmp_path, "a", times_ms=LONG, loads=loads)
    b = written(
        tmp_path, "b", times_ms=LONG, loads=loads,
        outcome=lambda k: "failed:http_5xx" if k % 8 == 0 else "completed", failing=[0],
    )  # fmt: skip
    status, text = gate((a, b), "ttft_mean<+30%")
    assert status == 0
    assert "at constant:1: not decided" in text
    assert "at constant:12: kept" in text


@pytest.mark.parametrize("kind", ["client_limited", "clock", "merged_reads", "not_offered"])
def test_what_the_load_generator_may_have_made_keeps_no_bound(pair, kind):
    sides, bounds = read([str(path) for path in pair(1.0)]), parse("ttft_mean<+20%")
    assert [one.outcome for one in judge(sides, bounds)] == ["kept"]
    sides[0].side.doubts.append(SideDoubt(load="constant:100", kind=kind, message="it was late"))
    (judgement,) = judge(sides, bounds)
    assert judgement.outcome == "not decided"
    assert f"A is in doubt ({kind}: it was late)" in judgement.sentence


def test_chunks_read_together_do_not_spoil_what_is_counted(tmp_path):
    a, b = (simulated(tmp_path, name, seed=k) for k, name in enumerate("ab"))
    sides, bounds = read([str(a), str(b)]), parse("itl_p50<+30%,output_tokens_per_s>-30%")
    sides[1].side.doubts = [SideDoubt(load="users:8", kind="merged_reads", message="2 %")]
    assert [one.outcome for one in judge(sides, bounds)] == ["not decided", "kept"]


def test_shorter_answers_keep_no_bound(tmp_path):
    even = {"input_tokens": "128"}
    a = simulated(tmp_path, "a", seed=1, output_tokens="64", **even)
    b = simulated(tmp_path, "b", seed=1, output_tokens="48", **even)
    status, text = gate((a, b), "e2e_mean<+5%")
    assert status == 0
    assert "not decided" in text
    assert "B had 25.0 % fewer output tokens a request: it did other work" in text


def test_runs_without_failures_keep_a_bound_on_failures(pair):
    status, text = gate(pair(1.0), "error_ratio<+2%")
    assert status == 0
    assert ": kept: failed, of all due changed by +0.0 points" in text


def test_failures_are_bound_in_points(tmp_path):
    a = written(tmp_path, "a", times_ms=LONG)
    b = written(
        tmp_path, "b", times_ms=LONG,
        outcome=lambda k: "failed:http_5xx" if k % 10 == 0 else "completed",
    )  # fmt: skip
    status, text = gate((a, b), "error_ratio<+3%")
    assert status == 4
    assert "changed by +10.0 points" in text
    assert gate((a, b), "error_ratio<+20%")[0] == 0


def test_each_side_and_load_is_judged(tmp_path):
    loads = ["constant:100", "constant:50"]
    a, b, c = (
        written(
            tmp_path, name, times_ms=[times * t for t in LONG], loads=loads, trial={"model": name}
        )
        for name, times in (("a", 1), ("b", 1), ("c", 1.5))
    )
    path = tmp_path / "junit.xml"
    status, _ = invoked(a, b, c, "--gate", "ttft_mean<+10%", "--junit", path)
    assert status == 4
    suites = cases(path)
    assert (suites.get("tests"), suites.get("failures"), suites.get("skipped")) == ("4", "2", "0")
    failed = [case for case in suites.iter("testcase") if case.find("failure") is not None]
    assert {case.get("classname") for case in failed} == {"servescope.compare.c"}
    assert {case.get("name") for case in failed} == {f"ttft_mean<+10% at {load}" for load in loads}


def test_junit_holds_whatever_names_there_are(tmp_path, pair):
    a, b = pair(1.05)
    odd = b.rename(tmp_path / 'b"<&>\x07')
    path = tmp_path / "junit.xml"
    assert invoked(a, odd, "--gate", "ttft_mean<+3%", "--junit", path)[0] == 0
    suites = cases(path)
    assert suites.get("skipped") == "1"
    (case,) = suites.iter("testcase")
    assert case.get("classname") == 'servescope.compare.b"<&>\N{REPLACEMENT CHARACTER}'
    strict = ("--gate-undecided", "fail")
    assert invoked(a, odd, "--gate", "ttft_mean<+3%", "--junit", path, *strict)[0] == 4
    assert cases(path).get("failures") == "1"


def test_junit_without_a_gate_is_refused(pair, tmp_path):
    with pytest.raises(BadInput, match=r"--junit: .* want --gate too"):
        invoked(*pair(1.0), "--junit", tmp_path / "junit.xml")


def test_a_pull_request_sees_the_gate_first(pair, tmp_path):
    path = tmp_path / "pull.md"
    assert invoked(*pair(1.2), "--gate", "ttft_mean<+5%", "--markdown", path)[0] == 4
    text = path.read_text()
    assert text.startswith("## servescope compare: gate 1 broken\n")
    assert "**broken**" in text


def test_each_bound_is_one_line_for_grep_and_the_last_line_counts_them(pair):
    bounds = "ttft_mean<+5%,ttft_mean<+10%,ttft_mean<+30%,ttft_p99<+5%"
    lines = invoked(*pair(1.2), "--gate", bounds)[1].splitlines()
    assert [line.split()[1] for line in lines[-5:-1]] == bounds.split(",")
    assert lines[-1] == "gate: 2 broken, 1 not decided, 1 kept"


def test_the_page_has_the_gate_first(pair, tmp_path):
    path = tmp_path / "page.html"
    invoked(*pair(1.2), "--gate", "ttft_mean<+5%", "--html", path)
    text = path.read_text()
    assert "The gate: 1 broken" in text
    assert text.index("ttft_mean&lt;+5%") < text.index("B is worse than A in")


def test_json_has_the_gate_in_it(pair):
    found = json.loads(invoked(*pair(1.0), "--gate", "ttft_mean<+10%", "--json")[1])
    assert [one["outcome"] for one in found["gate"]] == ["kept"]
