"""A trial against a simulated engine in virtual time: the same stages, records and directory."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace

import msgspec

from servescope.client.probe import Endpoint
from servescope.client.workers import Live
from servescope.datasets import Message
from servescope.deal import Deal
from servescope.engine.config import EngineConfig
from servescope.engine.deployment import deploy
from servescope.engine.simulate import simulate
from servescope.engine.tokenizer import prompt_tokens, tokenize
from servescope.experiment import Plan
from servescope.load import Closed
from servescope.prepare import Interrupt, Watcher, check_context, make_items, note_lengths
from servescope.records import Sample
from servescope.rulers import TOKENIZER, ruler_from_tokenizer
from servescope.stage import Moment, due_by
from servescope.store import RunWriter, Stage
from servescope.tally import Tally

LOOK_S = 0.1


class Simulated:
    """A run's engine, which keeps its cache from stage to stage."""

    targets = 1

    def __init__(
        self,
        plan: Plan,
        config: EngineConfig,
        writer: RunWriter,
        *,
        interrupt: Interrupt,
        watcher: Watcher | None,
    ) -> None:
        self._plan, self._writer = plan, writer
        self._interrupt, self._watcher = interrupt, watcher
        deployment = deploy(config)
        self._engines, self._router = deployment.engines(), config.router
        self._prefill = deployment.prefill_engines()
        self._front_end, self._transfer = deployment.front_end, deployment.transfer
        overhead = len(prompt_tokens((Message("user", "a"),))) - len(tokenize("a"))
        ruler = replace(ruler_from_tokenizer(tokenize, TOKENIZER), overhead=overhead)
        check_context(plan, deployment.longest)
        self.items = make_items(plan, ruler)
        endpoint = Endpoint(
            url=str(config),
            protocol="virtual time",
            path="",
            model=config.model,
            engine=f"simulated {config.engine}",
            context_tokens=deployment.max_model_len,
            usage="each",
        )
        manifest = writer.manifest
        manifest.kind = "simulated"
        manifest.endpoint = msgspec.to_builtins(endpoint)
        manifest.targets = [endpoint.url]
        note_lengths(manifest, ruler)
        if watcher is not None:
            watcher.target(endpoint, ruler, plan)
        self._now_ns = 0

    def flush_cache(self) -> str:
        """Empty the prefix cache."""
        for engine in (*self._engines, *self._prefill):
            engine.flush_cache()
        return "simulated"

    def drive(self, stage: Stage, number: int, deal: Deal) -> Tally:
        """Simulate a stage; returns what it came to."""
        stage.start_ns = self._now_ns
        self._writer.write_manifest()
        records = simulate(
            self._engines,
            deal,
            router=self._router,
            front_end=self._front_end,
            prefill=self._prefill,
            transfer=self._transfer,
            first=stage.first_request,
            stage=number,
            start_ns=self._now_ns,
            cap=self._plan.trial.max_concurrency,
            keep_text=self._plan.trial.keep_text,
            stream=self._plan.trial.stream,
            keep=self._keep,
        )
        tally, look_s = Tally(), 0.0
        for record in records:
            self._writer.append(record)
            tally.note(record)
            if time.monotonic() > look_s:
                look_s = time.monotonic() + LOOK_S
                if self._interrupt.level:
                    break
                if self._watcher is not None:
                    elapsed_s = (tally.last_ns - stage.start_ns) / 1e9
                    self._watcher.progress(stage, self._moment(deal, elapsed_s, tally))
        self._now_ns = max(self._now_ns, tally.last_ns)
        return tally

    def _keep(self, readings: Iterable[Sample]) -> None:
        samples = list(readings)
        self._writer.samples(samples)
        if self._watcher is not None:
            self._watcher.samples(samples)

    def _moment(self, deal: Deal, elapsed_s: float, tally: Tally) -> Moment:
        """How far a stage has come; what is due is sent, as far as the cap allows."""
        offer, ended = deal.offer, tally.requests
        due = due_by(deal, elapsed_s) or ended
        busy = offer.users if isinstance(offer, Closed) else due - ended
        busy = max(0, min(busy, self._plan.trial.max_concurrency or busy))
        return Moment.of(deal, elapsed_s, Live(ended + busy, ended, busy), tally)
