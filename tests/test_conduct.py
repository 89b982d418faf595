"""Runs of several turns, several targets and several passes, as the servers see them."""

import asyncio
import json
import re
import sys
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from servescope import cli
from servescope.client import flush
from servescope.conduct import conduct
from servescope.errors import BadInput
from servescope.experiment import Trial, declare
from servescope.experiment_file import read_file
from servescope.summary import summarise
from tests.support.served import Served, healthy

MS = 1_000_000


def measure(targets, tmp_path, **options):
    """A run, its summary and its records by request."""
    options = {"input_tokens": "8", "output_tokens": "3", "seed": 5, **options}
    run = conduct(Trial(target=targets, out=str(tmp_path / "runs"), **options))
    return run, summarise(run), sorted(run.records(), key=lambda record: record.request)


def messages(request):
    return [(m["role"], m["content"]) for m in request.json["messages"]]


def conversations(server):
    """The messages of each request, by what the user said first."""
    found = {}
    for request in server.requests:
        said = messages(request)
        found.setdefault(said[0], []).append(said)
    return found


@pytest.mark.parametrize("load", ["users:3", "constant:100", "burst"])
@pytest.mark.parametrize("workers", [1, 2])
def test_each_turn_repeats_what_was_said_and_what_was_really_answered(tmp_path, load, workers):
    with Served(healthy(0.005, 0.001)) as server:
        _, summary, records = measure(
            server.url,
            tmp_path,
            data="sessions:turns=4",
            load=[load],
            requests=24,
            workers=workers,
        )
    assert summary.stages[0].outcomes == {"completed": 24}
    assert [record.request for record in records] == list(range(24))
    found = conversations(server)
    assert len(found) == 6
    for turns in found.values():
        assert [len(said) for said in turns] == [1, 3, 5, 7]
        for before, after in pairwise(turns):
            assert after[:-1] == [*before, ("assistant", " x x x")]
    assert not any("\ue0f0" in request.body.decode() for request in server.requests)


@pytest.mark.parametrize("load", ["users:2", "constant:50"])
def test_a_later_turn_is_due_when_the_answer_before_it_has_ended_and_been_thought_about(
    tmp_path, load
):
    with Served(healthy(0.005, 0.001)) as server:
        _, _, records = measure(
            server.url, tmp_path, data="sessions:turns=3,think=30ms", load=[load], requests=12
        )
    by_turn = {(record.session, record.turn): record for record in records}
    for (session, turn), record in by_turn.items():
        if turn:
            assert record.due_ns == by_turn[session, turn - 1].end_ns + 30 * MS
            assert record.sent_ns >= record.due_ns


def test_the_turns_after_one_that_failed_are_cancelled_and_the_others_go_on(tmp_path):
    good = healthy(0.005, 0.001)

    async def script(request, peer):
        if request.number == 1:
            await peer.whole(500, b'{"error":{"message":"out of blocks"}}')
        else:
            await good(request, peer)

    with Served(script) as server:
        _, summary, records = measure(
            server.url, tmp_path, data="sessions:turns=3", load=["sync"], requests=9
        )
    assert summary.stages[0].outcomes == {"completed": 7, "failed:http_5xx": 1, "cancelled": 1}
    assert records[2].reason == "the turn before it did not end well"
    assert records[2].sent_ns == -1
    assert len(server.requests) == 8
    assert "not_offered" not in {doubt.kind for doubt in summary.doubts}


@pytest.mark.parametrize("load", ["users:4", "constant:200"])
def test_a_load_is_dealt_evenly_over_several_targets(tmp_path, load):
    with Served(healthy(0.005, 0.001)) as one, Served(healthy(0.005, 0.001)) as two:
        run, summary, records = measure([one.url, two.url], tmp_path, load=[load], requests=40)
    assert len(one.requests) == len(two.requests) == 20
    assert summary.stages[0].outcomes == {"completed": 40}
    assert [record.target for record in records] == [0, 1] * 20
    assert run.manifest.targets == [one.url, two.url]
    bodies = {request.body for server in (one, two) for request in server.requests}
    assert len(bodies) == 40


def test_with_each_every_target_gets_the_whole_load_at_the_same_times(tmp_path):
    with Served(healthy(0.005, 0.001)) as one, Served(healthy(0.005, 0.001)) as two:
        _, summary, records = measure(
            [one.url, two.url], tmp_path, load=["poisson:200"], requests=20, each=True
        )
    assert len(one.requests) == len(two.requests) == 20
    assert summary.stages[0].outcomes == {"completed": 40}
    due = [[r.due_ns for r in records if r.target == target] for target in (0, 1)]
    assert due[0] == due[1]
    by_target = summary.stages[0].targets
    assert [part.target for part in by_target] == [one.url, two.url]
    assert [part.outcomes for part in by_target] == [{"completed": 20}] * 2


def test_fewer_users_than_targets_are_refused(tmp_path):
    with pytest.raises(BadInput, match="at least one user"):
        measure(["http://127.0.0.1:9", "http://127.0.0.1:8"], tmp_path, load=["sync"])


def test_a_cold_and_a_warm_pass_ask_the_same_and_the_cache_is_emptied_before_the_first(tmp_path):
    calls = []

    class Cached(Served):
        async def _answer(self, request, peer):
            if request.path == "/reset_prefix_cache":
                calls.append(len(self.requests))
                await peer.whole(200, b"")
            else:
                await super()._answer(request, peer)

    with Cached(healthy(0.002, 0.001)) as server:
        run, summary, records = measure(
            server.url, tmp_path, load=["users:2"], requests=10, repeat_cache=["cold", "warm"]
        )
    assert calls == [0]
    assert [stage.load for stage in summary.stages] == [
        "users:2, cold cache",
        "users:2, warm cache",
    ]
    assert [stage.flushed for stage in run.manifest.stages] == ["POST /reset_prefix_cache", None]
    prompts = [[r.prompt_sha256 for r in records if r.stage == stage] for stage in (0, 1)]
    assert prompts[0] == prompts[1]
    assert len(set(prompts[0])) == 10
    assert [record.request for record in records] == list(range(20))


def test_a_flush_that_is_never_answered_does_not_hold_up_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(flush, "MOST_S", 0.3)
    silences = []

    class Silent(Served):
        async def _answer(self, request, peer):
            if request.path in ("/reset_prefix_cache", "/flush_cache"):
                silences.append(asyncio.Event())
                await silences[-1].wait()
            else:
                await super()._answer(request, peer)

    with Silent(healthy(0.002, 0.001)) as server:
        run, summary, _ = measure(
            server.url, tmp_path, load=["users:2"], requests=4, repeat_cache=["cold", "warm"]
        )
    assert [stage.outcomes for stage in summary.stages] == [{"completed": 4}] * 2
    assert any("could not be emptied" in note for note in run.manifest.notes)


def test_where_the_cache_cannot_be_emptied_the_run_says_so(tmp_path):
    with Served(healthy(0.002, 0.001)) as server:
        run, _, _ = measure(
            server.url, tmp_path, load=["users:2"], requests=4, repeat_cache=["cold", "warm"]
        )
    assert any("could not be emptied" in note for note in run.manifest.notes)


def test_a_sweep_goes_from_one_user_over_saturation_to_rates_between(tmp_path):
    with Served(healthy(0.08, 0.001)) as server:
        run, summary, _ = measure(server.url, tmp_path, load=["sweep:3,users=15"], requests=15)
    rates = [stage.figures["requests_per_s"] for stage in summary.stages]
    assert len(rates) == 5
    assert all(stage.outcomes == {"completed": 15} for stage in summary.stages)
    asked = [stage.rate for stage in run.manifest.stages]
    assert asked[:2] == [None, None]
    assert sorted(asked[2:]) == asked[2:]
    assert rates[0] < asked[2]
    assert asked[-1] == pytest.approx(rates[1], rel=0.01)


def test_a_trace_gives_times_lengths_and_shared_prefixes_at_once(tmp_path):
    rows = ["time_s,input_tokens,output_tokens", "0.0,20,3", "0.05,30,2", "0.06,25,4", "0.2,40,1"]
    (tmp_path / "trace.csv").write_text("\n".join(rows))
    with Served(healthy(0.002, 0.001), tokenize=True) as server:
        run, summary, records = measure(
            server.url,
            tmp_path,
            load=[f"trace:{tmp_path / 'trace.csv'},scale=2"],
            input_tokens=None,
            output_tokens=None,
        )
    assert summary.stages[0].outcomes == {"completed": 4}
    start_ns = run.manifest.stages[0].start_ns
    assert [(r.due_ns - start_ns) // MS for r in records] == [0, 25, 30, 100]
    assert [r.input_tokens for r in records] == [20, 30, 25, 40]
    assert [r.output_tokens for r in records] == [3, 2, 4, 1]


def test_an_experiment_file_says_what_options_say(tmp_path, monkeypatch, capfd):
    with Served(healthy(0.002, 0.001)) as server:
        file = tmp_path / "trial.yaml"
        file.write_text(
            f"target: {server.url}\nload: [users:2, 'constant:50']\nrequests: 6\n"
            f"input-tokens: 8\noutput_tokens: 3\nout: {tmp_path / 'runs'}\nname: from-file\n"
        )
        monkeypatch.setattr(sys, "argv", ["servescope", "run", str(file), "--requests", "5"])
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert end.value.code == 0
    manifest = json.loads((tmp_path / "runs" / "from-file" / "manifest.json").read_text())
    assert [stage["load"] for stage in manifest["stages"]] == ["users:2", "constant:50"]
    assert {stage["planned"] for stage in manifest["stages"]} == {5}


@pytest.mark.parametrize(
    "case",
    [
        ("a.yaml", "target: x\ntarget: y\n", "target comes twice"),
        ("a.yaml", "a: &a [1]\nb: *a\n", "no aliases"),
        ("a.yaml", "load: !!python/object/apply:os.system [id]\n", "could not determine"),
        ("a.toml", "target = ", "Invalid value"),
        ("a.yaml", "target: x\n? [a, b]\n: 2\n", "want names, line 2"),
        ("a.yaml", "input-tokens: 40\ninput_tokens: 60\n", "want input_tokens only once"),
        ("b.json", '{"target": "x", "target": "y"}', "target comes twice"),
        ("a.json", '{"target": "x", "rekwests": 3}', "did you mean requests"),
        ("a.json", "[]", "want names of options"),
        ("missing.yaml", None, "No such file"),
    ],
)
def test_a_file_that_is_wrong_is_refused_in_one_line(tmp_path, monkeypatch, capfd, case):
    name, text, words = case
    if text is not None:
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(sys, "argv", ["servescope", "run", str(tmp_path / name)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capfd.readouterr().err
    assert end.value.code == 2
    assert words in said
    assert said.count("\n") == 1


TEMPLATE = """
target: {url}
load: [users:2]
requests: 8
input_tokens: 12
output_tokens: 5
out: {out}
protocol:
  name: template
  route: /v1/completions
  request:
    model: ${{model}}
    prompt: ${{prompt}}
    max_tokens: ${{output_tokens}}
    stream: ${{stream}}
    stream_options: {{include_usage: true}}
  text: choices.0.text
  finish_reason: choices.0.finish_reason
  input_tokens: usage.prompt_tokens
  output_tokens: usage.completion_tokens
  end: "[DONE]"
  pinned: {{ignore_eos: true}}
"""


def test_any_json_api_is_measured_by_what_a_file_says_of_it(tmp_path):
    file = tmp_path / "template.yaml"
    with Served(healthy(0.002, 0.001), tokenize=True) as server:
        file.write_text(TEMPLATE.format(url=server.url, out=tmp_path / "runs"))
        run = conduct(declare(read_file(str(file))))
    stage = summarise(run).stages[0]
    assert stage.outcomes == {"completed": 8}
    assert run.manifest.endpoint["protocol"] == "template"
    counted = {(r.input_tokens, r.output_tokens, r.count_source) for r in run.records()}
    assert counted == {(12, 5, "server")}
    assert all(request.json["ignore_eos"] for request in server.requests)


def test_the_page_on_files_has_every_key():
    page = (Path(__file__).parents[1] / "docs" / "experiment.md").read_text()
    rows = re.findall(r"^\| (`.*?`) \|", page, re.MULTILINE)
    keys = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    assert keys == {field.name for field in msgspec.structs.fields(Trial)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"repeat_cache": ["warm"]}, "want cold or cold,warm"),
        ({"max_concurrency": 1, "load": ["constant:5"]}, "at least one for each of the 2 targets"),
        ({"load": ["trace:missing.csv"]}, "--load"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_sent(tmp_path, options, words):
    with pytest.raises(BadInput, match=words):
        measure(["http://127.0.0.1:9", "http://127.0.0.1:8"], tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"protocol": "tgi"}, "--protocol"),
        ({"collect": ["prometheus:http://127.0.0.1:9/metrics"]}, "--collect"),
        ({"input_tokens": "40000"}, "32768 tokens of the target's context"),
        ({"target": ["sim:vllm", "sim:tgi"]}, "want a simulated target to be the only one"),
    ],
)
def test_what_means_nothing_to_a_simulated_target_is_refused(tmp_path, options, words):
    with pytest.raises(BadInput, match=words):
        measure(options.pop("target", "sim:vllm"), tmp_path, **options)


def test_the_same_trial_can_be_carried_out_twice_without_a_target(tmp_path):
    trial = Trial(requests=2, output_tokens="2", load=["sync"], out=str(tmp_path))
    for _ in range(2):
        assert summarise(conduct(trial)).stages[0].outcomes == {"completed": 2}
    assert trial.target == []
