"""GuideLLM: its report of benchmarks, as JSON or YAML."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import msgspec

from servescope.importers import Figure, Imported, ImportedStage
from servescope.importers._reading import (
    arrivals,
    content,
    documents,
    floats,
    spread,
    statistics,
    told,
    users,
    wrong,
)

_MS = 1e-3
_MOST_YAML_MIB, _DEEPEST = 16, 50
_WINDOW = "inside its measuring window, which may end before the last of them does"
_START = "the first byte of the request's head (by the wall clock)"
_SUMMED = "in a file without every request its percentiles are values that occurred"
_DEFINITIONS = {
    "ttft_s": f"first event with a token - {_START}; {_SUMMED}",
    "ttfo_s": f"first event with a token that is no reasoning - {_START}; {_SUMMED}",
    "tpot_s": "its 'ITL': (last event - first event with a token) / (output tokens - 1); in a file"
    " without every request each request weighs as many times as it has gaps",
    "normalized_latency_s_per_token": f"its 'TPOT': (last event with a token - {_START}) / output"
    " tokens; in a file without every request each weighs as many times as it has tokens",
    "e2e_s": f"end of the stream - {_START}; {_SUMMED}",
    "requests_per_s": f"successful requests {_WINDOW}",
    "output_tokens_per_s": f"output tokens of successful requests {_WINDOW}",
    "total_tokens_per_s": f"prompt and output tokens of successful requests {_WINDOW}",
    "concurrency": f"requests in flight, whatever became of them, {_WINDOW}",
    "input_tokens": "as the server counted, else its tokenizer",
    "output_tokens": "as the server counted, else the events with a token",
}


class _Percentiles(msgspec.Struct):
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None


class _Summed(msgspec.Struct):
    count: float | None = None
    mean: float | None = None
    min: float | None = None
    max: float | None = None
    percentiles: _Percentiles = msgspec.field(default_factory=_Percentiles)

    def statistics(self, scale: float) -> dict[str, float]:
        if not self.count:
            return {}
        at = self.percentiles
        said = {"mean": self.mean, "min": self.min, "p50": at.p50, "p90": at.p90}
        return statistics({**said, "p95": at.p95, "p99": at.p99, "max": self.max}, scale)


class _ByStatus(msgspec.Struct):
    successful: _Summed | None = None
    total: _Summed | None = None


class _Counts(msgspec.Struct):
    successful: int = 0
    errored: int = 0
    incomplete: int = 0


class _Metrics(msgspec.Struct):
    request_totals: _Counts
    requests_per_second: _ByStatus | None = None
    output_tokens_per_second: _ByStatus | None = None
    tokens_per_second: _ByStatus | None = None
    request_concurrency: _ByStatus | None = None
    request_latency: _ByStatus | None = None
    time_to_first_token_ms: _ByStatus | None = None
    time_to_first_output_token_ms: _ByStatus | None = None
    inter_token_latency_ms: _ByStatus | None = None
    time_per_output_token_ms: _ByStatus | None = None
    prompt_token_count: _ByStatus | None = None
    output_token_count: _ByStatus | None = None


class _Request(msgspec.Struct):
    request_start_time: float | None = None
    request_latency: float | None = None
    time_to_first_token_ms: float | None = None
    time_to_first_output_token_ms: float | None = None
    inter_token_latency_ms: float | None = None
    time_per_output_token_ms: float | None = None
    prompt_token_count: float | None = msgspec.field(name="prompt_tokens", default=None)
    output_token_count: float | None = msgspec.field(name="output_tokens", default=None)


class _Requests(msgspec.Struct):
    successful: list[_Request] = []


class _Strategy(msgspec.Struct):
    type_: str = ""
    streams: float | None = None
    rate: float | None = None


class _Config(msgspec.Struct):
    strategy: _Strategy = msgspec.field(default_factory=_Strategy)


class _Benchmark(msgspec.Struct):
    metrics: _Metrics
    config: _Config = msgspec.field(default_factory=_Config)
    requests: _Requests | None = None


class _Metadata(msgspec.Struct):
    guidellm_version: str | None = None


class _Report(msgspec.Struct):
    benchmarks: list[_Benchmark]
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)


_EACH = {
    "request_latency": ("e2e_s", 1.0),
    "time_to_first_token_ms": ("ttft_s", _MS),
    "time_to_first_output_token_ms": ("ttfo_s", _MS),
    "inter_token_latency_ms": ("tpot_s", _MS),
    "time_per_output_token_ms": ("normalized_latency_s_per_token", _MS),
    "prompt_token_count": ("input_tokens", 1.0),
    "output_token_count": ("output_tokens", 1.0),
}
"""Its figures, of all requests and of each: ours, and times what."""
_RATES = {
    "requests_per_second": "requests_per_s",
    "output_tokens_per_second": "output_tokens_per_s",
    "tokens_per_second": "total_tokens_per_s",
}


class Guidellm(msgspec.Struct, frozen=True, tag="guidellm"):
    """A report of GuideLLM, in which each benchmark is a stage."""

    file: ClassVar[str] = "GuideLLM's benchmarks.json or .yaml"

    def recognises(self, head: bytes, path: Path) -> bool:
        """By its version, or in YAML, where that stands last, by the first key."""
        if path.suffix in (".yaml", ".yml"):
            return head.startswith(b"benchmarks:")
        return b'"guidellm_version"' in head or b'"generative_benchmark"' in head

    def read(self, path: Path) -> Imported:
        """Raises BadInput where there is nothing to be read."""
        yaml = path.suffix in (".yaml", ".yml")
        report = _of_yaml(path) if yaml else documents(path, _Report)[0]
        if not report.benchmarks:
            raise wrong(path, "want at least one benchmark")
        stages, notes = [], []
        for number, benchmark in enumerate(report.benchmarks, start=1):
            stages.append(_stage(path, benchmark))
            missing = sorted(set(_WANTED) - {*stages[-1].figures})
            if missing:
                notes.append(f"benchmark {number}: the file does not tell {', '.join(missing)}")
        return Imported(
            tool="GuideLLM",
            tool_version=report.metadata.guidellm_version,
            name=path.stem,
            definitions=told(_DEFINITIONS, [stage.figures for stage in stages]),
            stages=stages,
            notes=notes,
        )


_WANTED = ("ttft_s", "tpot_s", "e2e_s", *_RATES.values())


def _stage(path: Path, benchmark: _Benchmark) -> ImportedStage:
    metrics, figures = benchmark.metrics, dict[str, Figure]()
    for theirs, (ours, scale) in _EACH.items():
        said: _ByStatus | None = getattr(metrics, theirs)
        if said is not None and said.successful is not None:
            figures[ours] = said.successful.statistics(scale)
    for theirs, ours in _RATES.items():
        said = getattr(metrics, theirs)
        if said is not None and said.successful is not None and said.successful.mean is not None:
            figures[ours] = said.successful.mean
    in_flight = metrics.request_concurrency.total if metrics.request_concurrency else None
    if in_flight is not None:
        figures["concurrency"] = statistics({"mean": in_flight.mean, "max": in_flight.max})
    values = {}
    requests = benchmark.requests.successful if benchmark.requests else []
    if requests and len(requests) == metrics.request_totals.successful:  # not only a part of them
        requests.sort(key=lambda one: one.request_start_time or 0.0)
        for theirs, (ours, scale) in _EACH.items():
            column = floats(getattr(one, theirs) for one in requests) * scale
            if summed := spread(column):
                values[ours], figures[ours] = column, summed
    figures = {name: figure for name, figure in figures.items() if figure != {}}
    counts = metrics.request_totals
    if not counts.successful or not figures:
        raise wrong(path, "want benchmarks in each of which at least one request succeeded")
    outcomes = {"completed": counts.successful}
    outcomes |= {"failed": counts.errored} if counts.errored else {}
    outcomes |= {"cancelled": counts.incomplete} if counts.incomplete else {}
    return ImportedStage(
        load=_load(benchmark.config.strategy), outcomes=outcomes, figures=figures, values=values
    )


def _load(strategy: _Strategy) -> str:
    if strategy.type_ == "concurrent" and strategy.streams:
        return users(strategy.streams)
    if strategy.type_ in ("constant", "poisson") and strategy.rate:
        return arrivals(strategy.type_, strategy.rate)
    words = {"synchronous": "sync", "throughput": "burst"}
    return words.get(strategy.type_, strategy.type_ or "not told")


def _of_yaml(path: Path) -> _Report:
    """The same from YAML. Raises BadInput where it is none, or very large: reading it is slow."""
    import yaml  # noqa: PLC0415 (for this alone)

    data = content(path)
    if len(data) > _MOST_YAML_MIB << 20:
        raise wrong(path, f"want at most {_MOST_YAML_MIB} MiB of YAML; have GuideLLM write JSON")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    try:
        for event in yaml.parse(data, loader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            # To load what is deeper would overflow the parser's stack, aliases the memory.
            if depth > _DEEPEST or isinstance(event, yaml.AliasEvent):
                raise wrong(path, f"want YAML without aliases, at most {_DEEPEST} levels deep")
        return msgspec.convert(yaml.load(data, loader), _Report)  # noqa: S506 (a safe one)
    except msgspec.ValidationError as error:
        raise wrong(path, f"want GuideLLM's own keys and types: {error}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise wrong(path, f"want whole YAML: {' '.join(str(error).split())}") from None
