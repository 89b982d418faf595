"""Formats whose every event repeats all the text so far are read in its pieces, at little cost."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servescope.client.reading import read
from servescope.protocols import sglang, vllm
from servescope.protocols.sglang import Sglang
from servescope.protocols.vllm import Vllm
from tests.support.framing import CUTS, chunked

VLLM, SGLANG = Vllm(), Sglang()


def texts_of(wire, body: bytes, cuts=()) -> list[str]:
    response = chunked(b"HTTP/1.1 200 OK", body)
    reading = read(wire, response.raw, response.reads(cuts), closed=False)
    assert (reading.fault, reading.framed_end) == (None, True)
    return reading.texts


def frames(wire, texts: list[str], *, ascii_only: bool, compact: bool) -> bytes:
    """What an engine sends whose text is one of `texts` after the other."""
    separators = (",", ":") if compact else (", ", ": ")
    start, end, key = ("", "\0", list) if wire is VLLM else ("data: ", "\n\n", "".join)
    body = ""
    for number, text in enumerate(texts, 1):
        event = {"text": key([text]), "output_ids": [number] * number}
        event |= {"meta_info": {"completion_tokens": number, "id": '"text":"'}}
        event = event if wire is SGLANG else {"text": event["text"]}
        body += start + json.dumps(event, ensure_ascii=ascii_only, separators=separators) + end
    return body.encode()


GROWING = [VLLM, SGLANG]


@pytest.mark.parametrize("wire", GROWING, ids=["vllm", "sglang"])
@given(
    pieces=st.lists(st.sampled_from(["", '"', "\\", "\\\\", "😀", "\ufffd", "\0"]) | st.text()),
    ascii_only=st.booleans(),
    compact=st.booleans(),
    cuts=CUTS,
)
def test_a_text_that_grows_is_read_in_its_pieces(wire, pieces, ascii_only, compact, cuts):
    texts = ["".join(pieces[:n]) for n in range(1, len(pieces) + 1)]
    body = frames(wire, texts, ascii_only=ascii_only, compact=compact)
    assert texts_of(wire, body, cuts) == [piece for piece in pieces if piece]


@pytest.mark.parametrize("wire", GROWING, ids=["vllm", "sglang"])
@pytest.mark.parametrize(
    ("texts", "read_as"),
    [
        (["a\ufffd", "aé", "aéb"], ["a\ufffd", "é", "b"]),  # a character that was not whole
        (["a", "ab\ufffd", "abé"], ["a", "b\ufffd", "é"]),
        (["ab", "abSTOP", "ab", "abc"], ["ab", "STOP", "c"]),  # a stop word that is cut off
        (["ab", "ab", "", "x", "xy"], ["ab", "x", "y"]),
    ],
)
def test_a_text_may_change_where_it_ended(wire, texts, read_as):
    body = frames(wire, texts, ascii_only=False, compact=True)
    assert texts_of(wire, body) == read_as


@pytest.mark.parametrize(("module", "name"), [(vllm, "_FRAME"), (sglang, "_ANSWER")])
def test_the_json_that_is_decoded_grows_as_the_answer_and_not_as_its_square(
    module, name, monkeypatch
):
    decoded = []
    real = getattr(module, name)

    class Counting:
        def decode(self, data):
            decoded.append(len(data))
            return real.decode(data)

    monkeypatch.setattr(module, name, Counting())
    wire = VLLM if module is vllm else SGLANG
    texts = [" word" * n for n in range(1, 201)]
    body = frames(wire, texts, ascii_only=True, compact=True)
    assert texts_of(wire, body) == [" word"] * 200
    assert sum(decoded) < 100 * 200 < len(body) / 4
