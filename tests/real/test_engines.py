"""The engines start, answer on loopback, and leave nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from servescope.engines import _child, llamacpp, vllm
from servescope.errors import BadInput, Unreachable

ENGINES = ["llama_server", pytest.param("vllm_server", marks=pytest.mark.vllm)]
VLLM_START = pytest.mark.timeout(400)  # the first test pays for the start of a session's server

LAUNCH = [sys.executable, "-m", "servescope.engines.llamacpp"]


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.getfixturevalue(request.param)


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as response:
        return response.read().decode()


def streamed_chat(url: str, tokens: int) -> list[dict]:
    """The events of one streamed chat completion of exactly so many tokens."""
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Why is the sky blue?"}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), headers
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        data = [line[6:].strip() for line in response if line.startswith(b"data: ")]
    assert data.pop() == b"[DONE]"
    return [json.loads(event) for event in data]


def gone(pid: int) -> bool:
    """Whether no process has this id, or only one that has ended and waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def eventually(true, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not (now := true()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return now


@VLLM_START
def test_it_says_that_it_is_healthy_and_names_its_model(engine):
    get(f"{engine}/health")
    assert [m["id"] for m in json.loads(get(f"{engine}/v1/models"))["data"]] == ["tiny"]


@VLLM_START
def test_a_streamed_chat_gives_the_tokens_asked_for_and_counts_them(engine):
    events = streamed_chat(engine, tokens=12)
    usage = next(e["usage"] for e in reversed(events) if e.get("usage"))
    assert usage["completion_tokens"] == 12
    assert len(events) > 2


@VLLM_START
def test_its_metrics_page_counts_the_requests(engine):
    streamed_chat(engine, tokens=2)
    page = get(f"{engine}/metrics")
    assert "llamacpp:tokens_predicted_total" in page or "vllm:generation_tokens_total" in page


def test_llamacpp_shows_its_slots_and_settings(llama_server):
    assert len(json.loads(get(f"{llama_server}/slots"))) == 8
    assert json.loads(get(f"{llama_server}/props"))["total_slots"] == 8


def test_llamacpp_is_gone_when_its_block_ends(tiny_model, tmp_path):
    log = tmp_path / "llamacpp.log"
    with llamacpp.started(tiny_model.gguf, threads=1, slots=1, log=log) as url:
        get(f"{url}/health")
    with pytest.raises(urllib.error.URLError):
        get(f"{url}/health")
    assert f"listening {url}" in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_llamacpp_launched_by_hand_prints_one_line_and_ends_on_a_signal(tiny_model, number):
    command = [*LAUNCH, str(tiny_model.gguf), "--slots=2", "--threads=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        line = child.stdout.readline()
        get(f"{line.removeprefix('listening ').strip()}/health")
        child.send_signal(number)
        rest, _ = child.communicate(timeout=10)
    assert rest == ""
    assert child.returncode == -number


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_an_engine_dies_with_a_parent_that_was_killed():
    parent = (
        "import os, sys, time; from pathlib import Path; from servescope.engines import _child\n"
        "body = 'import os, sys, time; print(os.getpid(), flush=True); time.sleep(60)'\n"
        "command = _child.dying_with_parent([sys.executable, '-c', body])\n"
        "spoken = lambda log: log.read_text() or None\n"
        "with _child.running('sleeper', command, spoken) as pid:\n"
        "    print(pid, end='', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        pid = int(process.stdout.readline())
        assert not gone(pid)
        process.kill()
    assert eventually(lambda: gone(pid))


def test_a_file_that_is_no_model_is_explained_in_the_engines_own_words(tmp_path):
    bad = tmp_path / "bad.gguf"
    bad.write_text("garbage")
    with pytest.raises(Unreachable, match="invalid magic") as refusal, llamacpp.started(bad):
        pass
    assert "exit status 2" in str(refusal.value)


def test_an_engine_that_stays_silent_is_given_up_and_ended():
    command = [sys.executable, "-c", "import time; print('loading', flush=True); time.sleep(60)"]
    began = time.monotonic()
    with (
        pytest.raises(Unreachable, match="did not answer within 1 s; its last words:\n  loading"),
        _child.running("sleeper", command, lambda _log: None, ready_s=1),
    ):
        pass
    assert time.monotonic() - began < 10


def test_a_missing_model_or_interpreter_is_the_users_error(tmp_path):
    with pytest.raises(BadInput, match="want a GGUF file, or the word smollm2"):
        llamacpp.model_file(str(tmp_path / "none.gguf"))
    with pytest.raises(BadInput, match="python"), vllm.started(tmp_path / "python", tmp_path):
        pass


def test_llamacpp_without_its_package_says_which_one_it_wants(tiny_model):
    hidden = "import sys; sys.modules['xllamacpp'] = None; sys.argv[0] = 'llamacpp'; "
    launch = "from servescope.engines import llamacpp; llamacpp.main()"
    done = subprocess.run(
        [sys.executable, "-c", hidden + launch, str(tiny_model.gguf)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("llamacpp: needs the package xllamacpp: pip install xllamacpp")
    assert done.stderr.count("\n") == 1


@pytest.mark.vllm
@VLLM_START
def test_vllm_leaves_no_process_behind(vllm_python, tiny_model, tmp_path):
    log = tmp_path / "vllm.log"
    before = children()  # the session's own vLLM may be running
    with vllm.started(vllm_python, tiny_model.huggingface, log=log):
        started = children() - before
        assert len(started) > 1, "the server and its engine are processes of their own"
    assert eventually(lambda: all(gone(pid) for pid in started))


def children() -> set[int]:
    """The ids of all processes that descend from this one."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended since
            state = (process / "stat").read_text().rsplit(")", 1)[1].split()
            parents[int(process.name)] = int(state[1])
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}
