import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from servescope import traces
from servescope.datasets import ItemSource, Turn
from servescope.errors import BadInput
from tests.support.items import RULER, source
from tests.support.refusal import refused

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
2023-11-16 18:17:04.0781490,110,27
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,4808,10
2024-05-10 00:00:01+00:00,3180,8
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
1106,ChatGPT,300,0,300,Conversation log
118,GPT-4,417,276,693,Conversation log
"""
MOONCAKE = """{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2]}
{"timestamp": 1500, "input_length": 7322, "output_length": 490, "hash_ids": [0, 14]}
"""
OURS = """\ufefftime_s,input_tokens,output_tokens,session

10.5,7,8,a
10,5,6,b

12.25,9,10,a
"""
OURS_LINES = """{"time_s": 1, "input_tokens": 3, "output_tokens": 4}

{"time_s": 2.5, "input_tokens": 5, "output_tokens": 6, "session": 7, "prefix_hash_ids": [9]}
{"output_tokens": 8, "input_tokens": 7, "time_s": 3, "session": 7, "who": ["x"]}
"""


@pytest.fixture
def save(tmp_path):
    def write(content: str, name: str = "trace") -> str:
        (tmp_path / name).write_text(content)
        return str(tmp_path / name)

    return write


def rows(trace: traces.Trace) -> list[tuple[float, int, int]]:
    columns = (trace.time_s, trace.input_tokens, trace.output_tokens)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize(
    ("content", "known"),
    [
        (AZURE, [(0.0, 4808, 10), (0.052, 3180, 8), (0.098189, 110, 27)]),
        (AZURE.replace("\n", "\r\n"), [(0.0, 4808, 10), (0.052, 3180, 8), (0.098189, 110, 27)]),
        (AZURE_2024, [(0.0, 4808, 10), (0.99007, 3180, 8)]),
        (BURSTGPT, [(0.0, 472, 18), (40.0, 1087, 230), (113.0, 417, 276)]),
        (MOONCAKE, [(0.0, 6758, 500), (1.5, 7322, 490)]),
        (OURS, [(0.0, 5, 6), (0.5, 7, 8), (2.25, 9, 10)]),
        (OURS_LINES, [(0.0, 3, 4), (1.5, 5, 6), (2.0, 7, 8)]),
    ],
)
def test_each_format_is_known_by_its_columns(save, content, known):
    assert rows(traces.read("--load", save(content))) == known


def test_requests_that_failed_are_left_out_and_counted(save):
    assert traces.read("--load", save(BURSTGPT)).left_out == 1
    assert traces.read("--load", save(AZURE, "other")).left_out == 0


def test_a_session_is_named_by_its_first_row_in_time(save):
    assert traces.read("--load", save(OURS)).session.tolist() == [0, 1, 1]
    assert traces.read("--load", save(OURS_LINES, "lines")).session.tolist() == [0, 1, 1]
    assert traces.read("--load", save(AZURE, "other")).session is None


def test_hash_ids_are_kept_where_there_are_some(save):
    known = traces.read("--load", save(MOONCAKE)).hash_ids
    assert [ids.tolist() for ids in known] == [[0, 1, 2], [0, 14]]
    none, some, last = traces.read("--load", save(OURS_LINES, "lines")).hash_ids
    assert (none, some.tolist(), last) == (None, [9], None)
    assert traces.read("--load", save(OURS, "other")).hash_ids is None


def test_a_trace_is_read_once_until_its_file_changes(save):
    path = save(AZURE)
    first = traces.read("--load", path)
    assert traces.read("--data", path) is first
    assert rows(traces.read("--load", save(BURSTGPT))) != rows(first)


@pytest.mark.parametrize(
    ("content", "place", "hint"),
    [
        ("", "trace", "there are none"),
        ("time,in,out\n1,2,3\n", "trace", "there are time, in, out"),
        ("time_s,input_tokens,output_tokens\n", "trace", "at least one row"),
        ("time_s,input_tokens,output_tokens\n1,0,3\n", "trace", "at least one row"),
        (OURS + "13,x,4,b\n", "trace:7", "input_tokens to be a whole number"),
        (OURS + "13,4.5,4,b\n", "trace:7", "not '4.5'"),
        (OURS + "13,-4,4,b\n", "trace:7", "from 0 to 10000000"),
        (OURS + "13,99999999999999999999,4,b\n", "trace:7", "from 0 to 10000000"),
        (OURS + "soon,4,4,b\n", "trace:7", "want time_s to be a time in seconds"),
        (OURS + "nan,4,4,b\n", "trace:7", "a time in seconds"),
        (OURS + "1e300,4,4,b\n", "trace:7", "a time in seconds"),
        (OURS + ",4,4,b\n", "trace:7", "not nothing"),
        (OURS + "13,4,4\n", "trace:7", "want 4 cells"),
        (AZURE + "yesterday,4,4\n", "trace:5", "a time in UTC such as"),
        (AZURE + "2024-05-10 00:00:00+02:00,4,4\n", "trace:5", "a time in UTC such as"),
        (AZURE + ",4,4\n", "trace:5", "a time in UTC such as"),
        (MOONCAKE + "{\n", "trace:3", "a JSON object on each line"),
        (MOONCAKE + "[1]\n", "trace:3", "a JSON object on each line"),
        (f"[{MOONCAKE}]", "trace:1", "a JSON object on each line"),
        (MOONCAKE + '{"timestamp": 1}', "trace:3", "input_length to be a whole number"),
        (MOONCAKE.replace(" 500,", " true,"), "trace:1", "not True"),
        (MOONCAKE.replace(" 500,", " 500.0,"), "trace:1", "not 500.0"),
        (MOONCAKE.replace("14]", "-14]"), "trace:2", "a list of whole numbers from 0"),
        (MOONCAKE.replace("14]", "[14]]"), "trace:2", "a list of whole numbers from 0"),
        (OURS_LINES.replace('"session": 7', '"session": [7]'), "trace:3", "a word or a whole"),
    ],
)
def test_a_wrong_trace_is_refused_with_the_line_and_what_would_be_right(save, content, place, hint):
    with refused("--load", hint, place=place):
        traces.read("--load", save(content))


@pytest.mark.parametrize("path", ["no/such/file", "/", "\0"])
def test_a_trace_that_cannot_be_read_is_refused(path):
    with pytest.raises(BadInput, match="can be read"):
        traces.read("--load", path)


def test_a_trace_of_bytes_that_are_no_text_is_refused(tmp_path):
    (tmp_path / "trace").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="UTF-8"):
        traces.read("--load", str(tmp_path / "trace"))


@given(
    st.lists(
        st.tuples(st.integers(0, 10**9), st.integers(1, 10**7), st.integers(1, 10**7)),
        min_size=1,
        max_size=3000,
    )
)
def test_whatever_their_order_and_number_rows_come_back_sorted_by_time(tmp_path_factory, wanted):
    path = tmp_path_factory.mktemp("t") / "trace.jsonl"
    keys = ("timestamp", "input_length", "output_length")
    path.write_text("".join(json.dumps(dict(zip(keys, r, strict=True))) + "\n" for r in wanted))
    ordered = sorted(wanted, key=lambda row: row[0])
    begin = ordered[0][0]
    found = traces.read("--load", str(path))
    assert rows(found) == [((t - begin) * 10**6 / 1e9, i, o) for t, i, o in ordered]


# --- as a data set


def replayed(path: str, **more: Any) -> ItemSource:
    return source(f"trace:{path}", **more)


def words(prompt: str) -> list[str]:
    """The prompt in tokens, as the ruler of these tests counts them."""
    return prompt.replace(",", " ,").replace(".", " .").split()


def lines(*found: tuple[int, list[int] | None]) -> str:
    """A trace of input lengths and hash ids."""
    keyed = (
        {"timestamp": k, "input_length": n, "output_length": 5, "hash_ids": ids}
        for k, (n, ids) in enumerate(found)
    )
    return "".join(json.dumps(row) + "\n" for row in keyed)


def shared(one: str, other: str) -> int:
    """How many tokens two prompts share at their beginning."""
    pairs = zip(words(one), words(other), strict=False)
    return next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(words(one)), 10**9))


@pytest.mark.parametrize("content", [AZURE, BURSTGPT, MOONCAKE, OURS])
@pytest.mark.parametrize("overhead", [0, 20])
def test_items_are_as_long_as_the_rows_and_in_their_order(save, content, overhead):
    path = save(content)
    items = replayed(path, ruler=replace(RULER, overhead=overhead))
    trace = traces.read("--data", path)
    for i in range(2 * len(trace)):
        item, row = items(i), i % len(trace)
        assert item.input_tokens == max(overhead + 1, trace.input_tokens[row])
        assert len(words(item.prompt)) + overhead == item.input_tokens
        assert (item.output_tokens, item.pinned) == (trace.output_tokens[row], True)


def test_the_user_may_want_another_length_of_answers_but_not_of_prompts(save):
    assert replayed(save(AZURE), outputs="9")(0).output_tokens == 9
    with pytest.raises(BadInput, match="--input-tokens"):
        replayed(save(AZURE), inputs="9")


def test_prompts_share_what_their_hash_ids_share(save):
    content = lines((70, [1, 2, 3]), (96, [1, 2, 4]), (96, [5, 2, 4]), (64, [1, 2]), (200, [1]))
    items = replayed(f"{save(content)},block=32")
    prompts = [items(i).prompt for i in range(5)]
    assert shared(prompts[0], prompts[1]) in range(64, 68)  # a few tokens agree by chance
    assert shared(prompts[0], prompts[2]) < 4
    assert shared(prompts[3], prompts[1]) == 64
    assert shared(prompts[4], prompts[1]) in range(32, 36)


def test_equal_rows_are_equal_prompts_and_rows_without_ids_are_not(save):
    content = lines((70, [1, 2, 3]), (70, [1, 2, 3]), (70, None), (70, None))
    items = replayed(f"{save(content)},block=32")
    assert items(0).prompt == items(1).prompt
    assert shared(items(2).prompt, items(3).prompt) < 4


def test_no_prefix_is_shared_with_the_next_time_round_or_another_seed(save):
    path = f"{save(lines((70, [1, 2, 3]), (90, [1, 2, 4])))},block=32"
    items = replayed(path)
    assert shared(items(0).prompt, items(2).prompt) < 4
    assert shared(items(1).prompt, items(2).prompt) < 4
    assert shared(items(2).prompt, items(3).prompt) >= 64
    assert shared(items(0).prompt, replayed(path, seed=1)(0).prompt) < 4


@given(
    st.integers(1, 400),
    st.lists(st.integers(0, 2**64 - 1), max_size=12),
    st.integers(0, 60),
    st.integers(1, 64),
)
def test_whatever_the_hash_ids_a_prompt_has_its_exact_length(
    tmp_path_factory, tokens, ids, overhead, block
):
    path = tmp_path_factory.mktemp("t") / "trace.jsonl"
    path.write_text(lines((tokens, ids), (tokens + 9, ids)))
    items = replayed(f"{path},block={block}", ruler=replace(RULER, overhead=overhead))
    one, other = items(0), items(1)
    assert len(words(one.prompt)) + overhead == one.input_tokens == max(tokens, overhead + 1)
    both = min(len(ids) * block, one.input_tokens - overhead)
    assert shared(one.prompt, other.prompt) >= both - 3  # the last of a cut block may not fit


def test_rows_of_a_session_are_its_turns_and_other_sessions_the_next_time_round(save):
    items = replayed(save(OURS))
    assert [items.turn(i) for i in range(6)] == [
        *(Turn(0, 0, last=True), Turn(1, 0), Turn(1, 1, last=True)),
        *(Turn(3, 0, last=True), Turn(4, 0), Turn(4, 1, last=True)),
    ]
    assert not items.alone


def test_rows_without_sessions_stand_alone(save):
    items = replayed(save(AZURE))
    assert items.alone
    assert [items.turn(i) for i in (0, 5)] == [Turn(0, last=True), Turn(5, last=True)]


def test_items_are_the_same_in_whatever_order_they_are_asked(save):
    path = save(MOONCAKE)
    one, other = replayed(path), replayed(path)
    assert [one(i) for i in range(6)] == [other(i) for i in reversed(range(6))][::-1]


def test_a_data_set_that_is_no_trace_is_refused(save):
    with refused("--data"):
        replayed(save("prompt\nhello\n"))
    with pytest.raises(BadInput, match="block to be 1"):
        replayed(save(AZURE) + ",block=0")


def test_a_load_and_a_data_set_agree_on_what_is_row_k(save):
    trace = traces.read("--load", save(OURS))
    assert np.all(np.diff(trace.time_s) >= 0)
    assert replayed(save(OURS))(0).input_tokens == trace.input_tokens[0] == 5
