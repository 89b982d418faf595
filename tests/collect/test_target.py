"""What is read in a run by default, and who is shown its key."""

import base64

import pytest

from servescope.client.secret import Secret
from servescope.collect._chosen import asked, collection
from servescope.experiment import Trial
from tests.collect.test_prometheus import page, serving
from tests.support.command import until
from tests.support.refusal import refused
from tests.support.served import CERTIFICATE

KEY = Secret("sk-not-for-others")
METRICS = page(b"a 1\n")


def chosen(**options):
    trial = Trial(**options)
    return collection(trial, asked(trial), trial.targets, KEY)


def read(found):
    """A collection's readings and what is said of each source."""
    samples = []
    with found:
        found.begin(0)

        def all_have_spoken():
            samples.extend(found.drain())
            return len(found._told) == len(found._collectors)

        until(all_have_spoken, "a word of every source")
        found.end()
        samples += found.drain()
    return [one for one in samples if one.name == "a"], found


def sources(found):
    return [one.source for one in found._collectors]


def test_a_run_reads_its_machine_its_gpus_and_the_page_of_every_target():
    found = chosen(target=["http://h:1/v1", "https://g/gate/v1/chat/completions", "unix:/s"])
    pages = ["prometheus:h:1/metrics", "prometheus:g:443/gate/metrics", "prometheus:/s/metrics"]
    assert sources(found) == [*pages, "host", "gpu"]


def test_none_turns_off_what_is_read_by_default_alone():
    assert sources(chosen(target="http://h:1", collect=["none"])) == []
    both = chosen(target="http://h:1", collect=["none", "host"], metrics=["http://g:9400"])
    assert sources(both) == ["host", "prometheus:g:9400/metrics"]


def test_what_the_user_names_takes_the_place_of_the_default():
    found = chosen(
        target="http://h:1",
        collect=["host,every=200ms", "prometheus:http://h:1/metrics,every=5s"],
        metrics=["http://h:1/other", "http://h:1/other"],
    )
    assert [(one.source, one.every_s) for one in found._collectors] == [
        ("host", 0.2),
        ("prometheus:h:1/metrics", 5.0),
        ("prometheus:h:1/other", 1.0),
        ("gpu", 1.0),
    ]


def test_a_page_may_be_named_as_a_target_is_by_host_and_port_alone():
    found = chosen(target="http://h:1", collect=["none"], metrics=["box:9400", "box/m,every=5s"])
    assert sources(found) == ["prometheus:box:9400/metrics", "prometheus:box:80/m"]
    assert [one.every_s for one in found._collectors] == [1.0, 5.0]


def test_a_wrong_page_is_refused_by_the_option_that_named_it():
    for url in ("ftp://h/", "http://me:secret@h/", "h:0", "http://h/a b"):
        with refused("--metrics", "want a URL such as") as caught:
            asked(Trial(target="http://h", metrics=[url]))
        assert "secret" not in str(caught.value)
        assert "prometheus" not in str(caught.value)
    with refused("--collect", "did you mean host?"):
        asked(Trial(target="http://h", collect=["hots"]))


def test_the_key_goes_to_pages_of_the_target_and_to_no_other_server():
    with serving(METRICS) as (target, own), serving(METRICS) as (elsewhere, others):
        found = chosen(
            target=f"{target}/v1", metrics=[f"{target}/more?x=1", elsewhere], collect=["none"]
        )
        read(found)
        read(chosen(target=f"{target}/v1"))
    keys = {one.path: one.headers["Authorization"] for one in own}
    assert keys == dict.fromkeys(("/more?x=1", "/metrics"), f"Bearer {KEY.value}")
    assert {one.path: one.headers["Authorization"] for one in others} == {"/metrics": None}
    assert not any(KEY.value in str(one.headers) for one in others)


def test_a_redirect_takes_the_key_nowhere():
    with serving(METRICS) as (elsewhere, others):
        away = page(b"", status=302, Location=f"{elsewhere}/metrics")
        with serving(away) as (target, _):
            _, found = read(chosen(target=target))
    assert others == []
    assert found.collected[sources(found)[0]] == "HTTP 302"


def test_user_and_password_of_the_target_are_those_of_its_page():
    with serving(METRICS) as (target, own):
        trial = Trial(target=target.replace("//", "//me:pass@"))
        samples, _ = read(collection(trial, [], trial.targets, None))
    pair = base64.b64encode(b"me:pass").decode()
    assert {one.headers["Authorization"] for one in own} == {f"Basic {pair}"}
    assert {one.source for one in samples} == {
        f"prometheus:{target.removeprefix('http://')}/metrics"
    }


def test_a_page_that_repeats_the_key_does_not_bring_it_into_the_run():
    def echo(handler):
        said = handler.headers["Authorization"]
        page(f'a{{key="{said}",part="{said[:20]}"}} 1\n'.encode())(handler)

    def broken(handler):
        handler.wfile.write(f"no HTTP: {handler.headers['Authorization']}\r\n\r\n".encode())

    with serving(echo) as (target, _), serving(broken) as (other, _):
        samples, found = read(chosen(target=[target, other], collect=["none"], metrics=[target]))
        _, bad = read(chosen(target=other))
    assert {one.labels["key"] for one in samples} == {"Bearer ***"}
    said = [*found.collected.values(), *bad.collected.values(), *bad.notes]
    assert any("no HTTP: Bearer ***" in text for text in said)
    kept = repr(samples) + repr(said)
    assert KEY.value[:8] not in kept


def test_the_secrets_of_a_page_show_themselves_nowhere():
    found = chosen(target="http://me:hidden-word@h:1")
    assert "hidden-word" not in repr(found._collectors)
    assert KEY.value not in repr(found._collectors)


@pytest.mark.parametrize("options", [{"ca_file": str(CERTIFICATE)}, {"insecure": True}])
def test_a_page_over_tls_is_trusted_as_the_load_trusts_its_server(options):
    with serving(METRICS, tls=True) as (target, _):
        assert read(chosen(target=target, **options))[0]
        samples, found = read(chosen(target=target))
    assert samples == []
    assert "certificate verify failed" in found.collected[sources(found)[0]]
    assert found.notes == []


def test_a_page_is_asked_through_the_proxy_of_its_target(monkeypatch):
    with serving(METRICS) as (proxy, came):
        monkeypatch.setenv("http_proxy", proxy)
        samples, _ = read(chosen(target="http://not-to-be-looked-up.test:1"))
    assert {one.path for one in came} == {"http://not-to-be-looked-up.test:1/metrics"}
    assert samples
