"""Endpoints behind TLS: verified unless the user says otherwise, and timed like plain ones."""

import ssl

import pytest

from servescope.conduct import conduct
from servescope.errors import BadInput, Unreachable
from servescope.experiment import Trial
from servescope.summary import summarise
from tests.support.served import CERTIFICATE, Served, healthy, tls_context


@pytest.fixture(scope="module")
def server():
    with Served(healthy(0.02, 0.005), tls=tls_context()) as found:
        yield found


@pytest.mark.parametrize("trust", [{"ca_file": str(CERTIFICATE)}, {"insecure": True}])
def test_a_run_over_tls_is_complete_and_its_times_come_from_the_kernel(server, tmp_path, trust):
    run = conduct(
        Trial(
            target=server.url,
            load=["users:4"],
            requests=20,
            output_tokens="10",
            out=str(tmp_path),
            **trust,
        )
    )
    stage = summarise(run).stages[0]
    assert stage.outcomes == {"completed": 20}
    assert stage.figures["itl_s"].p50 == pytest.approx(0.005, rel=0.2)
    assert stage.figures["ttft_s"].min >= 0.02
    assert {s.value for s in run.samples() if s.name == "kernel_clock"} == {1.0}


def test_a_certificate_that_nobody_vouches_for_is_refused_with_the_reason(server, tmp_path):
    with pytest.raises(Unreachable, match="certificate verify failed") as found:
        conduct(Trial(target=server.url, requests=2, out=str(tmp_path)))
    said = str(found.value)
    assert said.count("certificate verify failed") == 1
    assert "--ca-file" in said
    assert "--insecure" in said
    assert "--model" not in said


def test_a_server_that_wants_a_certificate_of_ours_leads_to_the_option_for_it(tmp_path):
    strict = tls_context()
    strict.verify_mode = ssl.CERT_REQUIRED
    with Served(healthy(0.01, 0.002), tls=strict) as found, pytest.raises(Unreachable) as refused:
        conduct(Trial(target=found.url, ca_file=str(CERTIFICATE), out=str(tmp_path)))
    assert "--client-cert" in str(refused.value)
    assert "--model" not in str(refused.value)


def test_a_server_that_closes_without_a_word_is_not_said_to_lack_a_model(server, tmp_path):
    url = server.url.replace("https", "http")
    with pytest.raises(Unreachable, match="closed without an answer") as found:
        conduct(Trial(target=url, requests=2, out=str(tmp_path)))
    assert str(found.value).count("closed without an answer") == 1
    assert "--model" not in str(found.value)


def test_a_ca_file_that_holds_no_certificate_is_bad_input(server, tmp_path):
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(BadInput, match="--ca-file"):
        conduct(Trial(target=server.url, ca_file=str(tmp_path / "ca.pem"), out=str(tmp_path)))
