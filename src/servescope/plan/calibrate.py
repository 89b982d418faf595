"""Constants of a deployment from runs that were measured on it.

Linear costs are first read off the tokens' times (`observed.equations`), and how the cost of a
batch grows with its size where a line will not do. Then each stage's own requests, with their
lengths and either their times or the users who sent them, are replayed; the constants are those
that bring the simulated TTFT, TPOT and end-to-end times nearest to the measured ones. The distance
is Huber's, of the logarithms of means and percentiles, so that a metric's unit does not matter and
a few odd percentiles have little say; a weak tie to where it began holds what the runs do not tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from servescope import __version__
from servescope.engine.calibration import Calibration, Residual
from servescope.engine.config import EngineConfig
from servescope.engine.cost import sizes
from servescope.engine.deployment import deploy, hardware
from servescope.engine.front_end import NO_FRONT_END
from servescope.engine.replay import replay
from servescope.errors import BadInput
from servescope.plan.least import nearest
from servescope.plan.observed import METRICS, Stage, equations
from servescope.plan.workload import statistic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from servescope.catalog import Gpu, Overheads
    from servescope.engine.deployment import Deployment
    from servescope.engine.front_end import FrontEndCost

    Floats = NDArray[np.float64]

STATISTICS = ("mean", "p50", "p90", "p95", "p99")
"""That are reported."""
_FITTED = ("mean", "p25", "p50", "p75", "p90")
"""That constants are fitted to: beyond are few requests, and what else the machine did."""
_SCALES_ALIKE = 0.3
_AS_READ = 0.05
"""Ties of `nearest`: of one size of batch to the size before, and of constants to what was read off
the tokens' times, or stands in the catalogue."""
_TOLD = 0.9
"""A batch scales as its sequences' number unless that leaves so much more of the distances."""
_LEAST = 1e-12
_WAY_S = 1e-3
"""To the engine and back, for a search to begin with."""


def calibrate(config: EngineConfig, measured: Sequence[Stage], **origin: object) -> Calibration:
    """Fit the constants: linear costs, or with a GPU those of its kernels and of the host.

    `config` has the limits of the server's scheduler. Raises BadInput where it cannot serve what
    was asked.
    """
    model = _OnGpu(config) if config.gpu is not None else _Linear(config, measured)

    def distances(factors: Floats) -> Floats:
        return _distances(model, factors, measured)

    found = nearest(distances, len(model.names), _AS_READ)
    settings, constants = model.of(found.factors)
    said = {
        field.name: getattr(settings, field.name)
        for field in msgspec.structs.fields(settings)
        if getattr(settings, field.name) != field.default or field.name == "engine"
    }
    return Calibration(
        settings=said,
        constants=constants,
        uncertainty=dict(zip(model.names, found.uncertainty.round(3).tolist(), strict=True)),
        origin={
            "servescope": __version__,
            **origin,
            "loads": list(dict.fromkeys(stage.load for stage in measured)),
        },
        residual=_rows(measured, _simulated(model, found.factors, measured)),
    )


def predict(config: EngineConfig, measured: Sequence[Stage]) -> list[Residual]:
    """What a configuration makes of the requests of stages, beside what was measured."""
    deployment = deploy(config)
    values = [_replayed(deployment, stage, deployment.front_end) for stage in measured]
    return _rows(measured, values)


# --- from constants to times ----------------------------------------------------------------------


class _Linear:
    """Without a GPU: the four costs, and the way to the engine and back.

    How the cost of a batch grows with its size is read off the tokens' times, and then stays.
    """

    names = ("step", "prefill", "context", "turnaround", "sequence")

    def __init__(self, config: EngineConfig, measured: Sequence[Stage]) -> None:
        self._config = config
        found = equations(measured, config.max_num_seqs)
        known, count = sizes(found.batches.shape[1] - 1), len(self.names)
        columns = np.column_stack((found.work, found.batches @ [1, *known]))
        guess = np.median(found.seconds) / np.maximum(columns.mean(axis=0), 1.0) / count
        guess[self.names.index("turnaround")] = _WAY_S

        def scaling(factors: Floats) -> Floats:
            return np.array([1.0, *(known * np.cumprod(factors[count:]))])

        def distances(factors: Floats) -> Floats:
            *costs, sequence_s = guess * factors[:count]
            took = found.work @ costs + sequence_s * (found.batches @ scaling(factors))
            logs: Floats = np.log(took / found.seconds)
            return logs

        # A size that the runs do not show scales as the one before.
        ties = np.repeat([0.0, _SCALES_ALIKE], [count, len(known)])
        curve = nearest(distances, len(ties), ties)
        line = nearest(lambda five: distances(np.append(five, np.ones(len(known)))), count)
        told = curve.left < _TOLD * line.left
        self._start = guess * (curve if told else line).factors[:count]
        worth = scaling(curve.factors)[1:]
        self._scaling = ",".join(f"{one:.4g}" for one in worth) if told else None

    def of(self, factors: Floats) -> tuple[EngineConfig, dict[str, float]]:
        """The settings, and no constants beside them."""
        values = np.maximum(self._start * factors, _LEAST)
        seconds = {
            name: float(f"{value:.6g}") for name, value in zip(self.names, values, strict=True)
        }
        config = msgspec.structs.replace(self._config, **seconds, batch_scaling=self._scaling)
        return config, {}

    def on(self, _constants: dict[str, float]) -> tuple[Gpu, Overheads] | None:
        """No hardware."""
        return None


class _OnGpu:
    """With a GPU: the share of its peaks that kernels reach, and the host's time."""

    names = ("hbm", "compute", "step_s", "sequence_s", "turnaround")

    def __init__(self, config: EngineConfig) -> None:
        self._config, (self._gpu, self._overheads) = config, hardware(config)
        self._way_s = max(config.turnaround_s, _WAY_S)

    def of(self, factors: Floats) -> tuple[EngineConfig, dict[str, float]]:
        """The settings, and the constants that stand for the catalogue's."""
        memory, compute, step, sequence, way = (float(factor) for factor in factors)
        reach, host = self._gpu.efficiency, self._overheads
        found = {
            "hbm": reach.hbm * memory,
            "decode_attention": reach.decode_attention * memory,
            "compute": reach.compute * compute,
            "prefill_attention": reach.prefill_attention * compute,
            "step_s": max(host.step_s, 1e-3) * step,
            "sequence_s": max(host.sequence_s, 1e-5) * sequence,
        }
        if reach.fp8_compute is not None:
            found["fp8_compute"] = reach.fp8_compute * compute
        constants = {name: float(f"{value:.6g}") for name, value in found.items()}
        way_s = float(f"{self._way_s * way:.6g}")
        return msgspec.structs.replace(self._config, turnaround=way_s), constants

    def on(self, constants: dict[str, float]) -> tuple[Gpu, Overheads] | None:
        """The hardware with such constants."""
        return Calibration(settings={}, constants=constants).apply(self._gpu, self._overheads)


def _simulated(
    model: _Linear | _OnGpu, factors: Floats, measured: Sequence[Stage]
) -> list[dict[str, Floats]]:
    config, constants = model.of(factors)
    deployment = deploy(config, model.on(constants))
    # What a front end takes is within the turnaround that is fitted.
    return [_replayed(deployment, stage, NO_FRONT_END) for stage in measured]


def _replayed(deployment: Deployment, stage: Stage, front_end: FrontEndCost) -> dict[str, Floats]:
    arrivals = stage.sent_s if stage.users is None else None
    found = replay(
        deployment.engines(),
        stage.prompts,
        stage.outputs,
        arrivals_s=arrivals,
        users=stage.users,
        router=deployment.declared.router,
        front_end=front_end,
        prefill=deployment.prefill_engines(),
        transfer=deployment.transfer,
    )
    if np.isnan(found.end_s).any():
        want = f"want settings under which all requests of {stage.load} can be served"
        raise BadInput("--engine", deployment.declared, want)
    tokens = stage.outputs
    gaps = np.where(tokens > 1, (found.end_s - found.first_s) / np.maximum(tokens - 1, 1), np.nan)
    ttft_s, e2e_s = found.first_s - found.sent_s, found.end_s - found.sent_s
    return {"ttft_s": ttft_s, "tpot_s": gaps, "e2e_s": e2e_s}


def _distances(model: _Linear | _OnGpu, factors: Floats, measured: Sequence[Stage]) -> Floats:
    """ln(predicted / measured) of each metric and statistic of each stage."""
    rows = _rows(measured, _simulated(model, factors, measured), _FITTED)
    return np.array([np.log(row.predicted_s / row.measured_s) for row in rows])


def _rows(
    measured: Sequence[Stage],
    simulated: Sequence[dict[str, Floats]],
    statistics: Sequence[str] = STATISTICS,
) -> list[Residual]:
    """Stages with the same load are one sample."""
    rows = []
    for load in dict.fromkeys(stage.load for stage in measured):
        same = [k for k, stage in enumerate(measured) if stage.load == load]
        for metric in METRICS:
            seen = np.concatenate([measured[k].measured[metric] for k in same])
            values = np.concatenate([simulated[k][metric] for k in same])
            rows += [
                Residual(
                    load=load,
                    metric=metric,
                    statistic=name,
                    measured_s=statistic(seen, name),
                    predicted_s=statistic(values, name),
                )
                for name in statistics
                if statistic(seen, name) > 0
            ]
    return rows
