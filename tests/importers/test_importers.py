"""Files that the real tools wrote, read as figures of ours."""

import json
import shutil

import numpy as np
import pytest

from servescope import importers

STEP_S, OUTPUT = 5e-3, 24
DETAILED = ["vllm-detailed.json", "vllm-rust.json", "sglang-details.jsonl", "sglang-rust.jsonl"]
DETAILED += ["guidellm.json", "guidellm.yaml", "aiperf/profile_export_aiperf.json"]
EVERY = [*DETAILED, "vllm.json", "vllm-chat.json", "vllm-appended.json", "sglang.jsonl"]
EVERY += ["vllm-failures.json", "aiperf-failures/profile_export.jsonl", "locust_stats.csv"]


def only(path):
    (stage,) = importers.read(path).stages
    return stage


@pytest.mark.parametrize("name", EVERY)
def test_every_figure_comes_with_its_tools_definition_in_one_line(results, name):
    found = importers.read(results / name)
    assert set(found.definitions) == {figure for one in found.stages for figure in one.figures}
    assert all(text and "\n" not in text for text in found.definitions.values())


@pytest.mark.parametrize("name", [name for name in EVERY if "failures" not in name])
def test_the_engines_steps_are_what_every_tool_measured(results, name):
    for stage in importers.read(results / name).stages:
        figures = stage.figures
        assert stage.outcomes["completed"] in (8, 24, 60)
        assert set(stage.outcomes) == {"completed"}
        assert figures["e2e_s"]["mean"] == pytest.approx(OUTPUT * STEP_S, rel=0.25)
        if "ttft_s" in figures:  # Locust sees no tokens
            assert figures["tpot_s"]["p50"] == pytest.approx(STEP_S, rel=0.1)
            assert figures["output_tokens"]["mean"] == OUTPUT
            assert figures["ttft_s"]["mean"] < figures["e2e_s"]["mean"] / 2
        if "icl_s" in figures:
            assert figures["icl_s"]["p50"] == pytest.approx(STEP_S, rel=0.1)


@pytest.mark.parametrize("name", DETAILED)
def test_a_file_with_every_request_gives_its_values_and_their_percentiles(results, name):
    for stage in importers.read(results / name).stages:
        assert {"ttft_s", "tpot_s", "e2e_s", "input_tokens", "output_tokens"} <= set(stage.values)
        for figure, values in stage.values.items():
            assert len(values) == stage.outcomes["completed"]
            assert stage.figures[figure]["p90"] == pytest.approx(np.percentile(values, 90))


def test_the_loads_have_our_words_for_them(results):
    loads = {name: [one.load for one in importers.read(results / name).stages] for name in EVERY}
    assert loads["vllm-appended.json"] == loads["guidellm.json"] == ["users:2", "users:4"]
    assert loads["sglang.jsonl"] == ["users:2", "users:4"]
    assert loads["guidellm.yaml"] == ["poisson:40"]
    assert loads["vllm-failures.json"] == ["burst"]
    assert loads["aiperf/profile_export_aiperf.json"] == loads["locust_stats.csv"] == ["users:4"]


# --- vLLM and SGLang ------------------------------------------------------------------------------


def test_what_is_worked_out_from_vllms_requests_is_what_vllm_printed(results):
    path = results / "vllm-detailed.json"
    said, figures = json.loads(path.read_text()), only(path).figures
    for theirs, ours in {
        "ttft": "ttft_s",
        "tpot": "tpot_s",
        "itl": "icl_s",
        "e2el": "e2e_s",
    }.items():
        for statistic, name in {
            "mean": "mean",
            "median": "p50",
            "p95": "p95",
            "p99": "p99",
        }.items():
            printed = said[f"{statistic}_{theirs}_ms"]
            assert figures[ours][name] == pytest.approx(printed / 1e3, rel=1e-9)
    assert figures["output_tokens_per_s"] == said["output_throughput"]


def test_vllms_result_without_details_is_what_it_printed_and_its_latencies(results):
    path = results / "vllm.json"
    said, stage = json.loads(path.read_text()), only(path)
    assert stage.figures["ttft_s"] == {
        "mean": pytest.approx(said["mean_ttft_ms"] / 1e3),
        "p50": pytest.approx(said["median_ttft_ms"] / 1e3),
        "p99": pytest.approx(said["p99_ttft_ms"] / 1e3),
    }
    assert stage.values.keys() == {"e2e_s"}
    assert stage.values["e2e_s"].tolist() == said["latencies"]


def test_gaps_between_chunks_are_token_gaps_only_where_each_chunk_was_a_token(results, save):
    assert only(results / "vllm-detailed.json").figures["itl_s"]["p50"] == pytest.approx(
        STEP_S, rel=0.1
    )
    said = json.loads((results / "vllm-detailed.json").read_text())
    said["output_lens"] = [4 * length for length in said["output_lens"]]  # four tokens a chunk
    figures = only(save("four.json", json.dumps(said))).figures
    assert "itl_s" not in figures
    assert figures["tokens_per_chunk"] == pytest.approx(4)
    assert figures["icl_s"]["p50"] == pytest.approx(STEP_S, rel=0.1)


def test_a_chats_first_event_with_only_the_role_is_told(results):
    found = importers.read(results / "vllm-chat.json")
    assert "itl_s" not in found.stages[0].figures
    assert any("only the role" in note and "24 answers" in note for note in found.notes)
    assert not importers.read(results / "vllm-detailed.json").notes


@pytest.mark.parametrize(
    ("name", "completed", "failed"),
    [("vllm-failures.json", 2, 22), ("aiperf-failures/profile_export_aiperf.json", 3, 21)],
)
def test_failed_requests_are_counted_and_have_no_part_in_any_figure(
    results, name, completed, failed
):
    stage = only(results / name)
    assert stage.outcomes == {"completed": completed, "failed": failed}
    assert all(len(values) == completed for values in stage.values.values())
    assert stage.figures["ttft_s"]["min"] > STEP_S / 2
    assert stage.figures["output_tokens"]["mean"] == OUTPUT


def test_values_are_in_the_order_of_sending(results, save):
    said = json.loads((results / "vllm-detailed.json").read_text())
    lists = ("ttfts", "itls", "latencies", "start_times", "output_lens", "input_lens", "errors")
    wanted = only(results / "vllm-detailed.json").values["ttft_s"]
    for name in lists:
        said[name].reverse()
    found = only(save("back.json", json.dumps(said))).values["ttft_s"]
    assert found.tolist() == wanted.tolist()


def test_sglangs_native_gaps_are_of_tokens_and_its_others_of_chunks(results, save):
    text = (results / "sglang-details.jsonl").read_text()
    native = text.replace('"backend": "vllm"', '"backend": "sglang"')
    figures = only(save("native.jsonl", native)).figures
    assert "icl_s" not in figures
    assert figures["itl_s"]["n"] == 24 * (OUTPUT - 1)
    assert "icl_s" in only(results / "sglang.jsonl".replace(".jsonl", "-rust.jsonl")).figures


def test_what_is_worked_out_from_sglangs_requests_is_near_what_sglang_printed(results):
    path = results / "sglang-details.jsonl"
    said, figures = json.loads(path.read_text()), only(path).figures
    assert figures["ttft_s"]["p99"] == pytest.approx(said["p99_ttft_ms"] / 1e3)
    assert figures["icl_s"]["mean"] == pytest.approx(said["mean_itl_ms"] / 1e3)
    # It goes to the end of the stream, the lists to the last event with text.
    assert figures["e2e_s"]["mean"] == pytest.approx(said["mean_e2e_latency_ms"] / 1e3, rel=0.02)
    assert figures["concurrency"] == {"mean": said["concurrency"]}


def test_sglang_does_not_count_failures_without_details(results):
    assert any("failures" in note for note in importers.read(results / "sglang.jsonl").notes)
    assert not importers.read(results / "sglang-details.jsonl").notes


# --- GuideLLM, AIPerf, Locust ---------------------------------------------------------------------


def test_guidellms_itl_is_our_tpot_and_its_tpot_our_normalized_latency(results):
    path = results / "guidellm.json"
    found = importers.read(path)
    assert (found.tool, found.tool_version) == ("GuideLLM", "0.8.1")
    for said, stage in zip(json.loads(path.read_text())["benchmarks"], found.stages, strict=True):
        theirs, ours = said["metrics"], stage.figures
        itl = theirs["inter_token_latency_ms"]["successful"]
        tpot = theirs["time_per_output_token_ms"]["successful"]
        assert ours["tpot_s"]["mean"] == pytest.approx(itl["mean"] / 1e3)
        assert ours["normalized_latency_s_per_token"]["mean"] == pytest.approx(tpot["mean"] / 1e3)
        assert ours["requests_per_s"] == theirs["requests_per_second"]["successful"]["mean"]
        e2e, ttft = stage.values["e2e_s"], stage.values["ttft_s"]
        # To its end of the stream; our end is the last content, a little earlier.
        assert (stage.values["tpot_s"] * (OUTPUT - 1) <= e2e - ttft).all()


def test_a_sample_of_guidellms_requests_is_not_taken_for_all_of_them(results, save):
    said = json.loads((results / "guidellm.json").read_text())
    for benchmark in said["benchmarks"]:
        del benchmark["requests"]["successful"][5:]
    for stage in importers.read(save("sampled.json", json.dumps(said))).stages:
        assert not stage.values
        assert stage.figures["ttft_s"]["p99"] > 0


def test_aiperfs_summary_and_its_records_say_the_same(results, tmp_path):
    path = results / "aiperf" / "profile_export_aiperf.json"
    whole = only(path)
    shutil.copy(path, tmp_path)
    alone = importers.read(tmp_path / path.name)
    assert not alone.stages[0].values
    assert any("profile_export.jsonl is not beside it" in note for note in alone.notes)
    for name in ("ttft_s", "tpot_s", "icl_s", "e2e_s", "output_tokens"):
        for statistic in ("n", "mean", "p50", "p99", "max"):
            summed = alone.stages[0].figures[name][statistic]
            assert whole.figures[name][statistic] == pytest.approx(summed)


def test_aiperfs_records_alone_have_no_throughput(results, tmp_path):
    path = shutil.copy(results / "aiperf" / "profile_export.jsonl", tmp_path)
    found = importers.read(path)
    assert "requests_per_s" not in found.stages[0].figures
    assert found.stages[0].figures["ttft_s"]["n"] == 24
    assert any("no throughput" in note for note in found.notes)


def test_locusts_history_stands_for_its_statistics_and_each_name_for_itself(results, tmp_path):
    for name in ("locust_stats.csv", "locust_stats_history.csv"):
        shutil.copy(results / name, tmp_path)
    assert only(tmp_path / "locust_stats_history.csv") == only(tmp_path / "locust_stats.csv")
    stats = tmp_path / "locust_stats.csv"
    header, row, total = stats.read_text().splitlines()
    ttft = row.replace("POST,/v1/completions,60,0", "LLM,ttft,60,12")
    stats.write_text("\n".join([header, row, ttft, total]))
    found = importers.read(stats)
    assert [one.load for one in found.stages] == [
        "users:4 POST /v1/completions",
        "users:4 LLM ttft",
    ]
    assert found.stages[1].outcomes == {"completed": 48, "failed": 12}
    assert any("failed" in note for note in found.notes)
