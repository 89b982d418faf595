"""What real engines sent, decoded.

The files in recorded/ hold one exchange each: status line, headers and body without its framing,
with LF in the head. Their bodies are literal; so are their heads, but for the rejected streams and
for llama.cpp while it loads, whose heads are those of the same server's other answers. What was not
recorded is written out here in the form that its server's source gives it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from servescope.client.reading import Reading, read
from servescope.protocols.llamacpp import LlamaCpp
from servescope.protocols.openai_chat import OpenAIChat
from servescope.protocols.openai_completions import OpenAICompletions
from servescope.protocols.sglang import Sglang
from tests.support.framing import EVERY, Framed, chunked, sized, unsized

RECORDED = Path(__file__).parent / "recorded"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream"
CHAT, COMPLETIONS = OpenAIChat(), OpenAICompletions()
WAYS_TO_CUT = {"in one read": (), "byte by byte": EVERY, "in sevens": range(0, 1 << 13, 7)}


def wire_of(name: str):
    if "generate" in name:
        return Sglang()
    if "native" in name:
        return LlamaCpp()
    return CHAT if "chat" in name else COMPLETIONS


def recorded(name: str) -> Framed:
    """A recorded exchange with the framing that its headers state."""
    head, _, body = (RECORDED / f"{name}.txt").read_bytes().partition(b"\n\n")
    lines = head.split(b"\n")
    rest = [line for line in lines if not line.lower().startswith((b"content-l", b"transfer-"))]
    if rest == lines:
        return unsized(b"\r\n".join(lines), body)
    if any(line.lower() == b"transfer-encoding: chunked" for line in lines):
        ends = [at + 2 for at in range(len(body)) if body.startswith(b"\n\n", at)]
        return chunked(b"\r\n".join(rest), body, ends)
    assert any(line.lower() == b"content-length: %d" % len(body) for line in lines)
    return sized(b"\r\n".join(rest), body)


def decode(wire, response: Framed, cuts=()) -> Reading:
    reading = read(wire, response.raw, response.reads(cuts), closed=response.closed)
    assert reading.fault is None
    assert reading.framed_end
    return reading


def stream(*events: bytes, done: bool = True, chunks: bool = True) -> Framed:
    body = b"".join(b"data: " + event + b"\n\n" for event in events)
    body += b"data: [DONE]\n\n" if done else b""
    return chunked(STREAM, body) if chunks else unsized(STREAM, body)


# --- answers --------------------------------------------------------------------------------------


@dataclass
class Meant:
    """What an answer says."""

    texts: list[str]
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None = None
    totals: list[int | None] = field(default_factory=lambda: [None, None])
    server_s: dict[str, float] = field(default_factory=dict)
    end_marker: bool = True
    finish_reason: str = "length"


VLLM_TIMES = [
    {"ttft_s": 0.03470986499996798, "decode_s": 0.004995232000055694},
    {"ttft_s": 0.0042048609998346365, "decode_s": 0.00345159100015735},
    {"ttft_s": 0.003796362000230147, "decode_s": 0.0032906470000853005},
]
VLLM_TIMES[0]["queue_s"] = 3.545700019458309e-05
VLLM_TIMES[1]["queue_s"] = 2.1218999791017268e-05
VLLM_TIMES[2]["queue_s"] = 1.8900999748439062e-05
ANSWERS = {
    "vllm-0.32-chat-stream": Meant(["onents", "verse"], 13, 2, 0, server_s=VLLM_TIMES[0]),
    "vllm-0.32-completions-stream-usage-each": Meant(
        [" work", " bound"], 2, 2, 0, [1, 2], VLLM_TIMES[1]
    ),
    "vllm-0.32-completions-whole": Meant(
        ["tagright"], 4, 2, 0, [2], VLLM_TIMES[2], end_marker=False
    ),
    "sglang-0.5.23-chat-stream": Meant(["onents", "verse"], 13, 2),
    "sglang-0.5.23-completions-stream": Meant([" work", " bound"], 2, 2),
    "sglang-0.5.23-completions-whole": Meant(["belref"], 1, 2, None, [2], end_marker=False),
    "llamacpp-chat-stream": Meant(
        [" ke", " pickle"], 13, 2, 0, server_s={"prefill_s": 0.002668, "decode_s": 0.001288}
    ),
    "llamacpp-completions-stream": Meant(
        ["sequence", "var"], 1, 2, 0, server_s={"prefill_s": 0.000752, "decode_s": 0.000686}
    ),
    "llamacpp-completions-whole-two-choices": Meant(
        ["####mod"],
        *(1, 2, 0, [2], {"prefill_s": 0.000959, "decode_s": 0.000807}),
        end_marker=False,
    ),
    "sglang-0.5.23-generate-stream": Meant(
        ["SU", "ity"],
        *(3, 2, 1, [1, 2]),
        {"queue_s": 0.000343488, "ttft_s": 0.018427264, "e2e_s": 0.019100196},
    ),
    "sglang-0.5.23-generate-whole": Meant(
        ["itle%"],
        *(3, 2, 0, [2]),
        {"queue_s": 0.000226441, "ttft_s": 0.013767064, "e2e_s": 0.015582180},
        end_marker=False,
    ),
    "llamacpp-native-stream": Meant(
        [],  # both tokens were special ones
        *(2, 2, 0, []),
        {"prefill_s": 0.000659, "decode_s": 0.000667},
        finish_reason="limit",
    ),
    "llamacpp-native-whole": Meant(
        ["folsign"],
        *(3, 2, 0, [2]),
        {"prefill_s": 0.000767, "decode_s": 0.000474},
        finish_reason="limit",
    ),
}


@pytest.mark.parametrize("cuts", WAYS_TO_CUT.values(), ids=WAYS_TO_CUT)
@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_decodes_to_its_text_counts_and_times(name, cuts):
    reading, meant = decode(wire_of(name), recorded(name), cuts), ANSWERS[name]
    assert reading.error is None
    assert reading.server_s == pytest.approx(meant.server_s)
    assert meant == Meant(
        reading.texts,
        reading.input_tokens,
        reading.output_tokens,
        reading.cached_tokens,
        reading.chunk_total,
        meant.server_s,
        reading.end_marker,
        reading.finish_reason or "",
    )


def test_reads_of_vllm_keep_the_times_they_came_at():
    reads = msgspec.json.decode(
        (RECORDED / "vllm-0.32-reads.json").read_bytes(), type=list[tuple[float, str]]
    )
    raw, pairs = b"", []
    for at_ms, text in reads:
        raw += text.encode()
        pairs += [round(at_ms * 1e6), len(raw)]
    reading = read(COMPLETIONS, raw, pairs, closed=False)
    assert (reading.fault, reading.error, reading.framed_end) == (None, None, True)
    assert "".join(reading.texts) == "\ufffdIN"
    assert reading.chunk_at[-1] == 12_450_000
    assert (reading.finish_reason, reading.end_marker) == ("length", True)
    assert (reading.input_tokens, reading.output_tokens) == (None, None)


# --- errors ---------------------------------------------------------------------------------------

ERRORS = {
    "vllm-0.32-error-unknown-model": (404, "The model `nosuch` does not exist. Valid aliases: ti"),
    "vllm-0.32-error-too-long": (400, "This model's maximum context length is 1024 tokens. Ho"),
    "vllm-0.32-error-max-tokens": (400, "max_tokens must be at least 1, got -1. (parameter="),
    "vllm-0.32-error-bad-json": (400, "1 validation error:\n  {'type': 'json_invalid', 'loc'"),
    "vllm-0.32-stream-rejected": (200, "The engine is currently busy and cannot accept new req"),
    "sglang-0.5.23-error-too-long": (400, "The input (6001 tokens) is longer than the model's"),
    "llamacpp-error-too-long": (400, "request (3001 tokens) exceeds the available context size"),
    "llamacpp-error-bad-json": (400, "[json.exception.parse_error.101] parse error at line 1"),
    "llamacpp-error-loading": (503, "Loading model"),
}


@pytest.mark.parametrize("cuts", WAYS_TO_CUT.values(), ids=WAYS_TO_CUT)
@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("wire", [CHAT, COMPLETIONS], ids=["chat", "completions"])
def test_an_error_decodes_to_the_servers_words(wire, name, cuts):
    status, words = ERRORS[name]
    reading = decode(wire, recorded(name), cuts)
    assert reading.head is not None
    assert reading.head.status == status
    assert reading.error is not None
    assert reading.error.startswith(words)
    assert (reading.texts, reading.finish_reason) == ([], None)


NATIVE_ERRORS = {
    "sglang-0.5.23-generate-stream-rejected": (200, "The request queue is full."),
    "sglang-0.5.23-generate-stream-too-long": (200, "The input (6001 tokens) is longer than the m"),
    "sglang-0.5.23-generate-stream-bad-limit": (200, "max_new_tokens must be at least 0, got -2."),
    "sglang-0.5.23-generate-error-too-long": (400, "The input (6001 tokens) is longer than the m"),
    "sglang-0.5.23-generate-error-unknown-field": (400, "unknown field `nosuch`, expected one of"),
}


@pytest.mark.parametrize("cuts", WAYS_TO_CUT.values(), ids=WAYS_TO_CUT)
@pytest.mark.parametrize("name", NATIVE_ERRORS)
def test_an_error_of_a_native_route_decodes_to_the_servers_words(name, cuts):
    status, words = NATIVE_ERRORS[name]
    reading = decode(wire_of(name), recorded(name), cuts)
    assert reading.head is not None
    assert reading.head.status == status
    assert reading.error is not None
    assert reading.error.startswith(words)
    assert reading.texts == []


def test_llamacpp_closes_the_connection_after_an_error():
    head = decode(COMPLETIONS, recorded("llamacpp-error-too-long")).head
    assert head is not None
    assert not head.keeps_alive


def test_every_recorded_file_is_decoded_by_a_test():
    assert {path.stem for path in RECORDED.glob("*.txt")} == {*ANSWERS, *ERRORS, *NATIVE_ERRORS}


IN_STREAM = {
    "vLLM": b'{"error":{"message":"died","type":"InternalServerError","param":null,"code":500}}',
    "SGLang": b'{"error":{"object":"error","message":"died","type":"X","code":500}}',
    "SGLang, flat": b'{"object":"error","message":"died","type":"BadRequestError","code":400}',
    "SGLang, native": b'{"error":{"message":"died","type":"x","code":400,"retryable":false}}',
    "TGI, OpenAI routes": b'{"error":{"message":"died","http_status_code":422}}',
    "TGI, native": b'{"error":"died","error_type":"overloaded"}',
}


@pytest.mark.parametrize("wire", [CHAT, COMPLETIONS], ids=["chat", "completions"])
@pytest.mark.parametrize("name", IN_STREAM)
def test_an_error_after_the_first_token_is_an_error(wire, name):
    token = b'{"choices":[{"index":0,"text":"a","delta":{"content":"a"},"finish_reason":null}]}'
    reading = decode(wire, stream(token, IN_STREAM[name]))
    assert (reading.texts, reading.error) == (["a"], "died")


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (503, b'{"detail":"The request queue is full."}', "The request queue is full."),
        (429, b'{"error":"Model is overloaded","error_type":"overloaded"}', "Model is overloaded"),
        (417, b'{"message":"bad value"}', "bad value"),
        (422, b'{"detail":"Unexpected fields in the request: {\'x\'}"}', "Unexpected fields in"),
        (502, b"<html>Bad Gateway</html>", "<html>Bad Gateway</html>"),
        (500, b"Internal Server Error", "Internal Server Error"),
    ],
)
def test_an_error_with_its_status_decodes_to_the_servers_words(status, body, words):
    reading = decode(COMPLETIONS, sized(b"HTTP/1.1 %d X" % status, body))
    assert reading.error is not None
    assert reading.error.startswith(words)


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_a_finish_reason_that_tells_of_failure_is_an_error(reason):
    last = b'{"choices":[{"index":0,"text":"","finish_reason":"%b"}]}' % reason.encode()
    assert decode(COMPLETIONS, stream(last)).error == f"finish reason '{reason}'"


# --- engines whose streams differ -----------------------------------------------------------------


def test_tgi_sends_an_empty_finish_reason_before_the_last_and_usage_inside_the_last_chunk():
    head = b'{"object":"text_completion","id":"","created":1795225873,"model":"m",'
    head += (
        b'"system_fingerprint":"3.3.6-dev0-native","choices":[{"index":0,"logprobs":null,"text":'
    )
    usage = b'{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}'
    events = [
        head + b'" word","finish_reason":""}]}',
        head + b'" end","finish_reason":"length"}],"usage":' + usage + b"}",
    ]
    assert [event.finish_reason for event in map(COMPLETIONS.decode_whole, events)] == [
        *(None, "length")
    ]
    reading = decode(COMPLETIONS, stream(*events))
    assert reading.texts == [" word", " end"]
    assert reading.finish_reason == "length"
    assert (reading.input_tokens, reading.output_tokens) == (3, 2)
    assert reading.chunk_total == [None, 2]


def test_old_servers_write_no_blank_after_the_colon_and_keep_alive_by_comments():
    body = b": keep-alive\n\n"
    body += b'data:{"choices":[{"index":0,"text":"a","finish_reason":null}]}\n\n:\n\n'
    body += b'data:{"choices":[{"index":0,"text":"b","finish_reason":"stop"}]}\n\ndata:[DONE]\n\n'
    reading = decode(COMPLETIONS, chunked(STREAM, body))
    assert (reading.texts, reading.finish_reason) == (["a", "b"], "stop")
    assert reading.end_marker


@pytest.mark.parametrize("chunks", [True, False], ids=["chunked", "until the close"])
def test_transformers_serve_sends_no_done_and_no_finish_reason_before_the_last(chunks):
    usage = b'"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}'
    events = [
        b'{"choices":[{"delta":{"role":"assistant"},"index":0}],"object":"chat.completion.chunk"}',
        b'{"choices":[{"delta":{"content":"a"},"index":0}],"object":"chat.completion.chunk"}',
        b'{"choices":[{"delta":{"content":"b"},"index":0}],"object":"chat.completion.chunk"}',
        b'{"choices":[{"delta":{"content":""},"index":0,"finish_reason":"length"}],' + usage + b"}",
    ]
    reading = decode(CHAT, stream(*events, done=False, chunks=chunks))
    assert (reading.texts, reading.finish_reason) == (["a", "b"], "length")
    assert not reading.end_marker
    assert (reading.input_tokens, reading.output_tokens) == (3, 2)


def test_lightllm_streams_tell_no_usage():
    events = [
        b'{"choices":[{"index":0,"delta":{"role":"assistant","content":"a"},"finish_reason":null}]}',
        b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}',
    ]
    reading = decode(CHAT, stream(*events, done=False))
    assert (reading.texts, reading.finish_reason) == (["a"], "stop")
    assert (reading.input_tokens, reading.output_tokens) == (None, None)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_is_content_but_no_output(name):
    delta = b'{"choices":[{"index":0,"delta":{"%b":%b},"finish_reason":null}]}'
    events = [delta % (name.encode(), b'"hm"'), delta % (b"content", b'"so"')]
    response = stream(*events)
    reads = response.reads([response.at[len(events[0]) + 7] + 1])
    reading = read(CHAT, response.raw, reads, closed=False)
    assert reading.texts == ["hm", "so"]
    assert reading.chunk_at == [1000, 2000]
    assert reading.first_output_at == 2000


def test_tool_calls_are_content():
    delta = b'{"choices":[{"index":0,"delta":{"content":null,"tool_calls":[{"function":%b}]}}]}'
    events = [
        delta % b'{"name":"f","arguments":""}',
        delta % b'{"arguments":"{\\"a\\":1}"}',
        b'{"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}',
    ]
    reading = decode(CHAT, stream(*events))
    assert (reading.texts, reading.finish_reason) == (["f", '{"a":1}'], "tool_calls")
