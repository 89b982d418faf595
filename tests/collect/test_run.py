"""What a run keeps of everything that was read beside it."""

import json
import os
import signal
from pathlib import Path

import pytest

from servescope.analysis import conclude
from servescope.collect import _collection
from servescope.conduct import conduct
from servescope.engine.config import EngineConfig
from servescope.experiment import Trial
from servescope.serve import Server
from servescope.store import Run
from tests.support.command import QUICK, Command, gone, until
from tests.support.refusal import refused
from tests.support.served import Served, healthy


@pytest.fixture(scope="module")
def engine():
    with Server(EngineConfig()) as server:
        yield server


def run(target: str, tmp_path: Path, watcher=None, **options):
    short = {"requests": 40, "load": ["users:8"], "input_tokens": "20", "output_tokens": "16"}
    return conduct(Trial(target=target, out=str(tmp_path), seed=7, **short | options), watcher)


def page_of(url: str) -> str:
    return f"prometheus:{url.removeprefix('http://')}/metrics"


def test_every_run_reads_its_machine_and_its_engine_from_before_the_load_until_its_end(
    engine, tmp_path, monkeypatch
):
    monkeypatch.setattr(_collection, "LOOK_S", 20)  # this machine may be busy
    found = run(engine.url, tmp_path)
    page = page_of(engine.url)
    assert {source: found.manifest.collected[source] for source in (page, "host")} == {
        page: "read", "host": "read"
    }  # fmt: skip
    assert "gpu" in found.manifest.collected
    assert found.manifest.notes == []
    samples, records = found.samples(), list(found.records())
    for source in (page, "host"):
        times = [one.t_ns for one in samples if (one.source, one.name) == (source, "up")]
        assert times[0] >= 0
        assert max(record.end_ns for record in records) < times[-1]
    tokens = [one.value for one in samples if one.name == "vllm:generation_tokens_total"]
    assert tokens[-1] - tokens[0] == pytest.approx(sum(r.output_tokens for r in records), abs=4)


def test_what_an_engine_counts_in_a_stage_is_told_from_its_neighbours_however_seldom_it_is_read(
    engine, tmp_path, monkeypatch
):
    monkeypatch.setattr(_collection, "LOOK_S", 20)  # this machine may be busy
    stages = {"load": ["users:2", "users:6", "users:2"], "requests": 12}
    page = [f"{engine.url}/metrics,every=1h"]
    found = conclude(run(engine.url, tmp_path, metrics=page, **stages)).summary
    for stage in found.stages:
        (told,) = (one for one in stage.resources if one.kind == "engine")
        assert stage.outcomes == {"completed": 12}
        assert told.figures["requests_finished"] == 12
        assert told.figures["generated_tokens"] == 12 * 16


def test_a_server_without_a_page_is_quiet_in_a_run(tmp_path):
    with Served(healthy(0.01, 0.001)) as server:
        found = run(server.url, tmp_path, output_tokens="4")
        assert found.manifest.collected[page_of(server.url)].startswith("HTTP 404")
        assert found.manifest.notes == []
        assert {one.source for one in found.samples()} == {"host", "loop"}


def test_none_of_it_is_read_where_the_user_wants_none(engine, tmp_path):
    found = run(engine.url, tmp_path, collect=["none"])
    assert found.manifest.collected == {}
    assert {one.source for one in found.samples()} == {"loop"}


def test_a_page_that_is_named_and_not_there_is_a_note_and_the_run_goes_on(engine, tmp_path):
    found = run(engine.url, tmp_path, metrics=[f"{engine.url}/nothing"])
    assert [note.split(": ")[0] for note in found.manifest.notes] == [
        page_of(engine.url).replace("/metrics", "/nothing")
    ]
    assert {record.outcome for record in found.records()} == {"completed"}


def test_whoever_watches_a_run_is_told_what_is_read(engine, tmp_path):
    told = []

    class Watcher:
        def samples(self, samples):
            told.extend(samples)

        def __getattr__(self, _):
            return lambda *_: None

    found = run(engine.url, tmp_path, Watcher())
    kept = [one for one in found.samples() if one.source != "loop"]
    assert kept
    assert told == kept


def test_a_simulated_run_takes_no_collectors_but_may_say_so(tmp_path):
    for field, options in (
        ("--collect", {"collect": ["host"]}),
        ("--metrics", {"metrics": ["http://127.0.0.1:9/metrics"]}),
    ):
        with refused(field, "its time is not theirs"):
            run("sim:vllm", tmp_path, **options)
    found = run("sim:vllm", tmp_path, collect=["none"])
    assert found.manifest.collected == {}


def test_the_key_of_a_run_is_in_none_of_its_files_and_no_command_line(tmp_path, save):
    key = save("key", "sk-a-very-secret-key")
    with Served(healthy(0.02, 0.002)) as server:
        words = ["run", server.url, *QUICK, "--requests", "80", "--api-key-file", key]
        command = Command(*words, "--name", "kept", "--quiet", cwd=tmp_path)
        reader = until(lambda: collectors(command), "the collectors")
        for name in ("cmdline", "environ"):
            assert b"very-secret" not in Path(f"/proc/{reader}/{name}").read_bytes()
        assert command.wait() == 0
    kept = tmp_path / "runs" / "kept"
    assert not any(b"very-secret" in path.read_bytes() for path in kept.iterdir())


def collectors(command: Command) -> int | None:
    """The process of the collectors."""
    named = (
        pid
        for pid in command.children()
        if b"servescope.collect" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    return next(named, None)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_collectors_end_with_the_command_however_it_ends(engine, tmp_path, number):
    words = ["run", engine.url, *QUICK, "--duration", "60s", "--name", "cut", "--quiet"]
    command = Command(*words, cwd=tmp_path)
    log = tmp_path / "runs" / "cut" / "samples.jsonl"
    until(lambda: log.exists() and b'"host"' in log.read_bytes(), "readings on the disk")
    reader = collectors(command)
    os.kill(command.process.pid, number)
    command.wait()
    until(lambda: gone([reader]), "its end")
    assert {one.source for one in Run(log.parent).samples()} >= {"host", page_of(engine.url)}


def test_a_run_goes_on_where_its_collectors_die(engine, tmp_path):
    words = ["run", engine.url, *QUICK, "--requests", "60", "--load", "constant:60"]
    command = Command(*words, "--name", "alone", "--json", cwd=tmp_path)
    reader = until(lambda: collectors(command), "the collectors")
    os.kill(reader, signal.SIGKILL)
    assert command.wait() == 0
    notes = json.loads(command.out)["notes"]
    assert ["their process died" in note for note in notes] == [True]
    assert Run(tmp_path / "runs" / "alone").manifest.finished_utc is not None


def test_a_page_that_was_asked_for_and_is_not_there_is_told_before_the_load(engine, tmp_path):
    said = []

    class Watching:
        def __getattr__(self, name):
            return lambda *words: said.append((name, *words))

    nowhere = ["http://127.0.0.1:9/metrics"]
    found = run(engine.url, tmp_path, Watching(), metrics=nowhere)
    names = [name for name, *_ in said]
    warning = "warning: prometheus:127.0.0.1:9/metrics cannot be read: Connection refused"
    assert ("told", warning) in said
    assert names.index("told") < names.index("stage")
    assert any(
        "readings failed, the first with: Connection refused" in n for n in found.manifest.notes
    )


def test_a_quiet_run_tells_of_it_too(engine, tmp_path):
    words = ("run", engine.url, "--requests", "4", "--quiet", "--no-report")
    command = Command(*words, "--metrics", "127.0.0.1:9", cwd=tmp_path)
    assert command.wait() == 0
    assert "warning: prometheus:127.0.0.1:9/metrics cannot be read" in command.err


def test_two_queries_of_one_page_are_two_sources(engine, tmp_path):
    metrics = [f"{engine.url}/metrics?of=a", f"{engine.url}/metrics?of=b"]
    found = run(engine.url, tmp_path, metrics=metrics)
    pages = [name for name in found.manifest.collected if name.startswith("prometheus:")]
    assert pages == [f"{page_of(engine.url)}?of={which}" for which in "ab"]
