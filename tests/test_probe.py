"""Finding out what a target is: nothing is assumed of a server, and what it refuses is given up."""

import pytest

from servescope.client.address import parse_target, redact
from servescope.conduct import conduct
from servescope.errors import Unreachable
from servescope.experiment import Trial
from servescope.protocols import ProtocolFault, known
from servescope.summary import summarise
from tests.support.served import Served, healthy

QUICK = healthy(0.001, 0.001)


def measure(server, tmp_path, **options):
    options = {"requests": 6, "output_tokens": "3", "timeout": "5s"} | options
    return conduct(Trial(target=server.url, out=str(tmp_path), **options))


def refusing(*fields, status=422, words="Unexpected fields in the request: {{'{}'}}"):
    """A server that refuses these fields, one after another, and answers without them."""

    async def script(request, peer):
        for field in fields:
            if field in request.body.decode():
                await peer.whole(status, f'{{"detail":"{words.format(field)}"}}'.encode())
                return
        await QUICK(request, peer)

    return script


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        (["ignore_eos"], ["ignore_eos"]),
        (["continuous_usage_stats", "min_tokens"], ["usage_each", "min_tokens"]),
        (
            ["stream_options", "ignore_eos", "min_tokens"],
            ["usage", "ignore_eos", "min_tokens", "usage_each"],
        ),
    ],
)
def test_fields_that_a_strict_server_refuses_are_given_up(tmp_path, fields, refused):
    script = refusing(*fields)
    with Served(script, probe=script) as server:
        run = measure(server, tmp_path)
    assert set(run.manifest.endpoint["refused"]) == set(refused)
    assert summarise(run).stages[0].outcomes == {"completed": 6}


def test_a_server_that_wants_max_completion_tokens_gets_it(tmp_path):
    script = refusing('"max_tokens"', words="use max_completion_tokens instead", status=400)
    with Served(script, probe=script) as server:
        run = measure(server, tmp_path)
        assert all("max_completion_tokens" in request.json for request in server.requests)
    assert summarise(run).stages[0].outcomes == {"completed": 6}


def test_a_model_without_a_chat_template_is_measured_by_completions(tmp_path):
    async def script(request, peer):
        if "chat" in request.path:
            await peer.whole(400, b'{"error":{"message":"there is no chat template"}}')
        else:
            await QUICK(request, peer)

    with Served(script, probe=script) as server:
        run = measure(server, tmp_path)
    assert run.manifest.endpoint["protocol"] == "openai-completions"


def only(protocol):
    """A server that speaks one protocol and knows no other path."""
    own = known()[protocol]
    paths = {own.path(stream=stream) for stream in (True, False)}

    async def script(request, peer):
        try:
            assert request.path in paths
            own.parse(request.body, request.path)
        except (AssertionError, ProtocolFault):
            await peer.whole(404 if request.path not in paths else own.refused_with, b'{"x":"no"}')
            return
        await QUICK(request, peer)

    return script


@pytest.mark.parametrize("protocol", sorted(set(known()) - {"vllm", "sglang"}))
def test_the_one_protocol_that_a_server_speaks_is_found_out(tmp_path, protocol):
    script = only(protocol)
    with Served(script, probe=script, models=b"{}") as server:
        run = measure(server, tmp_path, model="m")
    assert run.manifest.endpoint["protocol"] == protocol
    assert summarise(run).stages[0].outcomes == {"completed": 6}


def test_an_empty_list_of_models_does_not_matter_when_the_model_is_named(tmp_path):
    with Served(QUICK, models=b'{"object":"list","data":[]}') as server:
        measure(server, tmp_path, model="mine")
        assert {request.json["model"] for request in server.requests} == {"mine"}


def test_one_bad_answer_to_the_probe_is_no_reason_to_give_up(tmp_path):
    seen = []

    async def probe(request, peer):
        seen.append(request)
        if len(seen) == 1:
            await peer.whole(503, b"busy")
        else:
            await QUICK(request, peer)

    with Served(QUICK, probe=probe) as server:
        run = measure(server, tmp_path)
    assert summarise(run).stages[0].outcomes == {"completed": 6}


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, b'{"error":{"message":"bad key"}}', "bad key"),
        (500, b"<html>it broke</html>", "it broke"),
        (200, b'{"error":{"message":"not today"}}', "not today"),
    ],
)
def test_a_target_that_only_refuses_is_unreachable_in_its_own_words(tmp_path, status, body, words):
    async def script(_request, peer):
        await peer.whole(status, body)

    with Served(script, probe=script) as server, pytest.raises(Unreachable, match=words):
        measure(server, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_target_that_is_silent_is_given_up_within_its_timeouts(tmp_path):
    async def script(_request, peer):
        await peer.reader.read()

    with Served(script, probe=script) as server, pytest.raises(Unreachable, match="timed out"):
        measure(server, tmp_path, timeout="1s")


@pytest.mark.parametrize(
    ("text", "url", "protocols"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000", ()),
        ("http://h/v1", "http://h:80", ()),
        ("https://h/api/v1/chat/completions", "https://h:443/api", ("openai-chat",)),
        ("http://h:1/v1/completions/", "http://h:1", ("openai-completions",)),
        ("http://[::1]:9/x", "http://[::1]:9/x", ()),
    ],
)
def test_a_url_tells_where_and_sometimes_how(text, url, protocols):
    address = parse_target(text)
    assert (address.url, address.protocols) == (url, protocols)


def test_user_and_password_in_a_url_are_shown_nowhere():
    address = parse_target("http://user:pass@word@h:1/x")
    assert "pass" not in repr(address) + address.url + redact("http://user:pass@word@h:1/x")
