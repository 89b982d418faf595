"""Disaggregated serving: some replicas compute prompts, and hand their KV over to the others.

A request comes to the front end of the replica that will answer it. Its prompt is computed by the
prefill replica that has the fewest; then its KV goes over the network, and the replica that answers
computes the last token of the prompt again, which makes the first token of the answer. The network
adapters of a prefill replica send one request's KV after the other, each GPU its own share; the
blocks there are free as soon as the prompt is computed, which is a transfer too early.

Source of the flow: vllm-project/vllm, docs/features/disagg_prefill.md and the NIXL connector
(vllm/distributed/kv_transfer/kv_connector/v1/nixl_connector.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from servescope.engine import FS, Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servescope.engine.scheduler import Engine


class Transfer(NamedTuple):
    """What handing KV over takes."""

    token_s: float = 0.0
    """For each token of the prompt."""
    latency_s: float = 0.0


NO_TRANSFER = Transfer()


class Prefill:
    """Who computes which prompt, and when its KV has come over. Times are femtoseconds."""

    def __init__(self, engines: Sequence[Engine], transfer: Transfer) -> None:
        self.engines = engines
        self._token_fs = round(transfer.token_s * FS)
        self.latency_fs = round(transfer.latency_s * FS)
        """No KV comes over sooner."""
        self._free_fs = [0] * len(engines)
        """When all that each has sent is sent."""

    def begin(self, work: Work, owner: object) -> tuple[int, Work]:
        """A prompt is to be computed: by which replica, and as what work."""
        loads = [engine.waiting + engine.running for engine in self.engines]
        chosen = loads.index(min(loads))
        return chosen, Work(work.prompt, 1, owner, prompt_tokens=work.prompt_tokens)

    def end(self, replica: int, computed: Work, work: Work, now_fs: int) -> int:
        """It is computed: the work goes on with its KV; returns when that has come over."""
        work.brought_tokens = work.prompt_tokens
        work.cached_tokens = computed.cached_tokens
        sent_fs = max(now_fs, self._free_fs[replica]) + self._token_fs * work.prompt_tokens
        self._free_fs[replica] = sent_fs
        return sent_fs + self.latency_fs
