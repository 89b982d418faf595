"""The commands `plan` and `calibrate`."""

import json

import pytest

import servescope
from servescope import catalog

BASE = ["plan", "--model", "llama-2-13b", "--gpu", "a800-sxm-80gb", "--tp", "1"]


def test_the_answers_are_told_in_words_and_tables(command):
    status, out, err = command(*BASE, "--slo", "ttft_p99<2s,tpot_p95<50ms", "--rate", "9")
    assert status == 0, err
    for words in (
        "Does it fit?",
        "Yes, from tp=1",
        "Which tensor-parallel size?",
        "How many requests/s within the SLO?",
        "How many GPUs for 9 requests/s?",
        "What does it cost?",
        "What does memory utilisation do?",
        "Where does the time go?",
        "How far may this be off?",
    ):
        assert words in out
    assert not err


def test_json_holds_the_answers_and_their_errors(command):
    found = json.loads(command(*BASE, "--json", "--price", "2.5")[1])
    assert found["choice"]["tp"] == 1
    assert found["choice"]["sizes"][0]["memory"]["fits"]
    assert found["costs"][0]["per_hour"] == 2.5
    assert found["shares"]["error"]["p90"] > 0
    assert found["rate"] is None
    assert "at $1.30 a GPU and hour" in command(*BASE)[1]


def test_sides_are_laid_side_by_side(command):
    words = [*BASE, "--compare", "engine=vllm,tgi-1.0"]
    _, out, _ = command(*words)
    assert "engine=tgi-1.0" in out
    sides = json.loads(command(*words, "--json")[1])["comparisons"][0]["sides"]
    assert [side["label"] for side in sides] == ["engine=vllm", "engine=tgi-1.0"]


def test_what_is_compared_need_not_be_named_twice(command):
    words = ["--tp", "1", "--compare"]
    _, gpus, _ = command("plan", "--model", "qwen2-7b", *words, "gpu=l40s,h100-sxm-80gb")
    assert "gpu=h100-sxm-80gb" in gpus
    _, models, _ = command("plan", "--gpu", "l40s", *words, "model=qwen2-7b,llama-3.1-8b")
    assert "model=llama-3.1-8b" in models


def test_a_model_that_does_not_fit_is_an_answer_and_no_error(command):
    status, out, _ = command("plan", "--model", "llama-3.1-405b", "--gpu", "l4", "--tp", "1,2")
    assert status == 0
    assert "No: with tp=2 its weights take" in out
    assert "It would fit" in out


def test_list_prints_all_names_and_settings(command):
    out = command("plan", "--list")[1]
    for kind in ("gpus", "models"):
        assert all(name in out for name in catalog.names()[kind])
    assert "tensorrt-llm" in out
    assert "  max_num_batched_tokens=none" in out
    assert json.loads(command("plan", "--list", "--json")[1])["settings"]["tp"] == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["plan", "--gpu", "l4"], "--model"),
        (["plan", "--model", "qwen2-7b", "--compare", "tp=1,2"], "--gpu"),
        (["plan", "--model", "llama-2-13b", "--gpu", "a800-sxm-80bg"], "did you mean"),
        (["plan", "--model", "lama-2-13b", "--gpu", "l4"], "did you mean llama-2-13b"),
        ([*BASE, "--engine", "vlm"], "did you mean vllm"),
        ([*BASE, "--engine", "vllm?max_seqs=4"], "max_num_seqs"),
        ([*BASE[:-2], "--tp", "3"], "divisor of the 40 heads"),
        ([*BASE[:-2], "--tp", "two"], "want sizes such as 1,2,4"),
        ([*BASE, "--dtype", "fp17"], "did you mean fp16"),
        ([*BASE, "--slo", "ttft<2"], "with its unit"),
        ([*BASE, "--slo", ""], "want bounds such as"),
        ([*BASE, "--context", "5000"], "want at most 4096"),
        ([*BASE, "--slo", "itl_p99<50ms"], "times of single tokens"),
        ([*BASE, "--input-tokens", "uniform:9"], "uniform:LOW-HIGH"),
        ([*BASE, "--rate", "0"], "above 0"),
        ([*BASE, "--rate", "nan"], "above 0"),
        ([*BASE, "--rate", "3", "--users", "4"], "either"),
        ([*BASE, "--memory-utilization", "1.5"], "(0, 1]"),
        ([*BASE, "--calibration", "none.toml"], "cannot be read"),
        (["plan", "--validate", "--rate", "20"], "without --validate"),
        (["plan", "--list", "--gpu", "l4"], "without --list"),
        ([*BASE, "--compare", "gpu"], "SETTING=a,b"),
        ([*BASE, "--compare", "gpu=a800-sxm-80gb,b"], "want one of"),
        (["calibrate", "nowhere", "-o", "x.toml"], "want a run's directory"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(command, words, told):
    status, out, err = command(*words)
    assert status == 2, out
    assert told in err
    assert err.count("\n") == 1
    assert not out


def test_a_server_is_calibrated_and_planned_with(command, tmp_path):
    sim, runs = "sim:vllm?step=6ms&max_num_seqs=8", []
    for load in ("users:1", "users:8"):
        options = {"input_tokens": "uniform:16-256", "output_tokens": "uniform:8-64"}
        name = load.replace(":", "-")
        run = servescope.run(sim, load=[load], name=name, out=str(tmp_path), seed=1, **options)
        runs.append(str(run.path))
    path = tmp_path / "server.toml"
    status, out, err = command("calibrate", *runs, "--engine", "vllm?max_num_seqs=8", "-o", path)
    assert status == 0, err
    assert "simulated against measured:" in out
    target = f"sim:vllm?calibration={path}"
    status, out, err = command("run", target, "--requests", 20, "--out", tmp_path / "again")
    assert status == 0, err
    words = ["plan", "--calibration", path, "--slo", "ttft_p99<500ms", "--price", "1"]
    status, out, err = command(*words)
    assert status == 0, err
    assert "calibrated on this server" in out
    status, _, err = command(*words, "--tp", "2")
    assert status == 2
    assert "its constants do not transfer to other sizes" in err
    for setting in ("model=llama-2-7b,llama-2-13b", "gpu=l4,h100-sxm-80gb", "tp=1,2"):
        status, out, err = command(*words, "--compare", setting)
        assert status == 2, out
        assert f"a calibration is of one {setting.partition('=')[0]}" in err
    status, out, err = command(*words, "--compare", "max_num_seqs=4,8")
    assert status == 0, err


def test_each_model_of_a_comparison_keeps_its_own_format_of_weights(command):
    def side(models):
        told = command("plan", "--gpu", "b200", "--json", "--compare", f"model={models}")[1]
        found = {one["label"]: one for one in json.loads(told)["comparisons"][0]["sides"]}
        return found["model=deepseek-v3"]["kv_tokens"]

    assert side("llama-2-7b,deepseek-v3") == side("deepseek-v3,llama-2-7b")


def test_the_error_bar_takes_more_replicas_only_where_its_low_end_is_not_enough(command):
    words = ("plan", "--model", "llama-3.1-8b", "--gpu", "h100", "--tp", 1, "--json")
    full_per_s = json.loads(command(*words)[1])["choice"]["sizes"][0]["requests_per_s"]

    def needed(load):
        found = json.loads(command(*words, "--rate", load * full_per_s)[1])["fleet"]
        return found["replicas"], found["cautious_replicas"]

    assert needed(0.5) == (1, 1)
    assert needed(0.85) == (1, 2)


def test_users_without_an_slo_get_replicas_that_are_not_full(command):
    words = (
        "plan",
        "--model",
        "llama-3.1-8b",
        "--gpu",
        "h100",
        "--tp",
        1,
        "--users",
        300,
        "--json",
    )
    assert json.loads(command(*words)[1])["fleet"]["load"] <= 0.95
