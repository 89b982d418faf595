"""A rate that is not kept up with: said of each stage, of a single one too, with the reason."""

import pytest

from servescope.analysis import overload
from servescope.report.console import table
from servescope.report.sections import answer, summary
from tests.analysis.runs import said, simulated


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    return simulated(out, "sim:vllm?max_num_seqs=8", load=["poisson:40"], duration="20s")


def test_a_single_stage_that_is_not_kept_up_with_says_what_was_asked_reached_and_full(full):
    (stage,) = full.summary.stages
    (finding,) = said(full, "overload", 0)
    asked, reached = stage.asked_per_s, stage.figures["requests_per_s"]
    assert finding.strength == "shown"
    assert finding.sentence.startswith(f"asked {asked:.1f} requests/s, it answers {reached:.1f}")
    assert "in flight wait in the engine's queue, for its batch is full (8 running)" in (
        finding.sentence
    )
    assert asked == pytest.approx(40, rel=0.15)
    assert reached == pytest.approx(12.9, rel=0.1)


def test_the_answer_and_the_tables_have_what_was_asked_beside_what_was_reached(full):
    (stage,) = full.summary.stages
    assert (
        f"Asked {stage.asked_per_s:.1f} requests/s, it answers"
        in (answer.section(full).sentences[1])
    )
    reached = stage.figures["requests_per_s"]
    assert f"{reached:.1f} of {stage.asked_per_s:.1f} asked" in table(full.summary)
    stages = summary.section(full).tables[0]
    titles = [column.title for column in stages.columns]
    assert stages.rows[0][titles.index("asked/s")] == stage.asked_per_s


def test_a_full_kv_cache_is_named_where_requests_wait_for_it(tmp_path):
    target = "sim:vllm?kv_tokens=16384&prefix_cache=false"
    found = simulated(tmp_path, target, load=["poisson:20"], duration="30s", input_tokens="2000")
    (finding,) = said(found, "overload")
    assert "wait in the engine's queue, for the KV cache is full (" in finding.sentence
    assert finding.evidence["kv_use_ratio_while_waiting"] > 0.9


def test_what_chance_could_explain_is_likely_where_the_engine_has_a_queue(tmp_path):
    # One prompt in four takes a thirtieth of the KV cache: 5 requests/s are all that fits.
    (tmp_path / "lengths").write_text("64\n64\n64\n8000\n")
    lengths = f"empirical:{tmp_path / 'lengths'}"
    found = simulated(
        tmp_path, load=["poisson:6"], requests=600, input_tokens=lengths, seed=3581739934
    )
    assert overload.pace(found.of_stage(0)).keeps_up is None
    (finding,) = said(found, "overload")
    assert finding.strength == "likely"
    assert "for the KV cache is full" in finding.sentence


def test_a_cap_of_ones_own_is_named_where_requests_wait_behind_it(tmp_path):
    found = simulated(tmp_path, load=["poisson:16"], requests=300, max_concurrency=4)
    (finding,) = said(found, "overload")
    assert "the rest waits here, behind the cap of 4 in flight" in finding.sentence


def test_requests_that_are_refused_are_counted_and_nothing_is_said_to_pile_up(tmp_path):
    target = "sim:vllm?max_num_seqs=8&max_waiting=2"
    found = simulated(tmp_path, target, load=["poisson:60"], duration="20s")
    (stage,) = found.summary.stages
    lost = stage.outcomes["failed:server_error_event"]
    (finding,) = said(found, "overload")
    total = sum(stage.outcomes.values())
    assert finding.sentence.endswith(
        f"and {lost:,} of {total:,} requests failed (failed:server_error_event)"
    )


@pytest.mark.parametrize("load", ["poisson:8", "constant:20", "users:64", "burst"])
def test_a_load_that_is_kept_up_with_or_asks_no_rate_is_not_said_to_be_too_much(tmp_path, load):
    found = simulated(tmp_path, load=[load], requests=300)
    assert said(found, "overload") == []
    assert "asked" in table(found.summary) or not load.startswith(("poisson", "constant"))


def test_a_stage_without_a_steady_part_says_why_to_the_reader(tmp_path):
    found = simulated(tmp_path, load=["users:32"], requests=60)
    (stage,) = found.summary.stages
    assert summary.section(found).sentences == [
        f"No part of users:32 could be judged steady: {stage.unsteady}."
    ]
