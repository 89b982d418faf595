"""Several experiment files on one command line."""

import json
import signal

import pytest

from servescope.store import Run
from tests.support.command import QUICK, Command, until
from tests.support.served import Served, healthy


def several(tmp_path, *words, **files):
    for name, content in files.items():
        (tmp_path / f"{name}.yaml").write_text(content)
    names = [f"{name}.yaml" for name in files]
    return Command("run", *names, *words, *QUICK, "--out", "runs", cwd=tmp_path)


def test_each_file_is_a_run_named_like_it(tmp_path):
    command = several(
        tmp_path,
        *("--requests", "20", "--quiet"),
        a="target: sim:vllm\nload: users:2",
        b="target: sim:sglang\nload: users:3\nname: other",
    )
    assert command.wait() == 0, command.err
    assert command.out.split() == ["runs/a", "runs/other"]
    stages = [Run(tmp_path / "runs" / name).manifest.stages[0].load for name in ("a", "other")]
    assert stages == ["users:2", "users:3"]


def test_a_run_beside_others_is_the_run_that_it_is_alone(tmp_path):
    simulated = dict.fromkeys(("a", "b"), "target: sim:vllm\nload: poisson:5")
    assert several(tmp_path, "--requests", "20", **simulated).wait() == 0
    lines = [(tmp_path / "runs" / name / "requests.jsonl").read_bytes() for name in simulated]
    assert lines[0] == lines[1]
    alone = several(tmp_path, "--requests", "20", "--name", "alone", a=simulated["a"])
    assert alone.wait() == 0
    assert (tmp_path / "runs" / "alone" / "requests.jsonl").read_bytes() == lines[0]


def test_real_targets_are_measured_one_after_the_other(tmp_path):
    with Served(healthy(0.01, 0.001)) as server:
        measured = f"target: {server.url}\nload: users:2"
        command = several(tmp_path, "--requests", "6", "--json", a=measured, b=measured)
        assert command.wait() == 0, command.err
    outcomes = [summary["stages"][0]["outcomes"] for summary in json.loads(command.out)]
    assert outcomes == [{"completed": 6}] * 2
    a, b = (Run(tmp_path / "runs" / name).manifest for name in ("a", "b"))
    assert a.finished_utc <= b.started_utc


@pytest.mark.parametrize("kind", ["simulated", "served"])
def test_of_each_run_its_plan_and_its_stages_are_said_under_its_name(tmp_path, kind):
    with Served(healthy(0.01, 0.001)) as server:
        target = "sim:vllm" if kind == "simulated" else server.url
        files = dict.fromkeys(("a", "b"), f"target: {target}\nload: users:2")
        command = several(tmp_path, "--requests", "6", **files)
        assert command.wait() == 0, command.err
    for name in files:
        said = [line for line in command.err.splitlines() if line.startswith(f"{name}: ")]
        assert "seed 7" in said[1]
        assert said[2] == f"{name}: stage 1 of 1: users:2"
        assert "6/6 done" in said[-1]


def test_a_name_that_is_taken_leads_to_the_options_for_another(tmp_path):
    files = {"a": "target: sim:vllm", "b": "target: sim:vllm"}
    (tmp_path / "runs" / "b").mkdir(parents=True)
    command = several(tmp_path, **files)
    assert command.wait() == 2
    assert "runs/b" in command.err
    assert "--out" in command.err


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_after_a_run_that_a_signal_ended_no_other_begins(tmp_path, name, status):
    lines = tmp_path / "runs" / "a" / "requests.jsonl"
    with Served(healthy(0.01, 0.001)) as server:
        measured = f"target: {server.url}\nload: users:2"
        command = several(tmp_path, "--duration", "60s", "--quiet", a=measured, b=measured)
        until(lambda: lines.exists() and lines.stat().st_size, "the first run goes on")
        command.process.send_signal(getattr(signal, name))
        assert command.wait() == status, command.err
    assert command.out.split() == ["runs/a"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("files", "words", "said"),
    [
        ({"a": "target: sim:vllm", "b": "target: sim:vllm\nname: a"}, (), "--name"),
        ({"a": "target: sim:vllm", "b": "target: sim:vllm\nload: wat"}, (), "--load"),
        ({"a": "target: sim:vllm", "b": "target: sim:nosuch"}, (), "nosuch"),
        ({"a": "target: sim:vllm", "b": "target: sim:vllm"}, ("--name", "x"), "--name"),
        ({"a": "target: sim:vllm"}, ("http://127.0.0.1:9",), "TARGET"),
    ],
)
def test_what_is_wrong_with_one_is_one_line(tmp_path, files, words, said):
    command = several(tmp_path, *words, **files)
    assert command.wait() == 2
    assert said in command.err
    assert command.err.strip().count("\n") == 0
