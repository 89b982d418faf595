"""The server half of the OpenAI routes takes requests as clients write them."""

from __future__ import annotations

import msgspec
import pytest

from servescope.datasets import Message
from servescope.protocols import ProtocolFault
from servescope.protocols.openai_chat import OpenAIChat
from servescope.protocols.openai_completions import OpenAICompletions

CHAT, COMPLETIONS = OpenAIChat(), OpenAICompletions()


def chat(**fields):
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    return CHAT.parse(msgspec.json.encode(body | fields), "")


def completions(prompt, **fields):
    return COMPLETIONS.parse(msgspec.json.encode({"model": "m", "prompt": prompt} | fields), "")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("hi", "hi"),
        ("", ""),
        (None, ""),
        ([], ""),
        ([{"type": "text", "text": "hi"}], "hi"),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "a\nb"),
    ],
)
def test_content_may_be_a_text_or_parts_or_null(content, text):
    ask = chat(messages=[{"role": "assistant", "content": content, "tool_calls": []}])
    assert ask.prompt == (Message("assistant", text),)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "messages must not be empty"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "'image_url'"),
        ([{"role": "user", "content": 7}], r"\$.messages\[0\].content"),
        ([{"content": "x"}], "missing required field `role`"),
        ("x", r"\$.messages"),
    ],
)
def test_messages_that_are_not_text_are_refused_in_words(messages, words):
    with pytest.raises(ProtocolFault, match=words) as fault:
        chat(messages=messages)
    assert fault.value.kind == "http_4xx"


@pytest.mark.parametrize(
    ("prompt", "meant"),
    [("x", "x"), (["x"], "x"), ([5, 6], (5, 6)), ([[5, 6]], (5, 6)), ([0], (0,))],
)
def test_a_prompt_may_be_a_text_or_ids_or_a_list_of_one(prompt, meant):
    assert completions(prompt).prompt == meant


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "prompt must not be empty"),
        ([], "prompt must not be empty"),
        ([""], "prompt must not be empty"),
        ([[]], "prompt must not be empty"),
        (["a", "b"], "only one prompt"),
        ([[1], [2]], "only one prompt"),
        ([["a"]], r"\$.prompt"),
        ([1, "a"], "not both"),
        ([1, [2]], "not both"),
        ([1.5], r"\$.prompt"),
        (7, r"\$.prompt"),
        (None, r"\$.prompt"),
    ],
)
def test_other_prompts_are_refused_in_words(prompt, words):
    with pytest.raises(ProtocolFault, match=words) as fault:
        completions(prompt)
    assert fault.value.kind == "http_4xx"


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({}, 16),
        ({"max_tokens": None}, 16),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 8}, 8),
        ({"max_tokens": 7, "max_completion_tokens": 8}, 8),
        ({"max_tokens": 7, "max_completion_tokens": None}, 7),
    ],
)
def test_the_newer_limit_wins_and_16_is_the_default(fields, limit):
    assert chat(**fields).output_tokens == limit
    assert completions("x", **fields).output_tokens == limit


@pytest.mark.parametrize(
    "fields", [{"max_tokens": 0}, {"max_tokens": 5, "max_completion_tokens": 0}]
)
def test_a_limit_of_zero_is_refused(fields):
    with pytest.raises(ProtocolFault, match="max_tokens must be at least 1, got 0"):
        chat(**fields)


def test_options_may_be_null():
    names = ("model", "stream", "stream_options", "ignore_eos", "min_tokens", "max_tokens")
    ask = chat(**dict.fromkeys(names))
    assert (ask.model, ask.stream, ask.usage, ask.ignore_eos, ask.min_tokens) == (
        *("", False, False, False, False),
    )
    ask = chat(stream=True, stream_options={"include_usage": None, "continuous_usage_stats": None})
    assert (ask.stream, ask.usage, ask.usage_each) == (True, False, False)


def test_running_usage_needs_usage():
    ask = chat(stream=True, stream_options={"continuous_usage_stats": True})
    assert (ask.usage, ask.usage_each) == (False, False)


def test_unknown_fields_are_passed_over():
    assert completions("x", temperature=0, seed=1, nested={"a": [None]}).prompt == "x"


@pytest.mark.parametrize(("least", "kept"), [(None, False), (0, False), (6, False), (7, True)])
def test_a_least_length_counts_where_it_is_the_whole_length(least, kept):
    assert completions("x", max_tokens=7, min_tokens=least).min_tokens is kept
