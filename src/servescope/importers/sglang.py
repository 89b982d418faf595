"""SGLang's bench_serving, in Python and in Rust."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import msgspec

from servescope.importers import Imported
from servescope.importers._reading import Keys, told

if TYPE_CHECKING:
    from servescope.importers import ImportedStage

_LATENCIES = {"ttft": "ttft_s", "tpot": "tpot_s", "itl": "icl_s", "e2e_latency": "e2e_s"}
_RATES = {
    "request_throughput": "requests_per_s",
    "output_throughput": "output_tokens_per_s",
    "total_throughput": "total_tokens_per_s",
}
_NATIVE = ("sglang", "sglang-native")
"""The backends of /generate: each chunk says how many tokens there are by then."""
_WINDOW = "over the time from the first request's task to the last one's end"
_DEFINITIONS = {
    "ttft_s": "first event with text - just before the request is handed to a new HTTP client, so"
    " setting up the connection is in it",
    "icl_s": "its 'ITL': the gaps between neighbouring events with text, whatever number of tokens"
    " each has",
    "itl_s": "its 'ITL': each gap between events split evenly over the tokens that came with it",
    "tpot_s": "(end of the stream - first event with text) / (output tokens - 1), one a request;"
    " with --output-details: to the last event with text",
    "e2e_s": "end of the stream - just before the request is handed to the HTTP client; with"
    " --output-details: its TTFT and the sum of its gaps, which is to the last event with text",
    "requests_per_s": f"answered requests {_WINDOW}",
    "output_tokens_per_s": f"output tokens of answered requests {_WINDOW}",
    "total_tokens_per_s": f"prompt and output tokens of answered requests {_WINDOW}",
    "concurrency": f"the sum of its end-to-end latencies of answered requests {_WINDOW}",
    "input_tokens": "as the data set meant it; with --output-details: as the server counted",
    "output_tokens": "as the server counted if asked to with each event, else what was asked for",
    "tokens_per_chunk": "output tokens / events with text",
}


class Sglang(msgspec.Struct, frozen=True, tag="sglang"):
    """A result of `python -m sglang.bench_serving --output-file`: one JSON object a line."""

    file: ClassVar[str] = "what sglang.bench_serving --output-file writes"

    def recognises(self, head: bytes, path: Path) -> bool:
        """By keys that stand first."""
        del path
        return b'"sharegpt_output_len"' in head and b'"backend"' in head

    def read(self, path: Path) -> Imported:
        """Each line is a stage. Raises BadInput where there is nothing to be read."""
        from servescope.importers import _bench  # noqa: PLC0415 (numpy)

        stages, notes = [], []
        for number, keys in enumerate(Keys.of(path), start=1):
            stage, requests = _bench.stage(path, keys, _LATENCIES, _RATES)
            mean = keys.number("concurrency")
            if mean is not None:
                stage.figures["concurrency"] = {"mean": mean}
            _token_true(keys, stage, detailed=requests is not None)
            stages.append(stage)
            wanted = ["completed", *_RATES, "mean_ttft_ms", "mean_itl_ms", "mean_e2e_latency_ms"]
            if missing := keys.lacking(wanted):
                notes.append(f"line {number}: {missing}")
            if requests is None:
                notes.append(f"line {number}: without --output-details failures are not counted")
        return Imported(
            tool="SGLang bench_serving",
            tool_version=None,
            name=path.stem,
            definitions=told(_DEFINITIONS, [stage.figures for stage in stages]),
            stages=stages,
            notes=notes,
        )


def _token_true(keys: Keys, stage: ImportedStage, *, detailed: bool) -> None:
    """Gaps of its native protocol are of tokens; so are those it printed after tokenizing again."""
    native = keys.word("backend") in _NATIVE
    again = bool(keys.number("accept_length")) and keys.word("backend").startswith("sglang-oai")
    gaps = stage.figures.get("icl_s")
    if gaps is not None and (native or (again and not detailed)):
        stage.figures["itl_s"] = gaps
        del stage.figures["icl_s"]
        if "tokens_per_chunk" in stage.figures:
            del stage.figures["tokens_per_chunk"]
