import json
import re
from collections import Counter
from dataclasses import replace
from datetime import datetime
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from servescope import datasets
from servescope.datasets import Item, ItemSource, Message
from servescope.errors import BadInput
from servescope.rulers import ruler_by_words, ruler_from_tokenizer
from tests.support.items import RULER, source
from tests.support.refusal import refused
from tests.test_text import Pieces

MADE = ["dummy", "dummy:ids=true", "emulated"]


def words_and_marks(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))


COUNTING = replace(RULER, count=words_and_marks)  # as with a tokenizer at hand
MERGING = replace(RULER, count=lambda text: words_and_marks(text) - 2 * text.count(". On "))
PIECES = ruler_from_tokenizer(Pieces(3), "tokenizer")


def tokens(item: Item) -> int:
    """The prompt's length as the ruler of these tests counts it."""
    if isinstance(item.prompt, str):
        marks = item.prompt.count(",") + item.prompt.count(".")
        return len(item.prompt.split()) + marks
    return len(item.prompt)


def prompts(items: ItemSource, n: int) -> list:
    return [items(i).prompt for i in range(n)]


# --- made prompts


@pytest.mark.parametrize("text", MADE)
def test_made_prompts_have_customary_lengths_when_the_user_names_none(text):
    item = source(text)(3)
    assert (tokens(item), item.input_tokens, item.output_tokens, item.pinned) == (
        128,
        128,
        64,
        True,
    )


@pytest.mark.parametrize("text", MADE)
@given(seed=st.integers(0, 2**63), i=st.integers(0, 10**9))
def test_made_prompts_have_exactly_the_length_drawn(text, seed, i):
    item = source(text, seed=seed, inputs="uniform:1-600", outputs="uniform:5-9")(i)
    assert tokens(item) == item.input_tokens
    assert 1 <= item.input_tokens <= 600
    assert 5 <= item.output_tokens <= 9


@pytest.mark.parametrize("text", MADE)
def test_made_prompts_are_the_same_in_whatever_order_they_are_asked(text):
    one, other = source(text, seed=4), source(text, seed=4)
    assert [one(i) for i in range(50)] == [other(i) for i in reversed(range(50))][::-1]


@pytest.mark.parametrize("text", MADE)
def test_no_two_made_prompts_are_alike(text):
    several = (source(text, seed=seed, inputs="24") for seed in range(3))
    found = [prompt for items in several for prompt in prompts(items, 300)]
    assert len(set(found)) == len(found)


def test_ids_come_from_the_words_of_the_target_where_these_are_known():
    known = replace(RULER, ids=tuple((7 + i % 90, 8 + i % 90) for i in range(len(RULER.words))))
    assert all(7 <= i < 98 for i in source("dummy:ids=true", ruler=known)(0).prompt)
    assert all(1000 <= i < 4000 for i in source("dummy:ids=true")(0).prompt)


def test_a_prompt_of_ids_gets_no_room_for_what_is_only_added_to_text():
    ruler = replace(RULER, overhead=20)
    assert len(source("dummy:ids=true", ruler=ruler)(0).prompt) == 128
    assert len(source("dummy:ids=true", ruler=replace(ruler, ids_overhead=3))(0).prompt) == 125
    assert tokens(source("dummy", ruler=ruler)(0)) == 108


def test_ids_for_a_protocol_that_takes_none_are_refused():
    with refused("--data", "takes no token ids"):
        source("dummy:ids=true", ruler=ruler_by_words())


@pytest.mark.parametrize("text", ["dummy", "emulated"])
@pytest.mark.parametrize("inputs", ["20", "uniform:5-20", "exponential:mean=50,max=20"])
def test_lengths_below_what_the_target_adds_are_refused_before_the_run(text, inputs):
    with refused("--input-tokens", "want at least 21"):
        source(text, ruler=replace(RULER, overhead=20), inputs=inputs)


@pytest.mark.parametrize("text", ["dummy", "emulated"])
@pytest.mark.parametrize("inputs", ["exponential:mean=30", "normal:mean=25,std=9", "uniform:1-99"])
def test_the_tail_of_a_law_is_moved_up_to_what_the_target_adds(text, inputs):
    items = source(text, ruler=replace(RULER, overhead=20), inputs=inputs)
    found = [items(i) for i in range(200)]
    assert min(item.input_tokens for item in found) == 21
    assert all(tokens(item) + 20 == item.input_tokens for item in found)


# --- made prompts of a purpose


@pytest.mark.parametrize(
    ("text", "lengths"),
    [("mcq", (100, 8)), ("extraction", (4096, 1024)), ("shared_prefix", (1024 + 128, 64))],
)
def test_each_purpose_has_its_customary_lengths(text, lengths):
    item = source(text, ruler=COUNTING)(0)
    assert (item.input_tokens, item.output_tokens) == lengths
    assert item.pinned


@pytest.mark.parametrize("text", ["mcq", "extraction"])
@given(n=st.integers(250, 900), seed=st.integers(0, 2**63), i=st.integers(0, 10**9))
def test_a_prompt_with_more_than_common_words_is_exact_where_any_text_can_be_counted(
    text, n, seed, i
):
    for ruler in (COUNTING, replace(COUNTING, overhead=20), MERGING, PIECES):
        item = source(text, seed=seed, ruler=ruler, inputs=f"{n}", outputs="7")(i)
        assert ruler.overhead + ruler.count(item.prompt) == item.input_tokens == n
        assert item.output_tokens == 7


@pytest.mark.parametrize("text", ["mcq", "extraction"])
def test_it_promises_no_length_where_only_common_words_can_be_counted(text):
    item = source(text, inputs="500")(0)
    assert item.input_tokens is None
    assert 400 < words_and_marks(item.prompt) < 600


@pytest.mark.parametrize("text", ["mcq", "extraction"])
def test_it_does_without_sentences_where_no_full_stop_can_be_counted(text):
    words = RULER.words[:200]
    assert not any(word.endswith(".") for word in words)
    few = replace(COUNTING, words=words, costs=RULER.costs[:200])
    assert source(text, ruler=few, inputs="300")(0).input_tokens == 300


@pytest.mark.parametrize(("text", "short"), [("mcq", 40), ("extraction", 50)])
def test_a_length_without_room_for_the_question_is_refused(text, short):
    with pytest.raises(BadInput, match="want at least") as caught:
        source(text, ruler=COUNTING, inputs=f"{short}")
    assert caught.value.field == "--input-tokens"
    least = int(re.search(r"at least (\d+)", caught.value.want)[1])
    items = source(text, ruler=COUNTING, inputs=f"{least}")
    assert all(items(i).input_tokens <= least for i in range(30))


@given(seed=st.integers(0, 2**63), i=st.integers(0, 10**9))
def test_a_made_question_has_one_right_answer_among_four(seed, i):
    text, *options, instruction = source("mcq", seed=seed, ruler=COUNTING)(i).prompt.split("\n")[
        -7:
    ]
    question = options.pop(0)
    person, day = re.fullmatch(r"Where was (.+) on (.+)\?", question).groups()
    (place,) = re.findall(rf"On {day} {person} [a-z]+ [\d,]+ dollars in (\w+)\.", text)
    assert [option[:3] for option in options] == ["A. ", "B. ", "C. ", "D. "]
    assert len({option[3:] for option in options}) == 4
    assert place in {option[3:] for option in options}
    assert instruction == "Answer with the letter only."


def test_every_letter_is_right_about_as_often():
    items = source("mcq", ruler=COUNTING)
    right = Counter()
    for i in range(400):
        prompt = items(i).prompt
        place = re.search(r"dollars in (\w+)\.", prompt)[1]
        right[re.search(rf"^([A-D])\. {place}$", prompt, re.MULTILINE)[1]] += 1
    assert min(right[letter] for letter in "ABCD") > 60


@given(seed=st.integers(0, 2**63), i=st.integers(0, 10**9))
def test_a_chronicle_holds_facts_of_different_real_days_in_no_order(seed, i):
    prompt = source("extraction", seed=seed, ruler=COUNTING)(i).prompt
    fact = r"On (\d+ \w+ \d{4}) \w+ \w+ [a-z]+ [\d,]+ dollars in \w+\."
    found = re.findall(fact, prompt)
    days = [datetime.strptime(day, "%d %B %Y") for day in found]  # noqa: DTZ007 - only days
    assert len(set(days)) == 32
    assert days != sorted(days)
    assert prompt.count(".") > 150  # and stand among other sentences
    assert prompt.endswith("Write nothing else.")


@given(seed=st.integers(0, 2**63), i=st.integers(0, 10**9))
def test_prompts_of_a_group_share_exactly_its_prefix_and_nothing_else(seed, i):
    items = source("shared_prefix:groups=3,prefix=50", seed=seed, inputs="uniform:1-40")
    found = [items(i + k) for k in range(24)]
    words = [item.prompt.split() for item in found]
    beginnings = {tuple(text[:30]) for text in words}
    assert len(beginnings) <= 3
    for beginning in beginnings:
        group = [
            item for item, text in zip(found, words, strict=True) if tuple(text[:30]) == beginning
        ]
        assert all(tokens(item) == item.input_tokens > 50 for item in group)
        prefix = prefix_of_tokens(group[0].prompt, 50)
        assert all(item.prompt.startswith(f"{prefix} ") for item in group)


def prefix_of_tokens(text: str, n: int) -> str:
    words = text.split()
    return next(
        " ".join(words[:k])
        for k in range(len(words))
        if sum(1 + (not word.isalpha()) for word in words[:k]) == n
    )


def test_the_suffix_makes_room_for_what_the_target_adds():
    ruler = replace(RULER, overhead=20)
    item = source("shared_prefix:prefix=50", ruler=ruler, inputs="30")(0)
    assert (tokens(item), item.input_tokens) == (60, 80)


def test_groups_are_as_frequent_as_the_law_says():
    def shares(text: str) -> list[float]:
        items = source(f"shared_prefix:groups=4,prefix=20{text}", inputs="5")
        groups = Counter(prefix_of_tokens(items(i).prompt, 20) for i in range(2000))
        return [count / 2000 for _, count in groups.most_common()]

    assert shares("") == pytest.approx([0.25] * 4, abs=0.04)
    assert shares(",zipf=1") == pytest.approx([0.48, 0.24, 0.16, 0.12], abs=0.04)


def test_a_prefix_no_words_can_make_is_refused_by_its_name():
    ruler = replace(RULER, costs=RULER.costs * 2)
    with pytest.raises(BadInput, match="want another number of tokens") as caught:
        source("shared_prefix:prefix=51", ruler=ruler, inputs="20")(0)
    assert (caught.value.field, caught.value.value) == ("--data", "prefix=51")


@pytest.mark.parametrize("text", ["mcq", "extraction", "emulated", "dummy"])
def test_no_two_prompts_begin_alike_so_that_a_prefix_cache_has_nothing_to_find(text):
    items = source(text, ruler=COUNTING, inputs="200")
    found = sorted(prompt.split() for prompt in prompts(items, 200))
    assert all(one[:8] != other[:8] for one, other in pairwise(found))


# --- questions of a file

ASKED = "What?\nA. one\nB. 2\nC. three\nD. four\nAnswer with the letter only."


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.jsonl", '{"question": "What?", "options": ["one", "2", "three", "four"]}'),
        ("q.jsonl", '{"question": "What?", "choices": ["one", 2, "three", "four"], "answer": 1}'),
        ("q.jsonl", '{"question": "What?", "A": "one", "B": 2, "C": "three", "D": "four"}'),
        ("q.csv", "question,A,B,C,D,answer\nWhat?,one,2,three,four,A\n"),
        ("q.csv", 'question,choices\nWhat?,"[""one"", ""2"", ""three"", ""four""]"\n'),
        ("q.csv", "What?,one,2,three,four,A\n"),
    ],
)
def test_questions_are_read_as_the_usual_collections_lay_them_out(save, name, content):
    text = "mcq:" + save(name, content)
    assert source(text)(0) == Item(prompt=ASKED, output_tokens=8, pinned=True)
    assert source(text, outputs="3")(0).output_tokens == 3
    assert source(text)(1).prompt == f"(2) {ASKED}"


@pytest.mark.parametrize(
    ("name", "content", "place", "hint"),
    [
        ("q.txt", "What?", "q.txt", "want .jsonl"),
        ("q.csv", "", "q.csv", "at least one question"),
        ("q.csv", "title,A,B\nx,y,z\n", "q.csv:2", "want a question"),
        ("q.csv", "question,choices\nWhat?,['a' 'b']\n", "q.csv:2", "want JSON"),
        ("q.jsonl", '{"question": "What?"}', "q.jsonl:1", "want options or choices"),
        ("q.jsonl", '{"question": "What?", "options": ["one"]}', "q.jsonl:1", "2 to 26"),
        ("q.jsonl", '{"question": " ", "options": ["one", "two"]}', "q.jsonl:1", "not empty"),
    ],
)
def test_a_bad_question_is_refused_with_its_line(save, name, content, place, hint):
    with refused("--data", hint, place=place):
        source("mcq:" + save(name, content))


def test_questions_of_a_file_have_the_length_they_have(save):
    path = save("q.csv", "question,A,B\nWhat?,one,two\n")
    with pytest.raises(BadInput, match="taken as they are"):
        source(f"mcq:{path}", inputs="9")


# --- files


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "one\n\n  \ntwo, three\r\nfour"),
        ("p.prompts", "\ufeffone\ntwo, three\nfour\n"),
        ("p.jsonl", '{"prompt": "one"}\n\n{"text": "two, three"}\n{"question": "four"}\n'),
        ("p.JSONL", '\ufeff{"instruction": "one"}\n{"input": "two, three"}\n{"text": "four"}'),
        ("p.csv", 'id,prompt\n1,one\n2,"two, three"\n3,four\n'),
        ("p.csv", '\ufeffquestion\r\none\r\n"two, three"\r\nfour\r\n'),
    ],
)
def test_prompts_are_read_from_every_kind_of_file(save, name, content):
    items = source(f"file:{save(name, content)},shuffle=false")
    assert prompts(items, 3) == ["one", "two, three", "four"]
    assert items(0) == Item(prompt="one", output_tokens=256, pinned=False)


def test_messages_are_read_as_messages_and_numbered_in_their_first_words(save):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    items = source("file:" + save("chat.jsonl", json.dumps({"messages": turns})))
    assert items(0).prompt == (Message("system", "Be brief."), Message("user", "Why?"))
    assert items(1).prompt == (Message("system", "(2) Be brief."), Message("user", "Why?"))


@pytest.mark.parametrize(
    ("name", "content"),
    [("p.csv", "prompt,mine\nno,yes\n"), ("p.jsonl", '{"prompt": "no", "mine": "yes"}')],
)
def test_a_column_can_be_named(save, name, content):
    assert source(f"file:path={save(name, content)},column=mine")(0).prompt == "yes"


def test_an_answer_is_as_long_as_the_file_says_else_as_the_user_says(save):
    lines = ['{"text": "a", "output_tokens": 5}', '{"text": "b", "max_tokens": 6}', '{"text": "c"}']
    text = f"file:{save('p.jsonl', chr(10).join(lines))},shuffle=false"

    def answers(outputs: str | None) -> list[tuple[int, bool]]:
        items = source(text, outputs=outputs)
        return [(items(i).output_tokens, items(i).pinned) for i in range(3)]

    assert answers(None) == [(5, True), (6, False), (256, False)]
    assert answers("9") == [(5, True), (6, False), (9, True)]


def test_answer_lengths_in_a_csv_may_be_left_out(save):
    path = save("p.csv", "prompt,output_tokens\na,5\nb,\n")
    items = source(f"file:{path},shuffle=false")
    assert [items(i).output_tokens for i in range(2)] == [5, 256]


def test_prompts_come_in_an_order_of_the_seed_each_once_before_any_comes_again(save):
    text = "file:" + save("p.txt", "\n".join(f"prompt {i}" for i in range(40)))
    first = prompts(source(text, seed=1), 40)
    assert Counter(first) == Counter(f"prompt {i}" for i in range(40))
    assert first == prompts(source(text, seed=1), 40)
    assert first != prompts(source(text, seed=2), 40)
    assert first != sorted(first)


def test_prompts_that_come_again_are_numbered_unless_the_user_wants_them_as_they_are(save):
    text = f"file:{save('p.txt', 'a' + chr(10) + 'b')},shuffle=false"
    assert prompts(source(text), 6) == ["a", "b", "(2) a", "(2) b", "(3) a", "(3) b"]
    assert prompts(source(f"{text},unique=false"), 6) == ["a", "b"] * 3


@given(order=st.lists(st.integers(0, 30), min_size=1))
def test_prompts_of_a_file_are_the_same_in_whatever_order_they_are_asked(tmp_path_factory, order):
    path = tmp_path_factory.getbasetemp() / "ordered.txt"
    path.write_text("\n".join(f"prompt {i}" for i in range(10)))
    known = prompts(source(f"file:{path}"), 31)
    items = source(f"file:{path}")
    assert [items(i).prompt for i in order] == [known[i] for i in order]


def test_a_path_may_hold_colons_and_commas(save):
    path = save("a:b,c.txt", "hello")
    assert source(f"file:{path}")(0).prompt == "hello"
    assert source(f"file:shuffle=false,path={path}")(0).prompt == "hello"


@pytest.mark.parametrize(
    ("name", "content", "place", "hint"),
    [
        ("p.txt", "\n \n", "p.txt", "at least one prompt"),
        ("p.txt", b"caf\xe9", "p.txt", "UTF-8"),
        ("p.json", "[]", "p.json", "jsonl"),
        ("p.jsonl", "", "p.jsonl", "at least one prompt"),
        ("p.jsonl", '{"text": "a"}\n{"text": ', "p.jsonl:2", "want JSON"),
        ("p.jsonl", '{"text": "a"}\n\n["a"]', "p.jsonl:3", "JSON object"),
        ("p.jsonl", '{"txt": "a"}', "p.jsonl:1", "want one of prompt, text"),
        ("p.jsonl", '{"text": 5}', "p.jsonl:1", "want text to be a text"),
        ("p.jsonl", '{"text": " "}', "p.jsonl:1", "not empty"),
        ("p.jsonl", '{"messages": []}', "p.jsonl:1", "at least one message"),
        ("p.jsonl", '{"messages": [{"role": "user"}]}', "p.jsonl:1", "role and content"),
        ("p.jsonl", '{"text": "a", "max_tokens": 0}', "p.jsonl:1", "whole number"),
        ("p.jsonl", '{"text": "a", "max_tokens": true}', "p.jsonl:1", "whole number"),
        ("p.jsonl", '{"text": "a", "output_tokens": "many"}', "p.jsonl:1", "whole number"),
        ("p.csv", "", "p.csv", "there is nothing"),
        ("p.csv", "id,title\n1,x\n", "p.csv", "there is id, title"),
        ("p.csv", "id,prompt\n1,x\n2\n", "p.csv:3", "want prompt to be a text"),
    ],
)
def test_a_bad_file_is_refused_with_the_line_and_what_would_be_right(
    save, name, content, place, hint
):
    with refused("--data", hint, place=place):
        source("file:" + save(name, content))


def test_a_column_that_is_not_there_is_named_with_those_that_are(save):
    path = save("p.csv", "question,answer\na,b\n")
    with pytest.raises(BadInput, match=r"did you mean question\?"):
        source(f"file:{path},column=qestion")


@pytest.mark.parametrize("name", ["file", "sharegpt"])
def test_a_missing_file_or_a_length_for_prompts_as_they_are_is_refused(name, tmp_path, save):
    with refused("--data", "No such file"):
        source(f"{name}:{tmp_path}/none.jsonl")
    with refused("--input-tokens", "taken as they are"):
        source(f"{name}:{save('p.json', '[]')}", inputs="9")


# --- ShareGPT


def conversation(*turns: tuple[str, object]) -> dict:
    said = [{"from": who, "value": what} for who, what in turns]
    return {"id": "x", "conversations": said}


def words(n: int) -> str:
    return "word" + "s" * (4 * n - 4)  # the ruler of these tests takes four letters for a token


USABLE = [
    conversation(("human", words(10)), ("gpt", words(20)), ("human", words(5)), ("gpt", words(6))),
    conversation(("system", "x"), ("human", words(11)), ("gpt", words(21))),
    {
        "conversation": [
            {"role": "user", "content": words(12)},
            {"role": "assistant", "content": words(22)},
        ]
    },
]
UNUSABLE = [
    conversation(("human", words(3)), ("gpt", words(20))),
    conversation(("human", words(20)), ("gpt", words(3))),
    conversation(("human", words(1025)), ("gpt", words(20))),
    conversation(("human", words(1000)), ("gpt", words(1049))),
    conversation(("human", words(10))),
    conversation(("gpt", words(10)), ("gpt", words(10))),
    conversation(("human", words(10)), ("human", words(11)), ("gpt", words(10))),
    conversation(("human", 5), ("gpt", words(10))),
    {"conversations": "none"},
    {"id": "nothing"},
    "text",
    None,
]


def test_the_first_question_is_asked_and_its_answer_gives_the_length(save):
    path = save("s.json", json.dumps(UNUSABLE[:6] + USABLE + UNUSABLE[6:]))
    items = source(f"sharegpt:{path},shuffle=false")
    found = [(len(items(i).prompt) // 4, items(i).output_tokens, items(i).pinned) for i in range(3)]
    assert found == [(10, 20, True), (11, 21, True), (12, 22, True)]
    assert items(3).prompt == "(2) " + items(0).prompt


def test_the_users_own_answer_length_changes_no_prompt(save):
    text = "sharegpt:" + save("s.json", json.dumps(USABLE + UNUSABLE))
    assert prompts(source(text), 3) == prompts(source(text, outputs="7"), 3)
    assert source(text, outputs="7")(0).output_tokens == 7


def test_how_long_conversations_may_be_can_be_set(save):
    path = save("s.json", json.dumps(USABLE))
    for setting in ("max_input=10", "max_total=30"):
        items = source(f"sharegpt:{path},{setting},unique=false")
        assert set(prompts(items, 5)) == {words(10)}


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("[]", "want conversations"),
        (json.dumps(UNUSABLE), "want conversations"),
        ("{}", "JSON list"),
        ("[", "want one JSON list"),
    ],
)
def test_a_collection_of_which_nothing_is_usable_is_refused(save, content, hint):
    with refused("--data", hint):
        source("sharegpt:" + save("s.json", content))


# --- the option


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (
            "",
            "want one of dummy, emulated, extraction, file, mcq, sessions, shared_prefix, sharegpt",
        ),
        ("fiel:x", "did you mean file?"),
        ("file", "want path too"),
        ("emulated:x", "no settings"),
        ("dummy:ids=perhaps", "bool"),
        ("dummy:id=true", "did you mean ids?"),
        ("sharegpt:x,max_inputs=4", "did you mean max_input?"),
        ("file:x,path=y", "only once"),
        ("file:x,,y", "between the commas"),
        ("shared_prefix:groups=0", "groups=0: want 1 to"),
        ("shared_prefix:prefix=0", "prefix=0: want 1 to"),
        ("shared_prefix:zipf=-1", "want an exponent from 0"),
        ("shared_prefix:zipf=inf", "want an exponent from 0"),
        ("sessions:0", "turns=0: want a number of turns"),
        ("sessions:turns=unifrom:2-8", "such as uniform:2-8"),
        ("sessions:think=soon", "think=soon: want a time"),
        ("sessions:system=-1", "system=-1: want 0 to"),
        ("sharegpt:x,turns=0", "turns=0: want a number from 1 up, or all"),
        ("sharegpt:x,turns=many", "or all"),
        ("sharegpt:x,history=dead", "want live or recorded"),
        ("sharegpt:x,think=-1s", "think=-1s: want a time"),
    ],
)
def test_a_wrong_data_option_is_refused_with_what_would_be_right(text, hint):
    with refused("--data", hint):
        datasets.parse("--data", text)


def test_a_seed_decides_every_byte():
    def made(seed: int) -> bytes:
        items = source("emulated", seed=seed, inputs="exponential:mean=90", outputs="uniform:1-9")
        return repr([items(i) for i in range(64)]).encode()

    assert made(7) == made(7)
    assert made(7) != made(8)
    assert len({int(np.frombuffer(made(seed)[:64], np.uint8).sum()) for seed in range(9)}) > 1
