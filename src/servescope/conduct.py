"""A trial becomes a run: find out about the target, warm up, drive each stage, keep it all."""

from __future__ import annotations

import os
import platform
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import msgspec

import servescope
from servescope import error_bars, offers, protocols
from servescope.client.address import parse_target, redact
from servescope.client.secret import Secret
from servescope.cluster.head import Cluster
from servescope.collect import _chosen as collectors
from servescope.collect._collection import Collection
from servescope.datasets import ItemSource
from servescope.deal import Deal
from servescope.engine.config import SCHEME, EngineConfig
from servescope.engine.config import parse as parse_engine
from servescope.errors import BadInput
from servescope.experiment import Plan, Trial, resolve
from servescope.load import Open
from servescope.offers import Offer
from servescope.prepare import Interrupt, Watcher, api_key, prepare
from servescope.records import WARMUP_STAGE, Sample
from servescope.serve import Server
from servescope.simulated import Simulated
from servescope.stage import Measured
from servescope.store import Manifest, Run, RunWriter, Stage, slug
from servescope.tally import Tally
from servescope.units import printable

STAGE_REQUESTS = 1 << 20
"""Indices set apart for a stage that time alone ends, so that the next one's prompts do not depend
on how many it came to."""


class Subject(Protocol):
    """What is measured or simulated, stage by stage."""

    items: ItemSource
    targets: int

    def flush_cache(self) -> str | None:
        """Empty the prefix cache; how it was done, None where it could not be."""
        ...

    def drive(self, stage: Stage, number: int, deal: Deal) -> Tally:
        """Carry out a stage; returns what it came to."""
        ...


def conduct(trial: Trial, watcher: Watcher | None = None, command: list[str] | None = None) -> Run:
    """Carry out a trial; returns its run.

    Raises BadInput before the first request, Unreachable where the target is of no use. An
    interrupt ends the run early: the manifest says so, and what was measured is kept.
    """
    plan = resolve(trial)
    stages = offers.offers(plan)
    config = _simulated(trial)
    named = collectors.asked(trial)
    if trial.cluster is None:  # else it is for the nodes to open connections
        offers.allow_files(stages, trial)
    key = None if config else _check_targets(trial)
    manifest = _manifest(plan, command or [], stages)
    writer = RunWriter(Path(trial.out), manifest, offers.room_bytes(plan, stages))
    interrupt, collection = Interrupt(), Collection([])
    with ExitStack() as stack:
        try:
            subject: Subject
            if config is not None:
                subject = Simulated(plan, config, writer, interrupt=interrupt, watcher=watcher)
            else:
                targets = trial.targets or [stack.enter_context(Server(EngineConfig())).url]
                # It gets ready while the targets are found out, so that nothing waits for it.
                collection = stack.enter_context(collectors.collection(trial, named, targets, key))
                cluster = stack.enter_context(Cluster(trial)) if trial.cluster else None
                bench = prepare(plan, targets, key, writer, interrupt=interrupt, watcher=watcher)
                for where in bench.loaded:
                    offers.check_ownership(trial, stages, where)
                if cluster is not None:
                    cluster.equip(bench)
                for missing in collection.missing():
                    _warn(f"warning: {missing}", watcher)
                subject = Measured(bench, cluster, look=collection.look)
                manifest.origin_ns, manifest.instrument = bench.origin_ns, error_bars.kept()
        except BaseException:  # an interrupt, too: nothing has been measured
            writer.discard()
            raise
        with interrupt, writer:
            if manifest.origin_ns is not None:
                collection.begin(manifest.origin_ns)
                writer.more = _drained(collection, watcher)
            _drive(plan, subject, writer, stages, interrupt=interrupt, watcher=watcher)
            collection.end()
            writer.flush(now=True)
            manifest.collected = collection.collected
            manifest.notes += [*collection.notes, *getattr(subject.items, "notes", [])]
            writer.manifest.finished_utc = _utc_now()
            writer.write_manifest()
    return Run(writer.path)


def _warn(text: str, watcher: Watcher | None) -> None:
    """Say something before the load that must not wait for its end, though nobody watches."""
    if watcher is not None:
        watcher.told(text)
    else:
        sys.stderr.write(f"{printable(text)}\n")


def _drained(collection: Collection, watcher: Watcher | None) -> Callable[[], list[Sample]]:
    """What the collectors have read since the last call; whoever watches the run is told too."""

    def drained() -> list[Sample]:
        samples = collection.drain()
        if samples and watcher is not None:
            watcher.samples(samples)
        return samples

    return drained


def _simulated(trial: Trial) -> EngineConfig | None:
    """The simulated engine that is the target, if one is. Raises BadInput."""
    found = [target for target in trial.targets if target.startswith(SCHEME)]
    if not found:
        return None
    if len(trial.targets) > 1:
        raise BadInput("TARGET", found[0], "want a simulated target to be the only one")
    if trial.protocol is not None:
        want = "want none with a simulated target: in virtual time nothing is sent"
        raise BadInput("--protocol", trial.protocol, want)
    if trial.cluster is not None:
        want = "want none: one simulation keeps one core busy (several files go side by side)"
        raise BadInput("--cluster", trial.cluster, want)
    if asked := [text for text in trial.collect + trial.metrics if text != collectors.NONE]:
        want = "want no collectors with a simulated target: its time is not theirs"
        field = "--collect" if asked[0] in trial.collect else "--metrics"
        raise BadInput(field, ", ".join(asked), want)
    return parse_engine("TARGET", found[0])


def _check_targets(trial: Trial) -> Secret | None:
    """Find every fault of what was said about the targets; returns the key."""
    for target in trial.targets:
        parse_target(target)
    if trial.protocol is not None:
        protocols.declared("--protocol", trial.protocol)
    return api_key(trial)


def _drive(
    plan: Plan,
    subject: Subject,
    writer: RunWriter,
    stages: list[Offer],
    *,
    interrupt: Interrupt,
    watcher: Watcher | None,
) -> None:
    """Carry out the stages one after the other."""
    manifest, number, place = writer.manifest, 0, _Place()
    rates: defaultdict[str | None, list[float]] = defaultdict(list)
    for offer in stages:
        if interrupt.level:
            break
        if offer.drawn is None:
            try:
                offers.settle(plan, offer, rates[offer.stage.cache])
            except BadInput as error:  # at a rate this low nothing is due in the time
                manifest.notes.append(f"{offer.stage.load} was left out: {error}")
                rates[offer.stage.cache].append(0.0)
                number += 1
                continue
        stage, deal = offer.stage, place.deal(subject, offer, each=plan.trial.each)
        if stage.cache == "cold":
            stage.flushed = subject.flush_cache()
            if stage.flushed is None:
                manifest.notes.append(
                    f"the target's prefix cache could not be emptied before {stage.load}: "
                    "it was as cold as what came before had left it"
                )
        if watcher is not None:
            watcher.stage(stage)
        tally = subject.drive(stage, WARMUP_STAGE if stage.warmup else number, deal)
        place.leave(stage.first_request + tally.requests)
        if not stage.warmup:
            number += 1
            rates[stage.cache].append(tally.requests_per_s)
    if interrupt.level:
        manifest.interrupted = interrupt.name


class _Place:
    """Where the next stage stands among the requests and the items of the run."""

    def __init__(self) -> None:
        self._request = self._item = self._last_item = 0

    def deal(self, subject: Subject, offer: Offer, *, each: bool) -> Deal:
        """The deal of the next stage, its place noted in it.

        A warm pass asks the items of the pass before it again; a trace begins with its first row,
        and no stage begins inside a session.
        """
        assert offer.drawn is not None  # noqa: S101 (for the type checker)
        rows = offer.drawn.rows if isinstance(offer.drawn, Open) else None
        item = self._last_item if offer.stage.cache == "warm" else self._item
        if rows:
            item = -(-item // rows) * rows
        elif not subject.items.alone:
            while subject.items.turn(item).number:
                item += 1
        deal = Deal(
            offer=offer.drawn,
            limit=offer.limit,
            items=subject.items,
            first_item=item,
            targets=subject.targets,
            each=each,
        )
        stage = offer.stage
        stage.first_request, stage.first_item = self._request, item
        stage.planned = deal.planned
        room = deal.planned or STAGE_REQUESTS * deal.loads
        self._request += room
        self._last_item = item
        self._item = max(self._item, item + room)
        return deal

    def leave(self, request: int) -> None:
        """The next stage begins here or later: one may have needed more than its room."""
        self._request = max(self._request, request)
        self._item = max(self._item, request)


# --- before the first request ---------------------------------------------------------------------


def _manifest(plan: Plan, command: list[str], stages: list[Offer]) -> Manifest:
    trial = msgspec.to_builtins(plan.trial)
    trial |= {"seed": plan.seed, "target": [_shown(target) for target in plan.trial.targets]}
    return Manifest(
        name=_run_name(plan.trial),
        servescope=servescope.__version__,
        command=[redact(word) if "@" in word else word for word in command],
        trial=trial,
        machine=_machine(),
        stages=[offer.stage for offer in stages],
        started_utc=_utc_now(),
    )


def _shown(target: str) -> str:
    return target if target.startswith(SCHEME) else redact(target)


def _run_name(trial: Trial) -> str:
    """The name asked for, as a safe one; else one made of the time."""
    if trial.name is not None:
        name = slug(trial.name)
        if not name:
            raise BadInput("--name", trial.name, "want letters, digits, '.', '_' and '-'")
        return name
    base = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    names = [base, *(f"{base}-{k}" for k in range(2, 1000))]
    return next(name for name in names if not (Path(trial.out) / name).exists())


def _machine() -> dict[str, Any]:
    known = {"system": platform.platform(), "load_average": list(os.getloadavg())}
    return error_bars.host() | known


def _utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
