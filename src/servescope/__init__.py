"""servescope: measure, explain and predict how well large language models are served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from servescope.store import Run

__version__ = "0.1.0"


def run(target: str | list[str] | None = None, **options: Any) -> Run:  # noqa: ANN401 (checked by Trial)
    """Measure an endpoint, as `servescope run` does; returns the run, summary written.

    Several targets share the load; without one a simulated engine is started and measured.

    Options are those of the command with underscores, `load` and `slo` as lists of strings:
    `servescope.run("http://127.0.0.1:8000", load=["poisson:4"], duration="30s")`. Raises
    `servescope.errors.BadInput` and `Unreachable`; a fault of the server is a record, no exception.
    """
    from servescope.analysis import conclude  # noqa: PLC0415 (importing servescope stays cheap)
    from servescope.conduct import conduct  # noqa: PLC0415
    from servescope.experiment import declare  # noqa: PLC0415

    return conclude(conduct(declare({"target": target or []} | options))).run
