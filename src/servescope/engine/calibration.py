"""What was fitted to measured runs of a server, kept as a TOML file: settings and constants.

`servescope calibrate` writes it; `sim:vllm?calibration=FILE` and `servescope plan` read it. What a
user sets himself is worth more than what the file says.
"""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from servescope.engine.config import EngineConfig
from servescope.errors import BadInput
from servescope.plugins import one_of

if TYPE_CHECKING:
    from servescope.catalog import Gpu, Overheads

SCHEMA = 1
_UNHEEDED = {"request_s", "token_s", "memory_utilization"}
"""Of `Overheads`: a calibrated front end is within the turnaround, and the share of memory is a
setting."""


class Residual(msgspec.Struct, frozen=True, kw_only=True):
    """What is left between a run and the simulation of its own requests."""

    load: str
    """`users:4`; of all runs together."""
    metric: str
    """ttft_s, tpot_s or e2e_s."""
    statistic: str
    """mean, p50, p90, p95 or p99."""
    measured_s: float
    predicted_s: float

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

    def settled(self, config: EngineConfig) -> EngineConfig:
        """The settings, with those of the file where the user left the default.

        Raises BadInput where they contradict each other.
        """
        for name in ("engine", "gpu"):
            said, fitted = getattr(config, name), self.settings.get(name)
            if said != fitted and (name == "engine" or said is not None):
                want = f"want {name} {fitted}, to which it was fitted, not {said}"
                raise BadInput("calibration", config.calibration, want)
        own = {
            field.name: self.settings[field.name]
            for field in msgspec.structs.fields(config)
            if field.name in self.settings and getattr(config, field.name) == field.default
        }
        try:
            return msgspec.structs.replace(config, **own)
        except ValueError as error:  # of __post_init__
            raise BadInput("calibration", config.calibration, str(error)) from None

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
