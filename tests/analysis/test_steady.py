"""The steady part of a stage: what is left out of it, and where there is none."""

import re

import numpy as np
import pytest

from servescope import metrics
from servescope.store import Stage
from tests.analysis.runs import planted, said, simulated


def test_a_closed_load_is_steady_from_each_users_first_answer_to_the_last_request(tmp_path):
    found = simulated(tmp_path, load=["users:64"], requests=2000, output_tokens="uniform:1-128")
    stage, columns = found.summary.stages[0], found.of_stage(0)
    window = stage.steady["window"]
    first = columns.where(columns.due_ns == 0)
    assert len(first) == 64
    assert window["name"] == "steady"
    assert window["start_s"] == pytest.approx(first.end_ns.max() / 1e9, abs=0.1)
    assert window["end_s"] == columns.sent_ns.max() / 1e9
    assert stage.figures["ttft_s"].p99 > 5 * stage.steady["ttft_s"].p99


def test_where_each_target_has_users_of_its_own_all_of_them_have_had_an_answer(tmp_path):
    # Two users have their first answer after 1 s, and two after 5 s.
    sent = np.concatenate(([0, 0, 0, 0], np.arange(196) * 0.1 + 1))
    e2e = np.concatenate(([1, 1, 5, 5], np.full(196, 1.0)))
    two = {"stage": Stage(load="users:2", open=False, users=2, workers=1), "each": True}
    found = planted(tmp_path, sent, e2e / 2, e2e, targets=("http://one/", "http://two/"), **two)
    assert found.summary.stages[0].steady["window"]["start_s"] >= 5


def test_the_steady_figures_stand_beside_those_of_the_whole_and_the_sentence_has_both(tmp_path):
    found = simulated(tmp_path, load=["users:64"], requests=2000, output_tokens="uniform:1-128")
    stage = found.summary.stages[0]
    assert stage.figures["window"]["name"] == "stage"
    window = metrics.Window(**stage.steady["window"])
    figures = metrics.figures(found.of_stage(0), window)
    assert {name: stage.steady[name] for name in figures} == figures
    (finding,) = said(found, "steady", 0)
    assert "TTFT P99 707 ms over the whole stage" in finding.sentence
    assert finding.evidence["ttft_s_p99_steady"] == figures["ttft_s"].p99


@pytest.mark.parametrize("slow", [25, 50, 100])
def test_a_warm_up_is_found_and_left_out(tmp_path, slow):
    rng = np.random.default_rng(slow)
    sent = np.arange(1000) * 0.1
    ttft = rng.gamma(20, 0.005, 1000)
    ttft[:slow] += 2.0
    found = planted(tmp_path, sent, ttft, ttft + 0.2)
    start_s = found.summary.stages[0].steady["window"]["start_s"]
    # The last of the slow ones ends 2.2 s later.
    assert sent[slow] - 0.5 <= start_s <= sent[slow] + 3.5
    (finding,) = said(found, "steady")
    assert "TTFT P99" in finding.sentence
    assert finding.evidence["ttft_s_p99_whole"] > 2 > finding.evidence["ttft_s_p99_steady"]


def test_the_filling_of_an_open_load_is_left_out(tmp_path):
    sent = np.arange(600) * 0.05
    found = planted(tmp_path, sent, np.full(600, 0.1), np.full(600, 3.0))
    # 60 are in flight from 3 s on: the tenth below that is as good.
    assert found.summary.stages[0].steady["window"]["start_s"] == pytest.approx(3.0, abs=0.5)


def test_where_a_queue_grows_no_part_is_steady(tmp_path):
    found = simulated(
        tmp_path, "sim:vllm?max_num_seqs=8", load=["poisson:24"], requests=400, seed=1
    )
    stage = found.summary.stages[0]
    assert stage.steady is None
    assert stage.unsteady.startswith("a queue grew: requests in the system rose from")
    (finding,) = said(found, "steady")
    assert finding.strength == "shown"
    assert finding.evidence["in_system_last"] > 1.5 * finding.evidence["in_system_first"]


def test_a_queue_behind_a_cap_on_concurrency_grows_too(tmp_path):
    found = simulated(tmp_path, load=["poisson:16"], requests=300, max_concurrency=4)
    assert "a queue grew" in found.summary.stages[0].unsteady


def test_latency_that_changes_all_along_is_not_steady(tmp_path):
    rng = np.random.default_rng(3)
    e2e = np.linspace(0.3, 0.6, 600) * rng.gamma(50, 0.02, 600)
    found = planted(tmp_path, np.arange(600) * 0.1, e2e / 2, e2e)
    assert "the median end-to-end latency went from" in found.summary.stages[0].unsteady
    assert len(said(found, "steady")) == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"load": ["burst"], "requests": 100}, "the load itself changes"),
        ({"load": ["users:32"], "requests": 60}, "fewer than 20 requests|the load lasted"),
        ({"load": ["users:4"], "requests": 10}, "fewer than 20 requests were answered"),
    ],
)
def test_too_little_to_tell_is_said_in_the_summary_and_is_no_finding(tmp_path, options, why):
    found = simulated(tmp_path, **options)
    assert found.summary.stages[0].steady is None
    assert re.match(why, found.summary.stages[0].unsteady)
    assert said(found, "steady") == []


def test_the_load_ends_when_the_first_process_has_no_more_requests(tmp_path):
    # Two users, each of a process of its own; the second has 100 requests twice as long as the
    # first's, and goes on alone when that one has ended.
    sent = np.stack([np.arange(100) * 0.1, np.arange(100) * 0.2], axis=1).ravel()
    e2e = np.tile([0.1, 0.2], 100)
    stage = Stage(load="users:2", open=False, users=2, workers=2)
    found = planted(tmp_path, sent, e2e / 2, e2e, stage=stage)
    assert found.summary.stages[0].steady["window"]["end_s"] == pytest.approx(99 * 0.1)
