"""What the engines send on their own routes, and how each is imitated."""

from __future__ import annotations

import json

import msgspec
import pytest

from servescope.client.reading import Reading, read
from servescope.protocols import Ask, ProtocolFault, Reply, sse
from servescope.protocols.lightllm import LightLLM
from servescope.protocols.llamacpp import LlamaCpp
from servescope.protocols.sglang import Sglang
from servescope.protocols.tgi import Tgi
from servescope.protocols.vllm import Vllm
from tests.support.framing import EVERY, chunked, cut, sized

TGI, LIGHTLLM, VLLM, SGLANG, LLAMACPP = Tgi(), LightLLM(), Vllm(), Sglang(), LlamaCpp()
OK = b"HTTP/1.1 200 OK"
REPLY = Reply(id="r1", model="m", created=1, input_tokens=3, cached_tokens=2)


def stream(wire, body: bytes, cuts=()) -> Reading:
    """A stream whose body came whole."""
    response = chunked(OK, body)
    reading = read(wire, response.raw, response.reads(cuts), closed=False)
    assert (reading.fault, reading.framed_end) == (None, True)
    return reading


def whole(wire, body: bytes, status: int = 200) -> Reading:
    response = sized(b"HTTP/1.1 %d X" % status, body)
    return read(wire, response.raw, response.reads(()), closed=False)


def events(body: bytes) -> list:
    """The JSON of server-sent events, or of NUL-ended frames."""
    frames = body.split(b"\0") if body.endswith(b"\0") else body.split(b"\n\n")
    return [json.loads(frame.removeprefix(b"data:")) for frame in frames if frame]


def rendered(wire, ask: Ask, finish: str = "length") -> bytes:
    """Two tokens, ' a' and ' b'."""
    renderer = wire.renderer(ask, REPLY)
    body = renderer.opening() + renderer.chunk(" a", 1, None) + renderer.chunk(" b", 2, finish)
    return body + renderer.closing(2)


def ended(reading: Reading) -> bool:
    return bool(reading.finish_reason or reading.end_marker)


# --- TGI ------------------------------------------------------------------------------------------

TGI_TOKEN = b'{"id":445,"text":" word","logprob":-0.34,"special":false}'
TGI_FIRST = b'data: {"index":1,"token":%b,"generated_text":null,"details":null}\n\n' % TGI_TOKEN
TGI_LAST = (
    b'data: {"index":2,"token":{"id":2,"text":"</s>","logprob":-0.1,"special":true},'
    b'"generated_text":" word","details":{"finish_reason":"length","generated_tokens":2,'
    b'"seed":null,"input_length":3}}\n\n'
)


@pytest.mark.parametrize("cuts", [(), EVERY], ids=["in one read", "byte by byte"])
def test_tgi_of_today_counts_a_special_token_but_leaves_it_out_of_the_text(cuts):
    reading = stream(TGI, TGI_FIRST + TGI_LAST, cuts)
    assert (reading.texts, reading.chunk_total) == ([" word"], [1])
    assert (reading.input_tokens, reading.output_tokens) == (3, 2)
    assert (reading.finish_reason, reading.end_marker) == ("length", True)


def test_tgi_of_2023_writes_no_blank_no_index_and_no_input_length():
    body = b'data:{"token":%b,"generated_text":null,"details":null}\n\n' % TGI_TOKEN
    body += (
        b'data:{"token":%b,"generated_text":" word word","details":'
        b'{"finish_reason":"eos_token","generated_tokens":2,"seed":null}}\n\n'
    ) % TGI_TOKEN
    reading = stream(TGI, body)
    assert (reading.texts, reading.chunk_total) == ([" word", " word"], [1, 2])
    assert (reading.input_tokens, reading.output_tokens) == (None, 2)
    assert (reading.finish_reason, reading.end_marker) == ("eos_token", True)


def test_tgi_keeps_a_connection_alive_by_comments():
    reading = stream(TGI, b":\n\n" + TGI_FIRST + b":\n\n:\n\n" + TGI_LAST)
    assert (reading.texts, reading.output_tokens) == ([" word"], 2)


def test_a_stream_of_tgi_without_its_last_event_has_not_ended():
    assert not ended(stream(TGI, TGI_FIRST * 3))


def test_tgi_rejects_inside_a_stream_that_began_with_200():
    error = b'data:{"error":"Model is overloaded","error_type":"overloaded"}\n\n'
    reading = stream(TGI, error)
    assert (reading.error, reading.texts) == ("Model is overloaded", [])
    assert stream(TGI, TGI_FIRST + error).error == "Model is overloaded"


def test_an_answer_of_tgi_in_one_piece_tells_no_prompt_length():
    token = b'{"id":1,"text":"a","logprob":-1,"special":false}'
    body = b'{"generated_text":"a","details":{"finish_reason":"length","generated_tokens":20,'
    reading = whole(TGI, body + b'"seed":null,"prefill":[],"tokens":[%b]}}' % token)
    assert (reading.texts, reading.finish_reason) == (["a"], "length")
    assert (reading.input_tokens, reading.output_tokens) == (None, 20)


def test_tgi_is_imitated_as_it_is_today():
    token = {"logprob": -0.5, "special": False}
    details = {"finish_reason": "eos_token", "generated_tokens": 2, "seed": None, "input_length": 3}
    assert events(rendered(TGI, Ask(prompt="x", output_tokens=2), "stop")) == [
        {
            "index": 1,
            "token": {"id": 1, "text": " a"} | token,
            "generated_text": None,
            "details": None,
        },
        {
            "index": 2,
            "token": {"id": 2, "text": " b"} | token,
            "generated_text": " a b",
            "details": details,
        },
    ]


# --- LightLLM -------------------------------------------------------------------------------------

LIGHT_2023 = (
    b'data:{"token": {"id": 445, "text": " word", "logprob": -0.34, "special": false}, '
    b'"generated_text": null, "details": null}\n\n'
)
LIGHT_FIRST = (
    b'data:{"token":{"id":445,"text":" word","logprob":-0.34,"special":false,'
    b'"count_output_tokens":1,"prompt_tokens":34},"generated_text":null,"finished":false,'
    b'"finish_reason":null,"details":null}\n\n'
)
LIGHT_LAST = LIGHT_FIRST.replace(b'tokens":1', b'tokens":2').replace(
    b'false,"finish_reason":null', b'true,"finish_reason":"length"'
)


def test_lightllm_of_2023_tells_no_counts_and_ends_with_the_body():
    reading = stream(LIGHTLLM, LIGHT_2023 * 2, EVERY)
    assert (reading.texts, reading.chunk_total) == ([" word", " word"], [None, None])
    assert (reading.input_tokens, reading.output_tokens) == (None, None)
    assert (reading.finish_reason, reading.end_marker) == (None, True)


def test_lightllm_of_2023_breaks_its_body_off_where_it_fails():
    raw = chunked(OK, LIGHT_2023).raw.removesuffix(b"0\r\n\r\n")
    reading = read(LIGHTLLM, raw, [1000, len(raw)], closed=True)
    assert (reading.texts, reading.framed_end) == ([" word"], False)


def test_lightllm_that_sent_no_token_has_no_end():
    assert not ended(stream(LIGHTLLM, b":\n\n"))


@pytest.mark.parametrize("more", [b"", b'"generated_text":"x","details":{"generated_tokens":2},'])
def test_lightllm_of_today_counts_in_each_event_and_marks_the_last(more):
    last = LIGHT_LAST.replace(b"data:{", b"data:{" + more)
    reading = stream(LIGHTLLM, LIGHT_FIRST + last)
    assert (reading.texts, reading.chunk_total) == ([" word", " word"], [1, 2])
    assert (reading.input_tokens, reading.output_tokens) == (34, 2)
    assert (reading.finish_reason, reading.end_marker) == ("length", True)
    assert not ended(stream(LIGHTLLM, LIGHT_FIRST * 2))


def test_answers_of_lightllm_in_one_piece():
    old = whole(LIGHTLLM, b'{"generated_text":["a b"]}')
    assert (old.texts, old.output_tokens, old.end_marker) == (["a b"], None, True)
    new = b'{"generated_text":["a b"],"count_output_tokens":32,"finish_reason":"length",'
    reading = whole(LIGHTLLM, new + b'"prompt_tokens":34}')
    assert (reading.texts, reading.finish_reason) == (["a b"], "length")
    assert (reading.input_tokens, reading.output_tokens) == (34, 32)


def test_lightllm_is_imitated_as_it_is_today():
    first, last = events(rendered(LIGHTLLM, Ask(prompt="x", output_tokens=2)))
    token = {"id": 1, "text": " a", "logprob": -0.5, "special": False}
    told = {"count_output_tokens": 1, "prompt_tokens": 3}
    nothing = {"generated_text": None, "details": None}
    assert first == {"token": token | told, "finished": False, "finish_reason": None} | nothing
    assert last["token"]["count_output_tokens"] == 2
    assert (last["finished"], last["finish_reason"]) == (True, "length")


# --- vLLM -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [b"\0", b"\n"], ids=["NUL", "newline"])
@pytest.mark.parametrize("cuts", [(), EVERY], ids=["in one read", "byte by byte"])
def test_vllm_repeats_prompt_and_text_in_each_frame(end, cuts):
    body = b'{"text": ["def main( x"]}%b{"text": ["def main( xy"]}%b' % (end, end)
    reading = stream(VLLM, body, cuts)
    assert reading.texts == ["def main( x", "y"]
    assert reading.chunk_total == [None, None]
    assert (reading.finish_reason, reading.end_marker) == (None, True)


def test_an_answer_of_vllm_in_one_piece_holds_the_prompt_too():
    reading = whole(VLLM, b'{"text": ["prompt+completion"]}')
    assert (reading.texts, reading.end_marker) == (["prompt+completion"], True)


def test_a_stream_of_vllm_that_was_cut_within_a_frame_has_no_end():
    reading = stream(VLLM, b'{"text": ["ab"]}\0{"text": ["ab')
    assert (reading.texts, reading.end_marker) == (["ab"], False)


def test_vllm_that_sent_no_frame_has_no_end():
    assert not ended(stream(VLLM, b"\0\0\n"))


def test_an_error_of_vllm_is_no_end():
    reading = stream(VLLM, b'{"detail": "died"}\0')
    assert (reading.error, reading.end_marker) == ("died", False)
    assert whole(VLLM, b"Internal Server Error", 500).error == "Internal Server Error"


def test_of_several_answers_of_vllm_the_first_is_read():
    reading = stream(VLLM, b'{"text": ["a", "x"]}\0{"text": ["ab", "xy"]}\0')
    assert reading.texts == ["a", "b"]


@pytest.mark.parametrize(
    "frame", [b'{"text": ["ab"', b'{"text": ["ab"]', b'{"text": ["ab"]]}', b'{"text": ["ab" x]}']
)
def test_a_frame_that_is_no_json_is_a_fault(frame):
    decoder = VLLM.decoder()
    decoder.feed(b'{"text": ["a"]}\0')
    with pytest.raises(ProtocolFault) as fault:
        decoder.feed(frame + b"\0")
    assert fault.value.kind == "protocol"


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_frame_above_the_limit_is_refused_however_it_comes(size, monkeypatch):
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 64)
    decoder = VLLM.decoder()
    small = b'{"text": ["%b"]}\0' % (b"x" * 40)
    for piece in cut(small * 3, range(0, 999, size)):
        decoder.feed(piece)
    with pytest.raises(ProtocolFault) as fault:
        list(map(decoder.feed, cut(b'{"text": ["%b"]}\0' % (b"x" * 80), range(0, 999, size))))
    assert fault.value.kind == "too_large"


def test_vllm_is_imitated_with_nul():
    body = rendered(VLLM, Ask(prompt='say "é', output_tokens=2))
    assert body == '{"text": ["say \\"é a"]}\0{"text": ["say \\"é a b"]}\0'.encode()


# --- SGLang ---------------------------------------------------------------------------------------


def sglang_event(text: str, tokens: int, finish: object = None, **more: object) -> bytes:
    meta = {"id": "e2", "finish_reason": finish, "prompt_tokens": 3, "completion_tokens": tokens}
    body = {"text": text, "output_ids": [*range(tokens)], "meta_info": meta | more}
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


DONE = b"data: [DONE]\n\n"
LENGTH = {"type": "length", "length": 2}


def test_sglang_repeats_the_text_and_counts_exactly():
    body = sglang_event("SU", 1, cached_tokens=1) + sglang_event("SUity", 5, LENGTH)
    reading = stream(SGLANG, body + DONE, EVERY)
    assert (reading.texts, reading.chunk_total) == (["SU", "ity"], [1, 5])
    assert (reading.input_tokens, reading.cached_tokens) == (3, 1)
    assert (reading.finish_reason, reading.end_marker) == ("length", True)


def test_sglang_tells_its_own_times():
    times = {"queue_time": 0.25, "first_token_latency": 0.5, "e2e_latency": 0.75}
    reading = stream(SGLANG, sglang_event("a", 1, LENGTH, **times) + DONE)
    assert reading.server_s == {"queue_s": 0.25, "ttft_s": 0.5, "e2e_s": 0.75}


@pytest.mark.parametrize("kept", [0, 1])
def test_sglang_aborts_inside_a_stream(kept):
    abort = {"type": "abort", "status_code": 503, "message": "The request queue is full."}
    body = sglang_event("SU", 1) * kept + sglang_event("", 0, abort) + DONE
    reading = stream(SGLANG, body)
    assert reading.error == "The request queue is full."
    assert reading.texts == ["SU"] * kept


@pytest.mark.parametrize("error", ['"died"', '{"message":"died"}', '{"message":"died","code":400}'])
def test_errors_of_sglang_old_and_new_are_read(error):
    reading = stream(SGLANG, sglang_event("SU", 1) + f'data: {{"error":{error}}}\n\n'.encode())
    assert (reading.error, reading.texts) == ("died", ["SU"])
    assert whole(SGLANG, f'{{"error":{error}}}'.encode()).error == "died"


def test_a_stop_of_sglang_names_its_kind():
    reading = stream(SGLANG, sglang_event("a", 1, {"type": "stop", "matched": 2}) + DONE)
    assert reading.finish_reason == "stop"


def test_keys_of_sglang_may_come_in_another_order():
    body = b'data: {"meta_info":{"completion_tokens":%d},"text":"%b"}\n\n'
    reading = stream(SGLANG, body % (1, b"a") + body % (2, b"ab"))
    assert (reading.texts, reading.chunk_total) == (["a", "b"], [1, 2])
    mixed = sglang_event("a", 1) + body % (2, b"ab") + sglang_event("abc", 3)
    assert stream(SGLANG, mixed).texts == ["a", "b", "c"]
    odd = b'data: {"text":"%b","x":{"meta_info":1},"meta_info":{"completion_tokens":%d}}\n\n'
    reading = stream(SGLANG, odd % (b"a", 1) + odd % (b"ab", 2))
    assert (reading.texts, reading.chunk_total) == (["a", "b"], [1, 2])


def test_sglang_is_imitated_with_all_text_and_ids_so_far():
    first, last = events(rendered(SGLANG, Ask(prompt="x", output_tokens=2)).removesuffix(DONE))
    counts = {"id": "r1", "prompt_tokens": 3, "cached_tokens": 2}
    meta = counts | {"completion_tokens": 1, "finish_reason": None}
    assert first == {"text": " a", "output_ids": [1], "meta_info": meta}
    meta = counts | {"completion_tokens": 2, "finish_reason": LENGTH}
    assert last == {"text": " a b", "output_ids": [1, 2], "meta_info": meta}


def test_sglang_is_imitated_in_how_it_rejects():
    renderer = SGLANG.renderer(Ask(prompt="x", output_tokens=2), REPLY)
    busy = renderer.error(503, "The request queue is full.")
    (abort,) = events(busy.removesuffix(DONE))
    assert (abort["text"], abort["output_ids"], busy.endswith(DONE)) == ("", [], True)
    assert abort["meta_info"]["finish_reason"] == {
        "type": "abort",
        "status_code": 503,
        "message": "The request queue is full.",
    }
    (bad,) = events(renderer.error(400, "too long").removesuffix(DONE))
    kind = {"type": "invalid_request_error", "code": 400, "retryable": False}
    assert bad == {"error": {"message": "too long"} | kind}
    assert json.loads(SGLANG.render_error(503, "full")) == {"detail": "full"}
    assert json.loads(SGLANG.render_error(400, "long")) == {"error": {"message": "long"}}


# --- llama.cpp ------------------------------------------------------------------------------------

LLAMA_EVENT = (
    b'data: {"index":0,"content":"%b","tokens":[445],"stop":false,"id_slot":-1,'
    b'"tokens_predicted":%d,"tokens_evaluated":2}\n\n'
)


@pytest.mark.parametrize("kind", ["limit", "eos", "word"])
def test_llamacpp_counts_tokens_whose_text_is_still_empty(kind):
    last = (
        b'data: {"index":0,"content":"","tokens":[],"stop":true,"stop_type":"%b",' % kind.encode()
    )
    last += b'"truncated":false,"tokens_predicted":3,"tokens_evaluated":2,"tokens_cached":4,'
    last += b'"timings":{"cache_n":1,"prompt_n":2,"prompt_ms":2.5,"predicted_ms":1.25}}\n\n'
    body = LLAMA_EVENT % (b"a", 1) + LLAMA_EVENT % (b"", 2) + LLAMA_EVENT % (b"b", 3)
    reading = stream(LLAMACPP, body + last)
    assert (reading.texts, reading.chunk_total) == (["a", "b"], [1, 3])
    assert (reading.input_tokens, reading.output_tokens, reading.cached_tokens) == (2, 3, 1)
    assert (reading.finish_reason, reading.end_marker) == (kind, True)
    assert reading.server_s == {"prefill_s": 0.0025, "decode_s": 0.00125}
    assert not ended(stream(LLAMACPP, body))


def test_llamacpp_fails_inside_a_stream_in_words():
    error = b'data: {"error":{"code":500,"message":"died","type":"server_error"}}\n\n'
    reading = stream(LLAMACPP, LLAMA_EVENT % (b"a", 1) + error)
    assert (reading.error, reading.texts) == ("died", ["a"])


def test_llamacpp_is_imitated_with_its_last_event():
    first, _, last = events(rendered(LLAMACPP, Ask(prompt="x", output_tokens=2)))
    assert first == {
        "index": 0,
        "content": " a",
        "tokens": [1],
        "stop": False,
        "id_slot": -1,
        "tokens_predicted": 1,
        "tokens_evaluated": 3,
    }
    assert (last["stop"], last["stop_type"], last["content"]) == (True, "limit", "")
    assert (last["tokens_predicted"], last["timings"]) == (2, {"cache_n": 2})
