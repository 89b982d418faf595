"""Traces of vLLM 0.19: every request's times, with Llama-3.1-8B on an RTX 4090 and an RTX PRO 6000.

Source: examples of casys-kaist/LLMServingSim (MIT). The files are not packaged: their folder is
given, or in the environment as SERVESCOPE_TRACES. Two predictions each: with nothing fitted, and
with one constant, the share of HBM bandwidth that kernels reach, fitted on every other request and
judged on the rest. `queued_ts` is the clock to use; that of the arrivals is another one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from servescope import catalog
from servescope.engine.config import EngineConfig
from servescope.validation.cells import Cell, Setup
from servescope.validation.deployment import deployed, serve

VARIABLE = "SERVESCOPE_TRACES"
NOTHING_FITTED, ONE_CONSTANT = "vLLM 0.19 traces", "vLLM 0.19 traces, one constant fitted"
GPUS = {"rtx4090": "rtx-4090", "rtxpro6000": "rtx-pro-6000"}
STATISTICS = {"mean": None, "P50": 50, "P90": 90, "P99": 99}
_NARROWEST, _WIDEST = 0.7, 1.4
_HALVINGS = 12

Times = NDArray[np.float64]


class Trace:
    """One run: when its requests came, what they were, and when they were served."""

    def __init__(self, folder: Path) -> None:
        lines = (folder / "requests.jsonl").read_text("utf-8").splitlines()
        found = sorted(map(json.loads, lines), key=lambda request: request["queued_ts"])

        def column(name: str, kind: type) -> NDArray[Any]:
            return np.array([request[name] for request in found], kind)

        self.sent_s = column("queued_ts", float)
        self.prompts, self.outputs = column("input_toks", int), column("output_toks", int)
        self.first_s, self.end_s = column("first_token_ts", float), column("last_token_ts", float)
        said = json.loads((folder / "meta.json").read_text("utf-8"))
        self.name = folder.name
        limits = said["engine_kwargs"]
        self.gpu = next(gpu for word, gpu in GPUS.items() if word in folder.name)
        self.config = EngineConfig(
            engine="vllm",
            model="llama-3.1-8b",
            gpu=self.gpu,
            kv_tokens=said.get("kv_cache", {}).get("num_kv_tokens"),
            max_num_seqs=limits["max_num_seqs"],
            max_num_batched_tokens=limits["max_num_batched_tokens"],
            max_model_len=32_768,
        )

    def figures(self, first_s: Times, end_s: Times, chosen: slice) -> dict[str, float]:
        """Statistics of some requests."""
        sent, first, end = self.sent_s[chosen], first_s[chosen], end_s[chosen]
        values = {
            "TTFT": first - sent,
            "TPOT": (end - first) / np.maximum(self.outputs[chosen] - 1, 1),
            "E2E": end - sent,
        }
        return {
            f"{statistic} {what}": float(
                each.mean() if percent is None else np.percentile(each, percent)
            )
            for what, each in values.items()
            for statistic, percent in STATISTICS.items()
        }

    def predicted(self, hbm: float, chosen: slice) -> dict[str, float]:
        """The same of a prediction, with so many times the HBM bandwidth of the catalogue."""
        reach = catalog.gpu(self.gpu).efficiency
        changed = {"hbm": hbm * reach.hbm, "decode_attention": hbm * reach.decode_attention}
        made = deployed(self.config, has_server=False, efficiency=changed)
        start = self.sent_s[0]
        served = serve(made, self.prompts, self.outputs, arrivals_s=self.sent_s - start)
        return self.figures(served.first_s + start, served.end_s + start, chosen)

    def fitted(self, chosen: slice) -> float:
        """Times the catalogue's HBM bandwidth with which the mean end-to-end time comes out."""
        wanted = self.figures(self.first_s, self.end_s, chosen)["mean E2E"]
        low, high = _NARROWEST, _WIDEST
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            slow = self.predicted(middle, chosen)["mean E2E"] > wanted
            low, high = (middle, high) if slow else (low, middle)
        return (low + high) / 2


def folders(given: str | None = None) -> list[Path]:
    """The traces there are; none where no folder is known."""
    home = given or os.environ.get(VARIABLE, "")
    return sorted(path.parent for path in Path(home).glob("*/requests.jsonl")) if home else []


def predict(given: str | None = None) -> Iterator[Cell]:
    """All cells of all traces."""
    for folder in folders(given):
        yield from _cells(folder)


@cache
def _cells(folder: Path) -> tuple[Cell, ...]:
    trace = Trace(folder)
    everyone, even, odd = slice(None), slice(0, None, 2), slice(1, None, 2)
    factor = trace.fitted(even)
    found = []
    told = f"{factor:.3f} times the catalogue's HBM bandwidth"
    for source, hbm, chosen, note, like in (
        (NOTHING_FITTED, 1.0, everyone, "", ""),  # error bars must not ask where the folder is
        (ONE_CONSTANT, factor, odd, told, "calibrated"),
    ):
        predicted = trace.predicted(hbm, chosen)
        setup = Setup(engine="vLLM", gpu=trace.gpu, model="llama-3.1-8b", workload="300 requests")
        for metric, published in trace.figures(trace.first_s, trace.end_s, chosen).items():
            found.append(
                Cell(
                    source=source,
                    setup=setup,
                    metric=metric,
                    unit="s",
                    published=published,
                    predicted=predicted[metric],
                    quality="exact",
                    note=note,
                    like=like,
                )
            )
    return tuple(found)
