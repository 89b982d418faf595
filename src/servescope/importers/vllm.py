"""`vllm bench serve`, in Python and in Rust."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import msgspec

from servescope.importers import Imported
from servescope.importers._reading import Keys, told

_LATENCIES = {"ttft": "ttft_s", "tpot": "tpot_s", "itl": "icl_s", "e2el": "e2e_s"}
_RATES = {
    "request_throughput": "requests_per_s",
    "output_throughput": "output_tokens_per_s",
    "total_token_throughput": "total_tokens_per_s",
    "request_goodput": "goodput_requests_per_s",
}
_WINDOW = "over the time from the first request's task to the last one's end"
_DEFINITIONS = {
    "ttft_s": "first event of the answer - just before the request is handed to the HTTP client, so"
    " setting up a connection is in it; for chat the event with only the role counts as first",
    "icl_s": "its 'ITL': the gaps between neighbouring events, whatever number of tokens each has",
    "itl_s": "its 'ITL', the gaps between events; here each had one token",
    "tpot_s": "(last event - first event) / (output tokens - 1), one a request",
    "e2e_s": "last event with a choice - just before the request is handed to the HTTP client",
    "requests_per_s": f"answered requests {_WINDOW}",
    "output_tokens_per_s": f"output tokens of answered requests {_WINDOW}",
    "total_tokens_per_s": f"prompt and output tokens of answered requests {_WINDOW}",
    "goodput_requests_per_s": f"answered requests that meet its --goodput {_WINDOW}",
    "input_tokens": "as the server counted, else as the data set meant it",
    "output_tokens": "as the server counted, else its tokenizer on the answer's text",
    "tokens_per_chunk": "output tokens / events with a choice, the one with only the role too",
}


class Vllm(msgspec.Struct, frozen=True, tag="vllm"):
    """A result of `vllm bench serve`: one JSON object, or with --append-result one a line."""

    file: ClassVar[str] = "what vllm bench serve --save-result writes"

    def recognises(self, head: bytes, path: Path) -> bool:
        """By keys that stand first."""
        del path
        return b'"tokenizer_id"' in head and b'"num_prompts"' in head and b'"backend"' in head

    def read(self, path: Path) -> Imported:
        """Each object is a stage. Raises BadInput where there is nothing to be read."""
        from servescope.importers import _bench  # noqa: PLC0415 (numpy)

        stages, notes = [], []
        for number, keys in enumerate(Keys.of(path), start=1):
            stage, requests = _bench.stage(path, keys, _LATENCIES, _RATES)
            stages.append(stage)
            wanted = ["completed", "failed", *list(_RATES)[:3], "mean_ttft_ms", "mean_itl_ms"]
            if missing := keys.lacking(wanted):
                notes.append(f"object {number}: {missing}")
            early = requests.without_token() if requests else 0
            if early:
                notes.append(
                    f"object {number}: {early} answers had one event more than tokens (that with "
                    "only the role): the TTFT is until it, and the gap after it is among the others"
                )
        return Imported(
            tool="vllm bench serve",
            tool_version=None,
            name=path.stem,
            definitions=told(_DEFINITIONS, [stage.figures for stage in stages]),
            stages=stages,
            notes=notes,
        )
