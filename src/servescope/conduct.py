"""A trial becomes a run: find out about the target, warm up, drive each stage, keep it all."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

import servescope
from servescope import offers, protocols, summary
from servescope.bench import Bench, Interrupt, Watcher, api_key, prepare
from servescope.client.address import parse_target, redact
from servescope.client.flush import flush_cache
from servescope.deal import Deal
from servescope.errors import BadInput
from servescope.experiment import Plan, Trial, resolve
from servescope.load import Open
from servescope.offers import Offer
from servescope.records import WARMUP_STAGE
from servescope.stage import StageRun
from servescope.store import Manifest, Run, RunWriter, slug

STAGE_REQUESTS = 1 << 20
"""Indices set apart for a stage that time alone ends, so that the next one's prompts do not depend
on how many it came to."""


def conduct(trial: Trial, watcher: Watcher | None = None, command: list[str] | None = None) -> Run:
    """Carry out a trial; returns its run, with the summary written.

    Raises BadInput before the first request, Unreachable where the target is of no use. An
    interrupt ends the run early: the manifest says so, and what was measured is kept.
    """
    plan = resolve(trial)
    for target in trial.targets:
        parse_target(target)
    if trial.protocol is not None:
        protocols.declared("--protocol", trial.protocol)
    key = api_key(trial)
    stages = offers.offers(plan)
    offers.allow_files(stages, trial)
    writer = RunWriter(Path(trial.out), _manifest(plan, command or [], stages))
    interrupt = Interrupt()
    try:
        bench = prepare(plan, key, writer, interrupt, watcher)
        for settings in bench.targets:
            offers.check_ownership(trial, stages, str(settings.address[0]))
    except BaseException:  # an interrupt, too: nothing has been measured
        writer.discard()
        raise
    with interrupt, writer:
        _drive(bench, stages)
    run = Run(writer.path)
    summary.write(run, summary.summarise(run))
    return run


def _drive(bench: Bench, stages: list[Offer]) -> None:
    """Run the stages one after the other."""
    manifest, number, place = bench.writer.manifest, 0, _Place()
    rates: list[float] = []
    for offer in stages:
        if bench.interrupt.level:
            break
        if offer.drawn is None:
            offers.settle(bench.plan, offer, rates)
        stage, deal = offer.stage, place.deal(bench, offer)
        if stage.cache == "cold":
            stage.flushed = flush_cache(bench.dialogues, bench.endpoint.engine)
            if stage.flushed is None:
                manifest.notes.append(
                    f"the target's prefix cache could not be emptied before {stage.load}: "
                    "it was as cold as what came before had left it"
                )
        if bench.watcher is not None:
            bench.watcher.stage(stage)
        run = StageRun(bench, stage, WARMUP_STAGE if stage.warmup else number, deal)
        run.run()
        if not stage.warmup:
            number += 1
            rates.append(run.requests_per_s)
    if bench.interrupt.level:
        manifest.interrupted = bench.interrupt.name
    manifest.finished_utc = _utc_now()
    bench.writer.write_manifest()


class _Place:
    """Where the next stage stands among the requests and the items of the run."""

    def __init__(self) -> None:
        self._request = self._item = self._last_item = 0

    def deal(self, bench: Bench, offer: Offer) -> Deal:
        """The deal of the next stage, its place noted in it.

        A warm pass asks the items of the pass before it again; a trace begins with its first row,
        and no stage begins inside a session.
        """
        assert offer.drawn is not None  # noqa: S101 (for the type checker)
        rows = offer.drawn.rows if isinstance(offer.drawn, Open) else None
        item = self._last_item if offer.stage.cache == "warm" else self._item
        if rows:
            item = -(-item // rows) * rows
        elif not getattr(bench.items, "alone", False):
            while bench.items.turn(item).number:
                item += 1
        deal = Deal(
            offer=offer.drawn,
            limit=offer.limit,
            items=bench.items,
            first_item=item,
            targets=len(bench.targets),
            each=bench.plan.trial.each,
        )
        stage = offer.stage
        stage.first_request, stage.first_item = self._request, item
        stage.planned = deal.planned
        room = deal.most if deal.planned is not None else None
        self._request += room or STAGE_REQUESTS * deal.loads
        self._last_item = item
        self._item = max(self._item, item + (room or STAGE_REQUESTS * deal.loads))
        return deal


# --- before the first request ---------------------------------------------------------------------


def _manifest(plan: Plan, command: list[str], stages: list[Offer]) -> Manifest:
    trial = msgspec.to_builtins(plan.trial)
    trial |= {"seed": plan.seed, "target": [redact(target) for target in plan.trial.targets]}
    return Manifest(
        name=_run_name(plan.trial),
        servescope=servescope.__version__,
        command=[redact(word) if "@" in word else word for word in command],
        trial=trial,
        machine=_machine(),
        stages=[offer.stage for offer in stages],
        started_utc=_utc_now(),
    )


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
    return {
        "system": platform.platform(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": sys.version.split()[0],
        "load_average": list(os.getloadavg()),
    }


def _utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
