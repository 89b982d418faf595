"""A run as analyses and reports read it: everything loaded once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

from servescope.summary import Summary, summary_of
from servescope.telemetry import Telemetry, read

if TYPE_CHECKING:
    from servescope.records import Columns, Sample
    from servescope.store import Run, Stage


@dataclass(frozen=True)
class Evidence:
    """A run's summary and what that was made of."""

    run: Run
    summary: Summary
    columns: Columns
    samples: list[Sample]

    @classmethod
    def of(cls, run: Run) -> Self:
        """Read a run. Raises BadInput where it is none."""
        columns, samples = run.columns(), run.samples()
        return cls(run, summary_of(run, columns, samples), columns, samples)

    @cached_property
    def telemetry(self) -> Telemetry:
        """What the sources told, in the common vocabulary."""
        return read(self.samples)

    def offered(self, number: int) -> Stage:
        """What the stage of that number offered, as the manifest has it."""
        return [stage for stage in self.run.manifest.stages if not stage.warmup][number]

    def of_stage(self, number: int) -> Columns:
        """The requests of a stage, whatever became of them."""
        return self.columns.where(self.columns.stage == number)
