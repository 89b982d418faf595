from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servescope.datasets import Message
from servescope.engine.tokenizer import (
    _PIECE,
    VOCABULARY,
    prompt_tokens,
    tokenize,
    voice,
    voice_ids,
)
from servescope.rulers import ruler_from_tokenizer

WORDS = st.text("abcdefghijklmnopqrstuvwxyzéß", min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("The answer is 42.", ["The", " answer", " is", " 42", "."]),
        ("internationalisation", ["internation", "alisation"]),
        (" internationalisation", [" internation", "alisation"]),
        ('He said: "no" (twice)', ["He", " said", ":", ' "', "no", '"', " (", "twice", ")"]),
        ("a   b\n\nc\n d\t", ["a", "  ", " b", "\n\n", "c", "\n", " d", "\t"]),
        ("日本 é", ["日", "本", " é"]),
    ],
)
def test_a_text_falls_into_these_tokens(text, pieces):
    assert _PIECE.findall(text) == pieces
    assert tokenize(text) == [tokenize(piece)[0] for piece in pieces]


@given(st.text())
def test_no_character_is_lost_and_every_id_is_in_the_vocabulary(text):
    assert "".join(_PIECE.findall(text)) == text
    assert all(0 <= token < VOCABULARY for token in tokenize(text))


@given(st.lists(WORDS, min_size=1), st.lists(WORDS, min_size=1))
def test_a_word_costs_the_same_whatever_stands_beside_it(before, after):
    text, more = " ".join(before), "".join(" " + word for word in after)
    assert tokenize(text + more) == tokenize(text) + tokenize(more)


def test_the_first_ids_are_the_same_on_every_machine():
    assert tokenize("The way to\n") == [60166, 45449, 969, 88723]


@pytest.mark.parametrize("chat", [False, True])
def test_prompts_made_for_it_are_token_exact(chat):
    def asked(text):
        return list(prompt_tokens((Message("user", text),) if chat else text))

    ruler = ruler_from_tokenizer(asked, "server /tokenize")
    assert ruler.exact
    assert ruler.overhead == (3 if chat else 0)


@given(st.integers(0, 1 << 40), st.integers(1, 300))
def test_what_is_said_has_one_token_a_text(seed, tokens):
    texts = list(islice(voice(seed), tokens))
    assert tokenize("".join(texts)) == list(voice_ids(seed, tokens))
    assert texts[0].startswith(" ")
    assert texts[0][1].isupper()


def test_a_long_answer_goes_on_and_other_seeds_say_other_things():
    assert tokenize("".join(islice(voice(3), 20_000))) == list(voice_ids(3, 20_000))
    assert len({"".join(islice(voice(seed), 64)) for seed in range(100)}) > 50


@given(st.lists(st.text(max_size=40), min_size=1, max_size=4), st.integers(0, 99))
def test_a_conversation_so_far_is_a_prefix_of_its_next_turn(asked, seed):
    history = [Message("system", "Be brief.")]
    for turn, text in enumerate(asked):
        history.append(Message("user", text))
        sofar = prompt_tokens(tuple(history)) + voice_ids(seed + turn, 20)
        history.append(Message("assistant", "".join(islice(voice(seed + turn), 20))))
        following = prompt_tokens((*history, Message("user", "And?")))
        assert following[: len(sofar)] == sofar


def test_token_ids_are_taken_as_they_are():
    assert prompt_tokens((5, 6, 7)) == (5, 6, 7)
