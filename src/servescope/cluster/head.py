"""A load driven from the nodes of a Ray cluster, which together offer what one machine would.

The head, this process, deals: request k goes to worker k mod n, wherever that is. It tells each
worker when to start by the clock of its node, and writes down the lines that come back. A node that
dies costs its own requests only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import msgspec

import servescope
from servescope.cluster.node import TLS_FILES, Node, Parcel, raised
from servescope.cluster.stage import Place, Spread, Worker
from servescope.deal import Deal
from servescope.errors import BadInput
from servescope.experiment import MOST_WORKERS, Trial
from servescope.prepare import Bench
from servescope.share import Part
from servescope.stage import Team, process_count

AUTO, CLIENT, ADDRESS = "auto", "ray://", "RAY_ADDRESS"
CONNECT_S, PLACE_S, EQUIP_S = 5.0, 30.0, 300.0
"""Patience with an address, with cores that are to become free, and with nodes that take files."""
SENT_BYTES = 256 << 20
"""A larger file is not sent to the nodes."""
IMPORTABLE = "want servescope {}, with the same Python, on every node"
EQUIPPED = "want nodes that can take the run's files and load its tokenizer and data"


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster that runs; one that this program is in already is left as it is.

    Raises BadInput.
    """
    try:
        import ray  # noqa: PLC0415 (an extra)
    except ImportError:
        want = "needs `pip install 'servescope[ray]'`, here and on every node"
        raise BadInput("--cluster", address, want) from None
    if ray.is_initialized():
        yield ray
        return
    named = os.environ.get(ADDRESS) if address == AUTO else address
    if named and named != AUTO:
        _reach(named)
    # Ray prints what befalls its nodes to where results go.
    with contextlib.redirect_stdout(sys.stderr):
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            why = str(error).strip().partition("\n")[0] or type(error).__name__
            want = f"want a running Ray cluster, begun with `ray start --head`: {why}"
            raise BadInput("--cluster", address, want) from None
        try:
            yield ray
        finally:
            ray.shutdown()


class Cluster:
    """The workers of a run, placed on the nodes; use it in a with statement."""

    def __init__(self, trial: Trial) -> None:
        """Find the cluster and place the workers. Raises BadInput."""
        self.address = trial.cluster or AUTO
        self.workers: list[Worker] = []
        self._group: Any = None
        with contextlib.ExitStack() as stack:
            self.ray = stack.enter_context(connected(self.address))
            stack.callback(self._leave)
            self._place(self._count(trial))
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _leave(self) -> None:
        """Give everything back."""
        leaving = [worker.actor.close.remote() for worker in self.workers if not worker.died]
        if leaving:
            self.ray.wait(leaving, num_returns=len(leaving), timeout=CONNECT_S)
        for worker in self.workers:
            self.ray.kill(worker.actor)
        if self._group is not None:
            self.ray.util.remove_placement_group(self._group)

    # --- before the first request -----------------------------------------------------------------

    def _count(self, trial: Trial) -> int:
        """As many workers as were asked for, else one for each core; as many for each target."""
        targets = max(1, len(trial.targets))
        if isinstance(trial.workers, int):
            return -(-trial.workers // targets) * targets
        cores = int(self.ray.cluster_resources().get("CPU", 0))
        return max(1, min(cores, MOST_WORKERS) // targets) * targets

    def _place(self, count: int) -> None:
        """One actor a core, spread over the nodes."""
        ray, util = self.ray, self.ray.util
        there = int(ray.cluster_resources().get("CPU", 0))
        if count > there:  # no waiting will help
            raise BadInput("--workers", count, f"want at most {there}: the cluster's cores")
        self._group = util.placement_group([{"CPU": 1}] * count, strategy="SPREAD")
        if not self._group.wait(PLACE_S):
            free = int(ray.available_resources().get("CPU", 0))
            want = f"want at most {free}: so many cores of the cluster are free"
            raise BadInput("--workers", count, want)
        where = util.placement_group_table(self._group)["bundles_to_node_id"]
        address = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        places: dict[str, Place] = {}
        for k in range(count):
            name = f"node {len(places)} ({address[where[k]]})"
            place = places.setdefault(where[k], Place(name=name, id=where[k]))
            strategy = util.scheduling_strategies.PlacementGroupSchedulingStrategy(self._group, k)
            options = {"num_cpus": 1, "max_concurrency": 4, "scheduling_strategy": strategy}
            actor = ray.remote(Node).options(**options).remote()
            self.workers.append(Worker(actor=actor, place=place))
        want = IMPORTABLE.format(servescope.__version__)
        for worker, facts in self._each(PLACE_S, want, "facts"):
            worker.place.facts = facts
            if facts["servescope"] != servescope.__version__:
                found = f"{worker.place.name} has {facts['servescope']}"
                raise BadInput("--cluster", self.address, f"{want}: {found}")

    def _each(
        self,
        patience_s: float,
        want: str,
        method: str,
        *arguments: Any,  # noqa: ANN401
    ) -> list[tuple[Worker, Any]]:
        """Every worker's answer to a first question. Raises BadInput where there is none."""
        asked = [getattr(w.actor, method).remote(*arguments) for w in self.workers]
        found = []
        for worker, answer in zip(self.workers, asked, strict=True):
            try:
                found.append((worker, self.ray.get(answer, timeout=patience_s)))
            except (self.ray.exceptions.RayError, RuntimeError) as error:
                late = isinstance(error, self.ray.exceptions.GetTimeoutError)
                words = f"no answer in {patience_s:g} s" if late else str(error)
                why = words.strip().rpartition("\n")[2]
                raise BadInput(
                    "--cluster", self.address, f"{want}: {worker.place.name}: {why}"
                ) from None
        return found

    def equip(self, bench: Bench) -> None:
        """Tell the workers what they need for every stage, and the manifest who they are."""
        trial, dataset = bench.plan.trial, bench.plan.dataset
        facts = {name: getattr(bench, name) for name in ("endpoint", "wire")}
        # Their URLs may have passwords, and what is put may be spilled to a disk.
        plain = msgspec.structs.replace(trial, target=[], collect=[], metrics=[])
        facts["plan"] = msgspec.structs.replace(bench.plan, trial=plain)
        facts["ruler"] = dataclasses.replace(bench.ruler, count=None)
        paths = (getattr(dataset, "path", None), trial.tokenizer)
        parcel = self.ray.put(Parcel(facts, {path: _content(path) for path in paths if path}))
        keys = [path for name in TLS_FILES if (path := getattr(trial, name))]
        private = {path: Path(path).read_bytes() for path in keys}
        for _, fault in self._each(EQUIP_S, EQUIPPED, "equip", parcel, bench.secrets, private):
            if fault is not None:
                raise raised(fault)
        self._describe(bench)

    def _describe(self, bench: Bench) -> None:
        places = list(dict.fromkeys(worker.place for worker in self.workers))
        manifest = bench.writer.manifest
        manifest.cluster = {
            "address": self.address,
            "ray": self.ray.__version__,
            "nodes": [
                {"name": place.name, "id": place.id, **place.facts}
                | {"workers": [k for k, w in enumerate(self.workers) if w.place is place]}
                for place in places
            ],
        }
        if len(places) > 1 and any(_is_loopback(str(s.address[0])) for s in bench.targets):
            manifest.notes.append(
                f"the target is on loopback: each of the {len(places)} nodes asked its own machine"
            )

    # --- while it runs ----------------------------------------------------------------------------

    @property
    def alive(self) -> list[Worker]:
        """The workers that have not died."""
        return [worker for worker in self.workers if worker.died is None]

    def processes(self, deal: Deal, trial: Trial) -> int:
        """All that are left, if the load has work for so many."""
        rounds = max(1, len(self.alive) // deal.targets)
        return process_count(deal, msgspec.structs.replace(trial, workers=rounds * deal.targets))

    def team(self, bench: Bench, deal: Deal, part: Part) -> Team:
        """The load processes of one stage."""
        return Spread(self.ray, self.alive, bench, deal, part)


def _reach(address: str) -> None:
    """Refuse an address that is none, or where nothing listens: Ray would try for a minute."""
    host, _, port = address.removeprefix(CLIENT).rpartition(":")
    if not (host and port.isdecimal()):
        want = f"want {AUTO}, {CLIENT}HOST:PORT or HOST:PORT"
        raise BadInput("--cluster", address, want)
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise BadInput("--cluster", address, f"nothing answers there ({error})") from None


def _content(path: str) -> bytes | int:
    """What is in a file; its size where it is too large to be sent."""
    file = Path(path).expanduser()
    file = file / "tokenizer.json" if file.is_dir() else file
    size = file.stat().st_size
    return file.read_bytes() if size <= SENT_BYTES else size


def _is_loopback(address: str) -> bool:
    """Also of a Unix socket, which no other machine reaches."""
    return address.startswith("/") or ipaddress.ip_address(address.partition("%")[0]).is_loopback
