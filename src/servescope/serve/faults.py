"""The faults that servers have, and what must come of each: a table that a client can be held to.

One request in four meets its server's fault, or all do. An outcome is right if it is one of the
fault's; requests that do not meet it complete. docs/faults.md shows the table.
"""

from __future__ import annotations

from servescope.serve.answers import (
    DONE,
    GAP_S,
    ROLE,
    USAGE,
    Piece,
    answer,
    at_once,
    cut,
    ending,
    event,
    mapped,
    repeated,
    running_usage,
    streamed,
    tokens,
    whole,
)
from servescope.serve.http_faults import (
    ERROR,
    FIRST_TOKEN,
    HTML,
    HTTP_FAULTS,
    INCOMPLETE,
    PROTOCOL,
    WORDS,
    Fault,
    failed,
)

__all__ = ["FAULTS", "Fault"]

_ERROR_EVENT, _EMPTY = failed("server_error_event"), failed("empty")
_NO_TOKEN = "without a token"  # noqa: S105 (no password)
_MESSAGE = b'"choices":[{"index":0,"message":{"content":"%b"},"finish_reason":"length"}]'
_WHOLE = b'{%b,"usage":{"completion_tokens":10}}' % (_MESSAGE % (b" x" * 10))
_BAD_UTF8 = event({"content": " @"}).replace(b"@", b"\xff\xfe")
_SURROGATE = event({"content": " @"}).replace(b"@", b"\\ud83d")
_OPENING = [Piece(0, event(None)), Piece(0, event({"content": None}))]
_ROLE_ALONE = [Piece(0, event({"content": ""}))] * 30
_PING = b": keep-alive\n\n"


def _late(data: bytes) -> list[Piece]:
    """Four tokens, then something wrong, then an ending as if nothing had been."""
    return [*cut(), Piece(0.09, data), *ending(0.1)]


def _said(data: bytes) -> list[Piece]:
    """An event among four tokens."""
    return _late(b"data: " + data + b"\n\n")


def _called(k: int) -> dict[str, object]:
    function = {"name": "look_up"} if k == 0 else {"arguments": " x"}
    return {"tool_calls": [{"index": 0, "function": function}]}


def _saying(text: str) -> list[Piece]:
    return answer(tokens(delta=lambda _: {"content": text}))


def _counting(count: float) -> list[Piece]:
    return answer(usage=USAGE | {"completion_tokens": count})


def _read(does: str, pieces: list[Piece], outcomes: tuple[str, ...] = ("completed",)) -> Fault:
    """What all requests meet."""
    return Fault(does, streamed(pieces), outcomes, all=True)


def _commented(data: bytes) -> bytes:
    return b": ping\n\nevent: message\nid: 7\nretry: 1000\n" + data


FAULTS: dict[str, Fault] = HTTP_FAULTS | {
    # --- events ---------------------------------------------------------------------------------
    "slow_drip": Fault(
        "0.3 s a token, under the timeout", streamed(answer(tokens(gap_s=0.3))), requests=8
    ),
    "multi_tok": _read("2 tokens an event", answer(tokens(5, delta=lambda _: {"content": " x x"}))),
    "crlf": _read("CRLF line ends", mapped(lambda data: data.replace(b"\n", b"\r\n"))),
    "cr": _read("CR line ends", mapped(lambda data: data.replace(b"\n", b"\r"))),
    "bom": _read("a byte-order mark first", [Piece(0, b"\xef\xbb\xbf"), *answer()]),
    "nospace": _read(
        "`data:{` without a blank", mapped(lambda data: data.replace(b"data: ", b"data:"))
    ),
    "two_lines": _read(
        "JSON over two data lines", mapped(lambda data: data.replace(b',"', b',\ndata: "', 1))
    ),
    "comments": _read("comments, event:, id: and retry: lines between", mapped(_commented)),
    "empty_data": _read(
        "data lines without data between", mapped(lambda data: b"data:\n\ndata: \n\n" + data)
    ),
    "error_null": _read(
        "error null or empty in every event",
        mapped(lambda data: data.replace(b'"id"', b'"error":null,"message":"","id"')),
    ),
    "odd_fields": _read(
        "id and retry lines, and events without data",
        mapped(lambda data: b"id\nretry: 5\n" + data + b"id: 9\n\n"),
    ),
    "last_blank": _read(
        "the last blank line is missing", [*answer()[:-1], Piece(0.14, b"data: [DONE]\n")]
    ),
    "says_data": _read("answers hold `data:` many times", _saying(" data:data:data:data:")),
    "u2028": _read("U+2028 in the text", _saying(" \u2028")),
    "role_only": _read(
        "role-only chunk at once, first token at 200 ms", answer(tokens(first_s=0.2))
    ),
    "empty_deltas": _read("thirty events without content first", _ROLE_ALONE + answer()),
    "empty_choices": _read("`choices: []` first, then content null", [*_OPENING, *answer()[1:]]),
    "reasoning": _read(
        "reasoning_content deltas",
        answer(tokens(delta=lambda k: {"reasoning_content" if k < 6 else "content": " x"})),
    ),
    "tool_calls": _read(
        "only tool-call deltas", answer(tokens(delta=_called), finish="tool_calls")
    ),
    "not_streamed": Fault("one JSON document instead of a stream", at_once(_WHOLE), all=True),
    "models_empty": Fault(
        "model list empty, model given by the user",
        streamed(answer()),
        all=True,
        models=b'{"object":"list","data":[]}',
    ),
    # --- counts ---------------------------------------------------------------------------------
    "no_usage": _read("no usage although asked for", answer(usage=None)),
    "usage_zero": _read("usage says 0", _counting(0)),
    "usage_low": _read("usage says 5", _counting(5)),
    "usage_high": _read("usage says 20", _counting(20)),
    "usage_negative": _read("usage says -10", _counting(-10)),
    "usage_huge": _read("usage says 1e30", _counting(1e30)),
    "usage_text": _read("usage is a text", answer(usage="ten tokens")),
    "usage_null": _read(
        "usage null in each chunk but the last",
        mapped(lambda data: data.replace(b'"model"', b'"usage":null,"model"'), answer(usage=None)),
    ),
    "usage_each": _read("cumulative usage in every chunk", running_usage()),
    # --- endings --------------------------------------------------------------------------------
    "no_done": Fault(
        "finish reason and usage came, only [DONE] is missing", streamed(answer()[:-1])
    ),
    "no_finish": _read("[DONE] came, but never a finish reason", answer(finish=None)),
    "dup_done": _read("[DONE] twice", [*answer(), Piece(0.14, DONE)]),
    "after_finish": _read(
        "an empty chunk after the finish reason",
        [*answer()[:-1], Piece(0.14, event({"content": ""})), Piece(0.14, DONE)],
    ),
    "after_done": _read(
        "content after [DONE]", [*answer(usage=None), *[Piece(0.14, event({"content": " x"}))] * 3]
    ),
    "short_length": Fault(
        "finish reason length with 5 tokens of 10",
        streamed(answer(tokens(5), usage=USAGE | {"completion_tokens": 5})),
        ("truncated",),
        all=True,
        tokens=5,
    ),
    "cut_clean": Fault(
        "well-formed end of body after 4 tokens, no finish reason, no [DONE]",
        streamed(cut()),
        INCOMPLETE,
        "without a finish reason",
    ),
    "finish_abort": Fault(
        "finish reason abort after 4 tokens",
        streamed([*cut(), *ending(0.09, "abort")]),
        _ERROR_EVENT,
        "abort",
    ),
    "empty_stream": Fault("200 and [DONE], no content", streamed([Piece(0, DONE)]), _EMPTY),
    "empty_body": Fault(
        "200 with an empty body", whole(200, b"", "text/event-stream"), _EMPTY, _NO_TOKEN
    ),
    "null_text": Fault(
        "content null in every event",
        streamed(answer(tokens(delta=lambda _: {"content": None}))),
        _EMPTY,
        _NO_TOKEN,
    ),
    "endless": Fault(
        "ignores the length asked for and never ends",
        repeated(event({"content": " x"}), GAP_S, cut()),
        failed("overrun", "timeout_total"),
        "more than",
    ),
    "only_comments": Fault(
        "keep-alive comments for ever, no token",
        repeated(_PING, 0.02, [ROLE]),
        FIRST_TOKEN,
        "after 1 s",
    ),
    "later_comments": Fault(
        "keep-alive comments for ever after 4 tokens",
        repeated(_PING, 0.02, cut()),
        failed("stalled"),
        "after 1 s",
    ),
    # --- errors and what is no answer -----------------------------------------------------------
    "json_error_200": Fault(
        "HTTP 200, application/json, an error object instead of a stream",
        whole(200, ERROR),
        _ERROR_EVENT,
        WORDS,
    ),
    "json_detail_200": Fault(
        "HTTP 200 with a JSON object that has only `detail`",
        whole(200, b'{"detail":"%b"}' % WORDS.encode()),
        failed("empty", "server_error_event"),
        WORDS,
    ),
    "text_200": Fault(
        "HTTP 200 with a sentence", whole(200, WORDS.encode(), "text/plain"), _EMPTY, WORDS
    ),
    "html_200": Fault("HTTP 200 with a page", whole(200, HTML, "text/html"), PROTOCOL, "<html>"),
    "empty_json": Fault("HTTP 200 with {}", whole(200, b"{}"), _EMPTY, _NO_TOKEN),
    "json_list": Fault("HTTP 200 with []", whole(200, b"[]"), PROTOCOL),
    "json_deep": Fault(
        "JSON nested 100,000 deep in one event",
        streamed(_said(b'{"choices":' + b"[" * 100_000)),
        PROTOCOL,
    ),
    "sse_error_mid": Fault(
        "an error object after 4 tokens, then [DONE]",
        streamed([*cut(), Piece(0.09, b"data: " + ERROR + b"\n\n"), Piece(0.09, DONE)]),
        _ERROR_EVENT,
        WORDS,
    ),
    "sse_error_text": Fault(
        "an error that is a string, and an ending as if nothing had been",
        streamed(_said(b'{"error":"%b"}' % WORDS.encode())),
        _ERROR_EVENT,
        WORDS,
    ),
    "sse_error_flat": Fault(
        "`event: error` with a message after 4 tokens",
        streamed(_late(b'event: error\ndata: {"message":"%b"}\n\n' % WORDS.encode())),
        _ERROR_EVENT,
        WORDS,
    ),
    "giant_event": Fault(
        "one event of 10 MB",
        streamed(answer([*tokens(9), Piece(0.2, event({"content": "x" * 10_000_000}))])),
        ("completed", *failed("too_large")),
        requests=8,
    ),
    "bad_json": Fault("invalid JSON in one event", streamed(_said(b'{"choices": [{')), PROTOCOL),
    "bad_utf8": Fault(
        "invalid UTF-8 in one event",
        streamed(answer([*tokens(9), Piece(0.14, _BAD_UTF8)])),
        (*PROTOCOL, "completed"),
    ),
    "surrogate": Fault(
        "half a surrogate pair in one event",
        streamed(answer([*tokens(9), Piece(0.14, _SURROGATE)])),
        (*PROTOCOL, "completed"),
    ),
}
