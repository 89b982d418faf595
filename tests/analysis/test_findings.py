"""Findings as a reader meets them: in the summary, and in the table under the doubts."""

import json
import re

import msgspec
import pytest

from servescope.report.console import table
from tests.analysis.runs import simulated

ORDER = ["saturation", "overload", "steady", "machine", "conservation", "shape"]


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


def test_overview_doubts_and_findings_of_several_stages_stand_below_all_their_tables(found):
    text = table(found.summary)
    stages, overview = text.rsplit(" failed \n", 1)
    assert "found: " not in stages
    assert stages.count("\nsimulated poisson:") == 6
    rest = " ".join(overview.split())
    assert "doubts, told above: not_stationary in " in rest
    assert "found: saturation up to 12.0 requests/s the service keeps up" in rest
    assert "poisson:24: no part of the stage is steady: a queue grew" in rest
    assert all(len(line) <= 100 for line in text.splitlines())


def test_of_one_stage_the_doubts_come_first_and_the_findings_before_the_figures(found):
    summary = msgspec.structs.replace(found.summary, stages=found.summary.stages[5:])
    text = table(summary)
    places = [text.index(words) for words in ("doubt: not_st", "found: steady", "requests: 300")]
    assert places == sorted(places)


def test_a_long_name_leaves_the_date_in_one_piece(found):
    for length in range(70, 101):
        lines = table(msgspec.structs.replace(found.summary, target="m" * length)).splitlines()
        assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "\n".join(lines[:2]))


def test_how_surely_a_thing_is_shown_stands_behind_it_where_it_is_less_than_shown(found):
    likely = [one for one in found.summary.findings if one.strength == "likely"]
    assert likely
    assert " ".join(table(found.summary).split()).count("(likely)") == len(likely)
