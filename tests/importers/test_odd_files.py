"""Files that no tool wrote, or not whole: one line that names the file, never anything else."""

import json
import os
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servescope import importers
from servescope.errors import BadInput

NAMES = ["vllm.json", "vllm-detailed.json", "vllm-appended.json", "sglang.jsonl"]
NAMES += ["sglang-details.jsonl", "guidellm.json", "guidellm.yaml", "locust_stats.csv"]
NAMES += ["aiperf/profile_export_aiperf.json", "aiperf/profile_export.jsonl"]


def refusal(path):
    with pytest.raises(BadInput) as caught:
        importers.read(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path)[-30:] in text
    return text


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12)
@given(data=st.data())
def test_a_file_that_was_cut_or_changed_is_read_or_refused_in_a_line(
    results, tmp_path_factory, name, data
):
    whole = (results / name).read_bytes()
    at = data.draw(st.integers(0, len(whole)))
    put = data.draw(
        st.sampled_from([b"", b"\x00", b"NaN", b"[", b'"', b"-1e999", b"null", b"\xff"])
    )
    drop = data.draw(st.sampled_from([0, 1, len(whole)]))
    path = tmp_path_factory.mktemp("odd") / name.rpartition("/")[2]
    path.write_bytes(whole[:at] + put + whole[at + drop :])
    with suppress(BadInput):
        assert importers.read(path).stages
        return
    refusal(path)


def test_a_file_of_no_tool_is_refused_with_what_would_be_right(save, tmp_path):
    for path in (save("a.json", "{}"), save("b.bin", b"\x00" * 100), save("empty", "")):
        text = refusal(path)
        for tool in ("vllm bench serve", "sglang.bench_serving", "GuideLLM", "AIPerf", "Locust"):
            assert tool in text
    assert "vllm" in refusal(tmp_path / "missing.json")
    assert "vllm" in refusal(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    refusal(tmp_path / "pipe.json")


def test_a_truncated_file_says_so(results, save):
    text = (results / "vllm-detailed.json").read_text()
    assert "truncated" in refusal(save("cut.json", text[:5000]))


def test_a_wrong_type_is_named_by_its_key(results, save):
    said = json.loads((results / "vllm.json").read_text())
    assert "mean_ttft_ms" in refusal(save("t.json", json.dumps(said | {"mean_ttft_ms": "fast"})))
    assert "completed" in refusal(save("c.json", json.dumps(said | {"completed": [1]})))
    report = json.loads((results / "guidellm.json").read_text())
    report["benchmarks"][0]["metrics"]["request_totals"] = 7
    assert "request_totals" in refusal(save("g.json", json.dumps(report)))


def test_lists_of_different_lengths_are_refused(results, save):
    said = json.loads((results / "vllm-detailed.json").read_text())
    said["ttfts"].pop()
    assert "lists of one length" in refusal(save("short.json", json.dumps(said)))


def test_a_number_that_is_none_counts_as_missing(results, save):
    said = json.loads((results / "vllm.json").read_text())
    nan = {"p99_ttft_ms": float("nan"), "output_throughput": float("inf")}
    (stage,) = importers.read(save("nan.json", json.dumps(said | nan))).stages
    assert "p99" not in stage.figures["ttft_s"]
    assert "output_tokens_per_s" not in stage.figures
    assert stage.figures["requests_per_s"] > 0


def test_keys_that_a_version_lacks_are_named_and_the_rest_is_read(results, save):
    said = json.loads((results / "vllm.json").read_text())
    del said["output_throughput"], said["failed"]
    found = importers.read(save("old.json", json.dumps(said)))
    assert "requests_per_s" in found.stages[0].figures
    assert "output_tokens_per_s" not in found.stages[0].figures
    assert any("lacks failed, output_throughput" in note for note in found.notes)


def test_a_benchmark_in_which_nothing_was_answered_is_refused(results, save):
    said = json.loads((results / "vllm-failures.json").read_text())
    none = {"completed": 0, "errors": ["refused"] * 24}
    assert "at least one request" in refusal(save("none.json", json.dumps(said | none)))


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("a.yaml", b"benchmarks: "),
        ("b.json", b'{"guidellm_version": '),
        ("c.json", b'{"backend": "x", "tokenizer_id": "x", "num_prompts": '),
    ],
)
def test_nesting_without_end_is_refused(save, name, head):
    refusal(save(name, head + b"[" * 200_000))


def test_yaml_that_grows_when_it_is_read_is_refused(save):
    laughs = "benchmarks:\n- &a [x, x]\n" + "".join(
        f"- &{chr(98 + k)} [*{chr(97 + k)}, *{chr(97 + k)}]\n" for k in range(20)
    )
    assert "aliases" in refusal(save("laughs.yaml", laughs))


def test_a_file_too_large_to_be_read_is_refused_at_once(save):
    path = save("huge.json", b'{"tokenizer_id": 1, "num_prompts": 1, "backend": 1')
    os.truncate(path, 400 << 20)
    assert "256 MiB" in refusal(path)
