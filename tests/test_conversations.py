"""Items that belong together: what a turn repeats of the turns before it, and how it is told."""

import json
import re
from dataclasses import replace
from itertools import pairwise
from threading import Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servescope.datasets import Message, Turn, answer_to_come
from servescope.errors import BadInput
from servescope.plugins import find
from tests.support.items import RULER, source

SAID = {"q": "human", "a": "gpt"}


def words(n: int) -> str:
    return "word" + "s" * (4 * n - 4)  # the ruler of these tests takes four letters for a token


def conversation(*lengths: int) -> dict:
    """Questions and answers of so many tokens, by turns."""
    said = [{"from": ("human", "gpt")[k % 2], "value": words(n)} for k, n in enumerate(lengths)]
    return {"conversations": said}


RECORDED = [
    conversation(10, 20, 1, 6, 30, 40),
    conversation(3, 20),  # left out: too short
    conversation(11, 21),
    conversation(12, 1000, 13, 1500, 14, 15),  # its second turn is too long
    conversation(13, 23, 14, 24, 15),  # its third question has no answer
    {"conversations": []},  # left out: nothing asked
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "sharegpt.json").write_text(json.dumps(RECORDED))
    (folder / "file.txt").write_text("\n".join(f"prompt {i}" for i in range(7)))
    rows = [f'{{"question": "What is {i}?", "options": ["one", "two"]}}' for i in range(7)]
    (folder / "mcq.jsonl").write_text("\n".join(rows))
    rows = [f"2023-11-16 18:17:{i:02}.0,{20 + i},9" for i in range(7)]
    azure = "TIMESTAMP,ContextTokens,GeneratedTokens"
    (folder / "trace.csv").write_text("\n".join([azure, *rows]))
    return folder


EVERY = {
    "dummy": ["dummy", "dummy:ids=true"],
    "emulated": ["emulated"],
    "extraction": ["extraction"],
    "file": ["file:{}/file.txt"],
    "mcq": ["mcq", "mcq:{}/mcq.jsonl"],
    "sessions": ["sessions:3", "sessions:turns=uniform:1-4,system=30,think=2s"],
    "shared_prefix": ["shared_prefix:groups=2,prefix=20"],
    "sharegpt": [
        "sharegpt:{}/sharegpt.json",
        "sharegpt:{}/sharegpt.json,turns=2",
        "sharegpt:{}/sharegpt.json,turns=all",
        "sharegpt:{}/sharegpt.json,turns=all,history=recorded",
    ],
    "trace": ["trace:{}/trace.csv"],
}
TEXTS = [text for texts in EVERY.values() for text in texts]
LIVE = [text for text in TEXTS if "recorded" not in text]


# --- what holds for every data set


def test_every_data_set_takes_part_in_these_tests():
    assert EVERY.keys() == find("servescope.datasets").keys()


@pytest.mark.parametrize("text", TEXTS)
@settings(max_examples=20)
@given(order=st.lists(st.integers(0, 25), min_size=1, max_size=12), seed=st.integers(0, 9))
def test_a_seed_gives_the_same_items_and_turns_in_whatever_order(files, text, order, seed):
    one, other = (source(text.format(files), seed=seed) for _ in range(2))
    known = [(one(i), one.turn(i)) for i in range(26)]
    assert [other.turn(i) for i in order] == [known[i][1] for i in order]
    assert [other(i) for i in order] == [known[i][0] for i in order]


@pytest.mark.parametrize("text", TEXTS)
def test_no_prompt_comes_twice_and_another_seed_gives_others(files, text):
    one, other = (source(text.format(files), seed=seed) for seed in (1, 2))
    found = [one(i).prompt for i in range(60)]
    assert len(set(found)) == 60
    assert found != [other(i).prompt for i in range(60)]


@pytest.mark.parametrize("text", TEXTS)
@given(seed=st.integers(0, 9))
def test_sessions_count_their_turns_from_0_up(files, text, seed):
    items = source(text.format(files), seed=seed)
    turns = [items.turn(i) for i in range(60)]
    seen: dict[int, int] = {}
    for turn in turns:
        assert turn.number == seen.get(turn.session, 0)
        seen[turn.session] = turn.number + 1
    if getattr(items, "alone", False):
        assert set(seen.values()) == {1}
    else:
        assert max(seen.values()) > 1


@pytest.mark.parametrize("text", LIVE)
def test_a_turn_waits_for_exactly_the_answers_before_it(files, text):
    items = source(text.format(files))
    for i in range(40):
        prompt, number = items(i).prompt, items.turn(i).number
        said = "".join(m.content for m in prompt if isinstance(m, Message))
        assert re.findall("\ue0f0(\\d+)\ue0f1", said) == [str(k) for k in range(number)]
        assert number == 0 or isinstance(prompt[0], Message)


@pytest.mark.parametrize(
    "text", ["sessions:turns=uniform:2-5", "sharegpt:{}/sharegpt.json,turns=all"]
)
def test_a_later_turn_repeats_the_one_before_it_word_for_word(files, text):
    items = source(text.format(files))
    for i in range(40):
        number = items.turn(i + 1).number
        if number == 0:
            continue
        before, now = items(i).prompt, items(i + 1).prompt
        if isinstance(before, str):
            before = (Message("user", before),)
        answer = Message("assistant", answer_to_come(number - 1))
        assert now[:-1] == (*before, answer)
        assert now[-1].role == "user"


# --- made conversations


def test_sessions_have_five_turns_of_the_customary_lengths():
    items = source("sessions")
    assert [items.turn(i) for i in (0, 4, 5, 5 * 10**12 + 3)] == [
        Turn(0, 0),
        Turn(0, 4, last=True),
        Turn(1, 0),
        Turn(10**12, 3),
    ]
    assert [items(i).input_tokens for i in range(6)] == [128, None, None, None, None, 128]
    assert {(items(i).output_tokens, items(i).pinned) for i in range(6)} == {(64, True)}


def tokens(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))


@given(seed=st.integers(0, 2**63), i=st.integers(0, 10**4))
def test_each_turn_says_as_much_as_was_asked_for(seed, i):
    items = source(
        "sessions:turns=uniform:1-6,system=40", seed=seed, inputs="uniform:1-90", outputs="9"
    )
    item, number = items(i), items.turn(i).number
    system, *said = item.prompt
    assert (system.role, tokens(system.content)) == ("system", 40)
    assert [message.role for message in said] == ["user", "assistant"] * number + ["user"]
    assert all(1 <= tokens(message.content) <= 90 for message in said[::2])
    assert (item.input_tokens, item.output_tokens) == (None, 9)


def test_all_sessions_begin_with_the_same_system_prompt():
    items = source("sessions:2,system=512")
    assert len({items(i).prompt[0] for i in range(20)}) == 1


def test_a_first_turn_makes_room_for_what_the_target_adds():
    item = source("sessions", ruler=replace(RULER, overhead=20), inputs="50")(0)
    assert (tokens(item.prompt), item.input_tokens) == (30, 50)
    with pytest.raises(BadInput, match="want at least 21"):
        source("sessions", ruler=replace(RULER, overhead=20), inputs="20")


@pytest.mark.parametrize("text", ["sessions:3{}", "sharegpt:{{}}/sharegpt.json,turns=all{}"])
def test_only_later_turns_are_thought_about(files, text):
    for setting, pause in (("", None), (",think=1.5s", 1.5), (",think=0", 0.0)):
        items = source(text.format(setting).format(files))
        for i in range(12):
            assert items(i).think_s == (pause if items.turn(i).number else None)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**63))
def test_the_turns_of_sessions_follow_the_law(seed):
    items = source("sessions:turns=uniform:2-8", seed=seed)
    starts = [i for i in range(3000) if items.turn(i).number == 0]
    lengths = [after - start for start, after in pairwise(starts)]
    assert set(lengths) == set(range(2, 9))
    assert 4.5 < sum(lengths) / len(lengths) < 5.5


def test_threads_that_ask_at_once_are_told_the_same():
    items, alone = (source("sessions:turns=uniform:1-9") for _ in range(2))
    found: dict[int, list[Turn]] = {}

    def ask(k: int) -> None:
        found[k] = [items.turn(i) for i in range(k, 20_000, 4)]

    threads = [Thread(target=ask, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i % 4][i // 4] for i in range(20_000)] == [alone.turn(i) for i in range(20_000)]


# --- recorded conversations


def test_a_conversation_is_asked_turn_by_turn_with_answers_as_long_as_they_were(files):
    items = source(f"sharegpt:{files}/sharegpt.json,turns=all,shuffle=false")
    found = [(*items.turn(i)[:2], items(i).output_tokens, items(i).pinned) for i in range(7)]
    assert found == [
        *[(0, 0, 20, True), (0, 1, 6, True), (0, 2, 40, True)],
        (1, 0, 21, True),
        (2, 0, 1000, True),
        *[(3, 0, 23, True), (3, 1, 24, True)],
    ]
    assert items(0).prompt == words(10)
    assert items(2).prompt == (
        Message("user", words(10)),
        Message("assistant", answer_to_come(0)),
        Message("user", words(1)),
        Message("assistant", answer_to_come(1)),
        Message("user", words(30)),
    )


def test_recorded_answers_can_stand_for_those_that_came(files):
    items = source(f"sharegpt:{files}/sharegpt.json,turns=2,history=recorded,shuffle=false")
    assert items(1).prompt == (
        Message("user", words(10)),
        Message("assistant", words(20)),
        Message("user", words(1)),
    )
    assert items.turn(2)[:2] == (1, 0)


def test_a_conversation_that_comes_again_is_numbered_in_all_its_turns(files):
    items = source(f"sharegpt:{files}/sharegpt.json,turns=all,shuffle=false")
    assert [items.turn(i) for i in range(7, 10)] == [
        *(Turn(4, 0), Turn(4, 1), Turn(4, 2, last=True))
    ]
    assert items(7).prompt == f"(2) {words(10)}"
    assert items(9).prompt[0] == Message("user", f"(2) {words(10)}")
    assert items(9).prompt[1:] == items(2).prompt[1:]


def test_the_users_own_answer_length_changes_no_turn(files):
    text = f"sharegpt:{files}/sharegpt.json,turns=all"
    one, other = source(text), source(text, outputs="7")
    assert [one(i).prompt for i in range(9)] == [other(i).prompt for i in range(9)]
    assert {other(i).output_tokens for i in range(9)} == {7}


def test_how_many_conversations_were_not_used_in_full_and_why_is_told(files):
    items = source(f"sharegpt:{files}/sharegpt.json,turns=all,shuffle=false")
    assert items.notes == []  # nobody has asked for more than the first
    items.turn(100)
    with_answer = "with the answer (max_total)"
    assert items.notes == [
        "1 of the first 6 conversations left out: a question or an answer of fewer than 4 tokens",
        f"1 of the first 6 conversations cut short: more than 2048 tokens {with_answer}",
        "1 of the first 6 conversations left out: no question with an answer right after it",
    ]


def test_a_conversation_ends_before_a_question_that_is_too_long(files):
    items = source(f"sharegpt:{files}/sharegpt.json,turns=all,max_input=20,shuffle=false")
    assert [items.turn(i) for i in range(3)] == [
        *(Turn(0, 0), Turn(0, 1, last=True), Turn(1, 0, last=True))
    ]
