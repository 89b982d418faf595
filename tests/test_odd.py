"""Odd servers and odd loads: the numbers stay right, and the run ends."""

import json
import socket
import threading

import numpy as np
import pytest

from servescope.conduct import conduct
from servescope.errors import BadInput
from servescope.experiment import Trial, declare
from servescope.serve.scripted import LAST_CHUNK, chunk, head
from servescope.summary import summarise
from tests.support.served import Served, healthy


def measure(server, tmp_path, **options):
    options = {"data": "dummy", "load": ["users:2"], "requests": 8, "output_tokens": "10"} | options
    run = conduct(Trial(target=server.url, out=str(tmp_path / "runs"), **options))
    return run, summarise(run)


def test_every_request_that_was_due_has_an_outcome_when_a_cap_holds_most_of_them_back(tmp_path):
    with Served(healthy(0.2, 0.001)) as server:
        run, summary = measure(
            server,
            tmp_path,
            load=["constant:6000"],
            requests=None,
            duration="1s",
            max_concurrency=2,
            slo=["ttft<10s"],
        )
    outcomes = summary.stages[0].outcomes
    assert sum(outcomes.values()) == run.manifest.stages[0].planned == 6000
    figures = summary.stages[0].figures
    assert figures["goodput_ratio"] == pytest.approx(outcomes["completed"] / 6000)
    assert "not_offered" in {doubt.kind for doubt in summary.doubts}


def test_a_stall_ends_by_the_time_between_tokens_though_the_first_may_take_longer(tmp_path):
    async def script(request, peer):
        await peer.send(head())
        await peer.send(chunk(b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'))
        await peer.reader.read()

    with Served(script, probe=healthy(0, 0)) as server:
        run, _ = measure(
            server, tmp_path, requests=2, timeout_between_tokens="0.5s", timeout_first_token="20s"
        )
    for record in run.records():
        assert record.outcome == "failed:stalled"
        assert (record.end_ns - record.sent_ns) / 1e9 < 10


@pytest.mark.parametrize(
    "usage",
    [
        '{"prompt_tokens":-7,"completion_tokens":1}',
        '{"prompt_tokens":9223372036854775808,"completion_tokens":1}',
        '{"prompt_tokens":0,"completion_tokens":-1}',
    ],
)
def test_counts_that_cannot_be_are_not_believed(tmp_path, usage):
    async def script(request, peer):
        await peer.send(head())
        choices = '"choices":[{"delta":{"content":"x"},"finish_reason":"stop"}]'
        body = f'{{{choices},"usage":{usage}}}'
        await peer.send(chunk(f"data: {body}\n\ndata: [DONE]\n\n".encode()))
        await peer.send(LAST_CHUNK)

    with Served(script, probe=healthy(0, 0)) as server:
        _, summary = measure(server, tmp_path)
    figures = summary.stages[0].figures
    assert sum(summary.stages[0].outcomes.values()) == 8
    assert figures["input_tokens"] is None


def test_answers_that_end_by_a_close_end_when_it_came(tmp_path):
    async def script(request, peer):
        await peer.send(head("Connection: close"))
        await peer.send(b'data: {"choices":[{"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n')
        peer.close()

    with Served(script, probe=healthy(0, 0)) as server:
        run, summary = measure(server, tmp_path, requests=20, output_tokens="1")
    columns = run.columns()
    assert summary.stages[0].outcomes == {"completed": 20}
    assert np.median(columns.end_ns - columns.chunk_ns) < 5e6


@pytest.mark.parametrize("body", [{"max_tokens": 5}, {"stream": False}, {"model": "x"}])
def test_extra_fields_cannot_change_what_is_measured_behind_its_back(tmp_path, body):
    with pytest.raises(BadInput, match="--extra-body"):
        conduct(Trial(target="http://127.0.0.1:9", extra_body=body, out=str(tmp_path)))


def test_users_and_a_cap_are_two_loads_and_refused(tmp_path):
    with pytest.raises(BadInput, match="--max-concurrency"):
        conduct(
            Trial(
                target="http://127.0.0.1:9", load=["users:8"], max_concurrency=2, out=str(tmp_path)
            )
        )


def test_plain_python_values_are_taken_and_wrong_ones_named():
    assert declare({"target": "x", "duration": 3, "input_tokens": 40}).duration == "3"
    assert declare({"target": "x", "load": "users:2", "input-tokens": 5}).load == ["users:2"]
    with pytest.raises(BadInput, match="load"):
        declare({"target": "x", "load": {"users": 2}})
    with pytest.raises(BadInput, match="laod"):
        declare({"target": "x", "laod": ["users:2"]})


def test_several_workers_share_a_file_and_a_seed_still_gives_the_same_prompts(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"tell me about number {k}" for k in range(300)))
    bodies = []
    for workers in (1, 4):
        with Served(healthy(0.001, 0.0)) as server:
            measure(
                server,
                tmp_path,
                data=f"file:{prompts}",
                requests=200,
                workers=workers,
                load=["users:4"],
                seed=3,
                output_tokens="2",
            )
            bodies.append(sorted(request.body for request in server.requests))
    assert bodies[0] == bodies[1]


def test_a_server_that_is_gone_does_not_shorten_the_time_it_is_measured_over(tmp_path):
    with Served(healthy(0.01, 0.001)) as server:

        async def script(request, peer):
            await healthy(0.01, 0.001)(request, peer)
            if request.number == 3:
                server.listener.close()
                peer.reset()

        server.script = script
        _, summary = measure(
            server, tmp_path, requests=None, duration="2s", load=["users:1"], output_tokens="3"
        )
    assert "failed:connect" in summary.stages[0].outcomes
    window = summary.stages[0].figures["window"]
    assert window["end_s"] - window["start_s"] > 0.5  # its users wait ever longer, up to 1 s


def test_a_short_answer_is_truncated_also_where_only_chunks_were_counted(tmp_path):
    async def script(request, peer):
        await peer.send(head())
        for _ in range(5):
            await peer.send(chunk(b'data: {"choices":[{"delta":{"content":" x"}}]}\n\n'))
        end = b'data: {"choices":[{"delta":{},"finish_reason":"length"}]}\n\ndata: [DONE]\n\n'
        await peer.send(chunk(end) + LAST_CHUNK)

    with Served(script, probe=healthy(0, 0)) as server:
        _, summary = measure(server, tmp_path, output_tokens="11")
    stage = summary.stages[0]
    assert stage.outcomes == {"completed": 0, "truncated": 8}
    assert {"lengths_missed", "counted_locally"} <= {doubt.kind for doubt in stage.doubts}


@pytest.mark.parametrize(
    ("last", "words"),
    [
        (b'{"error":"the GPU fell off"}\n', "the GPU fell off"),
        (b"<html>502 Bad Gateway</html>\n", "502 Bad Gateway"),
        (b'data: {"token": {"id"', '"token"'),
    ],
)
@pytest.mark.parametrize("protocol", ["lightllm", "openai-chat"])
def test_what_a_stream_ends_with_instead_of_its_end_is_told(tmp_path, protocol, last, words):
    token = {
        "lightllm": b'data:{"token":{"id":1,"text":" x"},"generated_text":null}\n\n',
        "openai-chat": b'data: {"choices":[{"delta":{"content":" x"}}]}\n\n',
    }[protocol]

    async def script(request, peer):
        await peer.send(head())
        for piece in (token, token, last):
            await peer.send(chunk(piece))
        await peer.send(LAST_CHUNK)

    with Served(script, probe=healthy(0, 0)) as server:
        run, summary = measure(server, tmp_path, protocol=protocol, output_tokens="4")
    outcomes = {name for name, count in summary.stages[0].outcomes.items() if count}
    assert outcomes <= {"failed:incomplete", "failed:protocol"}
    assert all(words in record.reason for record in run.records())


def test_a_connection_whose_request_was_refused_half_sent_is_not_used_again(tmp_path):
    """A server may answer 413 as soon as it knows how much is to come; the rest has no place."""
    refusal = b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\n{}"
    event = b'data: {"choices":[{"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n'
    answer = head(f"Content-Length: {len(event)}") + event

    def serve(sock):
        with sock:
            asked = sock.recv(1 << 16)
            if b"(probe)" not in asked:
                sock.sendall(refusal)
                closed.wait(30)
            elif asked.startswith(b"POST"):
                sock.sendall(answer)
            else:
                sock.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    def accept(listener):
        while not closed.is_set():
            sock, _ = listener.accept()
            threading.Thread(target=serve, args=(sock,), daemon=True).start()

    closed = threading.Event()
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "long " * 3_000_000}) + "\n")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        run = conduct(
            Trial(
                target=f"http://127.0.0.1:{listener.getsockname()[1]}",
                protocol="openai-chat",
                model="m",
                load=["sync"],
                requests=3,
                data=f"file:{prompts}",
                timeout="10s",
                out=str(tmp_path),
            )
        )
        closed.set()
    assert [record.outcome for record in run.records()] == ["failed:http_4xx"] * 3
