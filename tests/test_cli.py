"""The command as a user meets it: options, exit statuses, one clear line for bad input."""

import json
import subprocess
import sys

import pytest

from tests.support.served import Served, healthy

UNREACHABLE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def server():
    with Served(healthy(0.002, 0.001), tokenize=True) as found:
        yield found


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--load", "user:4"), ("--load", "'user:4'", "did you mean users")),
        (("--load", "users:0"), ("--load", "users:0")),
        (("--load", "poisson:-1"), ("--load", "poisson:-1", "above 0")),
        (("--load", "constant:nan"), ("--load", "constant:nan")),
        (("--load", "poisson:4,sparkle=1"), ("--load", "sparkle")),
        (("--load", "burst", "--duration", "3s"), ("--load", "burst", "--requests")),
        (("--request-rate", "-3"), ("poisson:-3",)),
        (("--requests", "0"), ("--requests", "'0'", "1 to")),
        (("--requests", "many"), ("many",)),
        (("--duration", "soon"), ("--duration", "'soon'", "30s")),
        (("--duration", "-3s"), ("--duration", "'-3s'")),
        (("--input-tokens", "0"), ("--input-tokens", "'0'")),
        (("--input-tokens", "-5"), ("--input-tokens", "'-5'")),
        (("--input-tokens", "normal:mean=3"), ("--input-tokens", "normal:mean=3", "std")),
        (("--output-tokens", "uniform:9-2"), ("--output-tokens", "uniform:9-2")),
        (("--data", "file:missing.txt"), ("--data", "missing.txt")),
        (("--data", "sharegpt"), ("--data", "path")),
        (("--data", "novel"), ("--data", "novel", "one of")),
        (("--slo", "tfft<200ms"), ("--slo", "tfft", "did you mean ttft")),
        (("--slo", "ttft=200ms"), ("--slo", "ttft=200ms")),
        (("--goodput", "ttft:soon"), ("ttft:soon",)),
        (("--timeout", "0"), ("--timeout", "'0'")),
        (("--protocol", "openai-chatt"), ("--protocol", "did you mean openai-chat")),
        (("--workers", "0"), ("--workers", "'0'")),
        (("--seed", "-1"), ("--seed", "'-1'")),
        (("--extra-body", "[1]"), ("--extra-body", "JSON object")),
        (("--tokenizer", "nowhere.json"), ("--tokenizer", "nowhere.json")),
        (("--api-key-file", "nowhere"), ("--api-key-file", "nowhere")),
        (("--out", "/proc/nowhere"), ("--out", "/proc/nowhere")),
        (("--load", "users:999999"), ("connections", "open files")),
        (("--lod", "users:4"), ("--lod",)),
        (("--max-concurrency", "0"), ("users:0",)),
        (("--format", "pdf"), ("pdf",)),
    ],
)
def test_bad_input_is_one_line_that_names_it_and_exit_2_before_any_request(command, words, told):
    status, out, err = command("run", UNREACHABLE, *words)
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for part in told:
        assert part in err


def test_without_a_command_the_help_is_shown(command):
    assert command() == command("--help")


def test_an_option_that_is_none_is_compared_by_its_letters_alone(command):
    assert command("run", "--bogus")[2] == "servescope: No such option '--bogus'.\n"
    assert "Did you mean '--requests'?" in command("run", "--reqests")[2]


@pytest.mark.parametrize("url", ["ftp://127.0.0.1:1", "http://", "http://127.0.0.1:99999", "a b"])
def test_a_bad_url_is_bad_input(command, url):
    status, _, err = command("run", url)
    assert (status, err.count("\n")) == (2, 1)


def test_a_length_that_the_chat_template_fills_is_refused_before_any_request(command, server):
    before = len(server.requests)
    status, _, err = command("run", server.url, "--input-tokens", "1", "--data", "dummy:ids=true")
    assert status == 2
    assert "--data" in err
    assert len(server.requests) == before


def test_nobody_there_is_exit_3_with_the_reason_and_leaves_no_directory(command, tmp_path):
    status, _, err = command("run", UNREACHABLE)
    assert status == 3
    assert "refused" in err.lower()
    assert not list((tmp_path / "runs").iterdir())


def test_a_server_that_generates_nothing_is_exit_3_in_its_own_words(command, server):
    status, _, err = command("run", f"{server.url}/elsewhere", "--timeout", "5s")
    assert status == 3
    assert "Not Found" in err


def test_json_prints_the_summary_and_nothing_else(command, server):
    status, out, err = command("run", server.url, "--requests", "8", "--json")
    summary = json.loads(out)
    assert (status, err) == (0, "")
    assert summary["schema"] == 1
    assert summary["kind"] == "measured"
    assert summary["stages"][0]["outcomes"] == {"completed": 8}
    assert summary["stages"][0]["figures"]["ttft_s"]["n"] == 8


def test_quiet_prints_the_directory_and_report_prints_the_table_from_it_again(command, server):
    _, path, err = command("run", server.url, "--requests", "8", "--quiet")
    assert err == ""
    status, table, _ = command("report", path.strip())
    assert status == 0
    assert "8 completed" in table
    assert max(map(len, table.splitlines())) <= 100


def test_the_table_of_a_run_and_of_its_report_are_the_same(command, server):
    _, first, _ = command(
        "run", server.url, "--requests", "8", "--load", "users:2,4", "--name", "x"
    )
    _, again, _ = command("report", "runs/x")
    assert first == again


def test_vllms_spellings_mean_the_same(command, server):
    ours = command(
        "run", server.url, "--load", "users:3", "--requests", "9", "--input-tokens", "20",
        "--output-tokens", "4", "--seed", "5", "--json",
    )  # fmt: skip
    theirs = command(
        "run", server.url, "--max-concurrency", "3", "--num-prompts", "9", "--random-input-len",
        "20", "--random-output-len", "4", "--seed", "5", "--json",
    )  # fmt: skip
    stages = [json.loads(out)["stages"][0] for _, out, _ in (ours, theirs)]
    assert stages[0]["load"] == stages[1]["load"] == "users:3"
    assert stages[0]["figures"]["input_tokens"] == stages[1]["figures"]["input_tokens"]


def test_vllms_block_is_50_columns_wide_and_takes_goodput_as_vllm_does(command, server):
    status, out, _ = command(
        "run", server.url, "--num-prompts", "8", "--request-rate", "50", "--goodput", "ttft:1000",
        "tpot:1000", "--format", "vllm",
    )  # fmt: skip
    block = out[out.index("==") :].splitlines()
    assert status == 0
    assert block[0] == "============ Serving Benchmark Result ============"
    assert any(line.startswith("Request goodput (req/s):") for line in block)
    assert all(len(line) <= 50 or line.startswith("kept") for line in block[:30])


def test_a_missed_slo_is_exit_4(command, server):
    status, out, _ = command("run", server.url, "--requests", "8", "--slo", "ttft_p50<1us")
    assert status == 4
    assert "missed" in out


def test_several_stages_of_one_load_are_run_one_after_another(command, server):
    _, out, _ = command(
        "run", server.url, "--load", "poisson:50,100", "--requests", "10", "--warmup", "3", "--json"
    )
    stages = json.loads(out)["stages"]
    assert [stage["load"] for stage in stages] == ["poisson:50", "poisson:100"]
    assert [stage["outcomes"] for stage in stages] == [{"completed": 10}] * 2


def test_a_name_that_is_taken_is_refused(command, server):
    command("run", server.url, "--requests", "2", "--name", "twice")
    status, _, err = command("run", server.url, "--requests", "2", "--name", "twice")
    assert (status, err.count("\n")) == (2, 1)
    assert "twice" in err


def test_answers_in_one_piece_have_no_time_of_a_first_token(command, server):
    status, out, _ = command("run", server.url, "--requests", "4", "--no-stream", "--json")
    figures = json.loads(out)["stages"][0]["figures"]
    assert status == 0
    assert figures["ttft_s"] is None
    assert figures["itl_s"] is None
    assert figures["e2e_s"]["n"] == 4


def test_one_seed_gives_the_same_bytes_and_no_seed_gives_others(command, server):
    bodies = []
    for seed in (("--seed", "3"), ("--seed", "3"), (), ()):
        before = len(server.requests)
        command("run", server.url, "--requests", "5", "--load", "sync", *seed)
        bodies.append([request.body for request in server.requests[before:]])
    assert bodies[0] == bodies[1]
    assert not set(bodies[2]) & set(bodies[3])


def test_a_duration_ends_a_closed_loop(command, server):
    _, out, _ = command(
        "run", server.url, "--duration", "1s", "--load", "users:2,think=10ms", "--json"
    )
    stage = json.loads(out)["stages"][0]
    assert 10 < stage["outcomes"]["completed"] < 100
    assert stage["figures"]["concurrency"]["max"] <= 2


def test_a_cap_on_concurrency_holds_an_open_load_back_and_the_wait_is_in_the_from_due_times(
    command,
):
    with Served(healthy(0.05, 0.001)) as server:
        _, out, _ = command(
            "run", server.url, "--load", "constant:100", "--max-concurrency", "2", "--requests",
            "30", "--output-tokens", "2", "--json",
        )  # fmt: skip
    stage = json.loads(out)["stages"][0]
    assert stage["figures"]["concurrency"]["max"] == 2
    assert stage["figures"]["ttft_from_due_s"]["max"] > 3 * stage["figures"]["ttft_s"]["max"]


def test_connecting_has_no_row_where_all_connections_were_kept_alive(command, server):
    words = ("run", server.url, "--requests", "6", "--output-tokens", "2", "--load", "users:2")
    assert " connect " not in command(*words)[1]
    assert " connect " in command(*words, "--no-keep-alive")[1]


def test_without_pyarrow_the_message_has_what_to_install(command, server, monkeypatch):
    command("run", server.url, "--requests", "2", "--name", "out", "--output-tokens", "2")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    status, _, err = command("export", "runs/out", "--format", "parquet")
    assert (status, "pip install pyarrow" in err) == (2, True)


def test_export_writes_tables_that_pandas_can_read(command, server, tmp_path):
    pyarrow = pytest.importorskip("pyarrow.parquet")
    command("run", server.url, "--requests", "6", "--name", "out", "--output-tokens", "5")
    for form in ("csv", "parquet"):
        status, out, _ = command("export", "runs/out", "--format", form)
        assert (status, len(out.splitlines())) == (0, 3)
    table = pyarrow.read_table(tmp_path / "runs/out/requests.parquet")
    assert table.num_rows == 6
    chunks = (tmp_path / "runs/out/chunks.csv").read_text().splitlines()
    assert len(chunks) == 1 + 6 * 5


def test_help_answers_without_importing_what_it_does_not_need():
    code = "import sys, servescope.cli; print('numpy' in sys.modules, 'rich' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]
