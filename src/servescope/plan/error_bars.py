"""How wrong a prediction may be: what was found of the measured deployments nearest to it."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import msgspec

from servescope import catalog
from servescope.engine.calibration import read
from servescope.engine.deployment import settle

if TYPE_CHECKING:
    from servescope.catalog import Gpu, Model
    from servescope.engine.calibration import Calibration
    from servescope.engine.config import EngineConfig


MEASURED = ("ampere", "ada", "hopper", "geforce", "blackwell-rtx")
"""Architectures of GPUs with at least five published figures of their own. V100 has three, beside
those that are bound by the host; MI300X and B200 have none."""
UNMEASURED, NODES, PIPELINE = "unmeasured", "nodes", "pipeline"
"""The class of all others, and two more of which next to nothing was measured: no published figure
is of pipeline stages, and the constants of networks were chosen with the one run on two nodes in
view. These three have the widest bars of all."""
FITTED = ("engine", "model", "gpu", "tp", "pp", "nodes", "dtype", "kv_dtype")
"""Settings that a calibration's constants do not transfer over."""


class ErrorBar(msgspec.Struct, frozen=True, kw_only=True):
    """The absolute relative error of predictions like this one."""

    p50: float
    p90: float
    like: str
    """The nearest class of deployment that was measured."""
    source: str

    def around(self, value: float) -> tuple[float, float]:
        """From where to where the truth lies in nine cases of ten, taken as ratios."""
        return value / (1 + self.p90), value * (1 + self.p90)


def error_bar(config: EngineConfig, metric: str) -> ErrorBar:
    """The error of a `throughput`, a `latency` or of `kv_tokens`: of the classes that a deployment
    belongs to the widest, and no less than its calibration, if it has one, leaves of its own runs.
    """
    settled = settle(config)
    fitted = None if settled.calibration is None else read(settled.calibration)
    rows = [_table()[like] for like in _classes(settled, fitted)]
    row = max(rows, key=lambda row: row[metric][1])
    (p50, p90), source = row[metric], row["source"]
    if fitted is not None and metric != "kv_tokens":
        p50, p90 = max(p50, fitted.left[0]), max(p90, fitted.left[1])
    if fitted is not None and fitted.doubts:
        source += f"; its calibration is doubtful: {fitted.doubts}"
    return ErrorBar(p50=p50, p90=p90, like=row["like"], source=source)


def _classes(config: EngineConfig, fitted: Calibration | None) -> list[str]:
    if config.gpu is None or (fitted and not fitted.beyond and _is_fitted(config)):
        return ["calibrated"]
    model, gpu = catalog.model(config.model), catalog.gpu(config.gpu)
    split = {"tp": config.tp, "pp": config.pp, "nodes": config.nodes}
    return _belongs_to(model, gpu, weights=config.dtype, **split)


def nearest(model: Model, gpu: Gpu, *, tp: int, pp: int, weights: str) -> str:
    """The class that a published figure of such a deployment counts for."""
    return _belongs_to(model, gpu, weights=weights, tp=tp, pp=pp)[0]


def _belongs_to(
    model: Model, gpu: Gpu, *, weights: str, tp: int, pp: int, nodes: int = 1
) -> list[str]:
    """All classes of a deployment that nothing was fitted to, the least certain first."""
    found = {
        UNMEASURED: gpu.architecture not in MEASURED,
        NODES: nodes > 1,
        PIPELINE: pp > 1,
        "moe": model.experts > 0,
        "narrow": weights not in ("fp16", "bf16"),
        "pcie": tp > 1 and not gpu.nvlink_bytes_per_s,
        "tp8": tp * pp > 4,
    }
    return [like for like, belongs in found.items() if belongs] or ["dense"]


def _is_fitted(config: EngineConfig) -> bool:
    """Whether it is the very deployment that its calibration was fitted to."""
    fitted = settle(type(config)(engine=config.engine, calibration=config.calibration))
    same = catalog.model(config.model) == catalog.model(fitted.model)
    return same and all(getattr(config, k) == getattr(fitted, k) for k in FITTED if k != "model")


@cache
def _table() -> dict[str, dict[str, Any]]:
    text = (resources.files(__package__) / "error_bars.toml").read_text("utf-8")
    return {row["like"]: row for row in tomllib.loads(text)["error"]}
