"""Findings as a reader meets them: in the summary, and in the table under the doubts."""

import json

import pytest

from servescope.report.console import table
from tests.analysis.runs import simulated

ORDER = ["saturation", "steady", "conservation", "shape"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return simulated(
        tmp_path_factory.mktemp("runs"),
        "sim:vllm?max_num_seqs=8",
        load=["poisson:2,4,8,12,16,24"],
        requests=300,
    )


def test_the_summary_that_is_kept_has_the_findings_in_a_readers_order(found):
    kept = json.loads((found.run.path / "summary.json").read_bytes())
    kinds = [finding["kind"] for finding in kept["findings"]]
    assert kinds == sorted(kinds, key=ORDER.index)
    assert {"saturation", "steady", "shape"} <= set(kinds)
    assert kept["stages"][0]["steady"]["window"]["name"] == "steady"
    assert kept["stages"][5]["steady"] is None
    assert kept["stages"][5]["unsteady"].startswith("a queue grew")


def test_the_table_has_those_of_the_run_first_and_each_stages_own_below_its_name(found):
    text = table(found.summary)
    whole, *stages = text.split("\nsimulated poisson:")
    assert "found: saturation up to 12.0 requests/s the service keeps up" in whole
    assert "found: steady" not in whole
    assert "found: steady no part of the stage is steady: a queue grew" in stages[5]
    assert "found: steady" not in stages[0]
    assert all(len(line) <= 100 for line in text.splitlines())


def test_how_surely_a_thing_is_shown_stands_behind_it_where_it_is_less_than_shown(found):
    likely = [one for one in found.summary.findings if one.strength == "likely"]
    assert likely
    assert " ".join(table(found.summary).split()).count("(likely)") == len(likely)
