"""`servescope compare`: what differs first, then what changed, and nothing that chance would do."""

import csv
import io
import json
from itertools import combinations
from pathlib import Path

import pytest
from click.testing import CliRunner

from servescope.analysis.compare import compare, read
from servescope.analysis.comparison import Side
from servescope.analysis.sides import Loaded, Part
from servescope.cli import cli
from servescope.errors import BadInput
from servescope.importers import ImportedStage
from tests.compare.runs import simulated, written

SLOWER = "sim:vllm?step=8.8ms&prefill=93.5us&sequence=22us&context=99ns"
"""Every part of a step costs a tenth more than by default."""
FIXTURES = Path(__file__).parents[1] / "importers" / "fixtures"
TIMES = [50 + k % 7 for k in range(100)]


def invoked(*words):
    """Exit status and output of the command."""
    found = CliRunner().invoke(cli, ["compare", *map(str, words)])
    if isinstance(found.exception, BadInput):
        raise found.exception
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found.exit_code, found.output


def compared(*words):
    """What the command says as JSON."""
    return json.loads(invoked(*words, "--json")[1])


def verdicts(a, b):
    found = compare(read([str(a), str(b)]))
    return [row.verdict for pair in found.pairs for row in pair.rows]


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """Ten runs of one simulated configuration."""
    out = tmp_path_factory.mktemp("alike")
    return [simulated(out, f"a{k}", seed=k) for k in range(10)]


@pytest.fixture(scope="module")
def slower(tmp_path_factory):
    """Runs of the same with every step a tenth longer."""
    out = tmp_path_factory.mktemp("slower")
    return [simulated(out, f"b{k}", seed=100 + k, target=SLOWER) for k in range(5)]


@pytest.mark.parametrize("load", ["users:8", "poisson:12"])
def test_two_runs_of_one_configuration_show_no_difference_in_nineteen_of_twenty_pairs(
    alike, load, tmp_path
):
    if load != "users:8":
        alike = [simulated(tmp_path, f"a{k}", seed=k, load=[load]) for k in range(7)]
    pairs = list(combinations(alike, 2))[:20]
    alarms = sum({"better", "worse"} & set(verdicts(a, b)) != set() for a, b in pairs)
    assert alarms <= len(pairs) // 20


def test_steps_a_tenth_longer_are_found(alike, slower):
    found = [verdicts(a, b) for a, b in zip(alike, slower, strict=False)]
    assert all("worse" in one for one in found)
    assert not any("better" in one for one in found)
    turned = verdicts(slower[0], alike[0])
    assert "better" in turned
    assert "worse" not in turned


def test_the_same_runs_always_give_the_same_answer(alike, slower):
    assert invoked(alike[0], slower[0], "--json") == invoked(alike[0], slower[0], "--json")


def test_what_differs_is_said_before_the_figures(alike, slower):
    _, text = invoked(alike[0], slower[0])
    assert text.index("differs from A in target: ") < text.index("TTFT mean")
    assert text.index("doubt: too_few") < text.index("TTFT mean")
    assert "worse" in text
    table = [line for line in text.splitlines() if " ms " in line]
    assert 0 < max(map(len, table)) <= 100


def test_every_format_says_the_same_figures(alike, slower):
    whole = compared(alike[0], slower[0])
    (pair,) = whole["pairs"]
    rows = {row["figure"]: row for row in pair["rows"]}
    assert rows["itl_mean"]["verdict"] == "worse"
    assert rows["itl_mean"]["low"] < 0.1 < rows["itl_mean"]["high"]
    assert 0 < rows["itl_mean"]["smallest_ratio"] < 0.1
    flat = list(csv.DictReader(io.StringIO(invoked(alike[0], slower[0], "--format", "csv")[1])))
    assert [row["figure"] for row in flat] == list(rows)
    assert float(flat[0]["a"]) == rows[flat[0]["figure"]]["a"]
    markdown = invoked(alike[0], slower[0], "--format", "markdown")[1]
    assert "| **worse** |" in markdown


def test_figures_are_those_of_the_runs_own_summaries(alike, slower):
    whole = compared(alike[0], slower[0])
    rows = {row["figure"]: row for row in whole["pairs"][0]["rows"]}
    for letter, path in (("a", alike[0]), ("b", slower[0])):
        (stage,) = json.loads((path / "summary.json").read_text())["stages"]
        figures = stage["figures"]
        for figure, statistic in (
            ("ttft", "p99"),
            ("itl", "p95"),
            ("e2e", "mean"),
            ("tpot", "p50"),
        ):
            own = figures[f"{figure}_s"][statistic]
            assert rows[f"{figure}_{statistic}"][letter] == pytest.approx(own, rel=1e-9)
        for figure in ("requests_per_s", "output_tokens_per_s", "total_tokens_per_s"):
            assert rows[figure][letter] == pytest.approx(figures[figure], rel=1e-9)


def test_runs_of_one_configuration_are_grouped_as_repeats(alike, slower):
    whole = compared(*alike[:3], *slower[:2])
    assert [len(side["paths"]) for side in whole["sides"]] == [3, 2]
    assert whole["pairs"][0]["repeats"] == [3, 2]
    assert whole["pairs"][0]["requests"] == [900, 600]


def test_where_all_are_alike_each_run_stands_for_itself(alike):
    whole = compared(*alike[:3])
    assert [len(side["paths"]) for side in whole["sides"]] == [1, 1, 1]
    assert [pair["side"] for pair in whole["pairs"]] == [1, 2]


def test_a_directory_of_runs_and_runs_with_commas_are_repeats(alike, slower):
    whole = compared(alike[0].parent, ",".join(map(str, slower)))
    assert [len(side["paths"]) for side in whole["sides"]] == [10, 5]
    rows = {row["figure"]: row for row in whole["pairs"][0]["rows"]}
    assert rows["output_tokens_per_s"]["verdict"] == "worse"


def test_repeats_that_are_not_of_one_configuration_are_refused(alike, slower):
    with pytest.raises(BadInput, match="want repeats of one configuration: target is"):
        invoked(f"{alike[0]},{slower[0]}", alike[1])


def test_one_side_is_nothing_to_compare(alike, tmp_path):
    with pytest.raises(BadInput, match="want two sides"):
        invoked(alike[0])
    with pytest.raises(BadInput, match="want a run's directory, or one of runs"):
        invoked(tmp_path, alike[0])
    with pytest.raises(BadInput, match="there is no such file"):
        invoked(tmp_path / "nothing", alike[0])


def test_loads_that_only_one_side_has_are_said(tmp_path):
    a = written(tmp_path, "a", times_ms=TIMES, loads=["constant:100", "constant:50"])
    b = written(tmp_path, "b", times_ms=TIMES, loads=["constant:100", "constant:200"])
    _, text = invoked(a, b)
    assert "A alone has constant:50: not compared" in text
    assert "this side alone has constant:200: not compared" in text
    assert len(compared(a, b)["pairs"]) == 1


def test_cold_is_compared_with_cold_and_warm_with_warm(tmp_path):
    a, b = (
        simulated(tmp_path, n, seed=1, requests=30, repeat_cache=["cold", "warm"]) for n in "ab"
    )
    loads = [pair["load"] for pair in compared(a, b)["pairs"]]
    assert loads == ["users:8, cold cache", "users:8, warm cache"]


def test_a_load_run_twice_is_paired_in_order(tmp_path):
    loads = ["constant:100", "constant:100"]
    a, b = (written(tmp_path, name, times_ms=TIMES, loads=loads) for name in "ab")
    pairs = compared(a, b)["pairs"]
    assert [pair["load"] for pair in pairs] == ["constant:100", "constant:100 #2"]


def test_an_incomplete_run_is_named(tmp_path):
    a = written(tmp_path, "a", times_ms=TIMES)
    b = written(tmp_path, "b", times_ms=TIMES, interrupted="SIGINT")
    assert "INCOMPLETE: b: SIGINT" in invoked(a, b)[1]


def test_the_same_prompts_to_one_url_are_warned_of(tmp_path):
    trial = {"seed": 7, "target": "http://127.0.0.1:1"}
    a, b = (written(tmp_path, name, times_ms=TIMES, trial=trial) for name in "ab")
    assert "both asked the same prompts (seed 7)" in invoked(a, b)[1].replace("\n", " ")


def test_answers_of_another_length_are_said_to_be_other_work(tmp_path, alike):
    longer = simulated(tmp_path, "longer", seed=5, output_tokens="uniform:40-90")
    text = " ".join(invoked(alike[0], longer)[1].split())
    assert "differs from A in output tokens: uniform:40-90, A: uniform:8-48" in text
    assert "more output tokens a request: it did other work" in text


def test_goodput_is_measured_against_one_slo_on_both_sides(tmp_path):
    a = written(tmp_path, "a", times_ms=TIMES, trial={"slo": ["ttft<54ms"]})
    b = written(tmp_path, "b", times_ms=TIMES, trial={"slo": ["ttft<1s"]})
    found = compared(a, b)
    row = next(row for row in found["pairs"][0]["rows"] if row["figure"] == "goodput_ratio")
    assert row["a"] == row["b"] == pytest.approx(sum(t < 54 for t in TIMES) / 100)
    assert any("A's SLO" in note for note in found["sides"][1]["notes"])


def test_without_a_stream_there_is_no_goodput_against_a_time_to_first_token(tmp_path):
    trial = {"slo": ["ttft<54ms"], "stream": False}
    a, b = (written(tmp_path, name, times_ms=TIMES, trial=trial) for name in "ab")
    figures = [row["figure"] for row in compared(a, b)["pairs"][0]["rows"]]
    assert "e2e_mean" in figures
    assert not [name for name in figures if name.startswith(("goodput", "ttft"))]


def test_hostile_names_stay_text(tmp_path):
    endpoint = {"model": "<script>alert(1)</script>|\x1b[31m", "engine": "x", "url": "u"}
    a = written(tmp_path, "a", times_ms=TIMES)
    b = written(tmp_path, "b", times_ms=TIMES, endpoint=endpoint)
    _, markdown = invoked(a, b, "--format", "markdown")
    assert "<script>" not in markdown
    assert "\x1b" not in markdown
    assert "\x1b" not in invoked(a, b)[1]


def test_files_are_written_beside_the_answer(tmp_path, alike, slower):
    page, pull = tmp_path / "page.html", tmp_path / "pull.md"
    invoked(alike[0], slower[0], "--html", page, "--markdown", pull)
    assert page.read_text().lower().startswith("<!doctype html>")
    assert pull.read_text().startswith("## servescope compare")
    with pytest.raises(BadInput, match="cannot be written"):
        invoked(alike[0], slower[0], "--markdown", Path("/nowhere/at/all.md"))


def test_a_hyphen_is_standard_output_and_nothing_else_is_written_there(alike, slower, tmp_path):
    assert invoked(alike[0], slower[0], "--markdown", "-")[1].startswith("## servescope compare")
    assert not Path("-").exists()


def test_files_of_other_tools_stand_beside_runs_with_their_definitions_said(alike):
    status, text = invoked(FIXTURES / "vllm.json", alike[0], "--gate", "ttft_p99<+5%")
    text = " ".join(text.split())
    assert "A vllm: as vllm bench serve measured it" in text
    assert "the loads are not the same: A had users:4, B users:8" in text
    assert "as defined by A's vllm bench serve" in text
    assert "A's ICL: its 'ITL'" in text  # what it calls ITL is the time between chunks
    assert "not decided" in text
    assert status == 0


def test_values_of_each_request_in_another_tools_file_are_judged():
    whole = compared(FIXTURES / "vllm-detailed.json", FIXTURES / "sglang-details.jsonl")
    rows = {row["figure"]: row for row in whole["pairs"][0]["rows"]}
    assert rows["tpot_mean"]["verdict"] == "no difference shown"
    assert rows["requests_per_s"]["verdict"] is None
    assert "sglang" in whole["sides"][1]["tool"].lower()


def test_between_tokens_and_between_chunks_are_not_mixed_up():
    def told(name, gaps):
        stage = ImportedStage(
            load="users:4", outcomes={"completed": 9}, figures={gaps: {"p50": 0.02}}, values={}
        )
        part = Part("users:4", 9, None, None, imported=stage)
        return Loaded(Side(name=name, paths=[], kind="imported", tool=name), {"users:4": [part]})

    (pair,) = compare([told("one", "icl_s"), told("other", "itl_s")]).pairs
    for row in pair.rows:
        if row.figure.startswith(("itl", "icl")):
            assert row.change_ratio is None
            assert "they are not compared" in row.note


@pytest.mark.parametrize(
    ("outcomes", "share"),
    [({"completed": 90, "failed": 10, "cancelled": 50}, 0.1), ({"completed": 10**12}, None)],
)
def test_what_another_tool_broke_off_has_not_failed_and_no_count_takes_all_memory(outcomes, share):
    stage = ImportedStage(load="users:4", outcomes=outcomes, figures={}, values={})
    part = Part("users:4", 1, None, None, imported=stage)
    found = part.estimates(None, ["error_ratio"])
    assert {name: one.value for name, one in found.items()} == (
        {} if share is None else {"error_ratio": share}
    )


def test_a_gap_between_chunks_is_not_set_against_one_between_tokens(alike):
    rows = {
        row["figure"]: row for row in compared(FIXTURES / "vllm.json", alike[0])["pairs"][0]["rows"]
    }
    assert rows["itl_p50"]["a"] is None
    assert rows["icl_p50"]["a"] is not None


def test_a_burst_tells_little_of_its_noise_but_its_repeats_do(tmp_path):
    def runs(name, target):
        return [
            simulated(tmp_path, f"{name}{k}", seed=ord(name) + k, load=["burst"], target=target)
            for k in range(3)
        ]

    a, b = runs("a", "sim:vllm"), runs("p", SLOWER)
    text = " ".join(invoked(a[0], a[1])[1].split())
    assert "A's requests were only" in text
    assert "which says little of the noise" in text
    (pair,) = compared(*a, *b)["pairs"]
    assert pair["notes"] == []
    rows = {row["figure"]: row["verdict"] for row in pair["rows"]}
    assert rows["total_tokens_per_s"] == "worse"
    assert "better" not in rows.values()


def test_batches_that_end_together_are_no_noise_of_a_rate(tmp_path):
    even = {"input_tokens": "128", "output_tokens": "64"}
    a = simulated(tmp_path, "a", seed=1, **even)
    b = simulated(tmp_path, "b", seed=2, target=SLOWER, **even)
    rows = {row["figure"]: row for row in compared(a, b)["pairs"][0]["rows"]}
    assert rows["requests_per_s"]["verdict"] == "worse"
    assert rows["requests_per_s"]["smallest_ratio"] < 0.05


def test_where_nothing_was_answered_that_is_said(tmp_path):
    a = written(tmp_path, "a", times_ms=TIMES)
    b = written(tmp_path, "b", times_ms=TIMES, outcome=lambda k: "failed:http_5xx")
    text = " ".join(invoked(a, b)[1].split())
    assert "B is worse than A in failed, of all due (+100.0 points)" in text
    assert "TTFT, ITL, TPOT, end-to-end, end-to-end / token, requests/s" in text
    assert "nothing was answered on B" in text
    share = next(r for r in compared(a, b)["pairs"][0]["rows"] if r["figure"] == "error_ratio")
    assert share["high"] <= 1
    assert invoked(b, b)[0] == 0


def test_one_request_a_side_is_compared_and_nothing_judged(tmp_path):
    a, b = (written(tmp_path, name, times_ms=[50]) for name in "ab")
    text = " ".join(invoked(a, b)[1].split())
    assert "A a (1 request), B b (1 request)" in text
    assert "nothing could be judged" in text
    assert "all figures: not judged, as a run tells its noise only from 20 answered" in text


def test_sides_without_a_common_load_are_said_to_be_no_comparison(tmp_path):
    a = written(tmp_path, "a", times_ms=TIMES, load="constant:100")
    b = written(tmp_path, "b", times_ms=TIMES, load="constant:7")
    assert "no load is on both sides" in invoked(a, b)[1]
    assert "no load is on both sides" in invoked(a, b, "--format", "markdown")[1]


def test_a_third_side_is_called_c_wherever_it_is_named(tmp_path):
    a, b, c = (
        written(tmp_path, name, times_ms=TIMES, trial={"model": name}, outcome=outcome)
        for name, outcome in (("a", None), ("b", None), ("c", lambda k: "failed:http_5xx"))
    )
    text = " ".join(invoked(a, b, c)[1].split())
    assert "C is worse than A in failed" in text
    assert "nothing was answered on C" in text
    assert "answered on B" not in text


def test_files_of_one_tool_are_not_called_those_of_different_tools():
    text = " ".join(invoked(FIXTURES / "vllm.json", FIXTURES / "vllm-detailed.json")[1].split())
    assert "different tools" not in text
