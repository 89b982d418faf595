"""A load on a real Ray cluster of several nodes, all of them on this machine."""

import json
import os
import re
import signal
import threading
from base64 import b64encode
from contextlib import suppress
from pathlib import Path

import pytest

from servescope import cli
from servescope.cluster.head import Cluster, connected
from servescope.conduct import conduct
from servescope.errors import BadInput
from servescope.experiment import Trial
from servescope.store import Run
from tests.support.command import QUICK, Command, children, gone, until
from tests.support.served import Served, healthy

KEY = "sk-cluster-1234567890"
PATIENCE_S = 90.0
MEMORY = 80 << 20
SEE_DEATH_SOON = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}


@pytest.fixture(scope="module")
def cluster():
    """Three nodes of one core each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster  # noqa: PLC0415 (for those tests alone)

    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": SEE_DEATH_SOON}
    made = Cluster(initialize_head=True, head_node_args={**head, "object_store_memory": MEMORY})
    for _ in range(2):
        made.add_node(num_cpus=1, object_store_memory=MEMORY)
    yield made
    made.shutdown()


def command(tmp_path, *words, **environment):
    return Command("run", *words, *QUICK, "--out", "runs", cwd=tmp_path, **environment)


def ended(started):
    """Its exit status."""
    started.out, started.err = started.process.communicate(timeout=PATIENCE_S)
    return started.process.returncode


def records(path):
    """The records of a run by request, which are there once each."""
    found = sorted(Run(path).records(), key=lambda record: record.request)
    assert [record.request for record in found] == list(range(len(found)))
    return found


def offered(path):
    """What was asked, of whom, and where a schedule says it when since its stage began."""
    stages = [stage for stage in Run(path).manifest.stages if not stage.warmup]
    return [
        (
            *(r.request, r.stage, r.target, r.prompt_sha256, r.asked_output_tokens),
            *(r.session, r.turn),
            r.due_ns - stages[r.stage].start_ns if stages[r.stage].open and not r.turn else None,
        )
        for r in records(path)
    ]


SEVERAL = ("--load", "poisson:80", "--load", "users:5", "--requests", "60", "--warmup", "6")


@pytest.mark.slow
def test_three_nodes_offer_what_one_machine_offers(cluster, tmp_path):
    runs = tmp_path / "runs"
    with Served(healthy(0.02, 0.001)) as server:
        words = (server.url, *SEVERAL, "--data", "sessions:turns=3")
        assert ended(command(tmp_path, *words, "--name", "here", "--workers", "3")) == 0
        before = len(server.requests)
        many = command(
            tmp_path,
            *(*words, "--name", "there", "--json", "--cluster", cluster.address),
            SERVESCOPE_API_KEY=KEY,
        )
        assert ended(many) == 0, many.err
        asked = server.requests[before:]
    summary = json.loads(many.out)
    assert [stage["outcomes"] for stage in summary["stages"]] == [{"completed": 60}] * 2
    assert offered(runs / "there") == offered(runs / "here")
    assert {request.headers["authorization"] for request in asked} == {f"Bearer {KEY}"}

    run = Run(runs / "there")
    nodes = run.manifest.cluster["nodes"]
    assert sorted(node["workers"] for node in nodes) == [[0], [1], [2]]
    assert run.manifest.stages[-1].workers == 3
    loop = {s.labels["worker"] for s in run.samples() if s.source == "loop"}
    assert loop == {"0", "1", "2"}
    assert any("loopback" in note for note in run.manifest.notes)

    clock = [s for s in run.samples() if s.source == "clock"]
    for node in nodes:  # each stage before and after; all nodes have this machine's clock
        of_node = [s for s in clock if s.labels["node"] == node["name"]]
        offsets = [s.value for s in of_node if s.name == "offset_s"]
        bounds = [s.value for s in of_node if s.name == "uncertainty_s"]
        assert len(offsets) == len(bounds) == 6
        assert all(abs(offset) <= bound for offset, bound in zip(offsets, bounds, strict=True))

    ray_logs = Path(cluster.head_node.get_session_dir_path())
    kept = [path for folder in (runs, ray_logs) for path in files(folder)]
    assert kept
    assert not [path for path in kept if KEY.encode() in path.read_bytes()]


def files(folder):
    return [path for path in folder.resolve().rglob("*") if path.is_file()]


@pytest.mark.slow
def test_simulated_experiments_are_spread_over_the_nodes_and_kept_here(cluster, tmp_path):
    names = ["a", "b", "c", "d"]
    for k, name in enumerate(names):
        (tmp_path / f"{name}.yaml").write_text(f"target: sim:vllm\nload: poisson:{k + 1}\n")
    files = [f"{name}.yaml" for name in names]
    here = command(tmp_path, *files, "--requests", "30")
    assert ended(here) == 0, here.err
    alone = {name: (tmp_path / "runs" / name / "requests.jsonl").read_bytes() for name in names}
    (tmp_path / "runs").rename(tmp_path / "before")
    there = command(tmp_path, *files, "--requests", "30", "--cluster", cluster.address)
    assert ended(there) == 0, there.err
    first, *told = there.err.splitlines()
    assert first == "4 simulations on the cluster"
    assert sorted(line[:9] for line in told) == [f"{name} is over" for name in names]
    assert told[-1].endswith("4 of 4")
    kept = [line for line in there.out.splitlines() if line.startswith("kept in ")]
    assert kept == [f"kept in runs/{name}" for name in names]
    for name in names:
        run = Run(tmp_path / "runs" / name)
        assert (run.path / "requests.jsonl").read_bytes() == alone[name]
        assert run.manifest.trial["out"] == "runs"
        assert run.summary["kind"] == "simulated"
        assert run.summary["directory"] == f"runs/{name}"


@pytest.mark.slow
def test_the_targets_share_a_cluster_as_they_share_a_machine(cluster, tmp_path):
    with Served(healthy(0.01, 0.001)) as one, Served(healthy(0.01, 0.001)) as two:
        words = (one.url, two.url, "--load", "constant:80", "--requests", "40")
        assert ended(command(tmp_path, *words, "--name", "here", "--workers", "2")) == 0
        many = command(tmp_path, *words, "--name", "there", "--cluster", cluster.address)
        assert ended(many) == 0, many.err
        assert len(one.requests) == len(two.requests) == 40
    assert offered(tmp_path / "runs" / "there") == offered(tmp_path / "runs" / "here")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [4, 9])
def test_more_workers_than_cores_are_refused_at_once_with_the_number_that_fits(
    cluster, tmp_path, monkeypatch, workers
):
    monkeypatch.setattr("servescope.cluster.head.PLACE_S", 3600.0)  # no waiting would help
    words = ["--cluster", cluster.address, "--workers", workers, "--out", tmp_path / "runs"]
    with pytest.raises(BadInput, match="at most 3"):
        cli.cli.main(["run", *map(str, words)], standalone_mode=False)


@pytest.mark.slow
def test_more_workers_than_free_cores_are_refused_with_the_number_that_fits(
    cluster, tmp_path, monkeypatch
):
    monkeypatch.setattr("servescope.cluster.head.PLACE_S", 1.0)
    words = ["run", "--cluster", cluster.address, "--workers", "3", "--out", str(tmp_path / "runs")]
    with connected(cluster.address) as ray:
        held = ray.util.placement_group([{"CPU": 1}])
        assert held.wait(30)
        try:
            with pytest.raises(BadInput, match="at most 2"):
                cli.cli.main(words, standalone_mode=False)
        finally:
            ray.util.remove_placement_group(held)


def workers_of(cluster):
    """The processes of the workers on the nodes."""
    raylets = [one for n in cluster.list_all_nodes() for one in n.all_processes["raylet"]]
    found = []
    for pid in [pid for raylet in raylets for pid in children(raylet.process.pid)]:
        with suppress(OSError):  # it has ended
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::Node"):
                found.append(pid)
    return found


def loading(cluster, server, tmp_path, *words, sent=30):
    """A run on the cluster in the middle, and its load processes."""
    where = ("--name", "one", "--cluster", cluster.address)
    started = command(tmp_path, server.url, *words, *where)
    until_many(server, sent)
    return started, [pid for worker in workers_of(cluster) for pid in children(worker)]


@pytest.mark.slow
def test_an_interrupt_ends_the_load_on_every_node_and_keeps_what_came_back(cluster, tmp_path):
    with Served(healthy(0.05, 0.01)) as server:
        started, ours = loading(cluster, server, tmp_path, "--load", "users:6", "--duration", "60s")
        assert len(ours) == 3
        started.process.send_signal(signal.SIGINT)
        assert ended(started) == 130, started.err
    until(lambda: gone(ours), "the load processes end")
    found = records(tmp_path / "runs" / "one")
    assert len(found) >= 30
    assert {record.outcome for record in found} == {"completed"}


def until_many(server, n):
    """Wait until so many requests have come; a cluster takes its time to begin."""
    for _ in range(3):
        with suppress(AssertionError):
            return until(lambda: len(server.requests) >= n, "the load begins")
    raise AssertionError("the load never began")


@pytest.mark.slow
def test_a_load_process_that_dies_on_a_node_costs_its_own_requests(cluster, tmp_path):
    load = ("--load", "constant:60", "--requests", "300")
    with Served(healthy(0.01, 0.001)) as server:
        started, ours = loading(cluster, server, tmp_path, *load)
        os.kill(ours[0], signal.SIGKILL)
        assert ended(started) == 1
    check_lost(tmp_path / "runs" / "one", r"a load process on node \d \(.*\) died")


@pytest.mark.slow
def test_a_node_that_dies_costs_its_requests_and_is_named(cluster, tmp_path):
    doomed = cluster.add_node(num_cpus=2, object_store_memory=MEMORY)
    doomed_id = doomed.node_id
    with Served(healthy(0.01, 0.001)) as server:
        started, _ = loading(
            *(cluster, server, tmp_path, "--load", "constant:60", "--requests", "400"),
            *("--load", "users:8", "--workers", "5", "--json"),
            sent=60,
        )
        cluster.remove_node(doomed, allow_graceful=False)
        assert ended(started) == 1, started.err
    json.loads(started.out)
    path = tmp_path / "runs" / "one"
    nodes = Run(path).manifest.cluster["nodes"]
    node = next(node for node in nodes if node["id"] == doomed_id)
    check_lost(path, re.escape(node["name"]) + " died", workers=5, lost=set(node["workers"]))


def check_lost(path, why, workers=3, lost=None):
    """All that the other processes were to do in the first stage is there, and what follows it."""
    run, found = Run(path), records(path)
    assert re.search(why, run.manifest.interrupted)
    first = [r for r in found if r.stage == 0]
    gone_of = {r.request % workers for r in first if r.outcome == "cancelled"}
    assert gone_of == (lost or gone_of)
    assert len(gone_of) == len(lost or [1])
    assert all(re.fullmatch(f"lost: {why}.*", r.reason) for r in first if r.outcome == "cancelled")
    assert len(first) == run.manifest.stages[0].planned
    rest = [r for r in found if r.request % workers not in gone_of or r.stage > 0]
    assert {r.outcome for r in rest} == {"completed"}
    if len(run.manifest.stages) > 1:
        assert run.manifest.stages[1].workers == workers - len(gone_of)


# --- looked at from inside ------------------------------------------------------------------------


class Before:
    """Watches a run, and does something between what workers are told and the first stage."""

    def __init__(self, act=lambda: None):
        self.acts = [act]

    def stage(self, stage):
        while self.acts:
            self.acts.pop()()

    def target(self, *_):
        pass

    draining = progress = samples = target


@pytest.fixture
def equipped(monkeypatch):
    """The clusters of this process's runs, and what was there to tell them."""
    found, equip = [], Cluster.equip

    def note(self, bench):
        found.append((self, bench))
        equip(self, bench)

    monkeypatch.setattr(Cluster, "equip", note)
    return found


def conducted(cluster, tmp_path, target, act=lambda: None, **options):
    """A run of this process."""
    short = {"data": "dummy", "input_tokens": "20", "output_tokens": "10", "seed": 7}
    options = {"load": ["constant:60"], "requests": 60, "workers": 3} | short | options
    trial = Trial(target=target, cluster=cluster.address, out=str(tmp_path / "runs"), **options)
    return conduct(trial, Before(act))


def clocks_of(run):
    """How often the clock of each node was measured."""
    found = [s.labels["node"] for s in run.samples() if (s.source, s.name) == ("clock", "offset_s")]
    return {node["name"]: found.count(node["name"]) for node in run.manifest.cluster["nodes"]}


@pytest.mark.slow
def test_a_node_that_falls_silent_before_the_start_costs_its_own_requests(
    cluster, tmp_path, monkeypatch
):
    monkeypatch.setattr("servescope.cluster.stage.SILENT_S", 6.0)
    monkeypatch.setattr("servescope.cluster.stage.WAIT_S", 0.001)  # no answer comes at first look

    def silence():  # Ray ends it with the run
        os.kill(workers_of(cluster)[0], signal.SIGSTOP)

    with Served(healthy(0.01, 0.001)) as server:
        run = conducted(cluster, tmp_path, server.url, silence)
    check_lost(run.path, r"node \d \(.*\) said nothing for 6 s")
    assert sorted(clocks_of(run).values()) == [0, 2, 2]


@pytest.mark.slow
def test_a_node_that_is_slow_to_tell_its_time_is_asked_again_before_the_start(cluster, tmp_path):
    def pause():
        pid = workers_of(cluster)[0]
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(2.5, os.kill, (pid, signal.SIGCONT)).start()

    with Served(healthy(0.01, 0.001)) as server:
        run = conducted(cluster, tmp_path, server.url, pause)
    assert {record.outcome for record in records(run.path)} == {"completed"}
    assert set(clocks_of(run).values()) == {2}


@pytest.mark.slow
def test_a_clock_is_measured_as_long_as_one_worker_of_its_node_is_left(cluster, tmp_path, equipped):
    import ray  # noqa: PLC0415 (for those tests alone)

    larger = cluster.add_node(num_cpus=2, object_store_memory=MEMORY)

    def lose():
        ((head, _),) = equipped
        worker = [w for w in head.workers if w.place.id == larger.node_id][-1]
        ray.kill(worker.actor)

    try:
        with Served(healthy(0.01, 0.001)) as server:
            run = conducted(cluster, tmp_path, server.url, lose, workers=5)
    finally:
        cluster.remove_node(larger, allow_graceful=False)
        cluster.wait_for_nodes()
    check_lost(run.path, r"a worker on node \d \(.*\) died", workers=5)
    assert list(clocks_of(run).values()) == [2, 2, 2, 2]


@pytest.mark.slow
def test_nothing_secret_is_put_where_ray_may_spill_it_and_a_deal_is_put_once(
    cluster, tmp_path, equipped, monkeypatch
):
    import ray  # noqa: PLC0415 (for those tests alone)
    from ray import cloudpickle  # noqa: PLC0415

    kept, put = [], ray.put
    monkeypatch.setattr(ray, "put", lambda it: kept.append(cloudpickle.dumps(it)) or put(it))
    with Served(healthy(0.01, 0.001)) as server:
        target = server.url.replace("//", f"//user:{KEY}@")
        conducted(cluster, tmp_path, target, load=["constant:60", "users:4"], requests=20)
        basic = b64encode(f"user:{KEY}".encode()).decode()
        assert {r.headers["authorization"] for r in server.requests} == {f"Basic {basic}"}
    assert not [k for k, it in enumerate(kept) if KEY.encode() in it or basic.encode() in it]
    assert len(kept) == 1 + 2
    ((_, bench),) = equipped
    assert basic in bench.targets[0].head
    assert basic not in repr(bench.targets)


@pytest.mark.slow
def test_nodes_that_take_too_long_over_files_are_told_so(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("servescope.cluster.head.EQUIP_S", 0.0)
    with (
        Served(healthy(0.01, 0.001)) as server,
        pytest.raises(BadInput, match=r"take the run's files.*node \d \(.*\): no answer in 0 s"),
    ):
        conducted(cluster, tmp_path, server.url)
