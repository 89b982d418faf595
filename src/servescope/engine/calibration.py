"""What was fitted to measured runs of a server, kept as a TOML file: settings and constants.

`servescope calibrate` writes it; `sim:vllm?calibration=FILE` and `servescope plan` read it. What a
user sets himself is worth more than what the file says.
"""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np

from servescope.engine.config import UNNAMED, EngineConfig
from servescope.errors import BadInput
from servescope.plugins import one_of

if TYPE_CHECKING:
    from servescope.catalog import Gpu, Overheads

_Seconds = Annotated[float, msgspec.Meta(gt=0)]

SCHEMA = 1
_UNHEEDED = {"request_s", "token_s", "memory_utilization"}
"""Of `Overheads`: a calibrated front end is within the turnaround, and the share of memory is a
setting."""
_SHARES = ("hbm", "compute")
"""Fitted constants that are shares of the datasheet's peaks."""
_TYPICAL = ("mean", "p50", "p90")
"""Statistics that constants are fitted to."""
_FAR = 0.2
"""The P90 that calibrations are taken to have (`plan/error_bars.toml`): this one leaves more."""


class Residual(msgspec.Struct, frozen=True, kw_only=True):
    """What is left between a run and the simulation of its own requests."""

    load: str
    """`users:4`; of all runs together."""
    metric: str
    """ttft_s, tpot_s or e2e_s."""
    statistic: str
    """mean, p50, p90, p95 or p99."""
    measured_s: _Seconds
    predicted_s: _Seconds

    @property
    def error(self) -> float:
        """Predicted above measured, as a share of it."""
        return self.predicted_s / self.measured_s - 1


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A fitted file."""

    schema: int = SCHEMA
    settings: dict[str, Any]
    """Of `EngineConfig`: the engine, its limits, and without a GPU what its steps cost."""
    constants: dict[str, float] = {}
    """With a GPU: fields of `Efficiency` and of `Overheads` that stand for the catalogue's;
    `decode_attention` is that of `Efficiency`."""
    uncertainty: dict[str, float] = {}
    """Of each fitted constant, the relative standard error; 1 and more: the runs do not tell it."""
    origin: dict[str, Any] = {}
    """Where it came from: runs, version, time."""
    residual: list[Residual] = []

    @property
    def left(self) -> tuple[float, float]:
        """Median and P90 of what the fit leaves of means, medians and P90s, as error bars: the
        larger of predicted over measured and measured over predicted, less 1."""
        typical = [one for one in self.residual if one.statistic in _TYPICAL]
        logs = np.array([math.log(one.predicted_s / one.measured_s) for one in typical] or [0.0])
        median, p90 = np.expm1(np.percentile(np.abs(logs), (50, 90)))
        return float(median), float(p90)

    @property
    def beyond(self) -> str:
        """Constants that no GPU can reach, by more than two standard errors; '': none."""
        least = {
            name: share * (1 - 2 * self.uncertainty.get(name, 0.0))
            for name, share in self.constants.items()
            if name in _SHARES
        }
        return " and ".join(f"{k} {self.constants[k]:.3g}" for k, v in least.items() if v > 1)

    @property
    def doubts(self) -> str:
        """Why it should not be trusted, in one line; '': nothing tells so."""
        found = []
        if self.beyond:
            asked = "was it this GPU, this model and this dtype that ran?"
            found.append(f"{self.beyond} times the datasheet's peak, which none reaches: {asked}")
        if self.left[1] > _FAR:
            found.append(f"of its own runs' figures one in ten is {self.left[1]:.0%} off or more")
        return "; ".join(found)

    def settled(self, config: EngineConfig) -> EngineConfig:
        """The settings, with those of the file where the user left the default.

        Raises BadInput where they contradict each other.
        """
        config = self._checked(config)
        own = {
            field.name: self.settings[field.name]
            for field in msgspec.structs.fields(config)
            if field.name in self.settings and getattr(config, field.name) == field.default
        }
        try:
            return msgspec.structs.replace(config, **own)
        except ValueError as error:  # of __post_init__
            raise BadInput("calibration", config.calibration, str(error)) from None

    def _checked(self, config: EngineConfig) -> EngineConfig:
        """The settings, with the GPU called as in the file; BadInput where it is of another."""
        like, want = msgspec.convert(self.settings, EngineConfig), ""
        if config.engine != like.engine:
            want = f"want engine {like.engine}, to which it was fitted, not {config.engine}"
        elif like.gpu is None:
            if config.gpu is not None:
                want = "want no gpu: its costs were fitted without one"
            elif config.model not in (UNNAMED, like.model):
                want = f"want no other model than that of its runs, not {config.model}"
        elif config.gpu is not None:
            from servescope import catalog  # noqa: PLC0415 (only where a GPU is named)

            if catalog.gpu(config.gpu) == catalog.gpu(like.gpu):
                return msgspec.structs.replace(config, gpu=like.gpu)
            want = f"want gpu {like.gpu}, to which it was fitted, not {config.gpu}"
        if want:
            raise BadInput("calibration", config.calibration, want)
        return config

    def apply(self, gpu: Gpu, overheads: Overheads) -> tuple[Gpu, Overheads]:
        """The GPU and the engine, with the fitted constants."""
        reach = gpu.efficiency
        of_gpu = {k: v for k, v in self.constants.items() if k in reach.__struct_fields__}
        of_engine = {k: v for k, v in self.constants.items() if k not in of_gpu}
        return (
            msgspec.structs.replace(gpu, efficiency=msgspec.structs.replace(reach, **of_gpu)),
            msgspec.structs.replace(overheads, **of_engine),
        )


def read(path: str) -> Calibration:
    """The calibration of a file; raises BadInput where it has a setting or a constant that nothing
    here would heed."""
    from servescope.catalog import Efficiency, Overheads  # noqa: PLC0415 (only with a calibration)

    try:
        found = tomllib.loads(Path(path).expanduser().read_text("utf-8"))
        calibration = msgspec.convert(found, Calibration)
        msgspec.convert(calibration.settings, EngineConfig)
    except OSError as error:
        raise BadInput("calibration", path, f"cannot be read ({error.strerror})") from None
    except (ValueError, msgspec.ValidationError) as error:
        want = f"want a file of servescope calibrate: {error}"
        raise BadInput("calibration", path, want) from None
    if calibration.schema != SCHEMA:
        raise BadInput("calibration", path, f"want schema {SCHEMA}, found {calibration.schema}")
    fields = (*msgspec.structs.fields(Efficiency), *msgspec.structs.fields(Overheads))
    numbers = {field.name for field in fields if field.type in (float, float | None)}
    known = sorted(numbers - _UNHEEDED)
    for name, value in calibration.constants.items():
        if name not in known or "gpu" not in calibration.settings:
            want = one_of(name, known) if "gpu" in calibration.settings else "none without a gpu"
            raise BadInput("calibration", path, f"want no constant {name}: {want}")
        if not 0 < value < math.inf:
            raise BadInput("calibration", path, f"want {name} above 0, not {value}")
    return calibration


def text(calibration: Calibration) -> str:
    """The file's text, without what is empty."""
    tables = msgspec.to_builtins(calibration)
    lines = ["# Written by `servescope calibrate`; read by sim: targets and `servescope plan`."]
    lines += [f"# Doubtful: {calibration.doubts}"] * bool(calibration.doubts)
    lines.append(f"schema = {tables.pop('schema')}")
    residuals = tables.pop("residual")
    for name, table in tables.items():
        if table:
            lines += ["", f"[{name}]", *_pairs(table)]
    for residual in residuals:
        lines += ["", "[[residual]]", *_pairs(residual)]
    return "\n".join(lines) + "\n"


def _pairs(table: dict[str, Any]) -> list[str]:
    # JSON's strings, numbers, booleans and lists are TOML's, too.
    return [f"{key} = {json.dumps(value)}" for key, value in table.items() if value is not None]
