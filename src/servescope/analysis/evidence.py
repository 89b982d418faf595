"""A run as analyses and reports read it: everything loaded once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import msgspec

from servescope.summary import Summary, summary_of
from servescope.telemetry import Telemetry, read

if TYPE_CHECKING:
    from servescope.records import Columns
    from servescope.store import Run, Stage


@dataclass(frozen=True)
class Evidence:
    """A run's summary and what that was made of."""

    run: Run
    summary: Summary
    columns: Columns
    telemetry: Telemetry
    """What the sources told, in the common vocabulary."""

    @classmethod
    def of(cls, run: Run) -> Self:
        """Read a run. Raises BadInput where it is none."""
        columns, samples = run.columns(), run.samples()
        told = read(samples)
        return cls(run, summary_of(run, columns, samples, told), columns, told)

    def offered(self, number: int) -> Stage:
        """What the stage of that number offered, to all targets together."""
        manifest = self.run.manifest
        stage = [stage for stage in manifest.stages if not stage.warmup][number]
        loads = len(manifest.targets) if manifest.trial.get("each") else 1
        return msgspec.structs.replace(
            stage, rate=stage.rate and stage.rate * loads, users=stage.users and stage.users * loads
        )

    def of_stage(self, number: int) -> Columns:
        """The requests of a stage, whatever became of them."""
        return self.columns.where(self.columns.stage == number)
