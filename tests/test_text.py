import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from servescope.errors import BadInput
from servescope.rulers import (
    Ruler,
    load_tokenizer,
    ruler_by_words,
    ruler_from_tokenizer,
    ruler_from_usage,
)
from servescope.text import prose_of_exactly, words_of_exactly
from tests.support.refusal import refused

Tokenize = Callable[[str], list[int]]
WRITERS = [words_of_exactly, prose_of_exactly]


class Pieces:
    """A tokenizer in small: words fall into pieces of `size` letters that keep their space."""

    def __init__(self, size: int = 4, bos: int = 0, eos: int = 0) -> None:
        self.size, self.bos, self.eos = size, bos, eos
        self.calls = 0

    def __call__(self, text: str) -> list[int]:
        self.calls += 1
        pieces = []
        for space, word, mark in re.findall(r"(\s?)(\w+)|(\s?[^\w\s])", text):
            if mark:
                pieces.append(mark)
                continue
            pieces.append(space + word[: self.size])
            rest = word[self.size :]
            pieces += [rest[i : i + self.size] for i in range(0, len(rest), self.size)]
        ids = [int.from_bytes(piece.encode(), "big") for piece in pieces]
        return [1] * self.bos + ids + [2] * self.eos


def byte_level(size: int):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train(standard_library(), trainer)
    return tokenizer


def sentence_piece(size: int):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False)
    tokenizer.train(standard_library(), trainer)
    return tokenizer


def standard_library() -> list[str]:
    return [str(file) for file in sorted(Path(re.__file__).parents[1].glob("*.py"))[:60]]


@pytest.fixture(scope="module")
def tokenizers_by_name() -> dict[str, Tokenize]:
    small, bytes_only, pieces = byte_level(4096), byte_level(257), sentence_piece(4096)
    return {
        "byte-level": lambda text: small.encode(text).ids,
        "byte-level with BOS": lambda text: [0, *small.encode(text).ids],
        "single bytes": lambda text: bytes_only.encode(text).ids,
        "SentencePiece with BOS": lambda text: [1, *pieces.encode(text).ids],
        "pieces": Pieces(),
        "pieces with BOS and EOS": Pieces(3, bos=1, eos=1),
    }


@pytest.mark.parametrize("write", WRITERS)
@given(
    size=st.integers(2, 12),
    specials=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    more=st.integers(0, 400),
    seed=st.integers(0, 2**32),
)
def test_a_prompt_has_exactly_the_length_wanted(write, size, specials, more, seed):
    tokenize = Pieces(size, *specials)
    ruler = known_ruler(size, specials)
    assert ruler.exact
    n = ruler.least + more
    assert len(tokenize(write(ruler, n, np.random.default_rng(seed)))) == n


RULERS: dict[object, Ruler] = {}


def known_ruler(size: int, specials: tuple[int, int]) -> Ruler:
    key = (size, specials)
    if key not in RULERS:
        RULERS[key] = ruler_from_tokenizer(Pieces(size, *specials), "server /tokenize")
    return RULERS[key]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    "name",
    [
        "byte-level",
        "byte-level with BOS",
        "single bytes",
        "SentencePiece with BOS",
        "pieces",
        "pieces with BOS and EOS",
    ],
)
def test_a_prompt_is_exact_with_real_tokenizers(write, name, tokenizers_by_name):
    tokenize = tokenizers_by_name[name]
    ruler = ruler_from_tokenizer(tokenize, "server /tokenize")
    rng = np.random.default_rng(5)
    assert ruler.exact
    for n in [ruler.least, *range(ruler.least + 40, ruler.least + 90), 128, 1000, 5000]:
        assert len(tokenize(write(ruler, n, rng))) == n


@pytest.mark.parametrize("write", WRITERS)
def test_a_length_that_no_words_of_the_vocabulary_have_is_refused(write):
    ruler = replace(ruler_by_words(), costs=np.full(len(ruler_by_words().words), 3))
    assert len(write(ruler, 9, np.random.default_rng(0)).split()) == 3
    with pytest.raises(BadInput, match="want another length"):
        write(ruler, 10, np.random.default_rng(0))


@pytest.mark.parametrize("write", WRITERS)
def test_a_prompt_stays_exact_when_a_chat_template_trims_and_wraps_it(write, tokenizers_by_name):
    plain = tokenizers_by_name["byte-level"]
    rng = np.random.default_rng(5)

    def chat(text: str) -> int:
        return len(plain("user\n")) + len(plain(text.strip())) + len(plain("\nassistant\n"))

    ruler = ruler_from_tokenizer(plain, "server /tokenize")
    added = chat("The") - len(plain("The"))
    ruler = replace(ruler, overhead=ruler.overhead + added)
    assert {chat(write(ruler, 100, rng)) for _ in range(50)} == {100}


def test_few_questions_are_enough():
    tokenize = Pieces(bos=1)
    ruler = ruler_from_tokenizer(tokenize, "server /tokenize")
    assert tokenize.calls <= 10
    assert ruler.overhead == 1
    assert len(ruler.words) > 1500
    assert ruler.source == "server /tokenize"


def test_the_ids_of_a_word_are_the_ones_it_has_in_a_text():
    tokenize = Pieces(3)
    ruler = ruler_from_tokenizer(tokenize, "server /tokenize")
    for word, ids, cost in zip(ruler.words, ruler.ids, ruler.costs, strict=True):
        assert list(ids) == tokenize(f"So {word}")[1:]
        assert len(ids) == cost
    assert set(ruler.known_ids.tolist()) <= {i for ids in ruler.ids for i in ids}


def test_a_tokenizer_that_cuts_long_texts_off_is_asked_in_parts():
    tokenize = Pieces()
    ruler = ruler_from_tokenizer(lambda text: tokenize(text)[:1000], "server /tokenize")
    assert ruler.exact
    assert len(ruler.words) > 1500
    assert tokenize.calls < 80


def test_a_word_that_cannot_be_told_apart_is_left_out():
    tokenize = Pieces(12)
    echo = iter(range(10**9, 2 * 10**9))

    def unstable(text: str) -> list[int]:
        ids = tokenize(text)
        river = tokenize(" river")[0]
        return [next(echo) if i == river else i for i in ids]

    ruler = ruler_from_tokenizer(unstable, "server /tokenize")
    assert ruler.exact
    assert "river" not in ruler.words
    assert len(ruler.words) > 1500


def test_a_tokenizer_that_does_not_add_up_is_not_called_exact():
    ruler = ruler_from_tokenizer(lambda text: list(range(len(text) // 4)), "server /tokenize")
    assert not ruler.exact
    lengths = [len(prose_of_exactly(ruler, 500, np.random.default_rng(i))) / 4 for i in range(20)]
    assert np.mean(lengths) == pytest.approx(500, rel=0.1)


@pytest.mark.parametrize("write", WRITERS)
def test_a_target_that_only_tells_usage_is_calibrated_exactly(write):
    asked = []

    def usage(text: str) -> int:
        asked.append(text)
        return len(Pieces(20)(text)) + 11

    ruler = ruler_from_usage(usage)
    assert (ruler.source, ruler.exact, ruler.overhead, len(asked)) == ("calibration", True, 11, 3)
    for n in (12, 13, 40, 128, 1000):
        assert usage(write(ruler, n, np.random.default_rng(n))) == n


def test_a_target_whose_common_words_are_not_one_token_each_is_only_estimated():
    def usage(text: str) -> int:
        return len(Pieces(3)(text)) + 11

    ruler = ruler_from_usage(usage)
    assert not ruler.exact
    assert ruler.overhead == 11
    counts = [usage(prose_of_exactly(ruler, 300, np.random.default_rng(i))) for i in range(20)]
    assert np.mean(counts) == pytest.approx(300, rel=0.1)


@pytest.mark.parametrize("write", WRITERS)
def test_a_prompt_shorter_than_what_the_target_adds_is_refused(write):
    ruler = replace(ruler_by_words(), overhead=20)
    with pytest.raises(BadInput, match="want at least 21") as caught:
        write(ruler, 20, np.random.default_rng(0))
    assert (caught.value.field, caught.value.value) == ("--input-tokens", 20)
    assert write(ruler, 21, np.random.default_rng(0)).isalpha()


@pytest.mark.parametrize("write", WRITERS)
def test_the_same_seed_writes_the_same_prompt_and_another_seed_another(write):
    ruler = ruler_by_words()
    texts = [write(ruler, 32, np.random.default_rng(seed)) for seed in [*range(500), 0]]
    assert texts[0] == texts[-1]
    assert len(set(texts)) == 500


def test_prose_looks_like_sentences():
    text = prose_of_exactly(ruler_by_words(), 20_000, np.random.default_rng(0))
    sentences = text.split(". ")
    words = [len(sentence.split()) for sentence in sentences]
    assert all(sentence[0].isupper() for sentence in sentences[:-1])
    assert text.endswith(".")
    assert 6 < np.mean(words) < 20
    assert np.std(words) > 2
    assert text.count(",") > 500


@pytest.mark.parametrize("write", WRITERS)
def test_thousands_of_prompts_are_written_in_a_second(write):
    ruler, rng = ruler_by_words(), np.random.default_rng(0)
    write(ruler, 128, rng)
    began = time.perf_counter()
    for _ in range(500):
        write(ruler, 128, rng)
    assert 500 / (time.perf_counter() - began) > 2000


def test_a_text_is_estimated_by_its_length_unless_the_tokenizer_is_at_hand(tokenizers_by_name):
    tokenize = tokenizers_by_name["byte-level"]
    text = "Whatever the user asked, at some length. " * 20
    local = ruler_from_tokenizer(tokenize, "tokenizer")
    remote = ruler_from_tokenizer(tokenize, "server /tokenize")
    assert local.estimate(text) == len(tokenize(text))
    assert remote.estimate(text) == pytest.approx(len(tokenize(text)), rel=0.5)
    assert remote.estimate("") == 0


def test_a_local_tokenizer_is_read_from_its_file_or_directory(tmp_path):
    tokenizer = byte_level(600)
    tokenizer.enable_truncation(8)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = "a text of some more words than eight tokens"
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        assert load_tokenizer(path)(text) == byte_level(600).encode(text).ids


@pytest.mark.parametrize("content", [None, "", "{}", "not json"])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, content):
    file = tmp_path / "tokenizer.json"
    if content is not None:
        file.write_text(content)
    with refused("--tokenizer", "want a Hugging Face tokenizer.json"):
        load_tokenizer(file)


def test_a_missing_tokenizers_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(BadInput, match=r"pip install tokenizers"):
        load_tokenizer(tmp_path)
