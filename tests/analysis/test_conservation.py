"""What a client and its servers count must agree; what stands between them is exposed."""

import http.client
import json
import threading
from contextlib import contextmanager

import numpy as np
import pytest

from servescope.analysis import conclude
from servescope.analysis.told import told
from servescope.conduct import conduct
from servescope.engine.config import EngineConfig
from servescope.experiment import Trial
from servescope.records import Sample
from servescope.serve import Server
from tests.analysis.between import Between
from tests.analysis.runs import planted, said, simulated

ENGINE = EngineConfig(step="20ms")
"""An answer takes a quarter of a second: how busy this machine is does not matter beside it."""


def measured(out, target, *, read, every="250ms", **options):
    """A run over real HTTP, reading these servers' own pages."""
    options = {"input_tokens": "32", "output_tokens": "12", "seed": 5, **options}
    pages = [f"{server.url.rstrip('/')}/metrics,every={every}" for server in read]
    trial = Trial(target=target.url, out=str(out), metrics=pages, **options)
    return conclude(conduct(trial))


def test_behind_a_proxy_that_only_passes_on_everything_agrees(tmp_path):
    with Server(ENGINE) as server, Between(server) as proxy:
        found = measured(tmp_path, proxy, read=[server], load=["users:8"], requests=100)
    assert found.summary.stages[0].outcomes == {"completed": 100}
    assert said(found, "conservation") == []


def test_a_proxy_that_holds_tokens_back_is_exposed(tmp_path):
    with Server(ENGINE) as server, Between(server, whole=True) as proxy:
        found = measured(tmp_path, proxy, read=[server], load=["poisson:20"], requests=60)
    (finding,) = said(found, "conservation")
    assert "something on the way holds tokens back" in finding.sentence
    proof = finding.evidence
    assert proof["client_ttft_s"] > 3 * proof["server_ttft_s"]
    assert proof["client_e2e_s"] < 1.5 * proof["server_e2e_s"]


def test_a_proxy_that_lets_few_requests_through_at_once_is_exposed(tmp_path):
    with Server(ENGINE) as server, Between(server, at_once=2) as proxy:
        options = {"load": ["users:12"], "requests": 100, "output_tokens": "4"}
        found = measured(tmp_path, proxy, read=[server], **options)
    held, late = said(found, "conservation")
    assert "were held on the way" in held.sentence
    assert held.evidence["server_running_and_waiting"] <= 2
    assert held.evidence["client_in_flight"] > 10
    assert "wait on the way" in late.sentence
    # Little's law: what is held, over the throughput, is how much later the answers come.
    rate = found.summary.stages[0].figures["requests_per_s"]
    assert held.value / rate == pytest.approx(late.value, rel=0.3)


@contextmanager
def another_client(server):
    """Someone else who asks the same server, one request after the other."""
    over = threading.Event()
    body = json.dumps(
        {"model": "servescope-sim", "prompt": "a b c", "max_tokens": 24, "ignore_eos": True}
    )

    def ask():
        port = int(server.url.rsplit(":", 1)[1].strip("/"))
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while not over.is_set():
            connection.request(
                "POST", "/v1/completions", body, {"Content-Type": "application/json"}
            )
            connection.getresponse().read()
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_another_client_of_the_same_server_is_seen_in_its_counters_and_in_its_batch(tmp_path):
    with Server(ENGINE) as server, another_client(server):
        found = measured(tmp_path, server, read=[server], load=["users:2"], requests=40)
    batch, counters = said(found, "conservation")
    assert "others use it, too" in batch.sentence
    assert batch.value == pytest.approx(6, abs=2)
    assert "others use it, too" in counters.sentence
    assert counters.evidence["server"] > 2 * counters.evidence["client"]


def test_a_page_of_one_of_two_servers_is_not_taken_for_both(tmp_path):
    with Server(ENGINE) as one, Server(ENGINE) as two, Between(one, two) as proxy:
        found = measured(tmp_path, proxy, read=[one], every="1s", load=["users:4"], requests=40)
    sentences = [finding.sentence for finding in said(found, "conservation")]
    assert any("its metrics page is not that of all who answered" in said for said in sentences)


def test_two_servers_behind_one_address_agree_where_both_are_read(tmp_path):
    with Server(ENGINE) as one, Server(ENGINE) as two, Between(one, two) as proxy:
        found = measured(tmp_path, proxy, read=[one, two], load=["users:8"], requests=100)
    assert said(found, "conservation") == []


def test_a_page_on_which_two_servers_answer_in_turn_is_exposed_and_its_counters_are_not_used(
    tmp_path,
):
    with Server(ENGINE) as one, Server(ENGINE) as two, Between(one, two, pages=True) as proxy:
        measured(tmp_path, one, read=[], load=["users:8"], requests=40)  # it has counted more
        found = measured(tmp_path, proxy, read=[proxy], load=["users:4"], requests=40)
    (finding,) = said(found, "conservation")
    assert "read each server by itself" in finding.sentence
    (engine,) = (one for one in found.summary.stages[0].resources if one.kind == "engine")
    assert "generated_tokens" not in engine.figures
    assert engine.figures["running_requests_max"] > 0


def readings(host, told):
    """What a server's page said: values by name, for each time in s; None where reading failed."""
    return [
        Sample(t_ns=round(t * 1e9), source=f"prometheus:{host}:80/metrics", name=name, value=value)
        for t, values in told.items()
        for name, value in ({"up": 0} if values is None else {"up": 1, **values}).items()
    ]


def test_means_are_of_the_same_answers_whatever_the_server_counts_right_after_them(tmp_path):
    def counted(count, total):
        name = "vllm:e2e_request_latency_seconds"
        return {f"{name}_count": count, f"{name}_sum": total}

    # All have ended 20 ms before the second reading; then others take 10 s each.
    samples = readings("server", {0: counted(0, 0), 10: counted(90, 27.0), 11: counted(98, 107.0)})
    sent = np.arange(90) * 0.1
    found = planted(tmp_path, sent, np.full(90, 0.1), np.full(90, 1.08), samples=samples)
    (finding,) = said(found, "conservation")
    assert "answers come 780 ms later than the server says" in finding.sentence
    assert finding.evidence["server_e2e_s"] == pytest.approx(0.3)


def test_what_a_server_said_before_its_page_failed_is_not_held_against_the_client(tmp_path):
    five = {"vllm:num_requests_running": 5}
    samples = readings("one", dict.fromkeys(range(31), five))
    samples += readings("two", {t: None if t else five for t in range(31)})
    found = planted(
        tmp_path,
        np.arange(150) * 0.2,
        np.full(150, 0.5),
        np.full(150, 1.0),
        targets=("http://one/", "http://two/"),
        samples=samples,
    )
    assert said(found, "conservation") == []


def test_requests_that_never_come_to_the_server_are_held_though_none_is_answered(tmp_path):
    none = {"vllm:num_requests_running": 0}
    samples = readings("server", dict.fromkeys(range(31), none))
    lost = {"outcome": "failed:timeout_total"}
    sent, times = np.arange(20) * 0.1, np.full(20, 25.0)
    found = planted(tmp_path, sent, times, times, samples=samples, **lost)
    (finding,) = said(found, "conservation")
    assert "were held on the way (by" in finding.sentence


def test_of_one_page_by_two_addresses_the_one_that_was_read_more_often_stands(tmp_path):
    once = {
        "vllm:time_to_first_token_seconds_sum": 4.5,
        "vllm:time_to_first_token_seconds_count": 9,
    }
    samples = readings("proxy", dict.fromkeys((0, 6, 12), once))
    samples += readings("server", dict.fromkeys(range(1, 13), once))
    found = planted(
        tmp_path, np.arange(100) * 0.1, np.full(100, 0.5), np.full(100, 1.0), samples=samples
    )
    assert told(found).servers == {"prometheus:server:80/metrics"}


@pytest.mark.parametrize("load", ["poisson:20", "users:32", "poisson:200"])
def test_a_simulated_engine_counts_what_its_clients_do(tmp_path, load):
    found = simulated(tmp_path, load=[load], requests=400)
    assert said(found, "conservation") == []


def test_requests_that_are_never_answered_are_missing_in_throughput_times_latency(tmp_path):
    sent = np.arange(400) * 0.1
    lost = np.arange(400) % 4 == 0
    outcome = np.where(lost, "failed:timeout_total", "completed")
    e2e = np.where(lost, 5.0, 1.0)
    found = planted(tmp_path, sent, e2e / 2, e2e, outcome=outcome)
    (finding,) = said(found, "conservation")
    # 10 requests/s: a quarter for 5 s are 12.5, the others for 1 s 7.5.
    assert finding.value == pytest.approx(12.5, rel=0.15)
    assert finding.evidence["in_flight"] == pytest.approx(20, rel=0.15)
