"""How long GPUs exchange results: all-reduces of tensor parallelism, hand-overs of stages."""

from __future__ import annotations

from typing import NamedTuple, Self

from servescope.catalog import Gpu
from servescope.catalog.gpus import index_of_2_4_8

_ONE_SHOT_LATENCY_S = (5e-6, 6.5e-6, 8e-6)
"""An all-reduce over 2, 4, 8 GPUs in one kernel, captured in a graph: 5 to 8 us in a study before
this project (docs/catalog.md)."""
_RING_LATENCY_S = (20e-6, 32e-6, 45e-6)
"""One by NCCL, launched eagerly: 20 to 45 us there."""
_TURN_S = 3.2e-6
"""Each further turn of a ring within its nodes: those 45 us are of 14 turns. NCCL reckons with 3.4
over NVLink (`hwLatencies` in NVIDIA/nccl, src/graph/tuning.cc)."""
_HAND_OVER_LATENCY_S = _RING_LATENCY_S[0] / 2
"""From one GPU to another: a ring of two is two of them."""


class Network(NamedTuple):
    """The link between nodes; by default Ethernet of 100 Gbit/s over TCP.

    NCCL's sockets are taken to reach a quarter of that, and to wait 150 us each time, as one
    published run suggests (docs/accuracy.md).
    """

    bytes_per_s: float = 3e9
    latency_s: float = 150e-6

    @classmethod
    def of(cls, bytes_per_s: float) -> Self:
        """One that reaches so much: beyond 100 Gbit/s it is taken to be RDMA, with NCCL's 14 us."""
        return cls(bytes_per_s) if bytes_per_s <= 12.5e9 else cls(bytes_per_s, 14e-6)


class Links:
    """Exchange among `tp` GPUs that stand in `nodes` nodes."""

    def __init__(self, gpu: Gpu, tp: int, nodes: int, network: Network, *, one_shot: bool) -> None:
        here = tp // nodes
        which = index_of_2_4_8(here)
        self._tp, self._here, self._nodes, self._network = tp, here, nodes, network
        self._bus_bytes_per_s = gpu.bus_bytes_per_s(here)
        self._ring_s, self._one_shot_s = _RING_LATENCY_S[which], _ONE_SHOT_LATENCY_S[which]
        self._one_shot = one_shot and gpu.nvlink_bytes_per_s > 0
        self._link_bytes_per_s = gpu.nvlink_bytes_per_s or gpu.pcie_bytes_per_s

    def all_reduce_s(self, size_bytes: float) -> float:
        """Seconds of one all-reduce.

        Within a node by ring, 2 (n - 1) / n of the bytes over the bus, or in one shot, where each
        reads all that the others have: less latency, more bytes, so the engine takes it while it
        is the shorter. Between N nodes, one ring joins all GPUs, of whose 2 (n - 1) turns 2 (N - 1)
        wait for the network, as NCCL reckons (`nInterSteps` in its src/graph/tuning.cc).
        """
        if self._tp == 1:
            return 0.0
        n, seconds = self._here, 0.0
        if n > 1:
            transfer = (n - 1) * size_bytes / self._bus_bytes_per_s
            seconds = self._ring_s + 2 / n * transfer
            if self._one_shot:
                seconds = min(seconds, self._one_shot_s + transfer)
        if self._nodes > 1:
            far = 2 * (self._nodes - 1)
            wait = far * self._network.latency_s + far * (n - 1) * _TURN_S
            slowest = min(self._network.bytes_per_s, self._bus_bytes_per_s)
            around = 2 * (self._tp - 1) / self._tp * size_bytes / slowest
            return wait + around + (self._ring_s if n > 1 else 0.0)
        return seconds

    def hand_over_s(self, size_bytes: float, *, between_nodes: bool) -> float:
        """Seconds of sending a stage's result to the next one."""
        if between_nodes:
            return self._network.latency_s + size_bytes / self._network.bytes_per_s
        return _HAND_OVER_LATENCY_S + size_bytes / self._link_bytes_per_s
