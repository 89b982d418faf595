"""How long a step takes, from first principles: each operator's operations and bytes.

A matrix product takes `(compute^p + memory^p)^(1/p) + launch`, where compute is its operations over
the reachable share of the GPU's peak, memory its bytes over that of its bandwidth, and p the
sharpness of the bend between them. Attention in prefill is bound by compute, in decode by memory.
Beside the device works the host, which launches layers and prepares steps. The formulas and their
constants come from a study before this project (docs/catalog.md); constants live in the catalogue.

All that depends on a step's tokens alone is computed once for each number of tokens, so that a step
costs a few operations, and so does a whole run of equal decode steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import fsum
from typing import TYPE_CHECKING, NamedTuple

from servescope.catalog import Gpu, Model, Overheads
from servescope.catalog.models import kv_element_bytes, weight_bytes_each
from servescope.engine import FS
from servescope.engine.costs.links import Links, Network
from servescope.engine.lines import Lines, upper
from servescope.errors import BadInput

if TYPE_CHECKING:
    from servescope.engine import Step

NODE_GPUS = 8
"""In a machine, at most: HGX and DGX boards have as many on one NVLink switch."""
_SMALL_KERNELS_S = 6 * 2e-6
"""Norms, rotary embedding, activation and residuals of a layer: six kernels of at least 2 us."""
_ROUTING_S = 4 * 2e-6
"""Choosing experts, sorting tokens by them (two kernels) and adding their results up, likewise:
`fused_experts` in vllm-project/vllm, vllm/model_executor/layers/fused_moe/fused_moe.py."""
_QUANTIZE_S = 3.4e-6
"""Launching the kernel that quantizes the input of an 8-bit product: what those tables of vLLM and
SGLang have it take at least (docs/catalog.md)."""
_UNPACKING = 0.040
"""Weights that are unpacked to 16 bits on their way (AWQ and GPTQ; fp8 where the GPU has no tensor
cores for it) cost this many operations of the vector cores for each of the tensor cores: some 2.6
instructions a weight, for every 64 rows that it is multiplied with, between those of the tensor
cores. Fitted on two durations of GPUStack's, vLLM with AWQ and with FP8 on an A100 over that in
fp16: 0.65 of other products' speed there (docs/accuracy.md)."""


_TILE_QUERIES, _TILE_KEYS = 64, 128
"""What FlashAttention 2 takes of queries and keys at once where the cache is paged, with heads of
128 (kBlockM, kBlockN in flash_fwd_launch_template.h). A launch for decodes alone packs the query
heads of a KV head into one such tile. Where one launch serves prompts and decodes, each head's one
query has a tile of its own, over whole tiles of keys, half of one more on average."""


class Part(NamedTuple):
    """Seconds of one operator, by what they were spent on."""

    operator: str
    compute: float = 0.0
    hbm_weights: float = 0.0
    """Reading weights, reading and writing activations."""
    hbm_kv: float = 0.0
    interconnect: float = 0.0
    host: float = 0.0
    """Launches, and what the host does while the device waits."""

    @property
    def seconds(self) -> float:
        """Altogether."""
        return self.compute + self.hbm_weights + self.hbm_kv + self.interconnect + self.host


RESOURCES = Part._fields[1:]


class Parts(NamedTuple):
    """The same seconds split twice."""

    operators: dict[str, float]
    resources: dict[str, float]


class Roofline:
    """Step times of a model on GPUs under an engine.

    `weights` and `kv_dtype` are formats (fp16, bf16, fp8, int8, int4; fp16, fp8). With `pp` stages
    the engine keeps `pp` batches in flight, so a step of everything takes what the pass of one
    batch, a `pp`-th of it, takes through all stages. Nodes are filled stage by stage.
    Raises BadInput naming `dtype`, `kv_dtype`, `tp`, `pp` or `nodes`.
    """

    def __init__(
        self,
        model: Model,
        gpu: Gpu,
        overheads: Overheads,
        *,
        weights: str = "fp16",
        kv_dtype: str = "fp16",
        tp: int = 1,
        pp: int = 1,
        nodes: int = 1,
        network: Network = Network(),  # noqa: B008 (a constant)
    ) -> None:
        _check(model, tp, pp, nodes)
        tp_nodes = max(1, nodes // pp)
        self.model, self._tp, self._pp = model, tp, pp
        self._links = Links(gpu, tp, tp_nodes, network, one_shot=overheads.one_shot)
        self._hand_overs = (min(nodes, pp) - 1, pp - min(nodes, pp))
        """Between nodes and within them."""
        reach, dtype = gpu.efficiency, gpu.computes_in(weights)
        self._sharpness = reach.sharpness
        self._gemm_flops_per_s = reach.gemm(dtype) * gpu.flops_per_s[dtype]
        if dtype == "fp16" and weight_bytes_each(weights) < 2:
            unpacking = _UNPACKING * self._gemm_flops_per_s / gpu.vector_flops_per_s
            self._gemm_flops_per_s /= 1 + unpacking
        self._hbm_bytes_per_s = reach.hbm * gpu.hbm_bytes_per_s
        self._weight_bytes, self._input_bytes = (
            weight_bytes_each(weights),
            2 if dtype == "fp16" else 1,
        )
        self._kv_bytes = model.kv_elements(tp) * kv_element_bytes(kv_dtype)
        self._quantized_bytes = 0.0 if dtype == "fp16" else reach.fp8_input_bytes
        self._launch_s = reach.launch_s
        self._launches_s = reach.launch_s * model.layers
        """Of one operator in all layers."""

        attention_flops_per_s = reach.prefill_attention * gpu.flops_per_s["fp16"]
        prefill, decode = _attention_flops(model, tp)
        self._pair_s = model.layers / pp * prefill / attention_flops_per_s
        by_memory = self._kv_bytes / (reach.decode_attention * gpu.hbm_bytes_per_s)
        by_compute = decode / attention_flops_per_s
        self._decode_by_compute = by_compute > by_memory
        slower = model.layers / pp * overheads.decode_attention
        self._context_s = slower * max(by_memory, by_compute)
        unpacked = overheads.one_kernel and not reach.packs_heads and model.mla is None
        more_tiles = 1 - model.kv_heads / model.heads if unpacked else 0.0
        self._tile_s = more_tiles * _TILE_QUERIES * self._pair_s
        """Added in a step with prompts, for a token that a decode attends to."""
        head = 2 * model.hidden * model.vocab / tp  # 16-bit weights: as many bytes as operations
        self._logit_s = head / (reach.compute * gpu.flops_per_s["fp16"])
        self._head_s = head / self._hbm_bytes_per_s

        self._layers_host_s = overheads.layer_s * model.layers
        self._step_s = overheads.step_s + (overheads.tp_step_s if tp > 1 else 0.0)
        self._sequence_s = overheads.sequence_s + (overheads.tp_sequence_s if tp > 1 else 0.0)
        self._prompt_s = overheads.prompt_s
        self._hidden = overheads.hidden
        self._by_tokens: dict[int, float] = {}
        self._by_batch: dict[int, Lines] = {}

    def duration_s(
        self,
        tokens: int,
        sequences: int,
        pairs: float,
        context: float,
        sampled: int,
        *,
        prompts: int = 0,
    ) -> float:
        """Seconds of a step.

        `tokens` computed in it, prompts' and one for each decode; `sequences` in the batch;
        `pairs` of a prompt token and a token that it sees; `context` tokens that decodes attend
        to, together; `sampled` sequences that get a token, of which `prompts` their first.
        """
        return self._whole_s(self._device_s(tokens, pairs, context, sampled), sequences, prompts)

    def step(self, batch: Step) -> int:
        """Femtoseconds of a step of an engine."""
        whole, decoding = 0, batch.decoding
        for work in batch.prompts:
            if work.computed == work.prompt_tokens + work.made:
                whole += 1
        tokens = batch.prefill_tokens + batch.padding_tokens + decoding
        device = self._device_s(tokens, batch.pairs, batch.context + decoding, whole + decoding)
        return round(FS * self._whole_s(device, decoding + len(batch.prompts), whole))

    def decode(self, decoding: int) -> Lines:
        """A step that only decodes, as lines over the tokens that are attended to: the larger of
        device and host counts, and of the smaller one what is not hidden."""
        lines = self._by_batch.get(decoding)
        if lines is None:
            device = self._device_s(decoding, 0, 0, decoding)
            device += self._launches_s
            host, shown, least = self._host_s(decoding), 1 - self._hidden, self._layers_host_s
            found = (
                (device + shown * host, self._context_s),
                (host + shown * device, shown * self._context_s),
                (max(least + shown * host, host + shown * least), 0.0),
            )
            lines = upper([(round(FS * start), round(FS * slope)) for start, slope in found])
            self._by_batch[decoding] = lines
        return lines

    def parts(
        self, tokens: int, sequences: int, pairs: float, context: float, sampled: int
    ) -> Parts:
        """The seconds of `duration_s` by operator and by resource; each adds up to them.

        A product's time is shared between compute and memory as its elasticities to them are. Host
        is what the step takes longer than the device works.
        """
        found = list(self._parts(tokens, pairs, context, sampled))
        whole = self.duration_s(tokens, sequences, pairs, context, sampled)
        found.append(Part("host", host=whole - sum(part.seconds for part in found)))
        operators: dict[str, float] = {}
        for part in found:
            operators[part.operator] = operators.get(part.operator, 0.0) + part.seconds
        resources = {name: sum(getattr(part, name) for part in found) for name in RESOURCES}
        return Parts(operators, resources)

    def _whole_s(self, device_s: float, sequences: int, prompts: int) -> float:
        """With what the host adds to it."""
        busy = max(device_s, self._layers_host_s)
        host = self._host_s(sequences) + self._prompt_s * prompts
        return busy + host - self._hidden * min(host, busy)

    def _host_s(self, sequences: int) -> float:
        return self._step_s + self._sequence_s * -(-sequences // self._pp)

    def _device_s(self, tokens: int, pairs: float, context: float, sampled: int) -> float:
        seconds = self._by_tokens.get(tokens)
        if seconds is None:
            # Python 3.12 adds floats up otherwise than 3.11: this is the same everywhere.
            seconds = fsum(part.seconds for part in self._by_token_count(tokens))
            self._by_tokens[tokens] = seconds
        if pairs:
            seconds += self._pair_s * pairs + self._launches_s
        if context:
            seconds += self._context_s * context + self._launches_s
            if pairs:
                seconds += self._tile_s * (context + _TILE_KEYS / 2 * sampled)
        if sampled:
            logits = self._logit_s * -(-sampled // self._pp)
            seconds += max(logits, self._head_s)
        return seconds

    def _parts(self, tokens: int, pairs: float, context: float, sampled: int) -> Iterator[Part]:
        """The device's work."""
        yield from self._by_token_count(tokens)
        launches = self._launches_s
        if pairs:
            yield Part("attention_prefill", compute=self._pair_s * pairs, host=launches)
        if context:
            seconds = self._context_s * context
            tiles = self._tile_s * (context + _TILE_KEYS / 2 * sampled) if pairs else 0.0
            if self._decode_by_compute:
                yield Part("attention_decode", compute=seconds + tiles, host=launches)
            else:
                yield Part("attention_decode", compute=tiles, hbm_kv=seconds, host=launches)
        if sampled:
            logits = self._logit_s * -(-sampled // self._pp)
            if logits > self._head_s:
                yield Part("lm_head", compute=logits)
            else:
                yield Part("lm_head", hbm_weights=self._head_s)

    def _by_token_count(self, tokens: int) -> Iterator[Part]:
        """What depends on the number of tokens alone: of all layers, and between stages."""
        tokens = -(-tokens // self._pp)
        model, tp, vector = self.model, self._tp, 2 * tokens * self.model.hidden
        *inner, output = model.attention_shapes(tp)
        for shape in inner:
            yield self._gemm("qkv", model.layers, tokens, shape)
        yield self._gemm("output", model.layers, tokens, output)
        yield from self._feed_forward("ffn", model.dense_layers, tokens, model.ffn)
        if model.experts:
            yield from self._feed_forward("experts", model.moe_layers, tokens, model.shared_ffn)
            yield self._gemm("experts", model.moe_layers, tokens, (model.experts, model.hidden))
            yield from self._routed(tokens)

        active = model.experts_per_token * model.expert_ffn + model.shared_ffn
        width = (model.dense_layers * model.ffn + model.moe_layers * active) / model.layers
        small = tokens * (14 * model.hidden + 6 * width / tp) / self._hbm_bytes_per_s
        yield Part("norms", hbm_weights=model.layers * small, host=model.layers * _SMALL_KERNELS_S)
        written = tokens * self._kv_bytes / self._hbm_bytes_per_s
        yield Part("kv_write", hbm_kv=model.layers * written)
        if tp > 1:
            seconds = 2 * model.layers * self._links.all_reduce_s(vector)
            yield Part("all_reduce", interconnect=seconds)
        if self._pp > 1:
            far, near = self._hand_overs
            seconds = far * self._links.hand_over_s(vector, between_nodes=True)
            seconds += near * self._links.hand_over_s(vector, between_nodes=False)
            yield Part("hand_over", interconnect=seconds)

    def _feed_forward(
        self, operator: str, layers: int, tokens: float, width: int, copies: float = 1.0
    ) -> Iterator[Part]:
        """Gate and up as one product, then down; each row in one of some copies."""
        if layers and width:
            hidden, share = self.model.hidden, width / self._tp
            into = (self.model.ffn_matrices - 1) * share
            yield self._gemm(operator, layers, tokens, (into, hidden), copies)
            yield self._gemm(operator, layers, tokens, (hidden, share), copies)

    def _routed(self, tokens: int) -> Iterator[Part]:
        """Routed experts: the work of those that each token chooses, the bytes of all chosen ones.

        Of E experts, T tokens that choose k each touch E (1 - (1 - k/E)^T), if they choose evenly.
        """
        model, chosen = self.model, self.model.experts_per_token
        touched = model.experts * (1 - (1 - chosen / model.experts) ** tokens)
        rows = tokens * chosen
        added = 2 * (rows + tokens) * model.hidden / self._hbm_bytes_per_s
        host = model.moe_layers * _ROUTING_S
        yield Part("experts", hbm_weights=model.moe_layers * added, host=host)
        yield from self._feed_forward("experts", model.moe_layers, rows, model.expert_ffn, touched)

    def _gemm(
        self,
        operator: str,
        layers: int,
        rows: float,
        shape: tuple[float, float],
        copies: float = 1.0,
    ) -> Part:
        """In each layer, `rows` vectors times one of `copies` matrices of (outputs, inputs)."""
        n, k = shape
        in_out = rows * (self._input_bytes * k + 2 * n)
        compute = 2 * rows * n * k / self._gemm_flops_per_s
        memory = (self._weight_bytes * copies * n * k + in_out) / self._hbm_bytes_per_s
        p = self._sharpness
        share = 1 / (1 + (memory / compute) ** p)
        seconds = layers * compute * share ** (-1 / p)
        quantized = layers * self._quantized_bytes * rows * k / self._hbm_bytes_per_s
        launches = self._launch_s + (_QUANTIZE_S if self._quantized_bytes else 0.0)
        return Part(
            operator,
            compute=seconds * share,
            hbm_weights=seconds * (1 - share) + quantized,
            host=layers * launches,
        )


def _attention_flops(model: Model, tp: int) -> tuple[float, float]:
    """Operations on one of `tp` GPUs for a query and a key in prefill, and in decode; per layer.

    MLA's decode attends in the latent space, with one key for all heads ('absorbed').
    """
    heads, mla = model.heads / tp, model.mla
    if mla is None:
        return 4 * heads * model.head_dim, 4 * heads * model.head_dim
    prefill = 2 * heads * (mla.nope_dim + mla.rope_dim + mla.value_dim)
    return prefill, 2 * heads * (2 * mla.kv_rank + mla.rope_dim)


def _check(model: Model, tp: int, pp: int, nodes: int) -> None:
    for name, value in (("tp", tp), ("pp", pp), ("nodes", nodes)):
        if value < 1:
            raise BadInput(name, value, f"want {name} to be 1 or more")
    if model.heads % tp:
        raise BadInput("tp", tp, f"want a divisor of the {model.heads} heads of {model.name}")
    if pp > model.layers:
        raise BadInput("pp", pp, f"want at most {model.layers}, the layers of {model.name}")
    if max(nodes, pp) % min(nodes, pp) or tp % max(1, nodes // pp):
        raise BadInput("nodes", nodes, f"want tp={tp} and pp={pp} to be spread over them evenly")
    if tp * pp > NODE_GPUS * nodes:
        want = f"want nodes={-(-tp * pp // NODE_GPUS)} or more: one has {NODE_GPUS} GPUs at most"
        raise BadInput("nodes", nodes, want)
