"""`servescope view`: what the list says of runs, and who may read it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
from base64 import b64encode
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from servescope.errors import BadInput
from servescope.report.browse import Browser
from servescope.report.listing import Listing
from servescope.store import RunWriter
from tests.support.command import Command
from tests.support.kept import HOSTILE, keep, manifest
from tests.support.planted import request, steady

EVERYWHERE = ".".join("0000")


@contextmanager
def viewing(root, *words):
    """The command, and the URL that it says."""
    command = Command("view", root, *words, "--port", "0", "--quiet", cwd=root)
    try:
        yield command, urlsplit(command.process.stdout.readline().strip())
    finally:
        command.process.kill()
        command.process.communicate()


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """Where a directory with the run `a` is shown."""
    root = tmp_path_factory.mktemp("runs")
    keep(root, "a")
    with viewing(root) as (_, found):
        yield found


def get(url, path="/", *, method="GET", **headers):
    """Status, headers and body of an answer."""
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=20)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, answer.headers, body


def shown(root, **query):
    """Names of the runs of the list, in its order."""
    body = Browser(root).respond("/", list(query.items())).body
    return [part.partition('"')[0] for part in body.split('data-run="')[1:]]


# --- the list -------------------------------------------------------------------------------------


def test_runs_are_found_at_any_depth_and_the_newest_comes_first(tmp_path):
    keep(tmp_path / "b" / "c", "deep", started="2026-11-20T09:00:00+00:00")
    keep(tmp_path, "late", started="2026-11-21T09:00:00+00:00")
    keep(tmp_path, "early", started="2026-11-19T09:00:00+00:00")
    assert shown(tmp_path) == ["late", "b/c/deep", "early"]


def test_a_run_is_listed_with_what_its_summary_says(tmp_path):
    failed = [request(i, chunks=0, outcome="failed:http_5xx") for i in range(40, 45)]
    path = keep(tmp_path, "a", steady(40, ttft_ms=70) + failed)
    (run,) = Listing(tmp_path).runs()
    summary = json.loads((path / "summary.json").read_text())
    figures = summary["stages"][0]["figures"]
    assert (run.state, run.kind, run.model, run.engine) == (
        "complete",
        "measured",
        "llama-8b",
        "vllm",
    )
    assert run.figures["ttft_p50"] == (figures["ttft_s"]["p50"],) * 2
    assert run.figures["ttft_p50"][0] == pytest.approx(0.070)
    assert run.figures["output_tokens_per_s"] == (figures["output_tokens_per_s"],) * 2
    assert run.failed == 5
    assert run.doubts == len(summary["doubts"])
    assert ">70.0 ms<" in Browser(tmp_path).respond("/", []).body


def test_what_is_searched_for_is_found_in_names_models_and_loads(tmp_path):
    keep(tmp_path, "one", model="Qwen-7B")
    keep(tmp_path, "two", engine="sglang")
    assert shown(tmp_path, q="qwen") == ["one"]
    assert shown(tmp_path, q="CONSTANT llama") == ["two"]
    assert shown(tmp_path, q="nothing like it") == []
    assert shown(tmp_path, engine="sglang") == ["two"]
    assert shown(tmp_path, model="Qwen-7B", engine="sglang") == []


def test_a_column_sorts_up_and_down_and_runs_without_the_figure_come_last(tmp_path):
    for name, ttft_ms in (("middle", 50), ("slow", 90), ("fast", 10)):
        keep(tmp_path, name, steady(30, ttft_ms=ttft_ms))
    keep(tmp_path, "none", [request(0, chunks=0, outcome="failed:http_5xx")])
    assert shown(tmp_path, sort="ttft_p99") == ["fast", "middle", "slow", "none"]
    assert shown(tmp_path, sort="ttft_p99", down="1") == ["slow", "middle", "fast", "none"]
    assert shown(tmp_path, sort="name") == ["fast", "middle", "none", "slow"]


def test_a_run_that_goes_on_is_running_and_when_its_process_is_gone_it_was_killed(tmp_path):
    listing = Listing(tmp_path)
    with RunWriter(tmp_path, manifest("a")):
        (run,) = listing.runs()
        assert (run.state, run.why) == ("running", "stage 1 of 1")
    (run,) = listing.runs()
    assert (run.state, run.why) == ("incomplete", "it was killed")


def test_a_change_on_disk_is_seen_at_the_next_look(tmp_path):
    listing, path = Listing(tmp_path), keep(tmp_path, "a")
    (before,) = listing.runs()
    summary = json.loads((path / "summary.json").read_text())
    summary["stages"][0]["figures"]["requests_per_s"] = 12345.0
    (path / "summary.json").write_text(json.dumps(summary))
    (after,) = listing.runs()
    assert before.figures["requests_per_s"] != after.figures["requests_per_s"]
    assert after.figures["requests_per_s"] == (12345.0, 12345.0)


@pytest.mark.parametrize("name", ["manifest.json", "summary.json"])
def test_a_broken_directory_is_listed_as_such_and_spoils_nothing(tmp_path, name):
    keep(tmp_path, "good")
    broken, browser = keep(tmp_path, "bad") / name, Browser(tmp_path)
    for content in (b"", b"{}", b"[1]", b"\xff\xfe", b'{"name": 3}', b'{"x":' + b"[" * 99999):
        broken.write_bytes(content)
        body = browser.respond("/", []).body
        assert 'href="/run/good"' in body
        assert 'href="/run/bad"' not in body
        assert "unreadable" in body
        assert browser.respond("/run/bad", []).status == 422
    broken.unlink()
    broken.mkdir()
    assert 'href="/run/bad"' not in browser.respond("/", []).body


def test_a_run_without_its_records_is_an_answer_and_no_crash(tmp_path):
    (keep(tmp_path, "a") / "requests.jsonl").unlink()
    assert Browser(tmp_path).respond("/run/a", []).status == 422


def test_links_that_lead_out_of_the_directory_are_not_followed(tmp_path):
    outside = keep(tmp_path / "outside", "secret", model="from outside")
    root = tmp_path / "root"
    within = keep(root, "within")
    (root / "linked").symlink_to(outside)
    (root / "half").mkdir()
    for name in ("manifest.json", "summary.json", "requests.jsonl"):
        (root / "half" / name).symlink_to(outside / name)
    (within / "samples.jsonl").unlink()
    (within / "samples.jsonl").symlink_to("/etc/passwd")
    (keep(root, "cached") / "columns.npz").unlink(missing_ok=True)
    (root / "cached" / "columns.npz").symlink_to(outside / "columns.npz")
    browser = Browser(root)
    found = {run.key: run.state for run in Listing(root).runs()}
    assert found == dict.fromkeys(("half", "within", "cached"), "unreadable")
    assert "from outside" not in browser.respond("/", []).body
    for path in ("/run/linked", "/run/half", "/run/within", "/run/cached"):
        assert browser.respond(path, []).status in (404, 422)


def test_only_what_is_listed_can_be_asked_for(tmp_path):
    keep(tmp_path / "outside", "secret")
    keep(tmp_path / "root", "a")
    browser = Browser(tmp_path / "root")
    outside = ("../outside/secret", "a/../../outside/secret", str(tmp_path / "outside/secret"))
    for key in (*outside, "/etc", "", ".", "a/.", "a/", "a\0", "x" * 5000):
        assert browser.respond(f"/run/{key}", []).status == 404
        assert browser.respond("/compare", [("run", "a"), ("run", key)]).status == 404
    assert browser.respond("/run/a", []).status == 200


def test_from_a_page_that_is_none_there_is_a_way_to_the_list(tmp_path):
    browser = Browser(tmp_path)
    for path in ("/run/gone", "/nowhere", "/compare"):
        answer = browser.respond(path, [])
        assert answer.status in (400, 404)
        assert '<a href="/">All runs</a>' in answer.body


def test_text_from_elsewhere_stays_text(tmp_path):
    keep(tmp_path, "a", model=HOSTILE, engine=HOSTILE)
    (tmp_path / "<b>").mkdir()
    (tmp_path / "<b>" / "manifest.json").write_text(f'{{"{HOSTILE[:20]}": 1}}')
    body = Browser(tmp_path).respond("/", [("q", HOSTILE[:9])]).body
    body += Browser(tmp_path).respond("/", []).body
    assert "<img" not in body
    assert "<b>" not in body
    assert "alert(2)</script>" not in body


def test_a_report_is_made_once_and_again_when_the_run_has_changed(tmp_path):
    path, browser = keep(tmp_path, "a", steady(30)), Browser(tmp_path)
    first = browser.respond("/run/a", []).body
    assert browser.respond("/run/a", []).body is first
    with (path / "requests.jsonl").open("ab") as stream:
        stream.write((path / "requests.jsonl").read_bytes().splitlines(keepends=True)[-1])
    assert browser.respond("/run/a", []).body is not first


def test_looking_leaves_a_run_as_it_was(tmp_path):
    path, browser = keep(tmp_path, "a"), Browser(tmp_path)
    kept = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
    for asked in ("/", "/run/a"):
        assert browser.respond(asked, []).status == 200
    assert {file.name: file.stat().st_mtime_ns for file in path.iterdir()} == kept


def test_two_runs_are_compared_with_the_first_of_them(tmp_path):
    keep(tmp_path, "before", steady(200, ttft_ms=50))
    keep(tmp_path, "after", steady(200, ttft_ms=80), model="llama-8b-new")
    answer = Browser(tmp_path).respond("/compare", [("run", "before"), ("run", "after")])
    assert answer.status == 200
    assert "<h1>after against before" in answer.body
    assert "B is worse than A in" in answer.body
    assert 'href="/compare?run=after&amp;run=before"' in answer.body
    alone = Browser(tmp_path).respond("/compare", [("run", "before"), ("run", "before")])
    assert alone.status == 400


def test_a_name_of_any_bytes_is_shown_and_compared(tmp_path):
    odd = os.fsdecode(b"\xff")
    keep(tmp_path, "a", steady(40))
    keep(tmp_path, "b", steady(40), model="other").rename(tmp_path / odd)
    browser = Browser(tmp_path)
    for path, query in (
        ("/", [("q", odd)]),
        (f"/run/{odd}", []),
        ("/compare", [("run", "a"), ("run", odd)]),
    ):
        assert browser.respond(path, query).status == 200


def test_what_is_no_directory_is_refused_in_one_line(tmp_path):
    with pytest.raises(BadInput, match="want a directory with runs"):
        Browser(tmp_path / "none")


# --- who may ask ----------------------------------------------------------------------------------


def test_answers_tell_browsers_to_keep_to_the_page(url):
    for path in ("/", "/run/a", "/page.css", "/browse.js", "/nothing"):
        _, headers, _ = get(url, path)
        policy = headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Access-Control-Allow-Origin"] is None


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.", "[::2]"])
def test_a_name_that_leads_a_browser_here_is_turned_away(url, host):
    assert get(url, Host=f"{host}:{url.port}")[0] == 421
    assert get(url, Host=f"localhost:{url.port}")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_it_can_be_read_and_no_more(url, method):
    status, headers, _ = get(url, method=method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")
    assert get(url, method="HEAD")[::2] == (200, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_no_request_makes_it_fail_and_it_ends_quietly_when_told_to(tmp_path, number):
    odd = (b"GET /%ff%00/../x HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\0\n\n", b"GET\r\n\r\n")
    odd += (b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n",)
    with viewing(tmp_path) as (command, url):
        for line in odd:
            with socket.create_connection((url.hostname, url.port), timeout=20) as sock:
                sock.sendall(line)
                assert sock.recv(1 << 16)
        with socket.create_connection((url.hostname, url.port), timeout=20) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50)  # and is gone
        assert get(url, "/?" + "a=1&" * 2000)[0] == 400
        assert get(url)[0] == 200
        command.process.send_signal(number)
        assert (command.wait(), command.out, command.err) == (0, "", "")


def test_others_may_reach_it_only_with_a_token(tmp_path):
    command = Command("view", tmp_path, "--host", EVERYWHERE, "--port", "0", cwd=tmp_path)
    assert command.wait() == 2
    assert command.err.count("\n") == 1
    assert "--token-file" in command.err


def test_a_token_is_asked_for_as_a_password(tmp_path, save):
    with viewing(tmp_path, "--token-file", save("token", "a secret\n")) as (_, url):
        _try_passwords(url)


def _try_passwords(url):
    status, headers, body = get(url)
    assert (status, headers["WWW-Authenticate"].split()[0]) == (401, "Basic")
    assert "Runs" not in body
    wrong = b64encode(b"me:wrong").decode()
    right = b64encode(b"me:a secret").decode()
    assert get(url, Authorization=f"Basic {wrong}")[0] == 401
    assert get(url, Authorization="Basic \xfc")[0] == 401
    assert get(url, Authorization=f"Basic {right}")[0] == 200
    assert get(url, Authorization="Bearer a secret")[0] == 200


def test_a_port_in_use_is_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = Command("view", tmp_path, "--port", port, cwd=tmp_path)
        assert command.wait() == 2
    assert (
        command.err == f"servescope: --port: '{port}': it is in use; want another, or 0 for any\n"
    )
