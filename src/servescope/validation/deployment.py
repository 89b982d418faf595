"""A deployment by the catalogue's names, with lengths and times of arrival run through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from servescope import catalog
from servescope.catalog import Overheads
from servescope.engine.config import EngineConfig
from servescope.engine.costs import Network, Roofline, kv_tokens
from servescope.engine.front_end import NO_FRONT_END, FrontEndCost
from servescope.engine.policies import policy
from servescope.engine.replay import replay
from servescope.plan.error_bars import nearest

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from servescope.engine import Step
    from servescope.engine.cost import Cost
    from servescope.engine.scheduler import Engine

_TURNAROUND_S = 1e-3
"""From an answer to the next request of its user, and from a client to a server and back."""


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """An engine, a model and GPUs, with the limits that the source gives."""

    engine: str
    model: str
    gpu: str
    tp: int = 1
    pp: int = 1
    nodes: int = 1
    replicas: int = 1
    network: Network = Network()
    weights: str = "fp16"
    kv_dtype: str = "fp16"
    utilization: float = 0.9
    """Of the memory: with `of_rest` of what weights and activations leave, else of all."""
    of_rest: bool = False
    kv_tokens: int | None = None
    """As the engine reported it; None: reckoned."""
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    """None: as the policy has them by default."""
    max_model_len: int = 4096
    prefix_cache: bool = False
    has_server: bool = True
    """Whether requests came through the engine's front end, or from a benchmark beside it."""
    overheads: Overheads | None = None
    """None: the catalogue's."""
    efficiency: dict[str, float] = {}
    """Constants of the GPU to be used instead of the catalogue's."""

    @property
    def software(self) -> Overheads:
        """What the engine's software takes."""
        return self.overheads or catalog.engine(self.engine)

    @property
    def like(self) -> str:
        """The class of deployment that its error bars are of."""
        model, gpu = catalog.model(self.model), catalog.gpu(self.gpu)
        return nearest(model, gpu, tp=self.tp, pp=self.pp, weights=self.weights)

    def cost(self) -> Roofline:
        """What its steps cost."""
        gpu = catalog.gpu(self.gpu)
        reach = msgspec.structs.replace(gpu.efficiency, **self.efficiency)
        return Roofline(
            catalog.model(self.model),
            msgspec.structs.replace(gpu, efficiency=reach),
            self.software,
            weights=self.weights,
            kv_dtype=self.kv_dtype,
            tp=self.tp,
            pp=self.pp,
            nodes=self.nodes,
            network=self.network,
        )

    def capacity_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        if self.kv_tokens is not None:
            return self.kv_tokens
        model, kind = catalog.model(self.model), policy(self.engine)
        memory = catalog.gpu(self.gpu).memory_bytes
        tokens = self.max_num_batched_tokens or min(kind.max_num_batched_tokens, 8192)
        sequences = self.max_num_seqs or min(kind.max_num_seqs, 2048)
        active = model.activation_bytes(tokens, sequences, self.tp)
        if self.engine == "sglang":  # its share is for weights and cache; the rest is theirs
            active = 0.0
        if self.of_rest:
            held = (1 - self.utilization) * model.weight_bytes(self.weights, self.tp, self.pp)
            active = self.utilization * active - held
        return kv_tokens(
            model,
            memory,
            utilization=self.utilization,
            weights=self.weights,
            kv_dtype=self.kv_dtype,
            tp=self.tp,
            pp=self.pp,
            activation_bytes=active,
        )

    def engines(self, cost: Cost | None = None) -> list[Engine]:
        """Fresh engines, one a replica, that share a cost."""
        kind = policy(self.engine)
        tokens = self.max_num_batched_tokens or min(kind.max_num_batched_tokens, 1 << 30)
        config = EngineConfig(
            kv_tokens=self.capacity_tokens(),
            block_tokens=kind.block_tokens,
            max_num_seqs=self.max_num_seqs or min(kind.max_num_seqs, tokens),
            max_num_batched_tokens=tokens,
            max_model_len=self.max_model_len,
            prefix_cache=self.prefix_cache,
        )
        cost = cost or self.cost()
        return [kind(config, cost) for _ in range(self.replicas)]

    def serve(
        self,
        prompt_tokens: ArrayLike,
        output_tokens: ArrayLike,
        *,
        arrivals_s: ArrayLike | None = None,
        users: int | None = None,
        most_tokens: ArrayLike | None = None,
    ) -> Served:
        """Have it serve requests that arrive at these times, or all at once, or from `users`."""
        prompts, outputs = np.asarray(prompt_tokens, int), np.asarray(output_tokens, int)
        if users is None and arrivals_s is None:
            arrivals_s = np.zeros(len(prompts))
        cost, software = _Counting(self.cost()), self.software
        front_end = FrontEndCost(software.request_s, software.token_s)
        found = replay(
            self.engines(cost),
            prompts,
            outputs,
            arrivals_s=arrivals_s,
            users=users,
            most_tokens=most_tokens,
            front_end=front_end if self.has_server else NO_FRONT_END,
            turnaround_s=_TURNAROUND_S if self.has_server else 1e-9,
        )
        return Served(
            sent_s=found.sent_s,
            first_s=found.first_s,
            end_s=found.end_s,
            prompts=prompts,
            outputs=outputs,
            steps=found.totals.steps,
            prompt_steps=cost.prompt_steps,
            prompt_s=found.prompt_s,
            decode_s=found.decode_s,
        )


@dataclass(frozen=True, slots=True)
class Served:
    """What came of a workload: a column a request, and where the time went."""

    sent_s: NDArray[np.float64]
    first_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    prompts: NDArray[np.int64]
    outputs: NDArray[np.int64]
    steps: int
    prompt_steps: int
    prompt_s: float
    decode_s: float

    @property
    def makespan_s(self) -> float:
        """From the first request sent to the last token."""
        return float(self.end_s.max() - self.sent_s.min())

    @property
    def e2e_s(self) -> NDArray[np.float64]:
        """Of each request, from sending to its last token."""
        return self.end_s - self.sent_s

    @property
    def ttft_s(self) -> NDArray[np.float64]:
        """Of each request, to its first token."""
        return self.first_s - self.sent_s

    @property
    def tpot_s(self) -> NDArray[np.float64]:
        """Of each request with two tokens or more, the mean time of those after the first."""
        more = self.outputs > 1
        gaps: NDArray[np.float64] = (self.end_s - self.first_s)[more] / (self.outputs[more] - 1)
        return gaps

    @property
    def output_rate(self) -> float:
        """Output tokens a second."""
        return float(self.outputs.sum()) / self.makespan_s


class _Counting:
    """A cost that counts steps with prompts: a replay tells their time, not their number."""

    def __init__(self, cost: Cost) -> None:
        self._cost = cost
        self.prompt_steps = 0
        self.decode = cost.decode

    def step(self, batch: Step) -> int:
        """As its cost has it."""
        self.prompt_steps += 1
        return self._cost.step(batch)


def percentile(values: Sequence[float] | NDArray[np.float64], percent: float) -> float:
    """The percentile as numpy and the sources' own tools have it, linear between ranks."""
    return float(np.percentile(np.asarray(values), percent))
