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
    from servescope.engine.config import EngineConfig


MEASURED = ("ampere", "ada", "hopper", "geforce", "blackwell-rtx")
"""Architectures of GPUs with at least five published figures of their own. V100 has three, beside
those that are bound by the host; MI300X and B200 have none."""
UNMEASURED = "unmeasured"
"""The class of all others."""


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
    """The error of a `throughput`, a `latency` or of `kv_tokens`."""
    like = _like(config)
    row = _table()[like]
    p50, p90 = row[metric]
    return ErrorBar(p50=p50, p90=p90, like=like, source=row["source"])


def _like(config: EngineConfig) -> str:
    """The class of a deployment: the least certain of those that it belongs to."""
    settled = settle(config)
    if settled.gpu is None or _is_fitted(settled):
        return "calibrated"
    return nearest(
        catalog.model(settled.model),
        catalog.gpu(settled.gpu),
        tp=settled.tp,
        pp=settled.pp,
        weights=settled.dtype,
    )


def nearest(model: Model, gpu: Gpu, *, tp: int, pp: int, weights: str) -> str:
    """The class of a deployment that nothing was fitted to."""
    if gpu.architecture not in MEASURED:
        return UNMEASURED
    if model.experts:
        return "moe"
    if weights not in ("fp16", "bf16"):
        return "narrow"
    if tp > 1 and not gpu.nvlink_bytes_per_s:
        return "pcie"
    return "tp8" if tp * pp > 4 else "dense"


def _is_fitted(config: EngineConfig) -> bool:
    """Whether it is the very deployment that its calibration was fitted to."""
    if config.calibration is None:
        return False
    fitted = read(config.calibration).settled(type(config)(engine=config.engine))
    same = ("model", "gpu", "tp", "pp", "nodes", "dtype", "kv_dtype")
    return all(getattr(config, name) == getattr(fitted, name) for name in same)


@cache
def _table() -> dict[str, dict[str, Any]]:
    text = (resources.files(__package__) / "error_bars.toml").read_text("utf-8")
    return {row["like"]: row for row in tomllib.loads(text)["error"]}
