"""The load clients of the field that we are measured beside, one file each."""

from __future__ import annotations

from peers import aiperf, evalscope, guidellm, inference_perf, locust, sglang, vllm
from peers.peer import Load, Peer, Row, Skipped

PEERS = [
    vllm.RUST,
    sglang.RUST,
    vllm.PYTHON,
    aiperf.PEER,
    guidellm.PEER,
    inference_perf.PEER,
    evalscope.PEER,
    sglang.PYTHON,
    locust.PEER,
]

__all__ = ["PEERS", "Load", "Peer", "Row", "Skipped"]
