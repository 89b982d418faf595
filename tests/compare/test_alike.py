"""Sides that are not alike, and what stands on a side: said before anybody believes a figure."""

from pathlib import Path

import pytest

from servescope.analysis.compare import compare
from servescope.analysis.sides import read
from servescope.errors import BadInput
from servescope.telemetry.resources import Resources
from tests.compare.runs import simulated, written
from tests.compare.test_compare import FIXTURES, TIMES, compared, invoked


def said(*words):
    return " ".join(invoked(*words)[1].split())


@pytest.mark.parametrize("file", ["vllm.json", "vllm-detailed.json"])
def test_a_file_of_other_lengths_did_other_work(tmp_path, file):
    run = simulated(tmp_path, "run", seed=1, load=["users:4"], output_tokens="64")
    assert "B had 166.7 % more output tokens a request: it did other work" in said(
        FIXTURES / file, run
    )
    like = simulated(tmp_path, "like", seed=1, load=["users:4"], output_tokens="24")
    assert "more output tokens" not in said(FIXTURES / file, like)


def test_under_another_load_no_figure_is_better_or_worse(tmp_path):
    run = simulated(tmp_path, "run", seed=1, load=["poisson:6"])
    (pair,) = compared(FIXTURES / "vllm-detailed.json", run)["pairs"]
    assert {row["verdict"] for row in pair["rows"]} == {None}
    assert "the loads are not the same, so no figure is called better or worse" in said(
        FIXTURES / "vllm-detailed.json", run
    )


@pytest.mark.parametrize(
    ("busy", "noted"), [((0.23, 0.997), True), ((0.95, 0.99), False), ((0.2, 0.6), False)]
)
def test_a_machine_that_was_full_on_one_side_alone_is_said(tmp_path, busy, noted):
    sides = read([str(written(tmp_path, name, times_ms=TIMES)) for name in "ab"])
    for side, ratio in zip(sides, busy, strict=True):
        ((part,),) = side.parts.values()
        host = Resources(source="host", kind="host", figures={"cpu_busy_ratio_mean": ratio})
        part.summary.resources = [host]
    notes = compare(sides).sides[1].notes
    assert any("CPU was 100 % busy on B and 23 % on A" in note for note in notes) is noted


def test_a_run_against_itself_is_said_to_be_one(tmp_path):
    a, b = (written(tmp_path, name, times_ms=TIMES) for name in "ab")
    assert "A and B have a run or file in common" in said(a, a)
    assert "in common" not in said(a, b)


def test_a_file_of_a_run_is_refused_with_the_directory_to_give(tmp_path):
    a, b = (simulated(tmp_path, name, seed=1, requests=30) for name in "ab")
    with pytest.raises(BadInput, match=f"want its directory, {a}$"):
        invoked(a / "summary.json", b)


def test_the_directory_that_aiperf_writes_stands_for_its_file(tmp_path):
    run = simulated(tmp_path, "run", seed=1, requests=30, load=["users:4"])
    (side, _) = compared(FIXTURES / "aiperf", run)["sides"]
    assert side["tool"].startswith("AIPerf")
    assert [Path(path).name for path in side["paths"]] == ["profile_export_aiperf.json"]


def test_latency_from_due_says_why_it_is_there(tmp_path):
    a, b = (
        simulated(tmp_path, name, seed=1, requests=60, load=["poisson:12"], max_concurrency=2)
        for name in "ab"
    )
    assert "from when a request was due; here over 1 % longer than from its" in said(a, b)


def test_a_latency_that_is_another_one_divided_by_one_number_is_left_out(tmp_path):
    def figures(**lengths):
        a, b = (
            simulated(tmp_path, f"{k}{lengths}", seed=k, requests=30, **lengths) for k in (1, 2)
        )
        return {row["figure"] for row in compared(a, b)["pairs"][0]["rows"]}

    assert "normalized_latency_p50" in figures()
    assert "normalized_latency_p50" not in figures(output_tokens="24")
