"""What a sweep shows: the rate that is kept up with, the knee, the highest stage within the SLO."""

import pytest

from servescope.analysis import saturation
from servescope.report.sections import answer
from tests.analysis.runs import said, simulated

ONE = "sim:vllm?max_num_seqs=1&prefix_cache=false"
"""Serves one request after the other: 128 tokens in and 64 out take 0.526 s, so 1.9 a second."""


def sentences(found):
    return [finding.sentence for finding in said(found, "saturation")]


def test_the_rate_that_is_kept_up_with_and_what_the_service_comes_to_beyond(tmp_path):
    found = simulated(tmp_path, ONE, load=["constant:0.5,1,1.5,1.8,3,5"], requests=100)
    limit = said(found, "saturation")[0]
    assert limit.sentence == "up to 1.80 requests/s the service keeps up; at 3.00 it answers 1.90"
    assert limit.strength == "shown"
    assert limit.evidence["requests_per_s"] == pytest.approx(1 / 0.526, rel=0.01)


def test_the_knee_of_one_server_is_at_half_of_what_it_can_do(tmp_path):
    # Kleinrock's rule for Poisson arrivals: on average one request is in the system at the knee.
    # With service times that do not vary that is so at 1 / (1 + sqrt(1/2)), 0.59 of the capacity.
    # With 4 tokens out, an answer takes 43.6 ms.
    rates = [round(part / 0.0436, 2) for part in (0.2, 0.4, 0.59, 0.75, 0.9)]
    load = [f"poisson:{','.join(map(str, rates))}"]
    found = simulated(tmp_path, ONE, load=load, requests=1500, output_tokens="4")
    (knee,) = [one for one in said(found, "saturation") if "knee" in one.sentence]
    assert knee.value == rates[2]
    assert (knee.evidence["knee_from"], knee.evidence["knee_to"]) == (rates[1], rates[3])
    assert knee.evidence["requests_per_s"] * knee.evidence["e2e_mean_s"] == pytest.approx(
        1, rel=0.2
    )


def test_beyond_what_the_engine_takes_at_once_more_users_only_wait(tmp_path):
    found = simulated(
        tmp_path, "sim:vllm?max_num_seqs=8", load=["users:1,2,4,8,16,32"], requests=300
    )
    full, knee = said(found, "saturation")
    assert full.sentence.startswith("throughput stops rising at 8 users: ")
    assert full.value == knee.value == 8


def test_a_limit_that_was_not_reached_is_not_made_up(tmp_path):
    found = simulated(tmp_path, load=["constant:2,4,6"], requests=60)
    assert sentences(found) == [
        "up to 6.00 requests/s the service keeps up; its limit was not reached"
    ]


def test_a_service_that_keeps_up_with_no_rate_is_said_to(tmp_path):
    found = simulated(tmp_path, ONE, load=["constant:4,8"], requests=100)
    (sentence,) = sentences(found)
    assert sentence.startswith("the service does not keep up with the lowest rate: at 4.00 it answ")


def test_requests_that_are_turned_away_are_not_kept_up_with(tmp_path):
    found = simulated(tmp_path, f"{ONE}&max_waiting=2", load=["constant:1,1.5,4"], requests=200)
    assert sentences(found)[0] == (
        "up to 1.50 requests/s the service keeps up; at 4.00 it answers 1.90, and 103 of 200 "
        "requests failed (failed:server_error_event)"
    )


def test_the_highest_load_within_the_slo_is_named_with_what_the_next_one_missed(tmp_path):
    found = simulated(
        tmp_path, ONE, load=["constant:0.5,1.5,3"], requests=60, slo=["ttft_p99<100ms,e2e_p99<2s"]
    )
    (sentence,) = [said for said in sentences(found) if "SLO" in said]
    assert sentence.startswith(
        "the highest load within the SLO is 1.50 requests/s; at 3.00 ttft_p99"
    )


@pytest.mark.parametrize(
    ("slo", "words"),
    [
        ("e2e_p99<1m", "every stage met the SLO, to 1.50 requests/s"),
        ("e2e_p99<10ms", "no stage met the SLO: at 0.500 e2e_p99<10ms was missed with 526 ms"),
    ],
)
def test_an_slo_that_all_or_none_meet_is_said_so(tmp_path, slo, words):
    found = simulated(tmp_path, ONE, load=["constant:0.5,1.5"], requests=60, slo=[slo])
    assert words in sentences(found)


def test_one_stage_is_no_sweep(tmp_path):
    found = simulated(tmp_path, load=["poisson:8"], requests=100, slo=["ttft_p99<1s"])
    assert said(found, "saturation") == []


def test_stages_are_put_in_order_and_kinds_of_load_apart(tmp_path):
    found = simulated(tmp_path, load=["constant:4", "users:8", "constant:2", "sync"], requests=60)
    sweeps = saturation.sweeps(found)
    assert [[point.offered for point in sweep.points] for sweep in sweeps] == [[2, 4], [1, 8]]
    assert [sweep.unit for sweep in sweeps] == ["requests/s", "users"]


def test_a_sweep_names_the_limit_that_it_measured_and_its_probes_are_no_sweep_of_users(tmp_path):
    slo = ["ttft_p99<200ms,tpot_p95<50ms"]
    found = simulated(tmp_path, load=["sweep"], duration="10s", slo=slo)
    offered = [found.offered(stage.number) for stage in found.summary.stages]
    assert [stage.load for stage in offered if stage.probe] == ["sync", "users:512"]
    saturated = found.summary.stages[1].figures["requests_per_s"]
    limit = said(found, "saturation")[0]
    assert f"512 users drew {saturated:.1f}, about its limit" in limit.sentence
    assert limit.evidence["probe_requests_per_s"] == saturated
    (within,) = [sentence for sentence in sentences(found) if "within the SLO" in sentence]
    assert "requests/s; at" in within
    assert not any("users:" in one or " users; " in one for one in sentences(found))
    best = within.partition(" is ")[2].partition(" requests/s")[0]
    assert f"at constant:{best}" in answer.section(found).sentences[1]


def test_the_words_have_the_rates_of_the_tables(tmp_path):
    found = simulated(tmp_path, load=["poisson:10,40,80,120"], duration="15s")
    limit = said(found, "saturation")[0]
    over = found.summary.stages[2].figures["requests_per_s"]
    assert (
        limit.sentence
        == f"up to 40.0 requests/s the service keeps up; at 80.0 it answers {over:.1f}"
    )
    lead = " ".join(answer.section(found).sentences)
    assert lead.index("Up to 40.0") < lead.index("At poisson:40 it reached")
    assert "poisson:120" not in lead
