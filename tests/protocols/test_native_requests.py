"""What the engines are asked on their own routes: as we write it and as other clients do."""

from __future__ import annotations

import json

import msgspec
import pytest

from servescope.datasets import Message
from servescope.protocols import Ask, ProtocolFault
from servescope.protocols.lightllm import LightLLM
from servescope.protocols.llamacpp import LlamaCpp
from servescope.protocols.sglang import Sglang
from servescope.protocols.tgi import Tgi
from servescope.protocols.vllm import Vllm

TGI, LIGHTLLM, VLLM, SGLANG, LLAMACPP = Tgi(), LightLLM(), Vllm(), Sglang(), LlamaCpp()
ASK = Ask(prompt="say", output_tokens=7, ignore_eos=True, min_tokens=True, stream=True, model="m")
TGI_DETAILS = {"details": True, "decoder_input_details": False}
SENT = {
    TGI: {"inputs": "say", "parameters": {"max_new_tokens": 7} | TGI_DETAILS},
    LIGHTLLM: {"inputs": "say", "parameters": {"max_new_tokens": 7, "ignore_eos": True}},
    VLLM: {"prompt": "say", "max_tokens": 7, "stream": True, "ignore_eos": True},
    SGLANG: {
        "text": "say",
        "sampling_params": {"max_new_tokens": 7, "min_new_tokens": 7, "ignore_eos": True},
        "stream": True,
    },
    LLAMACPP: {"prompt": "say", "n_predict": 7, "stream": True, "ignore_eos": True, "model": "m"},
}
NAMES = [type(wire).__name__ for wire in SENT]


@pytest.mark.parametrize("wire", SENT, ids=NAMES)
def test_a_request_is_written_in_the_engines_words(wire):
    assert json.loads(wire.encode(ASK)) == SENT[wire]
    talk = msgspec.structs.replace(ASK, prompt=(Message("system", "a"), Message("user", "b")))
    assert "a\n\nb" in json.loads(wire.encode(talk)).values()


@pytest.mark.parametrize(
    ("wire", "place"),
    [(TGI, "parameters"), (LIGHTLLM, "parameters"), (SGLANG, "sampling_params")],
    ids=["tgi", "lightllm", "sglang"],
)
def test_more_fields_go_where_the_engine_has_its_parameters(wire, place):
    body = json.loads(wire.encode(msgspec.structs.replace(ASK, extra={"top_p": 0.5})))
    assert body == SENT[wire] | {place: SENT[wire][place] | {"top_p": 0.5}}


def test_lightllm_is_told_of_ignore_eos_in_any_case():
    body = json.loads(LIGHTLLM.encode(Ask(prompt="x", output_tokens=1)))
    assert body["parameters"]["ignore_eos"] is False


def test_prompts_may_be_ids_where_the_engine_takes_them():
    ask = Ask(prompt=(5, 6, 7), output_tokens=1)
    assert json.loads(SGLANG.encode(ask))["input_ids"] == [5, 6, 7]
    assert json.loads(LLAMACPP.encode(ask))["prompt"] == [5, 6, 7]


WRITTEN = [
    (
        TGI,
        (
            '{"inputs":"x","parameters":{"max_new_tokens":128,"do_sample":false,"details":true,'
            '"decoder_input_details":false,"truncate":null,"stop":[],"temperature":null,"seed":null,'
            '"return_full_text":false}}'
        ),
        Ask(prompt="x", output_tokens=128),
    ),
    (
        LIGHTLLM,
        (
            '{"inputs":"x","parameters":{"do_sample":false,"ignore_eos":true,"max_new_tokens":128,'
            '"temperature":1.0}}'
        ),
        Ask(prompt="x", output_tokens=128, ignore_eos=True),
    ),
    (
        VLLM,
        '{"prompt":"x","stream":true,"max_tokens":128,"ignore_eos":true,"temperature":1.0,"n":1}',
        Ask(prompt="x", output_tokens=128, ignore_eos=True),
    ),
    (
        SGLANG,
        (
            '{"text":"x","sampling_params":{"max_new_tokens":128,"min_new_tokens":0,"temperature":0,'
            '"ignore_eos":true,"stream_interval":1},"stream":true,"rid":"r","return_logprob":false}'
        ),
        Ask(prompt="x", output_tokens=128, ignore_eos=True),
    ),
    (
        LLAMACPP,
        '{"prompt":[5,6],"n_predict":128,"ignore_eos":true,"stream":true,"timings_per_token":true}',
        Ask(prompt=(5, 6), output_tokens=128, ignore_eos=True),
    ),
]


@pytest.mark.parametrize(("wire", "body", "ask"), WRITTEN, ids=NAMES)
def test_requests_of_other_clients_are_understood(wire, body, ask):
    assert wire.parse(body.encode(), wire.path(stream=True)) == ask


@pytest.mark.parametrize(
    ("wire", "body", "limit"),
    [
        (TGI, '{"inputs":"x"}', 20),
        (TGI, '{"inputs":"x","parameters":{"max_new_tokens":null}}', 20),
        (LIGHTLLM, '{"inputs":"x","parameters":null}', 16),
        (VLLM, '{"prompt":"x","stream":null,"ignore_eos":null}', 16),
        (SGLANG, '{"text":"x","input_ids":null,"sampling_params":{"ignore_eos":null}}', 128),
        (LLAMACPP, '{"prompt":"x","model":null}', 16),
    ],
)
def test_what_is_left_out_or_null_has_the_engines_default(wire, body, limit):
    ask = wire.parse(body.encode(), "/generate")
    assert ask == Ask(prompt="x", output_tokens=limit, stream=False)


@pytest.mark.parametrize(
    ("wire", "body", "words"),
    [
        (TGI, '{"inputs":"x","parameters":{"ignore_eos":false}}', "ignore_eos"),
        (LIGHTLLM, '{"inputs":"x","parameters":{"details":false}}', "details"),
        (LIGHTLLM, '{"inputs":"x","parameters":{"decoder_input_details":null}}', "decoder_input"),
        (TGI, '{"inputs":""}', "inputs must not be empty"),
        (VLLM, '{"text":"x"}', "missing required field `prompt`"),
        (VLLM, '{"prompt":[1]}', r"\$.prompt"),
        (SGLANG, '{"prompt":"x"}', "Either text or input_ids"),
        (SGLANG, '{"text":"x","input_ids":[1]}', "Either text or input_ids"),
        (SGLANG, '{"input_ids":[]}', "must not be empty"),
        (LLAMACPP, '{"prompt":[]}', "prompt must not be empty"),
        (LLAMACPP, '{"prompt":"x","n_predict":-1}', "n_predict must be at least 1, got -1"),
    ],
)
def test_other_requests_are_refused_in_words(wire, body, words):
    with pytest.raises(ProtocolFault, match=words) as fault:
        wire.parse(body.encode(), "/generate")
    assert fault.value.kind == "http_4xx"


@pytest.mark.parametrize("wire", [TGI, LIGHTLLM], ids=["tgi", "lightllm"])
def test_a_request_that_either_could_mean_is_taken_by_both(wire):
    body = b'{"inputs":"x","parameters":{"max_new_tokens":5}}'
    assert wire.parse(body, "/generate_stream") == Ask(prompt="x", output_tokens=5)
    assert not wire.parse(body, "/generate").stream


@pytest.mark.parametrize(
    ("wire", "refused", "busy"),
    [
        (TGI, 422, 429),
        (LIGHTLLM, 417, 503),
        (SGLANG, 400, 503),
        (LLAMACPP, 400, 503),
        (VLLM, 500, 503),
    ],
)
def test_refusal_and_overload_have_the_engines_status(wire, refused, busy):
    assert (wire.refused_with, wire.busy_with) == (refused, busy)
