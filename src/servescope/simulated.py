"""A trial against a simulated engine in virtual time: the same stages, records and directory."""

from __future__ import annotations

import time
from dataclasses import replace

import msgspec

from servescope.bench import Interrupt, Watcher, make_items, note_lengths
from servescope.client.probe import Endpoint
from servescope.client.workers import Live
from servescope.datasets import Message
from servescope.deal import Deal
from servescope.engine.config import EngineConfig
from servescope.engine.scheduler import Engine
from servescope.engine.simulate import simulate
from servescope.engine.tokenizer import prompt_tokens, tokenize
from servescope.experiment import Plan
from servescope.records import ABSENT, ANSWERED
from servescope.rulers import TOKENIZER, ruler_from_tokenizer
from servescope.store import RunWriter, Stage

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
        self._engine = Engine(config)
        overhead = len(prompt_tokens((Message("user", "a"),))) - len(tokenize("a"))
        ruler = replace(ruler_from_tokenizer(tokenize, TOKENIZER), overhead=overhead)
        self.items = make_items(plan, ruler)
        endpoint = Endpoint(
            url=str(config),
            protocol="virtual time",
            path="",
            model=config.model,
            engine=f"simulated {config.engine}",
            context_tokens=config.context_tokens,
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
        self._engine.flush_cache()
        return "simulated"

    def drive(self, stage: Stage, number: int, deal: Deal) -> float:
        """Simulate a stage; returns answered requests per second."""
        stage.start_ns = self._now_ns
        self._writer.write_manifest()
        records = simulate(
            self._engine,
            deal,
            first=stage.first_request,
            stage=number,
            start_ns=self._now_ns,
            cap=self._plan.trial.max_concurrency,
            keep_text=self._plan.trial.keep_text,
        )
        answered = failed = 0
        first_ns, last_ns, look_s = 1 << 62, self._now_ns, 0.0
        for k, record in enumerate(records, 1):
            self._writer.append(record)
            answered += record.outcome in ANSWERED
            failed += record.outcome.startswith("failed")
            if record.sent_ns != ABSENT:
                first_ns, last_ns = min(first_ns, record.sent_ns), max(last_ns, record.end_ns)
            if time.monotonic() > look_s:
                look_s = time.monotonic() + LOOK_S
                if self._interrupt.level:
                    break
                if self._watcher is not None:
                    elapsed_s = (last_ns - stage.start_ns) / 1e9
                    self._watcher.progress(stage, elapsed_s, Live(k, k, 0), failed)
        self._now_ns = last_ns
        return answered / (last_ns - first_ns) * 1e9 if last_ns > first_ns else 0.0
