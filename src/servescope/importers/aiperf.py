"""AIPerf: its summary, and its records of each request beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import msgspec

from servescope.importers import Figure, Imported, ImportedStage
from servescope.importers._reading import (
    Keys,
    arrivals,
    documents,
    floats,
    of_gaps,
    spread,
    statistics,
    told,
    users,
    wrong,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

_SUMMARY, _RECORDS = "_aiperf.json", ".jsonl"
_SCALES = {"ms": 1e-3, "sec": 1.0, "s": 1.0, "us": 1e-6, "ns": 1e-9}
_EACH = {
    "time_to_first_token": "ttft_s",
    "time_to_first_output_token": "ttfo_s",
    "inter_token_latency": "tpot_s",
    "request_latency": "e2e_s",
    "input_sequence_length": "input_tokens",
    "output_sequence_length": "output_tokens",
    "usage_prompt_cache_read_tokens": "cached_tokens",
}
"""What it has of each request."""
_RATES = {
    "request_throughput": "requests_per_s",
    "output_token_throughput": "output_tokens_per_s",
    "total_token_throughput": "total_tokens_per_s",
    "goodput": "goodput_requests_per_s",
}
_CHUNKS, _IN_FLIGHT = "inter_chunk_latency", "effective_concurrency"
_WINDOW = "over the time from the first request's start to the last content of any"
_START = "just before the request is handed to the HTTP client, so setting up a connection is in it"
_DEFINITIONS = {
    "ttft_s": f"first content - {_START}",
    "ttfo_s": f"first content that is no reasoning - {_START}",
    "tpot_s": "its 'inter token latency': (end-to-end - TTFT) / (output tokens - those of the first"
    " chunk, 1 where it was not told with --per-chunk-usage), one a request",
    "icl_s": "its 'inter chunk latency': the gaps between neighbouring chunks of content",
    "itl_s": "its 'inter chunk latency', the gaps between chunks; here each had one token",
    "e2e_s": f"last content - {_START}",
    "requests_per_s": f"answered requests {_WINDOW}",
    "output_tokens_per_s": f"output tokens of answered requests {_WINDOW}",
    "total_tokens_per_s": f"prompt and output tokens of answered requests {_WINDOW}",
    "goodput_requests_per_s": f"answered requests that meet its --goodput {_WINDOW}",
    "concurrency": "its 'effective concurrency': requests in flight, over time",
    "input_tokens": "its tokenizer on the prompt; with --use-server-token-count as the server says",
    "output_tokens": "its tokenizer on the text; with --use-server-token-count as the server says",
    "cached_tokens": "as the server says, where it says so",
    "tokens_per_chunk": "output tokens / chunks of content",
}


class _Metric(msgspec.Struct):
    unit: str = ""
    avg: float | None = None
    min: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    max: float | None = None
    count: float | None = None

    def scale(self) -> float:
        return _SCALES.get(self.unit, 1.0)

    def summed(self) -> dict[str, float]:
        said = {"n": self.count, "mean": self.avg, "min": self.min, "p50": self.p50}
        said |= {"p90": self.p90, "p95": self.p95, "p99": self.p99, "max": self.max}
        return statistics(said, self.scale())


class _Phase(msgspec.Struct):
    kind: str = "profiling"
    type: str = ""
    concurrency: float | None = None
    rate: float | None = None
    smoothness: float | None = None


class _Config(msgspec.Struct):
    phases: list[_Phase] = []


class _Where(msgspec.Struct):
    request_start_ns: int = 0
    benchmark_phase: str = "profiling"


class _Record(msgspec.Struct):
    metadata: _Where
    metrics: dict[str, msgspec.Raw] = {}
    error: msgspec.Raw = msgspec.Raw(b"null")

    def answered(self) -> bool:
        return bytes(self.error) == b"null" and "request_latency" in self.metrics


class _Value(msgspec.Struct):
    value: float | None = None
    unit: str = ""


class _Values(msgspec.Struct):
    value: list[float] = []
    unit: str = ""


class Aiperf(msgspec.Struct, frozen=True, tag="aiperf"):
    """A result of AIPerf: profile_export_aiperf.json, with profile_export.jsonl beside it."""

    file: ClassVar[str] = "AIPerf's profile_export_aiperf.json or profile_export.jsonl"

    def recognises(self, head: bytes, path: Path) -> bool:
        """By its version, or by what each of its records has."""
        del path
        return b'"aiperf_version"' in head or (
            head.startswith(b'{"metadata"') and b'"request_start_ns"' in head
        )

    def read(self, path: Path) -> Imported:
        """One stage. Either file is read with the other, where that is beside it."""
        prefix = path.name.removesuffix(_SUMMARY).removesuffix(".json").removesuffix(_RECORDS)
        summary, records = path.with_name(prefix + _SUMMARY), path.with_name(prefix + _RECORDS)
        found, notes = Keys(path, {}), [f"{summary.name} is not beside it: no throughput"]
        if summary.is_file() or path.suffix != _RECORDS:
            found = Keys.of(summary if summary.is_file() else path)[0]
            missing = found.lacking([*list(_RATES)[:3], "time_to_first_token", "request_count"])
            notes = [missing] if missing else []
        stage = _summed(found)
        if records.is_file():
            _add_requests(stage, records)
        else:
            notes.append(f"{records.name} is not beside it: no figure has an interval")
        if found.get("was_cancelled", bool):
            notes.append("the run was cancelled")
        if not stage.figures or not stage.outcomes.get("completed"):
            raise wrong(path, "want a benchmark in which at least one request was answered")
        return Imported(
            tool="AIPerf",
            tool_version=found.get("aiperf_version", str),
            name=path.absolute().parent.name or path.stem,
            definitions=told(_DEFINITIONS, [stage.figures]),
            stages=[stage],
            notes=notes,
        )


def _summed(keys: Keys) -> ImportedStage:
    """The stage as the summary has it."""
    figures: dict[str, Figure] = {}
    for theirs, ours in {**_EACH, _CHUNKS: "icl_s"}.items():
        metric = keys.get(theirs, _Metric)
        if metric is not None and (summed := metric.summed()):
            figures[ours] = summed
    for theirs, ours in _RATES.items():
        metric = keys.get(theirs, _Metric)
        if metric is not None and metric.avg is not None:
            figures[ours] = metric.avg
    in_flight = keys.get(_IN_FLIGHT, _Metric)
    if in_flight is not None:
        figures["concurrency"] = statistics({"mean": in_flight.avg, "max": in_flight.max})
    counts = {"completed": "request_count", "failed": "error_request_count"}
    said = {ours: keys.get(theirs, _Metric) for ours, theirs in counts.items()}
    outcomes = {name: int(one.avg) for name, one in said.items() if one is not None and one.avg}
    return ImportedStage(load=_load(keys), outcomes=outcomes, figures=figures, values={})


def _load(keys: Keys) -> str:
    config = keys.get("input_config", _Config) or _Config()
    phase = next((one for one in config.phases if one.kind == "profiling"), _Phase())
    most = f", at most {phase.concurrency:g} at once" if phase.concurrency else ""
    if phase.type == "concurrency" and phase.concurrency:
        return users(phase.concurrency)
    if phase.type == "gamma" and phase.rate and phase.smoothness:
        return f"gamma:rate={phase.rate:g},cv={phase.smoothness**-0.5:g}{most}"
    if phase.rate:
        return arrivals(phase.type, phase.rate) + most
    return phase.type or "not told"


def _add_requests(stage: ImportedStage, path: Path) -> None:
    """What the records say, which replaces what was summed up."""
    every = [one for one in documents(path, _Record) if one.metadata.benchmark_phase == "profiling"]
    records = sorted(filter(_Record.answered, every), key=lambda one: one.metadata.request_start_ns)
    stage.outcomes = {"completed": len(records)}
    if len(every) > len(records):
        stage.outcomes["failed"] = len(every) - len(records)
    for theirs, ours in _EACH.items():
        values = floats(_value(path, one, theirs) for one in records)
        if summed := spread(values):
            stage.values[ours], stage.figures[ours] = values, summed
    gaps = floats(gap for one in records for gap in _gaps(path, one))
    if "output_tokens" in stage.values:
        stage.figures |= of_gaps(gaps, stage.values["output_tokens"])


def _value(path: Path, record: _Record, name: str) -> float | None:
    found = Keys(path, record.metrics).get(name, _Value)
    if found is None or found.value is None:
        return None
    return found.value * _SCALES.get(found.unit, 1.0)


def _gaps(path: Path, record: _Record) -> Iterable[float]:
    found = Keys(path, record.metrics).get(_CHUNKS, _Values) or _Values()
    scale = _SCALES.get(found.unit, 1.0)
    return [gap * scale for gap in found.value]
